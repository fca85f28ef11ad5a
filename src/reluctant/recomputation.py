"""Activation recomputation for gated sites: their outputs are computed again in the backward pass, not kept for it.

A gated site must keep its input: the gradient of its gates needs it. Whoever comes next, a convolution say, keeps the
site's output besides. One follows from the other by a few element-wise operations, so of the two only the input is
kept, and a step of a mask search takes hardly more memory than a plain one; ``benchmarks/training.py`` measures it.
The values are the same, bit for bit.

Hooks are set on just those saved tensors, one by one, so that all else is autograd's as ever: its checks, and hooks
that a caller has set.
"""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from reluctant.blend import blended

_PREFIX = "_raw_saved_"


class _Recipe:
    """How to compute a site's output again, from what the site keeps anyway."""

    def __init__(self, node: Any) -> None:
        self._from: list[Any] = [None if value is None else value.detach() for value in node.saved_tensors]
        self._versions = [None if value is None else value._version for value in self._from]

    @torch.no_grad()
    def follow(self) -> Tensor:
        """Return the output.

        Raises:
            RuntimeError: what it is made from was changed in place meanwhile.
        """
        if self._versions != [None if value is None else value._version for value in self._from]:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: the "
                "input or the coefficients of an activation site; change them after the backward pass"
            )
        return blended(*self._from)


class Outputs:
    """Those of :class:`reluctant.blend.BlendedReLU` in one forward pass."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[weakref.ref[Tensor], int, _Recipe]] = {}

    def watch(self, y: Tensor, node: Any) -> None:
        """Tell of a site's output and of the node that made its values; if not a blended ReLU's, it is kept as ever."""
        if node is not None and node.name() == "BlendedReLUBackward":
            self._made[id(y)] = weakref.ref(y), y._version, _Recipe(node)

    def forget(self, result: Any, inputs: Iterable[Any]) -> None:
        """Let the operation that made ``result`` of ``inputs`` keep recipes in the place of outputs among them."""
        if not self._made or not isinstance(result, Tensor) or result.grad_fn is None:
            return
        for y in inputs:
            made = self._made.get(id(y))  # another object's, once the output is gone
            if made is not None and made[0]() is y and made[1] == getattr(y, "_version", None):
                _replace(result.grad_fn, y, made[2])


def _replace(node: Any, y: Any, recipe: _Recipe) -> None:
    """Set hooks where ``node`` has saved ``y``, unless somebody else has set some."""
    for name in dir(node):
        if name.startswith(_PREFIX):
            saved = getattr(node, name)
            free = getattr(saved, "unpack_hook", saved) is None  # of a list of tensors there is no such thing
            if free and getattr(node, f"_saved_{name.removeprefix(_PREFIX)}") is y:
                saved.register_hooks(lambda _: recipe, _Recipe.follow)
