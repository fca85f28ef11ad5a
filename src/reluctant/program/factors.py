"""Make two small products of one, where the weights of a layer have so low a rank that this is cheaper.

A kernel ``[O, I, kh, kw]`` of rank r is a convolution to r channels and a 1x1 convolution, in the order that takes
fewer multiply-accumulates; a matrix ``[O, I]`` is two matrices. What is left away of the weights is at most
:data:`ERROR` of their norm, less than the fixed point rounds off. The shapes of what takes their place tell the rank.

By CHEETAH's measured prices two products beat one from a quarter of the full rank on, for a product has its price
however small it is. Trained weights hardly ever have so low a rank. Those of a network do that was compressed by such
factors and multiplied out again.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from reluctant.program.draft import Draft, Numbers
from reluctant.program.operations import Conv2d, Linear, Op

#: The part of the weights' norm that may be left away.
ERROR = 1e-6

#: A layer is replaced if its rank is no more than this part of its full one, and that is no less than ``_NARROWEST``.
_SHARE, _NARROWEST = 1 / 4, 16


def factorize(draft: Draft) -> None:
    """Replace every layer of ``draft`` whose weights have a low rank."""
    for op in list(draft.ops):
        if isinstance(op, Linear) and (found := _factors(draft.arrays[op.weight])):
            left, right = found
            _replace(draft, op, Linear(output="", inputs=op.inputs, weight=""), right, op, left)
        elif isinstance(op, Conv2d) and op.groups == 1:
            _split_kernel(draft, op)


class _Pair(NamedTuple):
    """Kernels of two convolutions, and whether the first of them has the window, and so stride and padding."""

    first: Numbers
    second: Numbers
    window_first: bool


def _split_kernel(draft: Draft, op: Conv2d) -> None:
    weight, shapes = draft.arrays[op.weight], draft.shapes()
    outputs, inputs, *window = weight.shape
    pairs = []
    if found := _factors(weight.reshape(outputs, -1), min(outputs, inputs)):
        left, right = found
        pairs.append(_Pair(right.reshape(-1, inputs, *window), left[:, :, None, None], True))
    if found := _factors(weight.transpose(1, 0, 2, 3).reshape(inputs, -1), min(outputs, inputs)):
        left, right = found
        kernel = right.reshape(-1, outputs, *window).transpose(1, 0, 2, 3)
        pairs.append(_Pair(left.T[:, :, None, None], kernel, False))
    before, after = (int(np.prod(shapes[name][1:])) for name in (op.inputs[0], op.output))

    def macs(pair: _Pair) -> int:
        return (after if pair.window_first else before) * pair.first.size + after * pair.second.size

    pair = min(pairs, key=macs, default=None)
    if pair is None or macs(pair) >= after * weight.size:
        return
    plain = Conv2d(output="", inputs=op.inputs, weight="")
    one, two = (op, plain) if pair.window_first else (plain, op)
    _replace(draft, op, one, pair.first, two, pair.second)


def _replace(
    draft: Draft, old: Conv2d | Linear, first: Op, first_weight: Numbers, second: Op, second_weight: Numbers
) -> None:
    """Put two layers in the place of one, made like ``first`` and ``second``; its bias goes to the second."""
    inner = draft.fresh(f"{old.output}.factor")
    names = [draft.store(f"{inner}.{n}", array) for n, array in enumerate((first_weight, second_weight))]
    draft.swap(
        old,
        replace(first, output=inner, weight=names[0], bias=None),  # type: ignore[call-arg]
        replace(second, output=old.output, inputs=(inner,), weight=names[1], bias=old.bias),  # type: ignore[call-arg]
    )


def _factors(matrix: Numbers, full: int | None = None) -> tuple[Numbers, Numbers] | None:
    """Return two matrices whose product is ``matrix``; ``None`` if its rank is no small part of ``full``."""
    full = min(matrix.shape) if full is None else full
    most, norm = int(_SHARE * full), np.linalg.norm(matrix)
    if full < _NARROWEST or not 0 < norm < np.inf:
        return None
    corner = np.linalg.svd(matrix[: most + 1, : most + 1], compute_uv=False)
    if corner[-1] > ERROR * norm:  # no singular value of a part is larger than that of the whole: the usual case
        return None
    left, sizes, right = np.linalg.svd(matrix, full_matrices=False)
    left_away = np.sqrt(np.cumsum(sizes[::-1] ** 2))[::-1]
    rank = int((left_away > ERROR * left_away[0]).sum())
    if rank > most:
        return None
    root = np.sqrt(sizes[:rank])
    return left[:, :rank] * root, root[:, None] * right[:rank]
