"""The operations of a program: what each takes and gives, and how it is checked.

All shapes are of one sample, without the batch; images and maps are ``(C, H, W)``, and flattening is row-major over
that order, as in torch. An engine may keep another layout inside. An operation names its values (``inputs`` and
``output``) and the server's arrays by strings; everything that stands in an operation is public.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]
Array = NDArray[np.float32]

#: The name of the value that holds the images.
INPUT = "input"

#: No whole number by which an activation multiplies its kept elements may be larger.
LARGEST_FACTOR = 1 << 10

#: No array, and no value of one sample, may have more elements: a bound on what the other party can make us allocate.
LARGEST = 1 << 28


class BadOperation(ValueError):
    """An operation that contradicts itself, its inputs or its arrays."""


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise BadOperation(message)


@dataclass(frozen=True, kw_only=True, eq=False)
class Op:
    """One step of a program.

    Args:
        output: name of the value it makes.
        inputs: names of the values it reads.
    """

    kind: ClassVar[str]
    #: Fields that name arrays of the server.
    private: ClassVar[tuple[str, ...]] = ()
    #: How many inputs it has; ``None`` for two or more.
    arity: ClassVar[int | None] = 1

    output: str
    inputs: tuple[str, ...]

    def arrays(self) -> tuple[str, ...]:
        """Return the names of the server's arrays that it reads."""
        return tuple(name for field in self.private if (name := getattr(self, field)) is not None)

    def infer(self, inputs: Sequence[Shape], arrays: Mapping[str, Shape]) -> Shape:
        """Return the shape of its output, given those of its inputs and of the server's arrays.

        Raises:
            BadOperation: they do not fit.
        """
        raise NotImplementedError

    def macs(self, inputs: Sequence[Shape], arrays: Mapping[str, Shape]) -> int:
        """Return its multiply-accumulates with private numbers, for one sample."""
        return 0


def _map_shape(op: Op, shape: Shape) -> tuple[int, int, int]:
    _require(len(shape) == 3, f"{op.kind} {op.output!r} needs a map (C, H, W), got shape {shape}")
    return shape[0], shape[1], shape[2]


def _windows(op: Op, size: int, kernel: int, stride: int, low: int, high: int, dilation: int = 1) -> int:
    _require(kernel > 0 and stride > 0 and dilation > 0 and low >= 0 and high >= 0, f"{op.kind} {op.output!r}: window")
    count = (size + low + high - dilation * (kernel - 1) - 1) // stride + 1
    _require(count > 0, f"{op.kind} {op.output!r}: its window of {kernel} does not fit into {size}")
    return count


@dataclass(frozen=True, kw_only=True, eq=False)
class Conv2d(Op):
    """Cross-correlation with a private kernel ``[O, I / groups, kh, kw]`` and bias ``[O]``.

    Args:
        padding: zeros at (top, bottom, left, right).
    """

    kind: ClassVar[str] = "conv2d"
    private: ClassVar[tuple[str, ...]] = ("weight", "bias")

    weight: str
    bias: str | None = None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def infer(self, inputs: Sequence[Shape], arrays: Mapping[str, Shape]) -> Shape:
        channels, height, width = _map_shape(self, inputs[0])
        weight = arrays[self.weight]
        _require(len(weight) == 4 and self.groups > 0, f"conv2d {self.output!r}: weight of shape {weight}")
        fits = weight[1] * self.groups == channels and weight[0] % self.groups == 0
        _require(fits, f"conv2d {self.output!r}: weight {weight} in {self.groups} groups, input of {channels} channels")
        _require(self.bias is None or arrays[self.bias] == weight[:1], f"conv2d {self.output!r}: bias")
        top, bottom, left, right = self.padding
        return (
            weight[0],
            _windows(self, height, weight[2], self.stride[0], top, bottom, self.dilation[0]),
            _windows(self, width, weight[3], self.stride[1], left, right, self.dilation[1]),
        )

    def macs(self, inputs: Sequence[Shape], arrays: Mapping[str, Shape]) -> int:
        return math.prod(self.infer(inputs, arrays)) * math.prod(arrays[self.weight][1:])


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear(Op):
    """A product with a private matrix ``[O, I]`` over the last axis, and a bias ``[O]``."""

    kind: ClassVar[str] = "linear"
    private: ClassVar[tuple[str, ...]] = ("weight", "bias")

    weight: str
    bias: str | None = None

    def infer(self, inputs: Sequence[Shape], arrays: Mapping[str, Shape]) -> Shape:
        weight = arrays[self.weight]
        fits = len(weight) == 2 and len(inputs[0]) == 1 and weight[1] == inputs[0][0]
        _require(fits, f"linear {self.output!r}: weight {weight}, input {inputs[0]}")
        _require(self.bias is None or arrays[self.bias] == weight[:1], f"linear {self.output!r}: bias")
        return weight[:1]

    def macs(self, inputs: Sequence[Shape], arrays: Mapping[str, Shape]) -> int:
        return math.prod(arrays[self.weight])


