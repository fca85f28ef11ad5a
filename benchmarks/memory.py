"""How much memory a stretch of work takes."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch


def watch_memory() -> Callable[[], int]:
    """Return a function that returns how many bytes more than now were in use since then, at most."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        return lambda: torch.cuda.max_memory_allocated() - allocated
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    start = resident("VmRSS")
    return lambda: resident("VmHWM") - start


def resident(entry: str) -> int:
    """Return the bytes of this process in memory, now (``VmRSS``) or at most (``VmHWM``); on Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))
