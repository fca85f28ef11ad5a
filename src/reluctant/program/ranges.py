"""How large the numbers of a program grow in fixed point: bounds for every image of a range, or the largest seen.

A ring of 64 bits holds a number x as the whole number x 2^f. A product of two stands at x 2^(2f) until it is truncated,
and that is where it overflows first. SPU's CHEETAH truncates rightly only below 2^62: the protocol takes it that 2^62
may be added without a change of sign (``kHeuristicBound`` in its truncation). Measured with SPU 0.9.5, 64 products a
size: none wrong up to 0.97 x 2^62, a fifth wrong at 1.5 x 2^62, half at 1.9 x 2^62. The twin (REF2K) is right up to
2^63, so it does not notice.

Bounds are interval arithmetic on the fixed-point numbers themselves: each array is known to within one step of 2^-f,
each truncation is off by at most two, and what floats round is allowed for.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float64
from torch import Tensor

from reluctant.errors import UsageError
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
    Slice,
)
from reluctant.program.ops import Program

#: No number of the ring may reach two to this power: CHEETAH's truncation, see above.
LARGEST_BITS = 62
#: Steps of the fixed point that a truncation may be off by.
_OFF = 2
#: What float64 may lose in a sum of up to a million products, of the sum of their magnitudes.
_LOST = 1e-9

Bound = Float64[Tensor, "N ..."]


@dataclass(frozen=True)
class Interval:
    """Bounds of a value, element by element; where both are equal, a value itself."""

    low: Bound
    high: Bound

    def largest(self) -> Bound:
        """Return the largest magnitude in it."""
        return torch.maximum(self.low.abs(), self.high.abs())

    def each(self, function: Callable[[Tensor], Tensor]) -> "Interval":
        """Return the interval that a rising function makes of this one."""
        return Interval(function(self.low), function(self.high))

    def around(self, slack: Tensor | float) -> "Interval":
        """Return the interval that is wider by ``slack`` on both sides."""
        return Interval(self.low - slack, self.high + slack)


@dataclass(frozen=True)
class Reach:
    """How far one operation goes into the ring.

    Args:
        output, kind: which operation it is.
        bits: log2 of the largest magnitude that stands in the ring while it runs.
    """

    output: str
    kind: str
    bits: float

    @property
    def margin(self) -> float:
        """Bits that are left; below zero it may overflow."""
        return LARGEST_BITS - self.bits


def bounds(
    program: Program, input_range: tuple[float, float], fraction_bits: int
) -> Iterator[tuple[str, Interval, Reach]]:
    """Yield for each value of ``program`` its bounds and its reach, which hold for every image in ``input_range``.

    They hold for the numbers of a run in fixed point, and so, but for rounding, for those of the network.
    """
    low, high = (torch.full((1, *program.input_shape), edge, dtype=torch.float64) for edge in input_range)
    yield from _Walk(program, fraction_bits, 2.0**-fraction_bits).values(Interval(low, high))


def seen(
    program: Program, images: Float64[Tensor, "N ..."], fraction_bits: int
) -> Iterator[tuple[str, Interval, Reach]]:
    """Yield for each value of ``program`` what it is for ``images``, in float64, and its reach for these."""
    yield from _Walk(program, fraction_bits, 0.0).values(Interval(images, images))


class _Walk:
    """One pass over a program with intervals.

    Args:
        step: what the arrays and the images are known to within; 0 for exact numbers.
    """

    def __init__(self, program: Program, fraction_bits: int, step: float) -> None:
        if program.arrays is None:
            raise UsageError("the program has no arrays; only the server can tell how large its numbers grow")
        self.program, self.fraction_bits, self.step = program, fraction_bits, step
        self.arrays = {name: torch.from_numpy(array).double() for name, array in program.arrays.items()}
        self.bits = -math.inf

    def values(self, images: Interval) -> Iterator[tuple[str, Interval, Reach]]:
        known = {INPUT: images.around(self.step)}
        self.held(known[INPUT].largest())
        yield INPUT, known[INPUT], Reach(INPUT, "input", self.bits)
        last = {name: number for number, op in enumerate(self.program.ops) for name in op.inputs}
        for number, op in enumerate(self.program.ops):
            self.bits = -math.inf
            for name in op.arrays():
                self.held(self.arrays[name].abs())
            value = _RULES[type(op)](self, op, [known[name] for name in op.inputs])
            known[op.output] = value = value.around(_LOST * self.step * value.largest()) if self.step else value
            self.held(value.largest())
            yield op.output, value, Reach(op.output, op.kind, self.bits)
            for name in {name for name in op.inputs if last[name] == number}:
                del known[name]

    def held(self, largest: Tensor) -> None:
        """Note a number of the ring with the usual fraction."""
        if largest.numel():
            self.bits = max(self.bits, _log2(largest) + self.fraction_bits)

    def product(self, z: Interval, weight: Tensor, times: Callable[[Tensor, Tensor], Tensor]) -> Interval:
        """Return ``times(z, weight)``, which is linear in either and rises with both where they are positive.

        The sum is noted as it stands before it is truncated.
        """
        if self.step or not torch.equal(z.low, z.high):
            middle, radius = (z.low + z.high) / 2, (z.high - z.low) / 2
            radius = times(radius, weight.abs()) + times(z.largest(), _LOST * weight.abs() + self.step)
            middle = times(middle, weight)
            found = Interval(middle - radius, middle + radius)
        else:
            middle = times(z.low, weight)
            found = Interval(middle, middle)
        return self.truncated(found)

    def truncated(self, found: Interval) -> Interval:
        """Note a product and return what truncation makes of it."""
        self.bits = max(self.bits, _log2(found.largest()) + 2 * self.fraction_bits)
        return found.around(_OFF * self.step)

    def plus(self, z: Interval, name: str | None) -> Interval:
        """Return ``z`` plus an array of the server that has its shape or one value a channel."""
        if name is None:
            return z
        bias = _broadcast(self.arrays[name], z.low)
        return z.each(lambda edge: edge + bias).around(self.step)


def _log2(largest: Tensor) -> float:
    top = float(largest.max())
    return math.log2(top) if top > 0 else -math.inf


def _broadcast(array: Tensor, like: Tensor) -> Tensor:
    """Return ``array``, of a sample's shape or one value a channel, so that it broadcasts against ``like``."""
    return array if array.shape == like.shape[1:] else array.reshape(-1, *[1] * (like.dim() - 2))