@dataclass(frozen=True, kw_only=True, eq=False)
class Scale(Op):
    """``factor * factors * scale * z + bias``: a private affine that could not be folded away, or public factors.

    ``scale`` and ``bias`` have one value a channel, or the shape of the input; ``factors`` are public, one a channel.
    """

    kind: ClassVar[str] = "scale"
    private: ClassVar[tuple[str, ...]] = ("scale", "bias")

    scale: str | None = None
    bias: str | None = None
    factor: float = 1.0
    factors: tuple[float, ...] | None = None

    def infer(self, inputs: Sequence[Shape], arrays: Mapping[str, Shape]) -> Shape:
        shape = inputs[0]
        for name in self.arrays():
            fits = arrays[name] == shape or (arrays[name] == shape[:1] and len(shape) in (1, 3))
            _require(fits, f"scale {self.output!r}: {arrays[name]} against {shape}")
        _require(math.isfinite(self.factor), f"scale {self.output!r}: factor {self.factor}")
        if self.factors is not None:
            fits = len(self.factors) == shape[0] and all(map(math.isfinite, self.factors))
            _require(fits, f"scale {self.output!r}: {len(self.factors)} factors for {shape[0]} channels, or no numbers")
        return shape

    def macs(self, inputs: Sequence[Shape], arrays: Mapping[str, Shape]) -> int:
        return 0 if self.scale is None else math.prod(inputs[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class Add(Op):
    """The sum of two values of one shape."""

    kind: ClassVar[str] = "add"
    arity: ClassVar[int | None] = 2

    def infer(self, inputs: Sequence[Shape], arrays: Mapping[str, Shape]) -> Shape:
        _require(inputs[0] == inputs[1], f"add {self.output!r}: shapes {inputs[0]} and {inputs[1]}")
        return inputs[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class Concat(Op):
    """Values one after the other along the first axis: channels of maps, features of vectors."""

    kind: ClassVar[str] = "concat"
    arity: ClassVar[int | None] = None

    def infer(self, inputs: Sequence[Shape], arrays: Mapping[str, Shape]) -> Shape:
        _require(len({shape[1:] for shape in inputs}) == 1, f"concat {self.output!r}: shapes {list(inputs)}")
        return (sum(shape[0] for shape in inputs), *inputs[0][1:])


@dataclass(frozen=True, kw_only=True, eq=False)
class AvgPool(Op):
    """The mean of each window; padding (top, bottom, left, right) counts as zeros."""

    kind: ClassVar[str] = "avgpool"

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)

    def infer(self, inputs: Sequence[Shape], arrays: Mapping[str, Shape]) -> Shape:
        channels, height, width = _map_shape(self, inputs[0])
        top, bottom, left, right = self.padding
        return (
            channels,
            _windows(self, height, self.kernel[0], self.stride[0], top, bottom),
            _windows(self, width, self.kernel[1], self.stride[1], left, right),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class MaxPool(Op):
    """The largest of each window. Padding adds nothing that could win; at most half a window of it."""

    kind: ClassVar[str] = "maxpool"

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def infer(self, inputs: Sequence[Shape], arrays: Mapping[str, Shape]) -> Shape:
        channels, *sizes = _map_shape(self, inputs[0])
        window = zip(sizes, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        for _, kernel, _, padding, dilation in window:
            _require(padding == 0 or (2 * padding <= kernel and dilation == 1), f"maxpool {self.output!r}: padding")
        counts = [
            _windows(self, size, kernel, stride, padding, padding, dilation)
            for size, kernel, stride, padding, dilation in zip(
                sizes, self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        ]
        return (channels, *counts)


@dataclass(frozen=True, kw_only=True, eq=False)
class Reshape(Op):
    """The same elements, row-major over (C, H, W), in another shape."""

    kind: ClassVar[str] = "reshape"

    shape: Shape

    def infer(self, inputs: Sequence[Shape], arrays: Mapping[str, Shape]) -> Shape:
        fits = min(self.shape, default=0) > 0 and math.prod(self.shape) == math.prod(inputs[0])
        _require(fits, f"reshape {self.output!r}: {inputs[0]} to {self.shape}")
        return self.shape


@dataclass(frozen=True, kw_only=True, eq=False)
class Pad(Op):
    """Zeros around: ``low`` before and ``high`` after, along each axis."""

    kind: ClassVar[str] = "pad"

    low: Shape
    high: Shape

    def infer(self, inputs: Sequence[Shape], arrays: Mapping[str, Shape]) -> Shape:
        shape = inputs[0]
        fits = len(self.low) == len(self.high) == len(shape) and min(*self.low, *self.high) >= 0
        _require(fits, f"pad {self.output!r}: {self.low} and {self.high} for {shape}")
        return tuple(size + low + high for size, low, high in zip(shape, self.low, self.high, strict=True))


@dataclass(frozen=True, kw_only=True, eq=False)
class Slice(Op):
    """Every ``step``-th element from ``start`` to before ``stop``, along each axis."""

    kind: ClassVar[str] = "slice"

    start: Shape
    stop: Shape
    step: Shape

    def infer(self, inputs: Sequence[Shape], arrays: Mapping[str, Shape]) -> Shape:
        shape = inputs[0]
        fits = len(self.start) == len(self.stop) == len(self.step) == len(shape)
        _require(fits, f"slice {self.output!r}: of {shape}")
        for start, stop, step, size in zip(self.start, self.stop, self.step, shape, strict=True):
            _require(0 <= start < stop <= size and step > 0, f"slice {self.output!r}: {start}:{stop}:{step} of {size}")
        return tuple(
            -(-(stop - start) // step) for start, stop, step in zip(self.start, self.stop, self.step, strict=True)
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Activation(Op):
    """ReLU times ``factors`` where ``keep`` is true, elsewhere ``c0 + c1 z + c2 z^2``.

    Args:
        site: name of the activation site.
        keep: over the flattened input; true = the ReLU is kept.
        c0, c1, c2: private arrays with one value for each *dropped* element, in order. ``None`` is 0 for c0.
        unit_slope, unit_square: what ``None`` means for c1 and for c2: 1 if set, else 0.
        factors: public whole numbers, one a channel of the input; ``None`` for ones.
    """

    kind: ClassVar[str] = "activation"
    private: ClassVar[tuple[str, ...]] = ("c0", "c1", "c2")

    site: str
    keep: NDArray[np.bool_]
    c0: str | None = None
    c1: str | None = None
    c2: str | None = None
    unit_slope: bool = True
    unit_square: bool = False
    factors: tuple[int, ...] | None = None

    @property
    def squares(self) -> bool:
        """Whether the dropped elements are squared."""
        return self.c2 is not None or self.unit_square

    @property
    def scales(self) -> bool:
        """Whether the dropped elements are multiplied by private numbers: ``(c2 z + c1) z``, or ``c1 z``."""
        return self.c2 is not None or (self.c1 is not None and not self.unit_square)

    @cached_property
    def kept(self) -> NDArray[np.int64]:
        """Indices of the kept elements, ascending."""
        return np.flatnonzero(self.keep)

    @cached_property
    def rest(self) -> NDArray[np.int64]:
        """Indices of the dropped elements, ascending."""
        return np.flatnonzero(~self.keep)

    @cached_property
    def kept_factors(self) -> NDArray[np.int64]:
        """What each kept element is multiplied by."""
        factors: NDArray[np.int64] = np.asarray(self.factors or (1,), np.int64)
        return np.repeat(factors, len(self.keep) // len(factors))[self.kept]

    @cached_property
    def inverse(self) -> NDArray[np.int64]:
        """The permutation that puts ``concatenate([z[kept], z[rest]])`` back in order."""
        return np.argsort(np.concatenate([self.kept, self.rest]))

    def infer(self, inputs: Sequence[Shape], arrays: Mapping[str, Shape]) -> Shape:
        size = math.prod(inputs[0])
        _require(self.keep.shape == (size,), f"activation {self.site!r}: mask of {self.keep.size}, input of {size}")
        for name in self.arrays():
            fits = arrays[name] == (len(self.rest),)
            _require(fits, f"activation {self.site!r}: {len(self.rest)} dropped elements, {arrays[name]} coefficients")
        fits = self.c2 is None and len(self.rest) > 0
        _require(not self.unit_square or fits, f"activation {self.site!r}: squares with c2 and one, or of nothing")
        if self.factors is not None:
            fits = len(self.factors) == inputs[0][0] and all(1 <= n <= LARGEST_FACTOR for n in self.factors)
            _require(fits, f"activation {self.site!r}: factors for {inputs[0][0]} channels, 1 to {LARGEST_FACTOR}")
        return inputs[0]

    def macs(self, inputs: Sequence[Shape], arrays: Mapping[str, Shape]) -> int:
        return len(self.rest) * (self.scales + self.squares)


#: Every kind of operation by its name on the wire.
OPS: dict[str, type[Op]] = {
    op.kind: op for op in (Conv2d, Linear, Scale, Add, Concat, AvgPool, MaxPool, Reshape, Pad, Slice, Activation)
}


def check(op: Op, shapes: Mapping[str, Shape], arrays: Mapping[str, Shape]) -> Shape:
    """Return the shape of the output of ``op``, given all values and arrays there are so far.

    Raises:
        BadOperation: it reads what is not there, or its shapes do not fit.
    """
    _require(op.output not in shapes, f"value {op.output!r} is made twice")
    arity_fits = len(op.inputs) == op.arity if op.arity is not None else len(op.inputs) >= 2
    _require(arity_fits, f"{op.kind} {op.output!r} has {len(op.inputs)} inputs")
    for name in op.inputs:
        _require(name in shapes, f"{op.kind} {op.output!r} reads {name!r}, which is not there")
    for name in op.arrays():
        _require(name in arrays, f"{op.kind} {op.output!r} reads the array {name!r}, which is not there")
    shape = op.infer([shapes[name] for name in op.inputs], arrays)
    _require(math.prod(shape) <= LARGEST, f"{op.kind} {op.output!r}: its output {shape} is too large")
    return shape
