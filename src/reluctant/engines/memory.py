"""Memory of a party's process: what it took, and what there is."""

import math
from pathlib import Path

from reluctant.costs import ENGINES
from reluctant.costs.cheetah import Stocks
from reluctant.costs.model import CostModel
from reluctant.costs.work import work
from reluctant.errors import EngineError
from reluctant.program.ops import Program
from reluctant.units import format_bytes

#: What a party of ABY3 or SEMI2K holds: its process, and for each element of the largest convolution's windows and of
#: the weights. Within 5 % of runs of ResNet-8 and ResNet-20 in batches of 1 to 16, and of ResNet-18 under ABY3.
_PROCESS, _A_WINDOW_ELEMENT, _A_WEIGHT = 290_000_000, 110, 45


def peak_memory() -> int:
    """Return the most bytes that this process has held so far; 0 on a system that does not tell (only Linux does)."""
    return 1024 * _read(Path("/proc/self/status"), "VmHWM")


def available_memory() -> int | None:
    """Return the bytes that processes can still take on this machine, or ``None`` if it does not tell."""
    return 1024 * _read(Path("/proc/meminfo"), "MemAvailable") or None


def check_memory(engine: str, program: Program, batch: int, parties: int) -> None:
    """Refuse a run that cannot fit.

    Args:
        engine: its name.
        batch: images that travel together.
        parties: that run on this machine.

    Raises:
        EngineError: it is predicted to take more than there is; the message has both figures.
    """
    available = available_memory()
    needed = _needed(engine, program, batch)
    if available is not None and needed is not None and parties * needed > available:
        fewer = "send fewer images in a batch" if batch > 1 else "take a machine with more"
        raise EngineError(
            f"{engine} needs {format_bytes(needed)} of memory a party for this network in batches of {batch}, and "
            f"{format_bytes(available)} are left for {parties} of them: {fewer}"
        )


def _needed(engine: str, program: Program, batch: int) -> int | None:
    """Return the bytes that a party is predicted to hold: by the engine's table of prices, or as shares alone."""
    if engine in ENGINES:
        return CostModel.load(engine).predict(program, batch, batch).memory
    endless = Stocks(1, 1 << 60, [1 << 60])
    windows = max(done["window element"] for _, _, done in work(program, batch, endless))
    weights = sum(math.prod(shape) for shape in program.array_shapes.values())
    return _PROCESS + _A_WINDOW_ELEMENT * windows + _A_WEIGHT * weights


def _read(file: Path, key: str) -> int:
    """Return the number after ``key:`` in ``file``, 0 if there is none."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), 0)
