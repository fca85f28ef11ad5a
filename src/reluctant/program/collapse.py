"""Replace a stretch of linear operations by one product, where that is cheaper.

What lies between two non-linear operations, or behind the last one, is an affine map of the values that enter it,
however many operations it is made of: ``v = sum over i of A_i u_i + b``. Where the matrices have fewer
multiply-accumulates than the operations that are needed for ``v`` alone, they take their place: the tail of a network
whose last sites have lost all of their ReLUs becomes one matrix with a row a class, a network without any ReLU is one
affine map of the image. The matrices are exact, computed in float64, by rows or by columns.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reluctant.errors import UnsupportedOperation
from reluctant.program.draft import Draft, Numbers, aligned
from reluctant.program.operations import (
    INPUT,
    Activation,
    Add,
    AvgPool,
    Concat,
    Conv2d,
    Linear,
    MaxPool,
    Op,
    Pad,
    Reshape,
    Scale,
    Shape,
    Slice,
)
from reluctant.program.ops import Program

#: No stretch becomes matrices with more numbers than that: both parties hold plaintexts and ciphertexts of them.
LARGEST_MATRIX = 1 << 22

#: Rows that are differentiated at once, which is so many times as slow for each as to send a column through.
_AT_ONCE = 16
_FEW_ROWS = 4


def collapse(draft: Draft) -> None:
    """Replace every stretch of ``draft`` that is dearer than its matrices, the last one first."""
    ends = [name for op in draft.ops if isinstance(op, Activation | MaxPool) for name in op.inputs]
    for end in dict.fromkeys((*draft.outputs, *reversed(ends))):
        stretch, sources = _stretch(draft, end)
        if not stretch or not sources:
            continue
        shapes = draft.shapes()
        numbers = math.prod(shapes[end]) * sum(math.prod(shapes[source]) for source in sources)
        if numbers <= LARGEST_MATRIX and numbers < _macs_saved(draft, end, sources, shapes):
            _replace(draft, end, stretch, sources, shapes)
            draft.forget_unused()


def straighten(program: Program) -> Program:
    """Return ``program`` with every stretch replaced by its matrices, whatever that costs.

    What enters an activation, and every output, is then a sum of :class:`Linear` products of the flattened image or of
    flattened outputs of activations; reshapes stand between. It is the form that an engine on packed vectors needs.

    Raises:
        UnsupportedOperation: a matrix of more than ``LARGEST_MATRIX`` numbers.
    """
    assert program.arrays is not None
    draft = Draft(program.input_shape)
    draft.arrays = {name: array.astype(np.float64) for name, array in program.arrays.items()}
    draft.ops, draft.outputs = list(program.ops), program.outputs
    for end in _ends(draft):
        stretch, sources = _stretch(draft, _behind_something_affine(draft, end))
        shapes = draft.shapes()
        end = stretch[-1].output
        numbers = math.prod(shapes[end]) * max(math.prod(shapes[source]) for source in sources)
        if numbers > LARGEST_MATRIX:
            raise UnsupportedOperation(
                f"what leads to {end!r} is a matrix of {numbers:,} numbers, expected at most {LARGEST_MATRIX:,}; take "
                "a narrower network or smaller images"
            )
        _replace(draft, end, stretch, sources, shapes)
        draft.forget_unused()
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in draft.arrays.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    return replace(program, ops=tuple(draft.ops), outputs=draft.outputs, array_shapes=shapes, arrays=arrays)


def _ends(draft: Draft) -> list[str]:
    """Return the values that must be there: the outputs, and what enters operations that are not affine."""
    entering = [name for op in draft.ops if not _is_affine(op) for name in op.inputs]
    return list(dict.fromkeys((*draft.outputs, *reversed(entering))))


def _behind_something_affine(draft: Draft, end: str) -> str:
    """Return ``end``, or what takes its place where no affine operation makes it: itself, times one."""
    maker = next((op for op in draft.ops if op.output == end), None)
    if maker is not None and _is_affine(maker):
        return end
    same = Scale(output=draft.fresh(f"{end}.same"), inputs=(end,))
    for user in [op for op in draft.consumers(end) if not _is_affine(op)]:
        draft.swap(user, replace(user, inputs=(same.output,)))
    draft.ops.insert(0 if maker is None else draft.ops.index(maker) + 1, same)
    draft.outputs = tuple(same.output if name == end else name for name in draft.outputs)
    return same.output


def _stretch(draft: Draft, end: str) -> tuple[list[Op], list[str]]:
    """Return the affine operations that lead to ``end``, in order, and the values that enter them."""
    makers = {op.output: op for op in draft.ops}
    found: dict[str, Op] = {}
    sources: dict[str, None] = {}
    waiting = [end]
    while waiting:
        name = waiting.pop()
        if name in found or name in sources:
            continue
        maker = makers.get(name)
        if maker is None or not _is_affine(maker):
            sources[name] = None
        else:
            found[name] = maker
            waiting.extend(maker.inputs)
    return [op for op in draft.ops if op.output in found], [name for name in (INPUT, *makers) if name in sources]


def _is_affine(op: Op) -> bool:
    if isinstance(op, Activation):
        return not op.keep.any() and op.c2 is None
    return not isinstance(op, MaxPool)


def _macs_saved(draft: Draft, end: str, sources: list[str], shapes: Mapping[str, Shape]) -> int:
    """Return the multiply-accumulates of the operations between ``sources`` and ``end`` that nothing else needs."""
    known = {name: array.shape for name, array in draft.arrays.items()}
    needed = (set(draft.outputs) - {end}) | set(sources)
    saved = 0
    for op in reversed(draft.ops):
        if op.output in needed and op.output != end:
            needed |= set(op.inputs)
        else:
            saved += op.macs([shapes[name] for name in op.inputs], known)
    return saved


def _replace(draft: Draft, end: str, stretch: list[Op], sources: list[str], shapes: Mapping[str, Shape]) -> None:
    """Put one product a source, and their sum, in the place of the operation that makes ``end``."""
    matrices, offset = _affine_map(draft, end, stretch, sources, shapes)
    new: list[Op] = []
    flat = len(shapes[end]) == 1

    def named(what: str) -> str:
        taken = {op.output for op in (*draft.ops, *new)}
        name = f"{end}.{what}"
        while name in taken:
            name += "."
        return name

    sums = []
    for number, (source, matrix) in enumerate(zip(sources, matrices, strict=True)):
        if len(shapes[source]) > 1:
            new.append(Reshape(output=named(f"flat{number}"), inputs=(source,), shape=(math.prod(shapes[source]),)))
            source = new[-1].output
        name = end if flat and len(sources) == 1 else named(f"product{number}")
        weight, bias = draft.store(f"{name}.matrix", matrix), None
        if number == 0:
            bias = draft.store(f"{name}.offset", offset)
        assert weight is not None
        new.append(Linear(output=name, inputs=(source,), weight=weight, bias=bias))
        sums.append(name)
    for number, name in enumerate(sums[1:], 1):
        total = end if flat and number == len(sums) - 1 else named(f"sum{number}")
        new.append(Add(output=total, inputs=(sums[0] if number == 1 else new[-1].output, name)))
    if not flat:
        new.append(Reshape(output=end, inputs=(new[-1].output,), shape=shapes[end]))
    old = next(op for op in draft.ops if op.output == end)
    draft.swap(old, *new)


def _affine_map(
    draft: Draft, end: str, stretch: list[Op], sources: list[str], shapes: Mapping[str, Shape]
) -> tuple[list[Numbers], Numbers]:
    """Return the matrices ``[elements of end, elements of a source]`` and the offset ``[elements of end]``."""
    entering = [torch.zeros(1, *shapes[source], dtype=torch.float64) for source in sources]

    def made(given: Sequence[Tensor]) -> Tensor:
        values = dict(zip(sources, given, strict=True))
        for op in stretch:
            values[op.output] = _FUNCTIONS[type(op)](draft, op, *(values[name] for name in op.inputs))
        return values[end].flatten(1)

    offset = made(entering)[0]
    columns = sum(source.numel() for source in entering)
    matrices = _by_rows(made, entering) if _FEW_ROWS * len(offset) < columns else _by_columns(made, entering, offset)
    return [matrix.numpy() for matrix in matrices], offset.numpy()


def _by_rows(made: Callable[[Sequence[Tensor]], Tensor], entering: Sequence[Tensor]) -> list[Tensor]:
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
def _by_columns(made: Callable[[Sequence[Tensor]], Tensor], entering: Sequence[Tensor], offset: Tensor) -> list[Tensor]:
    """Return the matrices, each column as what one element of a source makes."""
    matrices = []
    for place, source in enumerate(entering):
        parts = []
        for chosen in torch.split(torch.eye(source.numel(), dtype=torch.float64), 8 * _AT_ONCE):
            given = [other.expand(len(chosen), *other.shape[1:]) for other in entering]
            given[place] = chosen.reshape(len(chosen), *source.shape[1:])
            parts.append(made(given) - offset)
        matrices.append(torch.cat(parts).T.contiguous())
    return matrices


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
