"""What every engine promises, whatever protocol it speaks, and what is seen when a party, the link or the disk fails.

One error of one line, in seconds, and nothing left behind.
"""

import itertools
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from functools import cache

import numpy as np
import pytest
import torch
from engines.small import masked_small, parties
from torch import nn

from reluctant.engines import ENGINES, memory
from reluctant.engines.ckks import SESSION
from reluctant.engines.meeting import free_ports, meet, open_link
from reluctant.engines.on_spu import SpuEngine
from reluctant.engines.parties import Place, _run_alone, assist, query, serve
from reluctant.engines.party import Order
from reluctant.engines.settings import ROLES
from reluctant.engines.twin import Twin
from reluctant.errors import EngineError, ReluctantError, ShapeError, UnsupportedOperation, UsageError
from reluctant.program.collapse import straighten
from reluctant.program.lower import lower
from reluctant.program.ops import Program
from reluctant.secure import secure_run

#: Engines whose parties are processes.
JOINED = [name for name in ENGINES.names() if ENGINES[name].security.parties > 1]

#: Those that run on SPU, so that each party can be started on its own.
ON_SPU = [name for name in ENGINES.names() if issubclass(ENGINES[name], SpuEngine)]

#: Those that compute on the twin's numbers.
WITH_TWIN = [name for name in ENGINES.names() if ENGINES[name].has_twin]

#: Largest difference of an output from the twin's: each truncation is off by one in the last of 18 bits, sometimes.
TOLERANCE = 1e-3

every = pytest.mark.parametrize("name", ENGINES.names())
joined = pytest.mark.parametrize("name", JOINED)
#: What happens when something breaks is decided by how parties are joined, and SEMI2K's are as ABY3's.
breaking = pytest.mark.parametrize("name", [name for name in JOINED if name != "semi2k"])
on_spu = pytest.mark.parametrize("name", ON_SPU)
with_twin = pytest.mark.parametrize("name", WITH_TWIN)
secure = pytest.mark.secure


@cache
def program_for(name):
    """A small network with 26 and 64 of its ReLUs; without any, for an engine that evaluates polynomials only."""
    return lower(masked_small((0.1, 0.25) if ENGINES[name].has_twin else (0.0, 0.0)))


def roles_of(name):
    return ROLES[: ENGINES[name].security.parties]


@pytest.fixture
def program(name):
    return program_for(name)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def runs(images):
    """Each engine's run of the small network, four images in two batches, made once."""
    made = {}

    def get(name):
        if name not in made:
            program = program_for(name)
            before = {key: array.copy() for key, array in program.arrays.items()}
            made[name] = ENGINES[name]().run(program, images, batch=2), before
        return made[name]

    return get


