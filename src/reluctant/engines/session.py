"""What the parties say to each other around the secure computation, and how they run it together.

All of it is JSON over SPU's link; no pickle. Each checks what it is told: whoever gets the program validates it, all
compile it on their own and compare digests, and at the end what all count as sent must be what all count as received.
"""

import base64
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from reluctant.engines.base import EngineRun, Images, Outputs, check_images
from reluctant.engines.meeting import no_link
from reluctant.engines.memory import check_memory, peak_memory
from reluctant.engines.party import Order, Voice, read_images, read_program
from reluctant.engines.preparation import prepare
from reluctant.engines.settings import CLIENT, ROLES, SERVER, Settings
from reluctant.engines.spu import Compiled, Log, Machine, Tally, Traffic, batches, compile_program, engine_run
from reluctant.engines.watching import ALONE, Deadline
from reluctant.errors import EngineError, ReluctantError
from reluctant.program.operations import Array
from reluctant.program.ops import Program

_MOST_IMAGES = 1 << 20

#: SPU's own time-out for an answer; a party that is gone is noticed long before, by its connection.
_PATIENCE_MS = 4 * 3600 * 1000

#: A batch is at most so many images, and its largest value at most so many elements.
_LARGEST_BATCH, _LARGEST_VALUE = 16, 1 << 18

#: ``report(stage, done, total)``
Report = Callable[[str, int, int], None]
Leave = Callable[[Exception], None]


def take_part(folder: Path, order: Order, voice: Voice) -> EngineRun:
    """Be the party of ``order`` in a run on SPU, with what it finds in ``folder``."""
    assert order.settings is not None
    log, rank = Log(folder / "spu.log"), ROLES.index(order.role)
    late = no_link(order.peers, order.link_seconds)
    deadline = Deadline(order.link_seconds, lambda: voice.end(late, ALONE))
    link = _connect(order, order.settings)
    deadline.stop()
    session = Session(rank, link, log, order.settings, voice.progress, voice.leave)
    if rank == SERVER:
        return session.serve(read_program(folder))
    return session.query(read_images(folder), order.batch) if rank == CLIENT else session.assist()


def _connect(order: Order, settings: Settings) -> Any:
    """Return SPU's link to the other parties."""
    from spu import libspu

    description = libspu.link.Desc()
    description.recv_timeout_ms = _PATIENCE_MS
    description.connect_retry_times = 1 << 20
    description.connect_retry_interval_ms = 200
    for name in settings.roles:
        description.add_party(name, order.listen if name == order.role else order.peers[name])
    return libspu.link.create_brpc(description, ROLES.index(order.role))


