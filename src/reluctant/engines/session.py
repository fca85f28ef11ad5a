"""What two parties say to each other around the secure computation, and how they run it together.

All of it is JSON over SPU's link; no pickle. Each side checks what it is told: the client validates the program that it
gets, both compile it on their own and compare digests, and at the end each side's count of what it sent must be what
the other counted as received.
"""

import base64
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from reluctant.engines.base import EngineRun, Images, Outputs, check_images
from reluctant.engines.meeting import LINK_SECONDS
from reluctant.engines.memory import check_memory, peak_memory
from reluctant.engines.preparation import prepare
from reluctant.engines.spu import Compiled, Log, Machine, Tally, Traffic, batches, compile_program, engine_run
from reluctant.engines.watching import ALONE, Deadline
from reluctant.errors import EngineError, ReluctantError
from reluctant.program.operations import Array
from reluctant.program.ops import Program

if TYPE_CHECKING:
    from reluctant.engines.party import Order, Voice

Role = Literal["server", "client"]
SERVER, CLIENT = 0, 1

_VERSION = 1
_MOST_IMAGES = 1 << 20

#: SPU's own time-out for an answer; a party that is gone is noticed long before, by its connection.
_PATIENCE_MS = 4 * 3600 * 1000

#: A batch is at most so many images, and its largest value at most so many elements.
_LARGEST_BATCH, _LARGEST_VALUE = 16, 1 << 18

#: ``report(stage, done, total)``
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """What both parties must have set alike."""

    fraction_bits: int
    protocol: str = "CHEETAH"
    version: int = _VERSION


def take_part(folder: Path, order: "Order", voice: "Voice") -> EngineRun:
    """Be the party of ``order`` in a run on SPU, with what it finds in ``folder``."""
    from reluctant.engines.party import read_images, read_program

    rank, other = (SERVER, "client") if order.role == "server" else (CLIENT, "server")
    log = Log(folder / "spu.log")
    late = EngineError(f"the {other} at {order.peer} was there, but its link did not open in {LINK_SECONDS} seconds")
    deadline = Deadline(LINK_SECONDS, lambda: voice.end(late, ALONE))
    link = _connect(order, rank)
    deadline.stop()
    session = Session(rank, link, log, Settings(order.fraction_bits), voice.progress)
    return session.serve(read_program(folder)) if rank == SERVER else session.query(read_images(folder), order.batch)


def _connect(order: "Order", rank: int) -> Any:
    from spu import libspu

    description = libspu.link.Desc()
    description.recv_timeout_ms = _PATIENCE_MS
    description.connect_retry_times = 1 << 20
    description.connect_retry_interval_ms = 200
    hosts = [order.listen, order.peer] if rank == SERVER else [order.peer, order.listen]
    for name, host in zip(("server", "client"), hosts, strict=True):
        description.add_party(name, host)
    return libspu.link.create_brpc(description, rank)


