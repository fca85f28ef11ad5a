"""Make a list of operations cheaper without changing what it computes.

Batch norms and other scales go into the convolution or linear layer before or after them; linear operations with
nothing between them become one where that does not cost more multiply-accumulates. All in float64.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from reluctant.program.operations import (
    INPUT,
    Activation,
    AvgPool,
    Conv2d,
    Linear,
    Op,
    Pad,
    Reshape,
    Scale,
    Shape,
    check,
)

Numbers = NDArray[np.float64]
OpType = TypeVar("OpType", bound=Op)

#: A scale is divided by only if its smallest channel is no smaller than this part of its largest.
_SMALLEST_RATIO = 1 / 256


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

    def shapes(self) -> dict[str, Shape]:
        """Return the shape of every value."""
        known = {name: array.shape for name, array in self.arrays.items()}
        shapes: dict[str, Shape] = {INPUT: self.input_shape}
        for op in self.ops:
            shapes[op.output] = check(op, shapes, known)
        return shapes

    def store(self, name: str, array: Numbers | None) -> str | None:
        """Keep ``array`` under ``name`` and return the name; ``None`` for no array."""
        if array is None:
            return None
        self.arrays[name] = np.asarray(array, np.float64)
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


def fold(draft: Draft) -> None:
    """Rewrite ``draft`` until no rule applies any more."""
    rules: tuple[Callable[[Draft, Op], bool], ...] = (
        _drop_nothing,
        _pad_into_convolution,
        _merge_scales,
        _scale_into_producer,
        _scale_into_consumers,
        _scale_past_pooling,
        _scale_past_activation,
        _merge_linear,
        _merge_convolutions,
    )
    draft.forget_unused()
    while any(rule(draft, op) for op in list(draft.ops) for rule in rules):
        draft.forget_unused()


def _drop_nothing(draft: Draft, op: Op) -> bool:
    empty = isinstance(op, Scale) and not op.arrays() and op.factor == 1
    if empty or (isinstance(op, Reshape) and op.shape == draft.shapes()[op.inputs[0]]):
        draft.drop(op)
        return True
    return False


def _pad_into_convolution(draft: Draft, op: Op) -> bool:
    user = draft.only_consumer(op.output)
    if not isinstance(op, Pad) or not isinstance(user, Conv2d) or op.low[0] or op.high[0]:
        return False
    around = (op.low[1], op.high[1], op.low[2], op.high[2])
    top, bottom, left, right = (a + b for a, b in zip(user.padding, around, strict=True))
    draft.swap(user, replace(user, padding=(top, bottom, left, right)))
    draft.drop(op)
    return True


def _scale_and_bias(draft: Draft, op: Scale) -> tuple[Numbers | None, Numbers | None]:
    """Return scale (with the public factor in it) and bias; ``None`` for 1 and 0."""
    scale, bias = draft.load(op.scale), draft.load(op.bias)
    if op.factor != 1:
        channels = draft.shapes()[op.output][:1]
        scale = (np.ones(channels) if scale is None else scale) * op.factor
    return scale, bias


def _merge_scales(draft: Draft, op: Op) -> bool:
    second = draft.only_consumer(op.output)
    if not isinstance(op, Scale) or not isinstance(second, Scale):
        return False
    if not op.arrays() and not second.arrays():
        merged = replace(second, inputs=op.inputs, factor=op.factor * second.factor)
    else:
        shape = draft.shapes()[op.output]
        (s1, b1), (s2, b2) = _scale_and_bias(draft, op), _scale_and_bias(draft, second)
        carried = None if b1 is None else _times(shape, b1, s2)
        scale, bias = _times(shape, s1, s2), _plus(shape, carried, b2)
        name = second.output
        merged = Scale(
            output=name,
            inputs=op.inputs,
            scale=draft.store(f"{name}.scale", scale),
            bias=draft.store(f"{name}.bias", bias),
        )
    draft.swap(second, merged)
    draft.drop(op)
    return True


def _aligned(shape: Shape, array: Numbers) -> Numbers:
    """Return ``array``, of one value a channel or of the whole ``shape``, so that it broadcasts to ``shape``."""
    return array if array.shape == shape else array.reshape(-1, *[1] * (len(shape) - 1))


def _combined(shape: Shape, result: Numbers) -> Numbers:
    """Return an aligned result with one value a channel again, where it has no more."""
    return result.reshape(-1) if result.size == shape[0] else result


def _times(shape: Shape, a: Numbers | None, b: Numbers | None) -> Numbers | None:
    if a is None or b is None:
        return a if b is None else b
    return _combined(shape, _aligned(shape, a) * _aligned(shape, b))


def _plus(shape: Shape, a: Numbers | None, b: Numbers | None) -> Numbers | None:
    if a is None or b is None:
        return a if b is None else b
    return _combined(shape, _aligned(shape, a) + _aligned(shape, b))


def _per_channel(arrays: Iterable[Numbers | None], channels: int) -> bool:
    return all(array is None or array.shape == (channels,) for array in arrays)


def _scale_into_producer(draft: Draft, op: Op) -> bool:
    if not isinstance(op, Scale) or draft.only_consumer(op.inputs[0]) is None:
        return False
    maker = draft.producer(op.inputs[0], Conv2d) or draft.producer(op.inputs[0], Linear)
    scale, bias = _scale_and_bias(draft, op)
    if maker is None or not _per_channel((scale, bias), draft.arrays[maker.weight].shape[0]):
        return False
    weight, old = draft.arrays[maker.weight], draft.load(maker.bias)
    if scale is not None:
        draft.arrays[maker.weight] = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        old = None if old is None else old * scale
    new = bias if old is None else old if bias is None else old + bias
    draft.swap(maker, replace(maker, bias=draft.store(f"{maker.output}.bias", new)))
    draft.drop(op)
    return True


def _divides(scale: Numbers) -> bool:
    """Return whether one may divide by ``scale`` without numbers that fixed point cannot hold well."""
    sizes = np.abs(scale)
    return bool(sizes.min() > sizes.max() * _SMALLEST_RATIO)


def _scale_into_consumers(draft: Draft, op: Op) -> bool:
    users = draft.consumers(op.output)
    takers = [user for user in users if isinstance(user, Conv2d | Linear)]
    if not isinstance(op, Scale) or not takers or len(takers) < len(users) or op.output in draft.outputs:
        return False
    scale, bias = _scale_and_bias(draft, op)
    if not _per_channel((scale, bias), draft.shapes()[op.output][0]):
        return False
    stays = None  # a bias that must stay before the operation: padding comes after it
    if bias is not None and any(isinstance(user, Conv2d) and any(user.padding) for user in takers):
        if scale is None or not _divides(scale):
            return False
        stays, bias = bias / scale, None
    for user in takers:
        draft.swap(user, _absorb(draft, user, scale, bias))
    if stays is None:
        draft.drop(op)
    else:
        draft.swap(op, Scale(output=op.output, inputs=op.inputs, bias=draft.store(f"{op.output}.bias", stays)))
    return True


def _absorb(draft: Draft, user: Conv2d | Linear, scale: Numbers | None, bias: Numbers | None) -> Conv2d | Linear:
    """Return ``user`` with a scale and a bias of its input taken in."""
    weight, old = draft.arrays[user.weight], draft.load(user.bias)
    groups = user.groups if isinstance(user, Conv2d) else 1
    grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    if bias is not None:
        added = np.einsum("goik,gi->go", grouped, bias.reshape(groups, -1)).reshape(-1)
        old = added if old is None else old + added
    if scale is not None:
        draft.arrays[user.weight] = (grouped * scale.reshape(groups, 1, -1, 1)).reshape(weight.shape)
    return replace(user, bias=draft.store(f"{user.output}.bias", old))


def _scale_past_pooling(draft: Draft, op: Op) -> bool:
    """Move a scale behind an average or a flattening, where it has fewer elements or meets a linear layer."""
    user = draft.only_consumer(op.output)
    if not isinstance(op, Scale) or not isinstance(user, AvgPool | Reshape):
        return False
    shape, scale, bias = draft.shapes()[op.output], draft.load(op.scale), draft.load(op.bias)
    if isinstance(user, AvgPool):
        if not _per_channel((scale, bias), shape[0]) or (bias is not None and any(user.padding)):
            return False
    elif len(user.shape) == 1:
        scale, bias = (
            None if a is None else np.broadcast_to(_aligned(shape, a), shape).reshape(-1) for a in (scale, bias)
        )
    else:
        return False
    after = replace(
        op,
        output=user.output,
        inputs=(op.output,),
        scale=draft.store(f"{user.output}.scale", scale),
        bias=draft.store(f"{user.output}.bias", bias),
    )
    draft.swap(op, replace(user, output=op.output, inputs=op.inputs))
    draft.swap(user, after)
    return True


def _scale_past_activation(draft: Draft, op: Op) -> bool:
    """Move a positive scale behind an activation, if a convolution or linear layer can take it there.

    relu(s z + b) = s relu(z + b / s) for s > 0, and so for each surrogate with its coefficients divided; what is left
    before the activation is a bias, which is free.
    """
    user = draft.only_consumer(op.output)
    if not isinstance(op, Scale) or not isinstance(user, Activation) or not _absorbs(draft, user.output):
        return False
    shape = draft.shapes()[op.output]
    scale, bias = _scale_and_bias(draft, op)
    if scale is None or scale.shape != shape[:1] or scale.min() <= 0 or not _divides(scale):
        return False
    dropped = np.broadcast_to(_aligned(shape, scale), shape).reshape(-1)[user.rest]
    if user.c0 is not None:
        draft.arrays[user.c0] = draft.arrays[user.c0] / dropped
    if user.c2 is not None:
        draft.arrays[user.c2] = draft.arrays[user.c2] * dropped
    divided = None if bias is None else _combined(shape, _aligned(shape, bias) / _aligned(shape, scale))
    inner = f"{user.output}.unscaled"
    behind = Scale(output=user.output, inputs=(inner,), scale=draft.store(f"{user.output}.scale", scale))
    draft.swap(user, replace(user, output=inner), behind)
    draft.swap(op, Scale(output=op.output, inputs=op.inputs, bias=draft.store(f"{op.output}.bias", divided)))
    return True


def _absorbs(draft: Draft, value: str) -> bool:
    """Return whether a scale a channel of ``value`` would vanish into what reads it."""
    users = draft.consumers(value)
    if value in draft.outputs or not users:
        return False
    if all(isinstance(user, Conv2d | Linear) for user in users):
        return True
    user = users[0]
    passes = isinstance(user, AvgPool) or (isinstance(user, Reshape) and len(user.shape) == 1)
    return len(users) == 1 and passes and _absorbs(draft, user.output)


def _merge_linear(draft: Draft, op: Op) -> bool:
    second = draft.only_consumer(op.output)
    if not isinstance(op, Linear) or not isinstance(second, Linear):
        return False
    first, last = draft.arrays[op.weight], draft.arrays[second.weight]
    if first.shape[1] * last.shape[0] > first.size + last.size:
        return False
    bias, old = draft.load(second.bias), draft.load(op.bias)
    if old is not None:
        bias = last @ old + (0 if bias is None else bias)
    draft.arrays[second.weight] = last @ first
    draft.swap(second, replace(second, inputs=op.inputs, bias=draft.store(f"{second.output}.bias", bias)))
    draft.drop(op)
    return True


def _merge_convolutions(draft: Draft, op: Op) -> bool:
    """Merge a convolution with a 1x1 convolution before or after it, if that makes it no dearer."""
    second = draft.only_consumer(op.output)
    if not isinstance(op, Conv2d) or not isinstance(second, Conv2d) or op.groups * second.groups > 1:
        return False
    first, last = draft.arrays[op.weight], draft.arrays[second.weight]
    bias, old = draft.load(second.bias), draft.load(op.bias)
    if last.shape[2:] == (1, 1) and not any(second.padding):
        stride = (op.stride[0] * second.stride[0], op.stride[1] * second.stride[1])
        merged = replace(op, output=second.output, weight=second.weight, stride=stride)
    elif first.shape[2:] == (1, 1) and not any(op.padding) and op.stride == (1, 1):
        if old is not None and any(second.padding):
            return False
        merged = replace(second, inputs=op.inputs)
    else:
        return False
    kernel = np.einsum("omkl,mipq->oikplq", last, first)
    kernel = kernel.reshape(*kernel.shape[:2], kernel.shape[2] * kernel.shape[3], -1)
    shapes = draft.shapes()
    pixels, between = (math.prod(shapes[conv.output][1:]) for conv in (second, op))
    if pixels * kernel.size > between * first.size + pixels * last.size:
        return False
    if old is not None:
        bias = last.sum((2, 3)) @ old + (0 if bias is None else bias)
    draft.arrays[second.weight] = kernel
    draft.swap(second, replace(merged, bias=draft.store(f"{second.output}.bias", bias)))
    draft.drop(op)
    return True
