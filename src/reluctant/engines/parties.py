"""Start the parties of a secure run, watch them, and join what they found."""

import itertools
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
from reluctant.engines.settings import ROLES, Role, Settings
from reluctant.engines.spu import require_spu
from reluctant.engines.watching import ALONE
from reluctant.errors import EngineError, ReluctantError, UsageError
from reluctant.program.ops import Program

#: So long a party may go on by itself after another one died, before it is stopped.
_GRACE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a party of a run between hosts listens, and where the others do.

    Args:
        listen: ``host:port`` of this party.
        peer: ``host:port`` of the other, as seen from here; of several, separated by commas, in the order server,
            client, helper.
        connect_timeout: seconds to wait for the others.
        patience: seconds of silence after which another counts as stalled; each says every second that it lives.

    Raises:
        UsageError: an address is not ``host:port``, or a time no number above zero.
    """

    listen: str
    peer: str
    connect_timeout: float = 60.0
    patience: float = 60.0

    def __post_init__(self) -> None:
        for address in (self.listen, *self.peer.split(",")):
            parse_address(address)
        for name in ("connect_timeout", "patience"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}, expected seconds above zero")

    def order(self, role: Role, settings: Settings, batch: int | None = None) -> Order:
        """Return what the party with that role is told.

        Raises:
            UsageError: there is no such party, or not one address for each other one.
        """
        if role not in settings.roles:
            raise UsageError(f"{settings.protocol} has no {role}; its parties are {', '.join(settings.roles)}")
        others = [name for name in settings.roles if name != role]
        peers = self.peer.split(",")
        if len(peers) != len(others):
            raise UsageError(f"{len(peers)} peers for this {role}; name the addresses of {' and '.join(others)}")
        met = dict(zip(others, peers, strict=True))
        return Order(role, self.listen, met, settings, self.connect_timeout, self.patience, batch)


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
                f"the {self.role} was killed by {signal.Signals(-code).name}; the other parties were stopped"
            )
        lines = (self.folder / "stderr.txt").read_text(errors="replace").strip().splitlines()
        return EngineError(f"the {self.role} ended with exit code {code}" + (f": {lines[-1].strip()}" if lines else ""))


def run_locally(
    program: Program,
    images: Images,
    *,
    settings: Settings | None,
    batch: int | None,
    connect_timeout: float,
    patience: float,
    network: Network,
    progress: Progress | None,
    session: str = Order.session,
) -> EngineRun:
    """Run all parties as processes of this machine, on loopback, and return what the client learned.

    Args:
        settings: of SPU, which also say who takes part; ``None`` for a server and a client that do without it.
        network: if it is not loopback itself, a relay between any two of them imitates it.
        session: what a party does, see :class:`Order`; SPU's if not given.

    Raises:
        EngineError: a party died or they could not connect; all have ended.
    """
    roles = ROLES[:2] if settings is None else settings.roles
    listen = {role: f"127.0.0.1:{port}" for role, port in zip(roles, free_ports(len(roles)), strict=True)}
    given: dict[Role, dict[str, Any]] = {"server": {"program": program}, "client": {"images": images}}
    with ExitStack() as stack:
        peers = _joined(stack, listen, network)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="reluctant-")))
        children = {}
        for role in roles:
            order = Order(role, listen[role], peers[role], settings, connect_timeout, patience, batch, session)
            children[role] = _start(stack, folder, order, **given.get(role, {}))
        _supervise(list(children.values()), children["client"], progress)
        runs = {role: read_result(child.folder) for role, child in children.items()}
        by_site = runs["client"].by_site or runs["server"].by_site  # a client may not even know that there are sites
        return replace(runs["client"], memory=max(run.memory for run in runs.values()), by_site=by_site)


def _joined(stack: ExitStack, listen: Mapping[Role, str], network: Network) -> dict[Role, dict[Role, str]]:
    """Return where each party finds each other one: there, or at a relay between the two."""
    peers: dict[Role, dict[Role, str]] = {role: {} for role in listen}
    for one, other in itertools.combinations(listen, 2):
        ends = (listen[one], listen[other])
        if network.emulated:
            ends = stack.enter_context(Relay(network, ends)).ports
        peers[other][one], peers[one][other] = ends
    return peers


def serve(program: Program, place: Place, settings: Settings, progress: Progress | None = None) -> EngineRun:
    """Be the server of one run with the others elsewhere; return what it cost. The server learns no outputs.

    Raises:
        UsageError: SPU is not installed.
        EngineError: another party did not come, or broke off.
    """
    return _run_alone(place.order("server", settings), progress, program=program)


def query(
    images: Images, place: Place, settings: Settings, progress: Progress | None = None, *, batch: int | None = None
) -> EngineRun:
    """Be the client of one run with the others elsewhere; return its answers and what they cost.

    Raises:
        UsageError: SPU is not installed.
        ShapeError: the server's network takes other images.
        EngineError: another party did not come, or broke off.
    """
    return _run_alone(place.order("client", settings, batch), progress, images=images)


def assist(place: Place, settings: Settings, progress: Progress | None = None) -> EngineRun:
    """Be the helper of one run with server and client elsewhere; return what it cost. The helper learns nothing.

    Raises:
        UsageError: SPU is not installed.
        EngineError: another party did not come, or broke off.
    """
    return _run_alone(place.order("helper", settings), progress)


def _run_alone(order: Order, progress: Progress | None, **given: Any) -> EngineRun:
    require_spu()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="reluctant-")))
        child = _start(stack, folder, order, **given)
        _supervise([child], child, progress)
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
    child = _Child(order.role, own, process)
    stack.callback(_stop, child)
    return child


def _stop(child: _Child) -> None:
    """End a party and close its pipes, but not one that its reader still waits at, for a grandchild."""
    _stop_reading(child)
    reading = child.reader is not None and child.reader.is_alive()
    for pipe in (child.process.stdin, None if reading else child.process.stdout):
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


def _supervise(children: list[_Child], speaker: _Child, progress: Progress | None) -> None:
    """Return when all parties have ended well; meanwhile pass on the ``speaker``'s progress.

    Raises:
        ReluctantError: one has not. The one that failed first is blamed; the others have had a few seconds to stop.
    """
    said: queue.SimpleQueue[tuple[_Child, dict[str, Any]]] = queue.SimpleQueue()
    for child in children:
        child.reader = threading.Thread(target=_listen, args=(child, said), daemon=True)
        child.reader.start()
    while not any(child.failed() for child in children):
        if all(child.process.poll() == 0 for child in children):
            return
        _hear(said, progress, speaker, 0.1)
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
