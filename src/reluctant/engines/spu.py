"""What the engines on SPU share: compiling the steps of a program, running them, and reading SPU's own profile.

SPU (SecretFlow, version 0.9.5) runs one runtime a party; its symbol table keeps the shares between steps. It has no
interface for what an executable cost, but writes it to its log after each run, so the log is read.
"""

import importlib.util
import itertools
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from reluctant.engines.base import EngineRun, Outputs, SiteCost
from reluctant.engines.settings import Settings
from reluctant.engines.steps import Step, inner_arrays, inner_shapes, live_after, steps, value_shape
from reluctant.errors import EngineError, UsageError
from reluctant.program.operations import INPUT, Array, Shape
from reluctant.program.ops import Program

#: A disk that takes no file of so many bytes takes no log either.
_TRIED_BYTES = 1 << 16

#: What SPU calls the kinds of oblivious transfer.
_TRANSFERS = {"ferret": "YACL_Ferret", "softspoken": "YACL_Softspoken"}

#: Bits after the binary point of SPU's 64-bit fixed-point numbers (its default for this ring).
FRACTION_BITS = 18

_COMPARISON = re.compile(
    rb"= pphlo\.(?:less|less_equal|greater|greater_equal|equal|not_equal) [^\n]*-> tensor<([0-9x]*)!pphlo\.secret<i1>>"
)
#: Operations that would compare inside; no step makes one, and none could be counted.
_HIDDEN = re.compile(rb"= \"?pphlo\.(?:maximum|minimum|sign|abs|clamp|sort|simple_sort|reduce_window|while|case|if)\b")
_LINK = re.compile(r"Link details: total send bytes (\d+), recv bytes (\d+), send actions (\d+), recv actions (\d+)")


def require_spu() -> None:
    """Raise unless SPU can be imported.

    Raises:
        UsageError: it is not installed, or cannot be on this Python.
    """
    if sys.version_info >= (3, 12):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise UsageError(f"SPU has no build for Python {version}; secure engines need Python 3.11")
    if importlib.util.find_spec("spu") is None:
        raise UsageError('SPU is not installed; secure engines need it: pip install "reluctant[secure]"')


@dataclass(frozen=True)
class Traffic:
    """What one party sent and received while something ran, and how long that took it."""

    sent: int = 0
    received: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(
            self.sent + other.sent,
            self.received + other.received,
            self.messages_sent + other.messages_sent,
            self.messages_received + other.messages_received,
            self.seconds + other.seconds,
        )

    @property
    def bytes(self) -> int:
        """Both directions together."""
        return self.sent + self.received

    @property
    def messages(self) -> int:
        """Send actions of both parties."""
        return self.messages_sent + self.messages_received


@dataclass(frozen=True)
class Executable:
    """A compiled step.

    Args:
        code: SPU's own object.
        text: its instructions, the same at both parties.
        comparisons: secure comparisons that one run of it makes.
    """

    code: Any
    text: bytes
    comparisons: int


def compile_function(function: Any, shapes: Mapping[str, Shape], makes: Sequence[str], name: str) -> Executable:
    """Return the executable of ``function``, which takes a dictionary of arrays and returns one.

    Args:
        shapes: of what it takes, by the names they have in the runtime's symbol table.
        makes: names of what it returns.
    """
    import jax
    import spu.utils.frontend as frontend
    from spu import libspu

    names = list(shapes)

    def call(*arguments: Any) -> tuple[Any, ...]:
        results = function(dict(zip(names, arguments, strict=True)))
        return tuple(results[made] for made in makes)

    call.__name__ = name
    blanks = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes.values()]
    secret = [libspu.Visibility.VIS_SECRET] * len(names)
    code, _ = frontend.compile(frontend.Kind.JAX, call, blanks, {}, names, secret, lambda _: list(makes))
    text = code.code if isinstance(code.code, bytes) else code.code.encode()
    return Executable(code, text, _count_comparisons(text))


def _count_comparisons(text: bytes) -> int:
    hidden = _HIDDEN.search(text)
    if hidden:
        raise EngineError(f"an executable holds {hidden.group().decode()}, whose comparisons cannot be counted")
    shapes = [match.group(1).decode().rstrip("x").split("x") for match in _COMPARISON.finditer(text)]
    return sum(int(np.prod([int(size) for size in shape if size], dtype=np.int64)) for shape in shapes)


@dataclass(frozen=True, eq=False)
class Compiled:
    """A program's steps for one batch size, compiled."""

    program: Program
    batch: int
    steps: tuple[Step, ...]
    executables: tuple[Executable, ...]


def compile_program(program: Program, batch: int) -> Compiled:
    """Return the steps of ``program``'s public part, compiled for ``batch`` images; the last few are remembered."""
    return _compile(_ByDigest(program), batch)