@pytest.fixture
def nothing_starts(monkeypatch):
    def start(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr("subprocess.Popen", start)


@pytest.fixture
def nothing_left(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    assert list(tmp_path.iterdir()) == []
    assert parties() == {}


@every
def test_it_says_what_it_promises(name):
    engine, promise = ENGINES[name](), ENGINES[name].security
    assert engine.name == name
    assert promise.statement.startswith("Private" if promise.private else "Not private")
    assert promise.statement.endswith(".")
    assert (promise.adversary == "none") == (not promise.private)
    assert promise.label == (promise.adversary if promise.private else "NOT PRIVATE")
    assert promise.parties >= (2 if promise.private else 1)
    assert promise.dealer == "none" or not promise.private
    if promise.private:
        assert promise.offline_included
        for word in ("semi-honest", "Public", "deviates", "learns"):
            assert word in promise.statement
        assert ("masks" in promise.statement) == ("masks of kept ReLUs" in promise.public)


@secure
@with_twin
def test_answers_are_those_of_the_twin(name, runs, program, images):
    run, _ = runs(name)
    twin = Twin().run(program, images)
    assert run.outputs.shape == (4, 5)
    assert np.abs(run.outputs - twin.outputs).max() < TOLERANCE
    assert (run.outputs.argmax(1) == twin.outputs.argmax(1)).all()


@secure
@every
def test_comparisons_are_the_kept_relus_of_all_images(name, runs, program):
    run, _ = runs(name)
    assert run.comparisons == 4 * program.kept
    assert [(site.name, site.comparisons) for site in run.by_site] == [(s.name, 4 * s.kept) for s in program.sites]


@secure
@every
def test_the_program_is_unchanged(name, runs, program):
    _, before = runs(name)
    assert before.keys() == program.arrays.keys()
    assert all(np.array_equal(array, program.arrays[key]) for key, array in before.items())


@secure
@every
def test_what_a_run_cost_is_whole(name, runs, program):
    run, _ = runs(name)
    apart = name in JOINED
    assert run.processes == ENGINES[name].security.parties
    assert (run.images, run.batch) == (4, 2)
    assert (run.bytes > 0) == (run.messages > 0) == (run.setup_bytes > 0) == apart
    assert min(run.seconds, run.setup_seconds) > 0
    assert (5e7 < run.memory < 4e9) == apart
    by_site = [(site.comparison_bytes + site.surrogate_bytes, site.messages) for site in run.by_site]
    found = np.array(by_site).sum(0)
    assert ((found > 0) & (found < [run.bytes, run.messages])).all() == (name in ON_SPU)
    if name in WITH_TWIN:
        assert run.fraction_bits == 18
    if name in ON_SPU:
        assert memory._needed(name, program, 2) == pytest.approx(run.memory, rel=0.25)


@secure
@on_spu
def test_parties_on_their_own_count_the_same(name, program, images, runs):
    """One sends what the others receive, or the run does not end: the parties check that themselves."""
    settings = ENGINES[name]().settings()
    places = _places(settings.roles)
    found = {}
    roles = {
        "server": lambda: serve(program, places["server"], settings),
        "client": lambda: query(images, places["client"], settings, batch=2),
        "helper": lambda: assist(places["helper"], settings),
    }
    threads = [
        threading.Thread(target=lambda role=role: found.update({role: roles[role]()})) for role in settings.roles
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert set(found) == set(settings.roles)
    for role, run in found.items():
        assert run.outputs.shape == ((4 if role == "client" else 0), 5)
        for key in ("images", "batch", "comparisons", "bytes", "messages", "setup_bytes"):
            assert getattr(run, key) == getattr(found["client"], key)
    together, _ = runs(name)
    assert np.abs(found["client"].outputs - together.outputs).max() < TOLERANCE
    assert found["client"].bytes == pytest.approx(together.bytes, rel=0.01)


def _places(roles, **settings):
    """Where each party listens, on loopback, and finds the others."""
    listen = {role: f"127.0.0.1:{port}" for role, port in zip(roles, free_ports(len(roles)), strict=True)}
    return {
        role: Place(listen=listen[role], peer=",".join(listen[other] for other in roles if other != role), **settings)
        for role in roles
    }


@every
def test_what_cannot_run_is_refused_before_anything_starts(name, program, images, nothing_starts):
    engine = ENGINES[name]()
    with pytest.raises(ShapeError, match=r"images have the shape \(4, 8, 8, 3\), the program takes .* \(3, 8, 8\)"):
        engine.run(program, images.transpose(0, 2, 3, 1))
    with pytest.raises(ShapeError, match="not finite"):
        engine.run(program, np.full_like(images, np.nan))
    with pytest.raises(ShapeError, match="one or more"):
        engine.run(program, images[:0])
    with pytest.raises(UsageError, match="batch is -1"):
        engine.run(program, images, batch=-1)
    with pytest.raises(UsageError, match="no arrays"):
        engine.run(Program.from_public(program.public()), images)


@every
def test_an_operation_that_no_program_has_is_refused_before_anything_starts(name, images, nothing_starts):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sigmoid(), nn.Flatten(), nn.Linear(144, 5))
    with pytest.raises(UnsupportedOperation, match="sigmoid"):
        secure_run(network, torch.from_numpy(images), engine=name)


@on_spu
def test_what_does_not_fit_into_memory_is_refused_before_anything_starts(
    name, program, images, monkeypatch, nothing_starts
):
    monkeypatch.setattr(memory, "available_memory", lambda: 100_000_000)
    count = ENGINES[name].security.parties
    with pytest.raises(
        EngineError, match=rf"{name} needs .* MB of memory a party .* 100 MB are left for {count} of them"
    ):
        ENGINES[name]().run(program, images)


class Disturber:
    """Sends a signal to one party at the first image; used as the progress of a run."""

    def __init__(self, role, how):
        self.role, self.how, self.at = role, how, 0.0

    def __call__(self, stage, done, total, **metrics):
        if stage == "secure: run" and not self.at:
            os.kill(parties()[self.role], self.how)
            self.at = time.monotonic()


@secure
@breaking
def test_a_killed_party_stops_the_others(name, program, images, nothing_left):
    role = roles_of(name)[-1]
    disturber = Disturber(role, signal.SIGKILL)
    with pytest.raises(EngineError, match=f"the {role} was killed by SIGKILL; the other parties were stopped"):
        ENGINES[name]().run(program, np.concatenate([images] * 10), batch=1, progress=disturber)
    assert 0 < time.monotonic() - disturber.at < 10


@secure
@breaking
def test_a_party_that_stalls_stops_the_others(name, program, images, nothing_left):
    """A stopped process keeps its connections open and says nothing."""
    disturber = Disturber("server", signal.SIGSTOP)
    with pytest.raises(EngineError, match=r"the server at 127.0.0.1:\d+ has been silent for 3 seconds"):
        ENGINES[name](patience=3).run(program, np.concatenate([images] * 10), batch=1, progress=disturber)
    assert 3 < time.monotonic() - disturber.at < 12


@secure
@joined
def test_a_port_that_is_taken(name, program, images, monkeypatch, nothing_left):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        monkeypatch.setattr("reluctant.engines.parties.free_ports", lambda count: [taken, *free_ports(count - 1)])
        with pytest.raises(EngineError, match=f"cannot listen at 127.0.0.1:{taken}: address already in use"):
            ENGINES[name]().run(program, images)


@secure
@breaking
def test_a_disk_that_is_full(name, program, images, monkeypatch, nothing_left):
    """No party may write a file beyond 4 kB, which SPU's log soon reaches, as a key or a ciphertext does."""
    start = subprocess.Popen

    def start_with_little_space(*words, **settings):
        process = start(*words, **settings)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, 4096))
        return process

    monkeypatch.setattr(subprocess, "Popen", start_with_little_space)
    with pytest.raises(
        EngineError, match=r"^the (server|client|helper) cannot write to .*: (file too large|i/o error); free"
    ) as error:
        ENGINES[name]().run(program, np.concatenate([images] * 10), batch=1)
    assert "\n" not in str(error.value)