def _conv2d(walk: _Walk, op: Conv2d, inputs: Sequence[Interval]) -> Interval:
    def times(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(_padded(x, op.padding), weight, None, op.stride, 0, op.dilation, op.groups)

    return walk.plus(walk.product(inputs[0], walk.arrays[op.weight], times), op.bias)


def _linear(walk: _Walk, op: Linear, inputs: Sequence[Interval]) -> Interval:
    return walk.plus(walk.product(inputs[0], walk.arrays[op.weight], F.linear), op.bias)


def _scale(walk: _Walk, op: Scale, inputs: Sequence[Interval]) -> Interval:
    (z,) = inputs
    if op.factor == -1:
        z = Interval(-z.high, -z.low)
    elif op.factor != 1:
        z = walk.product(z, torch.tensor(op.factor, dtype=torch.float64), torch.mul)
    if op.factors is not None:
        z = walk.product(z, _broadcast(torch.tensor(op.factors, dtype=torch.float64), z.low), torch.mul)
    if op.scale is not None:
        z = walk.product(z, _broadcast(walk.arrays[op.scale], z.low), torch.mul)
    return walk.plus(z, op.bias)


def _add(walk: _Walk, op: Add, inputs: Sequence[Interval]) -> Interval:
    return Interval(inputs[0].low + inputs[1].low, inputs[0].high + inputs[1].high)


def _concat(walk: _Walk, op: Concat, inputs: Sequence[Interval]) -> Interval:
    return _joined(inputs)


def _avg_pool(walk: _Walk, op: AvgPool, inputs: Sequence[Interval]) -> Interval:
    count = math.prod(op.kernel)
    total = inputs[0].each(lambda x: count * F.avg_pool2d(_padded(x, op.padding), op.kernel, op.stride))
    walk.held(total.largest())
    return walk.product(total, torch.tensor(1 / count, dtype=torch.float64), torch.mul)


def _max_pool(walk: _Walk, op: MaxPool, inputs: Sequence[Interval]) -> Interval:
    walk.held(inputs[0].high.amax() - inputs[0].low.amin())  # two of them are subtracted to be compared
    return inputs[0].each(lambda x: F.max_pool2d(x, op.kernel, op.stride, op.padding, op.dilation))


def _reshape(walk: _Walk, op: Reshape, inputs: Sequence[Interval]) -> Interval:
    return inputs[0].each(lambda x: x.reshape(len(x), *op.shape))


def _pad(walk: _Walk, op: Pad, inputs: Sequence[Interval]) -> Interval:
    amounts = [amount for pair in zip(op.low[::-1], op.high[::-1], strict=True) for amount in pair]
    return inputs[0].each(lambda x: F.pad(x, amounts))


def _slice(walk: _Walk, op: Slice, inputs: Sequence[Interval]) -> Interval:
    index = (slice(None), *(slice(*item) for item in zip(op.start, op.stop, op.step, strict=True)))
    return inputs[0].each(lambda x: x[index])


def _activation(walk: _Walk, op: Activation, inputs: Sequence[Interval]) -> Interval:
    flat = inputs[0].each(lambda x: x.flatten(1))
    factors = torch.from_numpy(op.kept_factors).double()
    kept = flat.each(lambda x: x[:, op.kept].relu() * factors)
    rest = flat.each(lambda x: x[:, op.rest])
    made = _polynomial(walk, op, rest) if len(op.rest) else rest
    return _joined([kept, made]).each(lambda x: x[:, op.inverse].reshape(inputs[0].low.shape))


def _polynomial(walk: _Walk, op: Activation, z: Interval) -> Interval:
    """Return c0 + c1 z + c2 z^2; a square is made as (c2 z + c1) z, each product truncated."""
    c1 = None if op.c1 is None else walk.arrays[op.c1]
    if not op.squares:
        if c1 is not None:
            z = walk.product(z, c1, torch.mul)
        elif not op.unit_slope:
            z = z.each(torch.zeros_like)
        return walk.plus(z, op.c0)
    c2 = torch.ones_like(z.low[0]) if op.c2 is None else walk.arrays[op.c2]
    walk.held(walk.plus(z if op.c2 is None else walk.product(z, c2, torch.mul), op.c1).largest())
    slope = torch.full_like(c2, float(op.unit_slope)) if c1 is None else c1
    vertex = (-slope / (2 * c2)).nan_to_num(0.0, 0.0, 0.0).clamp(z.low, z.high)
    ends = torch.stack([(c2 * edge + slope) * edge for edge in (z.low, z.high, vertex)])
    largest = z.largest()
    off = largest * ((largest + _OFF + 1) * walk.step) + _LOST * bool(walk.step) * largest * (
        c2.abs() * largest + slope.abs()
    )
    return walk.plus(walk.truncated(Interval(ends.amin(0), ends.amax(0)).around(off)), op.c0)


def _joined(parts: Sequence[Interval]) -> Interval:
    return Interval(torch.cat([z.low for z in parts], 1), torch.cat([z.high for z in parts], 1))


def _padded(x: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
    top, bottom, left, right = padding
    return F.pad(x, (left, right, top, bottom))


_RULES: dict[type[Op], Callable[[_Walk, Any, Sequence[Interval]], Interval]] = {
    Conv2d: _conv2d,
    Linear: _linear,
    Scale: _scale,
    Add: _add,
    Concat: _concat,
    AvgPool: _avg_pool,
    MaxPool: _max_pool,
    Reshape: _reshape,
    Pad: _pad,
    Slice: _slice,
    Activation: _activation,
}
