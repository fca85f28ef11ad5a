"""Start the parties of a secure run, watch them, and join what they found."""

import json
import math
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import reluctant
from reluctant import errors
from reluctant.costs.networks import Network
from reluctant.engines.base import EngineRun, Images, Progress
from reluctant.engines.meeting import free_ports, parse_address
from reluctant.engines.party import Order, read_result, write_order
from reluctant.engines.relay import Relay
from reluctant.engines.spu import require_spu
from reluctant.engines.watching import ALONE
from reluctant.errors import EngineError, ReluctantError, UsageError
from reluctant.program.ops import Program

#: So long a party may go on by itself after the other one died, before it is stopped.
_GRACE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a party of a run between two hosts listens, and where the other one does.

    Args:
        listen: ``host:port`` of this party.
        peer: ``host:port`` of the other, as seen from here.
        connect_timeout: seconds to wait for the other.
        patience: seconds of silence after which the other counts as stalled; it says every second that it lives.

    Raises:
        UsageError: an address is not ``host:port``, or a time no number above zero.
    """

    listen: str
    peer: str
    connect_timeout: float = 60.0
    patience: float = 60.0

    def __post_init__(self) -> None:
        parse_address(self.listen)
        parse_address(self.peer)
        for name in ("connect_timeout", "patience"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}, expected seconds above zero")


@dataclass
class _Child:
    """A party's process, its folder and its last words."""

    role: str
    folder: Path
    process: "subprocess.Popen[str]"
    end: Mapping[str, Any] | None = None
    reader: threading.Thread | None = field(default=None, repr=False)

    def failed(self) -> bool:
        """Whether it has ended, and not well."""
        code = self.process.poll()
        return code is not None and code != 0

    def error(self) -> ReluctantError:
        """Return what it said about its end, or what its exit code and its last line tell."""
        if self.end is not None and self.end.get("event") == "error":
            kind = getattr(errors, str(self.end.get("kind")), EngineError)
            return kind(str(self.end.get("message")))
        code = self.process.returncode
        if code < 0:
            return EngineError(
                f"the {self.role} was killed by {signal.Signals(-code).name}; the other party was stopped"
            )
        lines = (self.folder / "stderr.txt").read_text(errors="replace").strip().splitlines()
        return EngineError(f"the {self.role} ended with exit code {code}" + (f": {lines[-1].strip()}" if lines else ""))


def run_locally(
    program: Program,
    images: Images,
    *,
    batch: int | None,
    fraction_bits: int,
    connect_timeout: float,
    patience: float,
    network: Network,
    progress: Progress | None,
    session: str = Order.session,
) -> EngineRun:
    """Run both parties as processes of this machine, on loopback, and return what the client learned.

    Args:
        network: if it is not loopback itself, a relay between the two imitates it.
        session: what a party does, see :class:`Order`; SPU's if not given.

    Raises:
        EngineError: a party died or they could not connect; both have ended.
    """
    ports = free_ports(2)
    server, client = (f"127.0.0.1:{port}" for port in ports)
    with ExitStack() as stack:
        towards_server, towards_client = server, client
        if network.emulated:
            relay = stack.enter_context(Relay(network, (server, client)))
            towards_server, towards_client = relay.ports
        orders = [
            Order("server", server, towards_client, connect_timeout, fraction_bits, batch, patience, session),
            Order("client", client, towards_server, connect_timeout, fraction_bits, batch, patience, session),
        ]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="reluctant-")))
        children = [
            _start(stack, folder, orders[0], program=program),
            _start(stack, folder, orders[1], images=images),
        ]
        _supervise(children, progress)
        server_run, client_run = (read_result(child.folder) for child in children)
        by_site = client_run.by_site or server_run.by_site  # a client may not even know that there are sites
        return replace(client_run, memory=max(server_run.memory, client_run.memory), by_site=by_site)