class _ByDigest:
    """A program as a key: two are the same if their public parts are."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByDigest) and other.program.digest == self.program.digest

    def __hash__(self) -> int:
        return hash(self.program.digest)


@lru_cache(maxsize=8)
def _compile(key: _ByDigest, batch: int) -> Compiled:
    program = Program.from_public(key.program.public())  # the arrays are not to live as long as the executables
    found, shapes = steps(program), _inner_value_shapes(program, batch)
    arrays = inner_shapes(program)
    executables = []
    for number, step in enumerate(found):
        takes = {name: shapes[name] for name in step.reads} | {name: arrays[name] for name in step.arrays}
        executables.append(_compile_step(step, takes, f"{step.part}_{number}"))
    return Compiled(program, batch, tuple(found), tuple(executables))


def _compile_step(step: Step, takes: Mapping[str, Shape], name: str) -> Executable:
    """Compile one step under the names of the symbol table: values and arrays cannot collide there."""
    table = {in_table(key, key in step.arrays): key for key in takes}

    def function(values: Mapping[str, Any]) -> dict[str, Any]:
        results = step.run({table[key]: value for key, value in values.items()})
        return {in_table(key, False): value for key, value in results.items()}

    shapes = {key: takes[name] for key, name in table.items()}
    return compile_function(function, shapes, [in_table(key, False) for key in step.makes], name)


def in_table(name: str, array: bool) -> str:
    """Return the name that a value of a program, or an array of it, has in the symbol table."""
    return f"{'array' if array else 'value'}:{name}"


def _inner_value_shapes(program: Program, batch: int) -> dict[str, Shape]:
    shapes = {name: value_shape(shape, batch) for name, shape in program.shapes.items()}
    for op in program.activations():
        shapes[f"{op.output}.kept"] = (batch, len(op.kept))
    return shapes


class Log:
    """SPU's log file, read as it grows."""

    def __init__(self, path: Path) -> None:
        from spu import libspu

        options = libspu.logging.LogOptions()
        options.enable_console_logger = False
        options.system_log_path = str(path)
        libspu.logging.setup_logging(options)
        self._path, self._offset = path, 0

    def last_link_details(self) -> tuple[int, int, int, int]:
        """Return bytes sent and received and the actions of the run that has just ended.

        Raises:
            EngineError: the log does not say.
            OSError: nothing can be written where it lies.
        """
        with self._path.open(errors="replace") as file:
            file.seek(self._offset)
            found = _LINK.findall(file.read())
            self._offset = file.tell()
        if len(found) != 1:
            self._path.with_suffix(".try").write_bytes(bytes(_TRIED_BYTES))  # a full disk is the likeliest reason
            raise EngineError(f"SPU's log tells the cost of {len(found)} runs where one was; is it SPU 0.9.5?")
        sent, received, messages_sent, messages_received = map(int, found[0])
        return sent, received, messages_sent, messages_received


@dataclass
class Tally:
    """What each step cost so far, added up over batches."""

    traffic: dict[int, Traffic] = field(default_factory=dict)
    comparisons: dict[int, int] = field(default_factory=dict)

    def add(self, step: int, traffic: Traffic, comparisons: int) -> None:
        self.traffic[step] = self.traffic.get(step, Traffic()) + traffic
        self.comparisons[step] = self.comparisons.get(step, 0) + comparisons

    def total(self) -> Traffic:
        return sum(self.traffic.values(), Traffic())


