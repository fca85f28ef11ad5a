"""Replace a stretch of linear operations by one product, where that is cheaper.

What lies between two non-linear operations, or behind the last one, is an affine map of the values that enter it,
however many operations it is made of: ``v = sum over i of A_i u_i + b``. Where the matrices have fewer
multiply-accumulates than the operations that are needed for ``v`` alone, they take their place: the tail of a network
whose last sites have lost all of their ReLUs becomes one matrix with a row a class, a network without any ReLU is one
affine map of the image.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from reluctant.errors import UnsupportedOperation
from reluctant.program.affine import affine_map
from reluctant.program.draft import Draft
from reluctant.program.operations import (
    INPUT,
    Activation,
    Add,
    Linear,
    MaxPool,
    Op,
    Reshape,
    Scale,
    Shape,
)
from reluctant.program.ops import Program

#: No stretch becomes matrices with more numbers than that: both parties hold plaintexts and ciphertexts of them.
LARGEST_MATRIX = 1 << 22


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
        return not op.keep.any() and not op.squares
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
    matrices, offset = affine_map(draft, end, stretch, sources, shapes)
    new: list[Op] = []
    flat = len(shapes[end]) == 1

    def named(what: str) -> str:
        return draft.fresh(f"{end}.{what}", new)

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