def serve(program: Program, place: Place, *, fraction_bits: int, progress: Progress | None = None) -> EngineRun:
    """Be the server of one run with a client elsewhere; return what it cost. The server learns no outputs.

    Raises:
        UsageError: SPU is not installed.
        EngineError: the client did not come, or broke off.
    """
    require_spu()
    order = Order("server", place.listen, place.peer, place.connect_timeout, fraction_bits, None, place.patience)
    return _run_alone(order, progress, program=program)


def query(
    images: Images, place: Place, *, batch: int | None, fraction_bits: int, progress: Progress | None = None
) -> EngineRun:
    """Be the client of one run with a server elsewhere; return its answers and what they cost.

    Raises:
        UsageError: SPU is not installed.
        ShapeError: the server's network takes other images.
        EngineError: the server did not come, or broke off.
    """
    require_spu()
    order = Order("client", place.listen, place.peer, place.connect_timeout, fraction_bits, batch, place.patience)
    return _run_alone(order, progress, images=images)


def _run_alone(order: Order, progress: Progress | None, **given: Any) -> EngineRun:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="reluctant-")))
        child = _start(stack, folder, order, **given)
        _supervise([child], progress)
        return read_result(child.folder)


def _start(stack: ExitStack, folder: Path, order: Order, **given: Any) -> _Child:
    """Start a party in a folder of its own; leaving ``stack`` ends it, whatever happened."""
    own = folder / order.role
    own.mkdir(mode=0o700)
    write_order(own, order, **given)
    code = str(Path(reluctant.__file__).parent.parent)
    path = os.pathsep.join(filter(None, (code, os.environ.get("PYTHONPATH"))))
    with (own / "stderr.txt").open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "reluctant.engines.party", str(own)],
            cwd=own,
            env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
            stdin=subprocess.PIPE,  # never written to: it closes when this process ends, however it ends
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
    stack.callback(_stop, process)
    return _Child(order.role, own, process)


def _stop(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _listen(child: _Child, said: "queue.SimpleQueue[tuple[_Child, dict[str, Any]]]") -> None:
    assert child.process.stdout is not None
    for line in child.process.stdout:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            said.put((child, event))


def _supervise(children: list[_Child], progress: Progress | None) -> None:
    """Return when all parties have ended well.

    Raises:
        ReluctantError: one has not. The one that failed first is blamed; the other has had a few seconds to stop.
    """
    said: queue.SimpleQueue[tuple[_Child, dict[str, Any]]] = queue.SimpleQueue()
    for child in children:
        child.reader = threading.Thread(target=_listen, args=(child, said), daemon=True)
        child.reader.start()
    while not any(child.failed() for child in children):
        if all(child.process.poll() == 0 for child in children):
            return
        _hear(said, progress, children[-1], 0.1)
    first = next(child for child in children if child.failed())
    deadline = time.monotonic() + _GRACE_SECONDS
    while time.monotonic() < deadline and any(child.process.poll() is None for child in children):
        _hear(said, None, first, 0.1)
    failed = [child for child in children if child.failed()]
    for child in children:
        _stop_reading(child)
    while not said.empty():
        _hear(said, None, first, 0.0)
    raise _blame(first, failed)


def _hear(said: Any, progress: Progress | None, speaker: _Child, seconds: float) -> None:
    """Take one event, if there is one within ``seconds``; only the ``speaker``'s progress is passed on."""
    try:
        child, event = said.get(timeout=seconds) if seconds else said.get_nowait()
    except queue.Empty:
        return
    if event.get("event") != "progress":
        child.end = event
    elif progress is not None and child is speaker:
        progress(f"secure: {event['stage']}", int(event["done"]), int(event["total"]))


def _stop_reading(child: _Child) -> None:
    if child.process.poll() is None:
        child.process.kill()
        child.process.wait()
    if child.reader is not None:
        child.reader.join(2)


def _blame(first: _Child, failed: list[_Child]) -> ReluctantError:
    """Return the error of the party that failed of itself, not of the one that lost its peer by that."""
    mute = [child for child in failed if child.end is None]
    busy = [child for child in failed if child.process.returncode != ALONE]
    return (mute or busy or [first])[0].error()
