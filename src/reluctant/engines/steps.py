"""A program cut into steps, each one function of JAX arrays that becomes one executable of its own.

Maps are ``[B, H, W, C]`` here, the layout that SPU's convolutions have; the program's ``(C, H, W)`` order is restored
wherever a map is flattened. Between two activations everything linear is one step. An activation is two: one gathers
the kept elements and compares them, one makes the others and puts all back in place by another gather, so that what
each cost can be read off. A mask is never multiplied with and nothing is ever scattered: either would undo the saving.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from reluctant.engines import layers
from reluctant.program.operations import INPUT, Activation, Array, Conv2d, MaxPool, Op, Shape
from reluctant.program.ops import Program

Part = Literal["linear", "comparison", "surrogate", "pooling"]
Values = dict[str, Any]
Index = NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """One executable: what it reads, what it makes, and the function between them.

    Args:
        part: what its cost counts as.
        site: the activation site that it belongs to; empty for ``linear`` and ``pooling``.
        reads, makes: names of values.
        arrays: names of the server's arrays.
        run: takes values and arrays by name, returns the values it makes by name.
    """

    part: Part
    site: str
    reads: tuple[str, ...]
    arrays: tuple[str, ...]
    makes: tuple[str, ...]
    run: Callable[[Values], Values]


def value_shape(shape: Shape, batch: int) -> Shape:
    """Return the shape of a value in an executable: a map ``(C, H, W)`` lies there as ``[B, H, W, C]``."""
    return (batch, *shape[1:], shape[0]) if len(shape) == 3 else (batch, *shape)


def inner_index(shape: Shape) -> Index:
    """Return, for each element of a flattened value of a program, where it lies in the flattened inner layout."""
    if len(shape) != 3:
        return np.arange(math.prod(shape))
    channels, height, width = shape
    return np.arange(math.prod(shape)).reshape(height, width, channels).transpose(2, 0, 1).reshape(-1)


def steps(program: Program) -> list[Step]:
    """Return the steps of ``program`` in the order they run."""
    found: list[Step] = []
    stretch: list[Op] = []
    for position, op in enumerate(program.ops):
        if isinstance(op, Activation | MaxPool):
            found += _linear(program, stretch, position)
            stretch = []
            found += _activation(program, op) if isinstance(op, Activation) else [_pooling(program, op)]
        else:
            stretch.append(op)
    return found + list(_linear(program, stretch, len(program.ops)))


def _linear(program: Program, ops: Sequence[Op], position: int) -> Iterator[Step]:
    """Yield the one step of the linear operations ``ops``, which stand before ``position``; none if there are none."""
    if not ops:
        return
    made = [op.output for op in ops]
    later = {name for op in program.ops[position:] for name in op.inputs} | set(program.outputs)
    reads = tuple(dict.fromkeys(name for op in ops for name in op.inputs if name not in made))
    arrays = tuple(dict.fromkeys(name for op in ops for name in op.arrays()))
    makes = tuple(name for name in made if name in later)
    shapes = program.shapes

    def run(values: Values) -> Values:
        for op in ops:
            values[op.output] = layers.apply(op, values, [shapes[name] for name in op.inputs])
        return {name: values[name] for name in makes}

    yield Step("linear", "", reads, arrays, makes, run)


def _pooling(program: Program, op: MaxPool) -> Step:
    def run(values: Values) -> Values:
        return {op.output: layers.max_pool(values[op.inputs[0]], op)}

    return Step("pooling", "", op.inputs, (), (op.output,), run)


def _activation(program: Program, op: Activation) -> Iterator[Step]:
    source, shape = op.inputs[0], program.shapes[op.output]
    inner = inner_index(shape)
    every, some = len(op.rest) == 0 and op.factors is None, len(op.kept) > 0
    kept = op.output if every else f"{op.output}.kept"

    def compare(values: Values) -> Values:
        z = values[source]
        if every:
            return {kept: layers.relu(z)}
        order = _order_of_kept(op)
        return {kept: layers.multiply(layers.relu(layers.take(z, inner[op.kept[order]])), op.kept_factors[order])}

    def replace(values: Values) -> Values:
        z, relus = values[source], values[kept] if some else None
        return {op.output: _replaced(op, z, relus, values, inner).reshape(z.shape)}

    if some:
        yield Step("comparison", op.site, (source,), (), (kept,), compare)
    if not every:
        reads = (source, kept) if some else (source,)
        yield Step("surrogate", op.site, reads, op.arrays(), (op.output,), replace)


def _order_of_kept(op: Activation) -> Index:
    """Return in which order the kept elements lie in the executables: those of one factor next to each other."""
    return np.argsort(op.kept_factors, kind="stable")


def _replaced(op: Activation, z: Any, relus: Any | None, values: Values, inner: Index) -> Any:
    """Return the flattened output of ``op``: the kept elements from ``relus``, the others made from ``z``."""
    c0, c1, c2 = (None if name is None else values[name] for name in (op.c0, op.c1, op.c2))
    if _shifts(op):  # z + c0: made in place, so that only one gather is needed
        flat = layers.flatten(z)
        others, where = flat if c0 is None else flat + c0, inner[op.rest]
    else:
        others = layers.polynomial(lambda: layers.take(z, inner[op.rest]), z.shape[0], len(op.rest), c0, c1, c2, op)
        where = np.arange(len(op.rest))
    order = np.empty(len(op.keep), np.int64)
    order[inner[op.kept[_order_of_kept(op)]]] = np.arange(len(op.kept))
    order[inner[op.rest]] = len(op.kept) + where
    return layers.put_together(relus, others, order)


def _shifts(op: Activation) -> bool:
    """Return whether a dropped element becomes ``z + c0``."""
    return op.unit_slope and op.c1 is None and not op.squares


def inner_arrays(program: Program) -> Mapping[str, Callable[[Array], Array]]:
    """Return, for each array of ``program`` that lies otherwise in the executables, what brings it there."""
    moves: dict[str, Callable[[Array], Array]] = {}
    for op in program.ops:
        if isinstance(op, Conv2d):
            moves[op.weight] = layers.kernel_layout(op)
        elif isinstance(op, Activation):
            inner = inner_index(program.shapes[op.output])
            if op.c0 is not None and _shifts(op):
                moves[op.c0] = _spread(inner[op.rest], len(op.keep))
        else:
            for name in op.arrays():
                if len(program.array_shapes[name]) == 3:
                    moves[name] = lambda array: np.ascontiguousarray(array.transpose(1, 2, 0))
    return moves


def _spread(where: Index, size: int) -> Callable[[Array], Array]:
    def spread(array: Array) -> Array:
        whole = np.zeros(size, np.float32)
        whole[where] = array
        return whole

    return spread


def inner_shapes(program: Program) -> dict[str, Shape]:
    """Return the shape of each array of ``program`` as the executables read it."""
    moves = inner_arrays(program)
    shapes = {}
    for name, shape in program.array_shapes.items():
        blank = np.broadcast_to(np.float32(0), shape)
        shapes[name] = moves[name](blank).shape if name in moves else shape
    return shapes


def live_after(program: Program, found: Sequence[Step]) -> list[set[str]]:
    """Return, for each step, the values that may be forgotten once it has run."""
    last = {INPUT: 0}
    for number, step in enumerate(found):
        last |= dict.fromkeys((*step.reads, *step.makes), number)
    return [
        {name for name, at in last.items() if at == number and name not in program.outputs}
        for number in range(len(found))
    ]