def suitable_batch(program: Program) -> int:
    """Return how many images to run at once: one product for many is much cheaper, as long as memory allows."""
    largest = max(math.prod(shape) for shape in program.shapes.values())
    return max(1, min(_LARGEST_BATCH, _LARGEST_VALUE // largest))


class Talk:
    """JSON messages to and from the other party, counted.

    Args:
        link: SPU's link.
        rank: of this party.
    """

    def __init__(self, link: Any, rank: int) -> None:
        self._link, self._other = link, 1 - rank
        self._name = ("server", "client")[1 - rank]
        self.traffic = Traffic()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a JSON object."""
        text = json.dumps(message)
        self._link.send(self._other, text)
        self.traffic += Traffic(sent=len(text), messages_sent=1)

    def receive(self, **expected: type) -> dict[str, Any]:
        """Return the next object from the other party, checked to have the keys ``expected`` with those types.

        Raises:
            EngineError: it is nothing of the kind, or the other party says that it gives up.
        """
        data = self._link.recv(self._other)
        self.traffic += Traffic(received=len(data), messages_received=1)
        try:
            message = json.loads(data)
        except (ValueError, RecursionError):
            message = None
        if isinstance(message, dict) and isinstance(message.get("refusal"), str):
            raise EngineError(f"the {self._name} refused: {message['refusal'][:300]}")
        for key, kind in expected.items():
            value = message.get(key) if isinstance(message, dict) else None
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                raise EngineError(f"the {self._name} sent no {key!r} of type {kind.__name__}; is it the same version?")
        return dict(message or {})

    def refuse(self, error: Exception) -> None:
        """Tell the other party that this one gives up, and why."""
        self.send({"refusal": str(error)})

    def take(self) -> Traffic:
        """Return what was said since the last call."""
        said, self.traffic = self.traffic, Traffic()
        return said


@dataclass(frozen=True, eq=False)
class Session:
    """One party's side of one run. ``report`` is told how far it is."""

    rank: int
    link: Any
    log: Log | None
    settings: Settings
    report: Report

    def serve(self, program: Program) -> EngineRun:
        """Be the server: give the network, learn nothing. Returns the cost; no outputs."""
        begun, talk = time.perf_counter(), Talk(self.link, SERVER)
        self._agree(talk, asdict(self.settings), "settings")
        talk.send({"program": program.public()})
        wish = talk.receive(images=int, batch=int)
        images, batch = wish["images"], wish["batch"]
        if not 1 <= min(batch, images) <= max(batch, images) <= _MOST_IMAGES:
            error = EngineError(f"the client asks for {images} images in batches of {batch}: expected 1 or more")
            talk.refuse(error)
            raise error
        return self._run(talk, begun, program, program.arrays, None, images, batch)

    def query(self, images: Images, batch: int | None) -> EngineRun:
        """Be the client: give the images, learn the outputs.

        Raises:
            ShapeError: the server's network takes other images.
            EngineError: the server's program is not valid, or it is not the same software.
        """
        begun, talk = time.perf_counter(), Talk(self.link, CLIENT)
        self._agree(talk, asdict(self.settings), "settings")
        try:
            program = Program.from_public(talk.receive(program=dict)["program"])
            batch = suitable_batch(program) if batch is None else batch
            images = check_images(program.input_shape, images, batch)
        except ReluctantError as error:
            talk.refuse(error)
            raise
        talk.send({"images": len(images), "batch": batch})
        return self._run(talk, begun, program, None, images, len(images), batch)

    def _agree(self, talk: Talk, mine: Mapping[str, Any], what: str) -> None:
        """Raise unless both parties have the same ``mine``."""
        talk.send({what: dict(mine)})
        theirs = talk.receive(**{what: dict})[what]
        if theirs != dict(mine):
            raise EngineError(f"the two parties differ in their {what}: {_short(mine)} here, {_short(theirs)} there")

    def _run(
        self,
        talk: Talk,
        begun: float,
        program: Program,
        arrays: Mapping[str, Array] | None,
        images: Images | None,
        count: int,
        batch: int,
    ) -> EngineRun:
        parts = batches(count, batch)
        sizes = sorted({part.stop - part.start for part in parts})
        check_memory(self.settings.protocol.lower(), program, sizes[-1], parties=1)
        self.report("compile", 0, count)
        compiled = {size: compile_program(program, size) for size in sizes}
        self._agree(talk, {"sha256": _digest(compiled)}, "executables")
        self.report("set up", 0, count)
        machine = Machine(self.link, self.rank, 2, self.settings.protocol, self.settings.fraction_bits, self.log)
        machine.put_arrays(program, arrays, SERVER)
        setup = sum((traffic for _, traffic in prepare(machine, list(compiled.values()))), Traffic())
        self._agree(talk, {"ready": True}, "readiness")
        setup += talk.take()
        setup_seconds = time.perf_counter() - begun
        begun, tally, found = time.perf_counter(), Tally(), []
        for part in parts:
            self.report("run", part.start, count)
            size = part.stop - part.start
            machine.put_images(None if images is None else images[part], program.input_shape, size, CLIENT)
            machine.run_program(compiled[size], tally)
            found.append([self._reveal(talk, machine, program, name) for name in program.outputs])
        self.report("run", count, count)
        seconds = time.perf_counter() - begun
        spoken, measured = talk.take(), tally.total()
        self._balance(talk, setup + spoken + measured)
        return engine_run(
            program,
            tally,
            [np.concatenate(values) for values in zip(*found, strict=True)],
            online=_lasting(measured + spoken, seconds),
            setup=_lasting(setup, setup_seconds),
            images=count,
            processes=2,
            batch=sizes[-1],
            fraction_bits=self.settings.fraction_bits,
            memory=peak_memory(),
        )

    def _reveal(self, talk: Talk, machine: Machine, program: Program, name: str) -> Outputs:
        """Give the client the server's share of an output. The server learns nothing and returns no rows."""
        mine, shape = machine.share(name), program.shapes[name]
        if self.rank == SERVER:
            chunks = [base64.b64encode(chunk).decode() for chunk in mine.share_chunks]
            talk.send({"meta": base64.b64encode(mine.meta).decode(), "chunks": chunks})
            return np.zeros((0, *shape), np.float32)
        message = talk.receive(meta=str, chunks=list)
        return machine.reveal([_read_share(message, mine), mine], shape)

    def _balance(self, talk: Talk, total: Traffic) -> None:
        """Raise unless what each party counted as sent is what the other counted as received."""
        talk.send({"sent": total.sent, "received": total.received})
        theirs = talk.receive(sent=int, received=int)
        if (theirs["sent"], theirs["received"]) != (total.received, total.sent):
            raise EngineError(
                f"the two parties count differently: {total.sent:,} bytes sent and {total.received:,} received here, "
                f"{theirs['received']:,} and {theirs['sent']:,} there"
            )


def _read_share(message: Mapping[str, Any], mine: Any) -> Any:
    """Return the other party's share, which must be of the very form of one's own."""
    from spu import libspu

    try:
        meta = base64.b64decode(message["meta"], validate=True)
        chunks = [base64.b64decode(chunk, validate=True) for chunk in message["chunks"]]
    except (ValueError, TypeError) as error:
        raise EngineError("the server's share of the answer is not base64") from error
    if meta != mine.meta or [len(chunk) for chunk in chunks] != [len(chunk) for chunk in mine.share_chunks]:
        raise EngineError("the server's share of the answer has another form than the client's")
    share = libspu.Share()
    share.meta, share.share_chunks = meta, chunks
    return share


def _digest(compiled: Mapping[int, Compiled]) -> str:
    found = hashlib.sha256()
    for size, one in sorted(compiled.items()):
        for executable in one.executables:
            found.update(f"{size}:{len(executable.text)}:".encode() + executable.text)
    return found.hexdigest()


def _lasting(traffic: Traffic, seconds: float) -> Traffic:
    return Traffic(traffic.sent, traffic.received, traffic.messages_sent, traffic.messages_received, seconds)


def _short(value: Mapping[str, Any]) -> str:
    return json.dumps(value)[:120]
