"""The affine map that a stretch of operations is, as matrices, exact in float64."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reluctant.program.draft import Draft, Numbers, aligned
from reluctant.program.operations import (
    Activation,
    Add,
    AvgPool,
    Concat,
    Conv2d,
    Linear,
    Op,
    Pad,
    Reshape,
    Scale,
    Shape,
    Slice,
)

#: Rows that are differentiated at once, which is so many times as slow for each as to send a column through.
_AT_ONCE = 16
_FEW_ROWS = 4
#: The most numbers of a convolution that is written down as a matrix on the way.
MOST_NUMBERS = 1 << 22


def affine_map(
    draft: Draft, end: str, stretch: list[Op], sources: list[str], shapes: Mapping[str, Shape]
) -> tuple[list[Numbers], Numbers]:
    """Return the matrices ``[elements of end, elements of a source]`` and the offset ``[elements of end]``."""
    entering = [torch.zeros(1, *shapes[source], dtype=torch.float64) for source in sources]

    def made(given: Sequence[Tensor], known: Mapping[str, Tensor] | None = None) -> Tensor:
        values = {**dict(zip(sources, given, strict=True)), **(known or {})}
        for op in stretch:
            if op.output not in values:
                values[op.output] = apply(draft, op, *(values[name] for name in op.inputs))
        return values[end].flatten(1)

    offset = made(entering)[0]
    if _FEW_ROWS * len(offset) < sum(source.numel() for source in entering):
        matrices = _by_rows(made, entering)
    else:
        first = [_first_convolution(stretch, source, shapes) for source in sources]
        known = [{} if op is None else {op.output: _columns(draft, op, shapes)} for op in first]
        matrices = _by_columns(made, entering, offset, known)
    return [matrix.numpy() for matrix in matrices], offset.numpy()


def _first_convolution(stretch: list[Op], source: str, shapes: Mapping[str, Shape]) -> Conv2d | None:
    """Return the convolution that alone reads ``source``, if its own matrix is of a size to be written down."""
    readers = [op for op in stretch if source in op.inputs]
    if len(readers) != 1 or not isinstance(readers[0], Conv2d) or readers[0].groups > 1:
        return None
    size = math.prod(shapes[source]) * math.prod(shapes[readers[0].output])
    return readers[0] if size <= MOST_NUMBERS else None


def _columns(draft: Draft, op: Conv2d, shapes: Mapping[str, Shape]) -> Tensor:
    """Return what ``op`` makes of each element of its input alone, ``[C * H * W, O, H', W']``; no product is taken."""
    weight, bias = (_tensor(draft, name) for name in (op.weight, op.bias))
    assert weight is not None
    (channels, height, width), (outputs, rows, columns) = shapes[op.inputs[0]], shapes[op.output]
    made = torch.zeros(channels, height, width, outputs, rows, columns, dtype=torch.float64)
    for row, column, y, x in product(range(rows), range(columns), *map(range, weight.shape[2:])):
        from_row = row * op.stride[0] + y * op.dilation[0] - op.padding[0]
        from_column = column * op.stride[1] + x * op.dilation[1] - op.padding[2]
        if 0 <= from_row < height and 0 <= from_column < width:
            made[:, from_row, from_column, :, row, column] = weight[:, :, y, x].T.double()
    if bias is not None:
        made += bias[:, None, None]
    return made.flatten(0, 2)


def _by_rows(made: Callable[..., Tensor], entering: Sequence[Tensor]) -> list[Tensor]:
    """Return the matrices, each row as the gradient of one element."""
    leaves = [source.clone().requires_grad_() for source in entering]
    with torch.enable_grad():
        flat = made(leaves)[0]
    rows: list[Sequence[Tensor | None]] = []
    for chosen in torch.split(torch.eye(len(flat), dtype=torch.float64), _AT_ONCE):
        rows.append(
            torch.autograd.grad(flat, leaves, chosen, is_grads_batched=True, retain_graph=True, allow_unused=True)
        )
    matrices = [
        torch.cat([torch.zeros(_AT_ONCE, source.numel()) if row is None else row.flatten(1) for row in found])
        for source, found in zip(leaves, zip(*rows, strict=True), strict=True)
    ]
    return [matrix[: len(flat)] for matrix in matrices]


@torch.no_grad()
def _by_columns(
    made: Callable[..., Tensor],
    entering: Sequence[Tensor],
    offset: Tensor,
    known: Sequence[Mapping[str, Tensor]],
) -> list[Tensor]:
    """Return the matrices, each column as what one element of a source makes.

    Args:
        known: for each source, values on the way that are known for each of its elements.
    """
    matrices = []
    for place, source in enumerate(entering):
        parts = []
        for chosen in torch.split(torch.arange(source.numel()), 8 * _AT_ONCE):
            given = [other.expand(len(chosen), *other.shape[1:]) for other in entering]
            one_hot = F.one_hot(chosen, source.numel()).double()
            given[place] = one_hot.reshape(len(chosen), *source.shape[1:])
            values = {name: value[chosen] for name, value in known[place].items()}
            parts.append(made(given, values) - offset)
        matrices.append(torch.cat(parts).T.contiguous())
    return matrices


def apply(draft: Draft, op: Op, *inputs: Tensor) -> Tensor:
    """Return what ``op``, which is affine, makes of ``inputs``: values of ``[B, ...]`` in float64."""
    found: Tensor = _FUNCTIONS[type(op)](draft, op, *inputs)
    return found


def _around(padding: tuple[int, int, int, int]) -> list[int]:
    top, bottom, left, right = padding
    return [left, right, top, bottom]


def _tensor(draft: Draft, name: str | None) -> Tensor | None:
    array = draft.load(name)
    return None if array is None else torch.tensor(array)


def _conv2d(draft: Draft, op: Conv2d, x: Tensor) -> Tensor:
    weight, bias = (_tensor(draft, name) for name in (op.weight, op.bias))
    assert weight is not None
    return F.conv2d(F.pad(x, _around(op.padding)), weight, bias, op.stride, 0, op.dilation, op.groups)


def _linear(draft: Draft, op: Linear, x: Tensor) -> Tensor:
    weight = _tensor(draft, op.weight)
    assert weight is not None
    return F.linear(x, weight, _tensor(draft, op.bias))


def _scale(draft: Draft, op: Scale, x: Tensor) -> Tensor:
    shape = tuple(x.shape[1:])
    for factor in (draft.load(op.scale), None if op.factors is None else np.asarray(op.factors)):
        x = x if factor is None else x * torch.tensor(aligned(shape, factor))
    bias = draft.load(op.bias)
    return op.factor * x + (0 if bias is None else torch.tensor(aligned(shape, bias)))


def _activation(draft: Draft, op: Activation, x: Tensor) -> Tensor:
    c0, c1 = (_tensor(draft, name) for name in (op.c0, op.c1))
    flat = x.flatten(1)
    slope = flat * (1.0 if op.unit_slope else 0.0) if c1 is None else flat * c1
    return (slope + (0 if c0 is None else c0)).reshape(x.shape)


def _pad(draft: Draft, op: Pad, x: Tensor) -> Tensor:
    return F.pad(x, [amount for pair in zip(op.low[::-1], op.high[::-1], strict=True) for amount in pair])


def _slice(draft: Draft, op: Slice, x: Tensor) -> Tensor:
    parts = (slice(*part) for part in zip(op.start, op.stop, op.step, strict=True))
    return x[(slice(None), *parts)]


_FUNCTIONS: dict[type[Op], Callable[..., Any]] = {
    Conv2d: _conv2d,
    Linear: _linear,
    Scale: _scale,
    Add: lambda draft, op, x, y: x + y,
    Concat: lambda draft, op, *xs: torch.cat(xs, 1),
    AvgPool: lambda draft, op, x: F.avg_pool2d(F.pad(x, _around(op.padding)), op.kernel, op.stride),
    Reshape: lambda draft, op, x: x.reshape(len(x), *op.shape),
    Pad: _pad,
    Slice: _slice,
    Activation: _activation,
}