def suitable_batch(program: Program) -> int:
    """Return how many images to run at once: one product for many is much cheaper, as long as memory allows."""
    largest = max(math.prod(shape) for shape in program.shapes.values())
    return max(1, min(_LARGEST_BATCH, _LARGEST_VALUE // largest))


class Talk:
    """JSON messages to and from the other parties, counted.

    Args:
        link: SPU's link.
        rank: of this party.
        parties: how many there are.
        leave: told why this party gives up, before the others are.
    """

    def __init__(self, link: Any, rank: int, parties: int = 2, leave: Leave | None = None) -> None:
        self._link, self.others, self._leave = link, [other for other in range(parties) if other != rank], leave
        self.traffic = Traffic()

    def send(self, message: Mapping[str, Any], *to: int) -> None:
        """Send a JSON object to the parties ``to``; to all others if none is named."""
        text = json.dumps(message)
        for rank in to or self.others:
            self._link.send(rank, text)
            self.traffic += Traffic(sent=len(text), messages_sent=1)

    def receive(self, sender: int, **expected: type) -> dict[str, Any]:
        """Return the next object from ``sender``, checked to have the keys ``expected`` with those types.

        Raises:
            EngineError: it is nothing of the kind, or that party says that it gives up.
        """
        name = ROLES[sender]
        data = self._link.recv(sender)
        self.traffic += Traffic(received=len(data), messages_received=1)
        try:
            message = json.loads(data)
        except (ValueError, RecursionError):
            message = None
        if isinstance(message, dict) and isinstance(message.get("refusal"), str):
            raise EngineError(f"the {name} refused: {message['refusal'][:300]}")
        for key, kind in expected.items():
            value = message.get(key) if isinstance(message, dict) else None
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                raise EngineError(f"the {name} sent no {key!r} of type {kind.__name__}; is it the same version?")
        return dict(message or {})

    def refuse(self, error: Exception) -> None:
        """Tell the others that this party gives up, and why.

        They leave as soon as they hear it, so sending may never end.
        """
        if self._leave is not None:
            self._leave(error)
        self.send({"refusal": str(error)})

    def take(self) -> Traffic:
        """Return what was said since the last call."""
        said, self.traffic = self.traffic, Traffic()
        return said


@dataclass(frozen=True, eq=False)
class Session:
    """One party's side of one run. ``report`` is told how far it is, ``leave`` why it gives up."""

    rank: int
    link: Any
    log: Log | None
    settings: Settings
    report: Report
    leave: Leave | None = None

    def serve(self, program: Program) -> EngineRun:
        """Be the server: give the network, learn nothing. Returns the cost; no outputs."""
        begun, talk = time.perf_counter(), self._talk()
        self._agree(talk, asdict(self.settings), "settings")
        talk.send({"program": program.public()})
        return self._run(talk, begun, program, program.arrays, None, *self._wish(talk))

    def assist(self) -> EngineRun:
        """Be the helper: give nothing, learn nothing. Returns the cost; no outputs.

        Raises:
            EngineError: the server's program is not valid, or it is not the same software.
        """
        begun, talk = time.perf_counter(), self._talk()
        self._agree(talk, asdict(self.settings), "settings")
        program = self._take_program(talk)
        return self._run(talk, begun, program, None, None, *self._wish(talk))

    def query(self, images: Images, batch: int | None) -> EngineRun:
        """Be the client: give the images, learn the outputs.

        Raises:
            ShapeError: the server's network takes other images.
            EngineError: the server's program is not valid, or it is not the same software.
        """
        begun, talk = time.perf_counter(), self._talk()
        self._agree(talk, asdict(self.settings), "settings")
        program = self._take_program(talk)
        try:
            batch = suitable_batch(program) if batch is None else batch
            images = check_images(program.input_shape, images, batch, input_range=program.input_range)
        except ReluctantError as error:
            talk.refuse(error)
            raise
        talk.send({"images": len(images), "batch": batch})
        return self._run(talk, begun, program, None, images, len(images), batch)

    def _talk(self) -> Talk:
        return Talk(self.link, self.rank, len(self.settings.roles), self.leave)

    def _take_program(self, talk: Talk) -> Program:
        """Return the server's program; refuse one that is not valid."""
        try:
            return Program.from_public(talk.receive(SERVER, program=dict)["program"])
        except ReluctantError as error:
            talk.refuse(error)
            raise

    def _wish(self, talk: Talk) -> tuple[int, int]:
        """Return how many images the client has, and in what batches; refuse what makes no sense."""
        wish = talk.receive(CLIENT, images=int, batch=int)
        images, batch = wish["images"], wish["batch"]
        if not 1 <= min(batch, images) <= max(batch, images) <= _MOST_IMAGES:
            error = EngineError(f"the client asks for {images} images in batches of {batch}: expected 1 or more")
            talk.refuse(error)
            raise error
        return images, batch

    def _agree(self, talk: Talk, mine: Mapping[str, Any], what: str) -> None:
        """Raise unless all parties have the same ``mine``."""
        talk.send({what: dict(mine)})
        for other in talk.others:
            theirs = talk.receive(other, **{what: dict})[what]
            if theirs != dict(mine):
                raise EngineError(f"the parties differ in their {what}: {_short(mine)} here, {_short(theirs)} there")

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
        machine = Machine(self.link, self.rank, self.settings, self.log)
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
        setup, spoken, *steps = self._pool(talk, [setup, talk.take(), *tally.traffic.values()])
        tally = Tally(dict(zip(tally.traffic, steps, strict=True)), tally.comparisons)
        return engine_run(
            program,
            tally,
            [np.concatenate(values) for values in zip(*found, strict=True)],
            online=_lasting(tally.total() + spoken, seconds),
            setup=_lasting(setup, setup_seconds),
            images=count,
            processes=len(self.settings.roles),
            batch=sizes[-1],
            fraction_bits=self.settings.fraction_bits,
            memory=peak_memory(),
            transfers=self.settings.transfers if self.settings.protocol == "CHEETAH" else "",
        )

    def _reveal(self, talk: Talk, machine: Machine, program: Program, name: str) -> Outputs:
        """Give the client the others' shares of an output. They learn nothing and return no rows."""
        mine, shape = machine.share(name), program.shapes[name]
        if self.rank != CLIENT:
            chunks = [base64.b64encode(chunk).decode() for chunk in mine.share_chunks]
            talk.send({"meta": base64.b64encode(mine.meta).decode(), "chunks": chunks}, CLIENT)
            return np.zeros((0, *shape), np.float32)
        shares = {CLIENT: mine}
        for other in talk.others:
            shares[other] = _read_share(talk.receive(other, meta=str, chunks=list), mine, ROLES[other])
        return machine.reveal([shares[rank] for rank in sorted(shares)], shape)

    def _pool(self, talk: Talk, mine: list[Traffic]) -> list[Traffic]:
        """Return what all parties sent, part by part: this one's as sent, that of all others as received.

        Raises:
            EngineError: what all count as sent is not what all count as received.
        """
        talk.send({"traffic": [[part.sent, part.received, part.messages_sent] for part in mine]})
        pooled, total = [replace(part, received=0, messages_received=0) for part in mine], sum(mine, Traffic())
        for other in talk.others:
            theirs = _read_traffic(talk.receive(other, traffic=list)["traffic"], len(mine), ROLES[other])
            total += sum(theirs, Traffic())
            seen = [Traffic(received=part.sent, messages_received=part.messages_sent) for part in theirs]
            pooled = [one + more for one, more in zip(pooled, seen, strict=True)]
        if total.sent != total.received:
            raise EngineError(f"the parties count differently: {total.sent:,} bytes sent, {total.received:,} received")
        return pooled


def _read_traffic(parts: list[Any], count: int, name: str) -> list[Traffic]:
    """Return what another party counted, which must be of as many parts."""
    fine = len(parts) == count and all(isinstance(part, list) and len(part) == 3 for part in parts)
    if not fine or not all(type(number) is int and number >= 0 for part in parts for number in part):
        raise EngineError(f"the {name} sent counts of another form; is it the same version?")
    return [Traffic(sent, received, messages) for sent, received, messages in parts]


def _read_share(message: Mapping[str, Any], mine: Any, name: str) -> Any:
    """Return the other party's share, which must be of the very form of one's own."""
    from spu import libspu

    try:
        meta = base64.b64decode(message["meta"], validate=True)
        chunks = [base64.b64decode(chunk, validate=True) for chunk in message["chunks"]]
    except (ValueError, TypeError) as error:
        raise EngineError(f"the {name}'s share of the answer is not base64") from error
    if meta != mine.meta or [len(chunk) for chunk in chunks] != [len(chunk) for chunk in mine.share_chunks]:
        raise EngineError(f"the {name}'s share of the answer has another form than the client's")
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
