"""What the parties say to each other, and what each refuses to believe."""

import base64
import json
import os
from dataclasses import replace

import numpy as np
import pytest

from reluctant.engines.party import Voice
from reluctant.engines.session import Session, Talk, _read_share, _read_traffic, suitable_batch
from reluctant.engines.settings import CLIENT, SERVER, Settings
from reluctant.engines.spu import Traffic
from reluctant.engines.watching import ALONE
from reluctant.errors import EngineError, UsageError


class FakeLink:
    """Gives the messages it was made with, and keeps what was sent."""

    def __init__(self, *messages):
        self.messages, self.sent = list(messages), []

    def recv(self, rank):
        return self.messages.pop(0)

    def send(self, rank, text):
        self.sent.append(text)


def talk(*messages):
    return Talk(FakeLink(*messages), CLIENT)


@pytest.mark.parametrize(
    "message",
    [b"\x80\x04N.", b"{", b"[1]", b"5", b'{"images": "4"}', b'{"images": true}', b"{}", b"[" * 100_000, b"\xff\xfe"],
)
def test_what_is_not_as_agreed_is_refused(message):
    with pytest.raises(EngineError, match="the server sent no 'images' of type int"):
        talk(message).receive(SERVER, images=int)


def test_refusal_of_the_other_party_is_passed_on():
    with pytest.raises(EngineError, match="the server refused: no such thing"):
        talk(json.dumps({"refusal": "no such thing"}).encode()).receive(SERVER, images=int)


def test_who_refuses_says_why_at_home_first():
    """The others leave as soon as they hear it, and then sending may hang."""
    link = FakeLink()
    heard = []
    Talk(link, CLIENT, leave=lambda error: heard.append((str(error), list(link.sent)))).refuse(UsageError("too large"))
    assert heard == [("too large", [])]
    assert link.sent == ['{"refusal": "too large"}']


def test_a_party_that_left_did_not_lose_the_others(capsys, monkeypatch):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    voice = Voice()
    voice.leave(UsageError("too large"))
    voice.end(EngineError("the server broke off"), ALONE)
    (said,) = capsys.readouterr().out.splitlines()
    assert json.loads(said) == {"event": "error", "kind": "UsageError", "message": "too large"}
    assert codes == [2]


def test_what_is_said_is_counted():
    one = talk(b'{"images": 4}')
    one.send({"a": 1})
    assert one.receive(SERVER, images=int) == {"images": 4}
    said = one.take()
    assert (said.sent, said.received, said.messages) == (len('{"a": 1}'), len('{"images": 4}'), 2)
    assert one.take().bytes == 0


def make_session(rank, *messages):
    link = FakeLink(*(json.dumps(message).encode() for message in messages))
    return Session(rank, link, None, Settings(18), lambda *_: None), link


SETTINGS = {"fraction_bits": 18, "protocol": "CHEETAH", "transfers": "ferret", "version": 2}


def test_parties_with_other_settings_do_not_start(small_program):
    session, _ = make_session(0, {"settings": SETTINGS | {"fraction_bits": 20}})
    with pytest.raises(EngineError, match=r"differ in their settings: .*18.* here, .*20.* there"):
        session.serve(small_program)


@pytest.mark.parametrize(("images", "batch"), [(0, 1), (1, 0), (-4, 2), (1 << 40, 1), (1, 1 << 40)])
def test_server_refuses_absurd_wishes(small_program, images, batch):
    session, link = make_session(0, {"settings": SETTINGS}, {"images": images, "batch": batch})
    with pytest.raises(EngineError, match="the client asks for"):
        session.serve(small_program)
    assert "refusal" in json.loads(link.sent[-1])


def test_server_sends_no_number_of_its_own(small_program):
    session, link = make_session(0, {"settings": SETTINGS}, {"images": 0, "batch": 1})
    with pytest.raises(EngineError):
        session.serve(small_program)
    text = "".join(link.sent)
    for array in small_program.arrays.values():
        for number in array.reshape(-1):
            assert repr(float(number))[:8] not in text


def test_client_refuses_a_program_that_is_none(small_images):
    session, link = make_session(1, {"settings": SETTINGS}, {"program": {"format": 1}})
    with pytest.raises(Exception, match="the other party's program is not valid"):
        session.query(small_images, 1)
    assert "refusal" in json.loads(link.sent[-1])


class FakeShare:
    def __init__(self, meta, *chunks):
        self.meta, self.share_chunks = meta, list(chunks)


def encoded(*parts):
    return [base64.b64encode(part).decode() for part in parts]


@pytest.mark.parametrize(
    ("meta", "chunks", "words"),
    [
        ("%%%", encoded(b"1234"), "not base64"),
        (encoded(b"meta")[0], [5], "not base64"),
        (encoded(b"other")[0], encoded(b"1234"), "another form"),
        (encoded(b"meta")[0], encoded(b"12345"), "another form"),
        (encoded(b"meta")[0], encoded(b"1234", b"5"), "another form"),
    ],
)
def test_share_of_another_form_is_refused(meta, chunks, words):
    pytest.importorskip("spu")
    with pytest.raises(EngineError, match=words):
        _read_share({"meta": meta, "chunks": chunks}, FakeShare(b"meta", b"1234"), "server")


def test_batch_suits_the_memory(small_program):
    assert suitable_batch(small_program) == 16


def test_client_sends_no_image_outside_of_the_range_that_was_checked(small_program, small_images):
    """It is refused before anything of it is shared, and the server is told no value of it."""
    program = replace(small_program, input_range=(-10.0, 2.25))
    session, link = make_session(1, {"settings": SETTINGS}, {"program": program.public()})
    images = np.clip(small_images, -2, 2)
    images[1, 2, 3, 4] = 2.625
    with pytest.raises(UsageError, match=r"values outside of \[-10, 2\.25\], for which .* was checked; normalise"):
        session.query(images, None)
    assert [sorted(json.loads(text)) for text in link.sent] == [["settings"], ["refusal"]]
    assert "2.6" not in "".join(link.sent)


def traffic(sent, received, messages=1):
    return {"traffic": [[sent, received, messages]]}


def pool(mine, *theirs):
    """What the client makes of its own count and those of a server and a helper."""
    link = FakeLink(*(json.dumps(message).encode() for message in theirs))
    session = Session(CLIENT, link, None, Settings(18, "ABY3"), lambda *_: None)
    return session._pool(Talk(link, CLIENT, 3), [mine])


def test_counts_of_all_parties_are_added_up():
    mine = Traffic(sent=10, received=7, messages_sent=2, messages_received=9, seconds=0.5)
    (pooled,) = pool(mine, traffic(20, 5), traffic(4, 22, 6))
    assert (pooled.bytes, pooled.messages, pooled.seconds) == (34, 9, 0.5)


def test_counts_that_do_not_add_up_are_an_error():
    with pytest.raises(EngineError, match="count differently: 34 bytes sent, 35 received"):
        pool(Traffic(sent=10, received=7), traffic(20, 5), traffic(4, 23))


@pytest.mark.parametrize(
    "parts", [[], [[1, 2]], [[1, 2, 3], [1, 2, 3]], [5], [["1", 2, 3]], [[-1, 2, 3]], [[True, 2, 3]]]
)
def test_counts_of_another_form_are_refused(parts):
    with pytest.raises(EngineError, match="the helper sent counts of another form"):
        _read_traffic(parts, 1, "helper")
