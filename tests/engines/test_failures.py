"""What a user sees when a party, a port or the link fails: one error, soon, and nothing left behind."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from small import parties

from reluctant.engines import parties as processes
from reluctant.engines.meeting import free_ports
from reluctant.engines.parties import Place, query, serve
from reluctant.engines.settings import Settings
from reluctant.errors import EngineError, ShapeError, UsageError

pytestmark = pytest.mark.secure

SETTINGS = Settings(18)


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", None)
    yield
    assert list(tmp_path.iterdir()) == []
    assert parties() == {}


class Killer:
    """Kills one party at the first image; used as the progress of a run."""

    def __init__(self, role):
        self.role, self.at = role, 0.0

    def __call__(self, stage, done, total, **metrics):
        if stage == "secure: run" and not self.at:
            os.kill(parties()[self.role], signal.SIGKILL)
            self.at = time.monotonic()


def test_party_whose_peer_is_killed_says_so(small_program, small_images):
    """Two hosts: nobody above both parties sees the other die."""
    server, client = (f"127.0.0.1:{port}" for port in free_ports(2))
    errors = []

    def be_server():
        try:
            serve(small_program, Place(listen=server, peer=client), SETTINGS)
        except EngineError as error:
            errors.append((time.monotonic(), str(error)))

    thread = threading.Thread(target=be_server)
    thread.start()
    killer = Killer("client")
    with pytest.raises(EngineError, match="the client was killed by SIGKILL"):
        query(small_images, Place(listen=client, peer=server), SETTINGS, killer, batch=1)
    thread.join(20)
    ((when, message),) = errors
    assert "broke off in the middle of the run" in message
    assert client in message
    assert when - killer.at < 10


def test_a_reader_that_is_late_hears_all_before_its_pipe_is_closed(tmp_path):
    """On a busy machine a party's last lines are read after it has ended."""
    talk = "print('{}\\n' * 20)"
    process = subprocess.Popen([sys.executable, "-c", talk], stdout=subprocess.PIPE, text=True)
    child = processes._Child("client", tmp_path, process)
    heard = []

    class Slow:
        def put(self, event):
            time.sleep(0.01)
            heard.append(event)

    child.reader = threading.Thread(target=processes._listen, args=(child, Slow()))
    process.wait()
    child.reader.start()
    processes._stop(child)
    assert len(heard) == 20
    assert not child.reader.is_alive()
    assert process.stdout.closed


def test_port_in_use(small_program):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(EngineError, match=f"cannot listen at {address}: address already in use"):
            serve(small_program, Place(listen=address, peer="127.0.0.1:9"), SETTINGS)


def test_peer_that_never_connects(small_images):
    here, there = (f"127.0.0.1:{port}" for port in free_ports(2))
    begun = time.monotonic()
    with pytest.raises(EngineError, match=f"nobody answered at {there} within 2 seconds"):
        query(small_images, Place(listen=here, peer=there, connect_timeout=2), SETTINGS, batch=1)
    assert time.monotonic() - begun < 12


def test_images_of_another_shape_are_refused_by_the_server_program(small_program):
    server, client = (f"127.0.0.1:{port}" for port in free_ports(2))
    errors = []

    def be_server():
        try:
            serve(small_program, Place(listen=server, peer=client), SETTINGS)
        except EngineError as error:
            errors.append(str(error))

    thread = threading.Thread(target=be_server)
    thread.start()
    with pytest.raises(ShapeError, match=r"images have the shape \(2, 1, 8, 8\)"):
        query(np.zeros((2, 1, 8, 8), np.float32), Place(listen=client, peer=server), SETTINGS, batch=1)
    thread.join(20)
    assert "the client refused: images have the shape" in errors[0]


@pytest.mark.parametrize("address", ["nowhere", "host:", ":9000", "host:99999", "host:-1", "host:port"])
def test_address_that_is_none(address):
    with pytest.raises(UsageError, match=f"address '{address}' is not host:port"):
        Place(listen="127.0.0.1:9000", peer=address)


def test_two_servers(small_program):
    first, second = (f"127.0.0.1:{port}" for port in free_ports(2))
    errors = []

    def be_server(place):
        try:
            serve(small_program, place, SETTINGS)
        except EngineError as error:
            errors.append(str(error))

    places = [Place(listen=a, peer=b, connect_timeout=20) for a, b in ((first, second), (second, first))]
    threads = [threading.Thread(target=be_server, args=(place,)) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert any("is a server, too" in error for error in errors)
    assert len(errors) == 2


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_parties_end_with_whoever_started_them(tmp_path, how):
    script = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell put us in the background\n"
        "import numpy as np\n"
        "from reluctant.engines.parties import Place, query\n"
        "from reluctant.engines.settings import Settings\n"
        "here = Place(listen='127.0.0.1:{}', peer='127.0.0.1:{}', connect_timeout=15)\n"
        "images = np.zeros((1, 3, 8, 8), np.float32)\n"
        "query(images, here, Settings(18), lambda *a: print('connecting', flush=True), batch=1)\n"
    ).format(*free_ports(2))
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert parent.stdout.readline() == "connecting\n"
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    parent.send_signal(how)
    parent.wait(45)
    parent.stdout.close()
    assert len(children) == 1
    for _ in range(100):
        if not Path(f"/proc/{children[0]}").exists():
            break
        time.sleep(0.1)
    assert not Path(f"/proc/{children[0]}").exists()
