"""A program that is still being rewritten, in float64."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from reluctant.program.operations import INPUT, Op, Shape, check

Numbers = NDArray[np.float64]
OpType = TypeVar("OpType", bound=Op)


class Draft:
    """A program that is still being rewritten. Every array belongs to one operation.

    Attributes:
        ops: in the order they run.
        arrays: float64, by name.
        outputs: names of the values that the client learns.
    """

    def __init__(self, input_shape: Shape) -> None:
        self.input_shape = input_shape
        self.ops: list[Op] = []
        self.arrays: dict[str, Numbers] = {}
        self.outputs: tuple[str, ...] = ()
        self._checked: dict[int, tuple[Op, tuple[Shape, ...], Shape]] = {}

    def shapes(self) -> dict[str, Shape]:
        """Return the shape of every value; an operation is checked once, as long as it reads the same shapes."""
        known = {name: array.shape for name, array in self.arrays.items()}
        shapes: dict[str, Shape] = {INPUT: self.input_shape}
        before, self._checked = self._checked, {}
        for op in self.ops:
            read = tuple(shapes.get(name, ()) for name in op.inputs)
            found = before.get(id(op))
            if found is None or found[0] is not op or found[1] != read:
                found = (op, read, check(op, shapes, known))
            self._checked[id(op)] = found
            shapes[op.output] = found[2]
        return shapes

    def store(self, name: str, array: Numbers | None) -> str | None:
        """Keep ``array`` under ``name`` and return the name; ``None`` for no array."""
        if array is None:
            return None
        array = np.asarray(array, np.float64)
        if name in self.arrays and self.arrays[name].shape != array.shape:
            self._checked = {}
        self.arrays[name] = array
        return name

    def load(self, name: str | None) -> Numbers | None:
        """Return the array ``name``."""
        return None if name is None else self.arrays[name]

    def consumers(self, value: str) -> list[Op]:
        """Return the operations that read ``value``."""
        return [op for op in self.ops if value in op.inputs]

    def only_consumer(self, value: str) -> Op | None:
        """Return the one operation that reads ``value``, if nothing else does and the client does not learn it."""
        found = self.consumers(value)
        return found[0] if len(found) == 1 and value not in self.outputs else None

    def producer(self, value: str, kind: type[OpType]) -> OpType | None:
        """Return the operation that makes ``value`` if it is of ``kind``."""
        return next((op for op in self.ops if op.output == value and isinstance(op, kind)), None)

    def fresh(self, name: str, beside: Sequence[Op] = ()) -> str:
        """Return ``name``, made longer until no value has it, nor one that an operation of ``beside`` makes."""
        while any(op.output == name for op in (*self.ops, *beside)):
            name += "."
        return name

    def swap(self, old: Op, *new: Op) -> None:
        """Put ``new`` where ``old`` stands."""
        place = self.ops.index(old)
        self.ops[place : place + 1] = new

    def drop(self, op: Op) -> None:
        """Remove ``op``; whoever read its output reads its input instead."""
        self.ops.remove(op)
        source = op.inputs[0]
        for other in self.consumers(op.output):
            names = tuple(source if name == op.output else name for name in other.inputs)
            self.swap(other, replace(other, inputs=names))
        self.outputs = tuple(source if name == op.output else name for name in self.outputs)

    def forget_unused(self) -> None:
        """Remove operations that nothing reads, and arrays that no operation names."""
        needed, kept = set(self.outputs), []
        for op in reversed(self.ops):
            if op.output in needed:
                kept.append(op)
                needed |= set(op.inputs)
        self.ops = kept[::-1]
        named = {name for op in self.ops for name in op.arrays()}
        self.arrays = {name: array for name, array in self.arrays.items() if name in named}


def aligned(shape: Shape, array: Numbers) -> Numbers:
    """Return ``array``, of one value a channel or of the whole ``shape``, so that it broadcasts to ``shape``."""
    return array if array.shape == shape else array.reshape(-1, *[1] * (len(shape) - 1))
