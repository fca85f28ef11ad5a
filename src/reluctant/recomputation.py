"""Outputs of gated sites computed a second time in the backward pass instead of kept for it.

A gated site must keep its input: the gradient of its gates needs it. Whoever comes next, a convolution say, keeps the
site's output besides. One follows from the other by a few element-wise operations, so the second is not kept, and a
step of a mask search takes hardly more memory than a plain one; ``benchmarks/training.py`` measures it. The values are
the same, bit for bit.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor

from reluctant.blend import blended

_Kept: TypeAlias = "Tensor | _Recipe"


class _Recipe:
    """How to compute a site's output again, from what the site keeps anyway."""

    def __init__(self, node: Any) -> None:
        self._node = node
        self._last: weakref.ref[Tensor] | None = None  # what follows a site is often two convolutions

    @torch.no_grad()
    def follow(self) -> Tensor:
        y = self._last() if self._last is not None else None
        if y is None:
            y = blended(*self._node.saved_tensors)
            self._last = weakref.ref(y)
        return y


class Outputs:
    """Those of :class:`reluctant.blend.BlendedReLU` in one forward pass."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[weakref.ref[Tensor], int, _Recipe]] = {}

    @contextmanager
    def recomputed(self) -> Iterator[None]:
        """While inside, who keeps an output for its backward pass keeps how to compute it again."""
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack):
                yield
        finally:
            self._made.clear()  # these hooks live as long as the graph, which the recipes hold

    def watch(self, y: Tensor, node: Any) -> None:
        """Tell of a site's output and of the node that made its values; if not a blended ReLU's, it is kept as ever."""
        if node is not None and node.name() == "BlendedReLUBackward":
            self._made[y.data_ptr()] = weakref.ref(y), y._version, _Recipe(node)

    def _pack(self, kept: Tensor) -> _Kept:
        found = self._made.get(kept.data_ptr())
        if found is None:
            return kept
        made, version, recipe = found
        y = made()  # an address is used again as soon as its tensor is gone
        if y is None or y._version != version:
            return kept
        same = (kept.shape, kept.stride(), kept.dtype) == (y.shape, y.stride(), y.dtype)
        return recipe if same else kept


def _unpack(kept: _Kept) -> Tensor:
    return kept.follow() if isinstance(kept, _Recipe) else kept