class Machine:
    """One party's SPU runtime, with its shares.

    Args:
        link: SPU's link between the parties.
        rank: which of them this is.
        settings: the protocol, its fixed point, and how many parties there are.
        log: SPU's log, if costs are to be read from it.
    """

    def __init__(self, link: Any, rank: int, settings: Settings, log: Log | None) -> None:
        from spu import api, libspu

        config = libspu.RuntimeConfig()
        if settings.protocol == "CHEETAH":  # its part of the configuration can be set in this way alone
            config.ParseFromJsonString(json.dumps({"cheetah_2pc_config": {"ot_kind": _TRANSFERS[settings.transfers]}}))
        config.protocol = getattr(libspu.ProtocolKind, settings.protocol)
        config.field = libspu.FieldType.FM64
        config.fxp_fraction_bits = settings.fraction_bits
        config.experimental_enable_colocated_optimization = True  # what one party owns is private, not shared
        config.enable_pphlo_profile = log is not None
        self.rank, self.settings, self._log = rank, settings, log
        self._secret = libspu.Visibility.VIS_SECRET
        self._io, self._runtime = api.Io(len(settings.roles), config), api.Runtime(link, config)

    def put(self, name: str, value: Array | None, shape: Shape, owner: int) -> None:
        """Set a private value. Its owner gives it; the shares of others are zero everywhere and made here, not sent."""
        known = np.zeros(shape, np.float32) if value is None else np.ascontiguousarray(value, np.float32)
        self._runtime.set_var(name, self._io.make_shares(known, self._secret, owner)[self.rank])

    def put_arrays(self, program: Program, arrays: Mapping[str, Array] | None, owner: int) -> None:
        """Set the server's arrays: its own numbers at the server, zero shares elsewhere (``arrays`` None)."""
        moves = inner_arrays(program)
        for name, shape in inner_shapes(program).items():
            value = None if arrays is None else arrays[name]
            if value is not None and name in moves:
                value = moves[name](value)
            self.put(in_table(name, True), value, shape, owner)

    def put_images(self, images: Array | None, shape: Shape, batch: int, owner: int) -> None:
        """Set the images of a batch, ``[B, C, H, W]``, at the client; ``None`` elsewhere."""
        if images is not None and images.ndim == 4:
            images = images.transpose(0, 2, 3, 1)
        self.put(in_table(INPUT, False), images, value_shape(shape, batch), owner)

    def run(self, executable: Executable) -> Traffic:
        """Run an executable on what the symbol table holds; return what that cost this party."""
        begun = time.perf_counter()
        self._runtime.run(executable.code)
        seconds = time.perf_counter() - begun
        return Traffic(*(self._log.last_link_details() if self._log else (0, 0, 0, 0)), seconds)

    def run_program(self, compiled: Compiled, tally: Tally) -> None:
        """Run all steps on the images that were put, and add what they cost to ``tally``."""
        forget = live_after(compiled.program, compiled.steps)
        for number, executable in enumerate(compiled.executables):
            tally.add(number, self.run(executable), executable.comparisons)
            for name in forget[number]:
                self.forget(in_table(name, False))

    def forget(self, name: str) -> None:
        """Drop a value from the symbol table."""
        self._runtime.del_var(name)

    def share(self, output: str) -> Any:
        """Return this party's share of an output of the program."""
        return self._runtime.get_var(in_table(output, False))

    def reveal(self, shares: Sequence[Any], shape: Shape) -> Outputs:
        """Return the output that all ``shares`` together hold, as ``[B, *shape]`` in the program's order."""
        value = np.asarray(self._io.reconstruct(list(shares)), np.float32)
        return np.ascontiguousarray(value.transpose(0, 3, 1, 2) if len(shape) == 3 else value)


def site_costs(program: Program, found: Sequence[Step], tally: Tally) -> tuple[SiteCost, ...]:
    """Return what each activation site of ``program`` cost; one that vanished cost nothing."""
    costs = []
    for site in program.sites:
        parts = {
            part: [n for n, step in enumerate(found) if step.site == site.name and step.part == part]
            for part in ("comparison", "surrogate")
        }
        traffic = {part: sum((tally.traffic[n] for n in numbers), Traffic()) for part, numbers in parts.items()}
        both = traffic["comparison"] + traffic["surrogate"]
        costs.append(
            SiteCost(
                name=site.name,
                kept=site.kept,
                comparisons=sum(tally.comparisons[n] for n in parts["comparison"]),
                comparison_bytes=traffic["comparison"].bytes,
                surrogate_bytes=traffic["surrogate"].bytes,
                messages=both.messages,
                seconds=both.seconds,
            )
        )
    return tuple(costs)


def batches(images: int, batch: int) -> list[slice]:
    """Return the parts that ``images`` fall into: as few as possible of at most ``batch``, as equal as possible."""
    edges = [number * images // -(-images // batch) for number in range(-(-images // batch) + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def engine_run(
    program: Program,
    tally: Tally,
    outputs: Sequence[Outputs],
    *,
    online: Traffic,
    setup: Traffic,
    images: int,
    processes: int,
    batch: int,
    fraction_bits: int,
    memory: int = 0,
    transfers: str = "",
) -> EngineRun:
    """Return the result of a run from what was counted.

    Args:
        online: of all images together, answers included.
        setup: of everything before.
    """
    found = steps(program)
    by_part = {
        part: sum(count for n, count in tally.comparisons.items() if found[n].part == part)
        for part in ("comparison", "pooling")
    }
    return EngineRun(
        outputs=outputs[0],
        more_outputs=tuple(outputs[1:]),
        images=images,
        comparisons=by_part["comparison"],
        pool_comparisons=by_part["pooling"],
        bytes=online.bytes,
        messages=online.messages,
        seconds=online.seconds,
        setup_bytes=setup.bytes,
        setup_seconds=setup.seconds,
        by_site=site_costs(program, found, tally),
        processes=processes,
        batch=batch,
        fraction_bits=fraction_bits,
        memory=memory,
        transfers=transfers,
    )