class Impostors:
    """Takes every role but the server's: meets it, and goes on to show signs of life, but does nothing of its part."""

    def __init__(self, places, roles):
        self.places, self.roles, self.met = places, roles, {}
        self._gone = threading.Event()

    def __enter__(self):
        threads = [threading.Thread(target=self._meet, args=(role,)) for role in self.roles if role != "server"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert set(self.met) == set(self.roles) - {"server"}
        self._pulse = threading.Thread(target=self._live)
        self._pulse.start()
        return self

    def _meet(self, role):
        place, others = self.places[role], [other for other in self.roles if other != role]
        peers = dict(zip(others, place.peer.split(","), strict=True))
        self.met[role] = meet(role, place.listen, peers, 60)

    def _live(self):
        while not self._gone.wait(0.5):
            self.say(b".")

    def say(self, data):
        """Say ``data`` to the server, on the connection where it listens for signs of life."""
        for met in self.met.values():
            with suppress(OSError):
                met["server"][0].sendall(data)

    def __exit__(self, *_):
        self._gone.set()
        self._pulse.join()
        for connection in itertools.chain.from_iterable(pair for met in self.met.values() for pair in met.values()):
            connection.close()


def _serve(name, program, place):
    """Be the server alone, under CKKS, too, which has no command for that."""
    if name in ON_SPU:
        serve(program, place, ENGINES[name]().settings())
    else:
        order = Order("server", place.listen, {"client": place.peer}, None, place.connect_timeout, session=SESSION)
        _run_alone(order, None, program=straighten(program))


def _serve_impostors(name, program, disturb, **settings):
    """Return what a server says that met impostors, and the seconds from ``disturb`` on."""
    roles = roles_of(name)
    places, errors = _places(roles, **settings), []

    def be_server():
        try:
            _serve(name, program, places["server"])
        except ReluctantError as error:
            errors.append(error)

    thread = threading.Thread(target=be_server)
    thread.start()
    with Impostors(places, roles) as impostors, ExitStack() as stack:
        begun = time.monotonic()
        disturb(impostors, stack)
        thread.join(60)
        seconds = time.monotonic() - begun
    (error,) = errors
    assert isinstance(error, EngineError)
    return str(error), seconds


@secure
@breaking
def test_rubbish_on_the_control_connection(name, program, nothing_left):
    rubbish = np.random.default_rng(0).bytes(10_000)
    said, seconds = _serve_impostors(name, program, lambda impostors, _: impostors.say(rubbish))
    assert "sent what no party says" in said
    assert seconds < 10


@secure
@breaking
def test_rubbish_on_the_link(name, program, nothing_left):
    """Somebody writes random bytes to the port of the link, while nobody opens that link."""
    rubbish = np.random.default_rng(0).bytes(10_000)

    def disturb(impostors, stack):
        host, port = impostors.places["server"].listen.split(":")
        for _ in range(10):
            with suppress(OSError), socket.create_connection((host, int(port)), 1) as connection:
                connection.sendall(rubbish)
            time.sleep(0.2)

    said, seconds = _serve_impostors(name, program, disturb, connect_timeout=6)
    assert "answered, but the link did not open in 6 seconds" in said
    assert seconds < 16


_FALSE_LINK = """
import os, sys
from spu import libspu
rank, *addresses = sys.argv[1:]
description = libspu.link.Desc()
for number, address in enumerate(addresses):
    description.add_party(("server", "client", "helper")[number], address)
link = libspu.link.create_brpc(description, int(rank))
for _ in range(5):
    link.send(0, os.urandom(1000))
sys.stdin.read()
os._exit(0)
"""


@secure
@pytest.mark.parametrize("name", [name for name in ON_SPU if name != "semi2k"])
def test_rubbish_within_the_link(name, program, nothing_left):
    """Somebody opens SPU's link as agreed, and sends random bytes through it."""

    def disturb(impostors, stack):
        listen = [impostors.places[role].listen for role in impostors.roles]
        for rank in range(1, len(listen)):
            words = [sys.executable, "-c", _FALSE_LINK, str(rank), *listen]
            process = stack.enter_context(subprocess.Popen(words, stdin=subprocess.PIPE))
            stack.callback(process.kill)

    said, seconds = _serve_impostors(name, program, disturb)
    assert "the client sent no 'settings' of type dict" in said
    assert seconds < 30


@secure
@pytest.mark.parametrize("name", [name for name in JOINED if name not in ON_SPU])
@pytest.mark.parametrize(
    ("rubbish", "answer"),
    [
        (np.random.default_rng(0).bytes(1000), "announces a message of"),
        ((1000).to_bytes(8, "big") + np.random.default_rng(0).bytes(1000), "the client sent no 'images' of type int"),
    ],
)
def test_rubbish_within_a_link_of_our_own(name, program, nothing_left, rubbish, answer):
    """Somebody opens the link as agreed, and sends random bytes through it."""

    def disturb(impostors, stack):
        place = impostors.places["client"]
        link = stack.enter_context(open_link("client", place.listen, {"server": place.peer}, 60))
        link.sendall(rubbish)

    said, seconds = _serve_impostors(name, program, disturb)
    assert answer in said
    assert seconds < 30
