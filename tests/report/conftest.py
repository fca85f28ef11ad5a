"""Records of experiments that never happened, small enough to sum by hand.

Two sites: ``conv`` with 2 x 2 x 2 ReLUs and ``fc`` with 4; a comparison moves 100 bytes, the rest 1,000 bytes an image.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from reluctant.records import Record, describe_kept

Make = Callable[..., Record]
SHAPES = {"conv": (2, 2, 2), "fc": (4,)}
ABOUT = {
    "task": "digits",
    "model": "resnet8",
    "device": "cpu, 2 threads",
    "commit": "abc1234",
    "command": "reluctant demo",
    "environment": {"python": "3.11.7", "processor": "Z80", "cpus": 2},
}


def keep(conv: int, fc: int) -> dict[str, np.ndarray]:
    """A mask that keeps the first ReLUs of each site."""
    counts = {"conv": conv, "fc": fc}
    return {name: (np.arange(np.prod(shape)) < counts[name]).reshape(shape) for name, shape in SHAPES.items()}


def cost(kept: Sequence[int], images: int, surrogate: int = 0, **changes: Any) -> dict[str, Any]:
    """What a run costs in which each dropped ReLU moves ``surrogate`` bytes."""
    rows = [
        {
            "name": name, "kept": k, "comparisons": k * images, "comparison_bytes": 100 * k * images,
            "surrogate_bytes": surrogate * (total - k) * images, "messages": 10 * images * (k > 0),
            "seconds": 0.25 * images * (k > 0),
        }
        for (name, total), k in zip({"conv": 8, "fc": 4}.items(), kept, strict=True)
    ]  # fmt: skip
    steps = sum(row["comparison_bytes"] + row["surrogate_bytes"] for row in rows)
    return {
        "images": images, "argmax_equal_twin": images, "max_abs_error_twin": 1e-4,
        "comparisons": sum(kept) * images, "bytes": steps + 1000 * images, "messages": 30 * images,
        "seconds": 1.0 * images, "setup_bytes": 5000, "setup_seconds": 4.0, "by_site": rows,
    } | changes  # fmt: skip


def secure(**changes: Any) -> dict[str, Any]:
    return {
        "engine": "cheetah", "adversary": "semi-honest", "parties": 2, "dealer": "none", "private": True,
        "offline_included": True, "statement": "Neither party learns more than the public part.", "processes": 2,
        "network": "loopback", "batch": 1, "fraction_bits": 18, "public": ["architecture", "masks"],
        "link": "plain TCP",
    } | changes  # fmt: skip


@pytest.fixture
def dense() -> Make:
    """Makes a record of the network with all of its 12 ReLUs."""

    def make(kind: str = "evaluate", test: float = 0.98, images: int = 0, **changes: Any) -> Record:
        read = kind == "evaluate"
        run = {"secure": secure(dense=cost((8, 4), images or 4))} if kind == "run" else {}
        content = {
            "kind": kind,
            "accuracy": {"val": 0.99, "test": test if read else None, "n_test": 50 if read else None},
            "relus": {"total": 12, "kept": 12, "sites": 2, "sites_kept": 2},
            "seed": 0,
            "seconds": 60.0,
            "epochs": 30,
        }
        return Record(**(ABOUT | content | run | changes))

    return make


@pytest.fixture
def linearized() -> Make:
    """Makes a record of a network that keeps ``kept`` ReLUs of each site."""

    def make(
        kind: str = "evaluate",
        method: str = "snl",
        kept: tuple[int, int] = (3, 0),
        test: float = 0.96,
        n: int = 50,
        surrogate: int = 0,
        setting: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Record:
        read = kind == "evaluate"
        run = {"secure": secure(**{"linearized": cost(kept, 4, surrogate)} | (setting or {}))} if kind == "run" else {}
        content = {
            "kind": kind,
            "method": method,
            "budget": "25%",
            "surrogate": "identity",
            "accuracy": {"val": 0.97, "test": test if read else None, "n_test": n if read else None},
            "relus": {"total": 12, "kept": sum(kept), "sites": 2, "sites_kept": sum(k > 0 for k in kept)},
            "mask": describe_kept(keep(*kept), f"{kept}"),
            "seed": 0,
            "seconds": 90.0,
            "epochs": 12,
        }
        return Record(**(ABOUT | content | run | changes))

    return make
