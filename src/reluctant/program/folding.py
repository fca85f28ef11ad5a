"""Make a list of operations cheaper without changing what it computes.

Batch norms and other scales go into the convolution or linear layer before or after them; linear operations with
nothing between them become one where that does not cost more multiply-accumulates. All in float64.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from reluctant.program.draft import Draft, Numbers, aligned
from reluctant.program.operations import Activation, AvgPool, Conv2d, Linear, Op, Pad, Reshape, Scale, Shape

#: A scale is divided by only if its smallest channel is no smaller than this part of its largest.
_SMALLEST_RATIO = 1 / 256


def fold(draft: Draft, *, merging: bool = True) -> None:
    """Rewrite ``draft`` until no rule applies any more.

    Args:
        merging: whether convolutions, and linear layers, with nothing between them become one.
    """
    draft.forget_unused()
    changed = True
    while changed:
        changed = False
        for op in list(draft.ops):
            rules = (rule for rule in _RULES.get(type(op), ()) if merging or rule not in _MERGING)
            if any(op is other for other in draft.ops) and any(rule(draft, op) for rule in rules):
                draft.forget_unused()
                changed = True


def _drop_nothing(draft: Draft, op: Op) -> bool:
    empty = isinstance(op, Scale) and not op.arrays() and op.factor == 1 and op.factors is None
    empty |= isinstance(op, AvgPool) and op.kernel == op.stride == (1, 1) and not any(op.padding)
    if empty or (isinstance(op, Reshape) and op.shape == draft.shapes()[op.inputs[0]]):
        draft.drop(op)
        return True
    return False


def _pad_into_convolution(draft: Draft, op: Pad) -> bool:
    user = draft.only_consumer(op.output)
    if not isinstance(user, Conv2d) or op.low[0] or op.high[0]:
        return False
    around = (op.low[1], op.high[1], op.low[2], op.high[2])
    top, bottom, left, right = (a + b for a, b in zip(user.padding, around, strict=True))
    draft.swap(user, replace(user, padding=(top, bottom, left, right)))
    draft.drop(op)
    return True


def _public(op: Scale, channels: int) -> Numbers | None:
    """Return what ``op`` multiplies by publicly, a channel; ``None`` for 1."""
    if op.factor == 1 and op.factors is None:
        return None
    return np.full(channels, op.factor) * (1.0 if op.factors is None else op.factors)


def _scale_and_bias(draft: Draft, op: Scale) -> tuple[Numbers | None, Numbers | None]:
    """Return scale (with the public factors in it) and bias; ``None`` for 1 and 0."""
    shape = draft.shapes()[op.output]
    return _times(shape, draft.load(op.scale), _public(op, shape[0])), draft.load(op.bias)


def _merge_scales(draft: Draft, op: Scale) -> bool:
    second = draft.only_consumer(op.output)
    if not isinstance(second, Scale):
        return False
    shape, name = draft.shapes()[op.output], second.output
    (s1, b1), (s2, b2) = _scale_and_bias(draft, op), _scale_and_bias(draft, second)
    carried = None if b1 is None else _times(shape, b1, s2)
    merged = Scale(output=name, inputs=op.inputs, bias=draft.store(f"{name}.bias", _plus(shape, carried, b2)))
    if op.scale is not None or second.scale is not None:
        merged = replace(merged, scale=draft.store(f"{name}.scale", _times(shape, s1, s2)))
    else:  # what is public stays so: a private product would be dearer
        given = [np.asarray(one.factors) for one in (op, second) if one.factors is not None]
        factors = tuple(np.prod(given, 0).tolist()) if given else None
        merged = replace(merged, factor=op.factor * second.factor, factors=factors)
    draft.swap(second, merged)
    draft.drop(op)
    return True


def _combined(shape: Shape, result: Numbers) -> Numbers:
    """Return an aligned result with one value a channel again, where it has no more."""
    return result.reshape(-1) if result.size == shape[0] else result


def _times(shape: Shape, a: Numbers | None, b: Numbers | None) -> Numbers | None:
    if a is None or b is None:
        return a if b is None else b
    return _combined(shape, aligned(shape, a) * aligned(shape, b))


def _plus(shape: Shape, a: Numbers | None, b: Numbers | None) -> Numbers | None:
    if a is None or b is None:
        return a if b is None else b
    return _combined(shape, aligned(shape, a) + aligned(shape, b))


def _per_channel(arrays: Iterable[Numbers | None], channels: int) -> bool:
    return all(array is None or array.shape == (channels,) for array in arrays)


def _scale_into_producer(draft: Draft, op: Scale) -> bool:
    if draft.only_consumer(op.inputs[0]) is None:
        return False
    maker = draft.producer(op.inputs[0], Conv2d) or draft.producer(op.inputs[0], Linear)
    scale, bias = _scale_and_bias(draft, op)
    if maker is None or not _per_channel((scale,), draft.arrays[maker.weight].shape[0]):
        return False
    stays = bias is not None and bias.shape != draft.arrays[maker.weight].shape[:1]
    if stays and scale is None:
        return False
    weight, old = draft.arrays[maker.weight], draft.load(maker.bias)
    if scale is not None:
        draft.arrays[maker.weight] = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        old = None if old is None else old * scale
    new = old if bias is None or stays else bias if old is None else old + bias
    draft.swap(maker, replace(maker, bias=draft.store(f"{maker.output}.bias", new)))
    if stays:
        draft.swap(op, Scale(output=op.output, inputs=op.inputs, bias=op.bias))
    else:
        draft.drop(op)
    return True


def _divides(scale: Numbers) -> bool:
    """Return whether one may divide by ``scale`` without numbers that fixed point cannot hold well."""
    sizes = np.abs(scale)
    return bool(sizes.min() > sizes.max() * _SMALLEST_RATIO)


def _scale_into_consumers(draft: Draft, op: Scale) -> bool:
    users = draft.consumers(op.output)
    takers = [user for user in users if isinstance(user, Conv2d | Linear)]
    if not takers or len(takers) < len(users) or op.output in draft.outputs:
        return False
    scale, bias = _scale_and_bias(draft, op)
    shape = draft.shapes()[op.output]
    if not _per_channel((scale,), shape[0]):
        return False
    stays = None  # a bias that must stay before the operation: padding comes after it, or it has no one value a channel
    padded = any(isinstance(user, Conv2d) and any(user.padding) for user in takers)
    if bias is not None and (padded or not _per_channel((bias,), shape[0])):
        if scale is None or not _divides(scale):
            return False
        stays, bias = _combined(shape, aligned(shape, bias) / aligned(shape, scale)), None
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


def _bias_past_convolutions(draft: Draft, op: Scale) -> bool:
    """Move a bias with a value an element behind the convolutions that read it, so that they may merge with others."""
    users = [user for user in draft.consumers(op.output) if isinstance(user, Conv2d)]
    if op.bias is None or op.scale is not None or _public(op, 1) is not None:
        return False
    bias = draft.arrays[op.bias]
    if bias.ndim != 3 or not users or len(users) < len(draft.consumers(op.output)) or op.output in draft.outputs:
        return False
    for user in users:
        top, bottom, left, right = user.padding
        image = F.pad(torch.tensor(bias), (left, right, top, bottom))[None]
        kernel = torch.tensor(draft.arrays[user.weight])
        answer = F.conv2d(image, kernel, None, user.stride, 0, user.dilation, user.groups)[0].numpy()
        name = draft.fresh(f"{user.output}.biased")
        draft.outputs = tuple(name if output == user.output else output for output in draft.outputs)
        for reader in draft.consumers(user.output):
            inputs = tuple(name if value == user.output else value for value in reader.inputs)
            draft.swap(reader, replace(reader, inputs=inputs))
        after = Scale(output=name, inputs=(user.output,), bias=draft.store(f"{name}.bias", answer))
        draft.swap(user, user, after)
    draft.drop(op)
    return True


def _scale_past_pooling(draft: Draft, op: Scale) -> bool:
    """Move a scale behind an average or a flattening, where it has fewer elements or meets a linear layer."""
    user = draft.only_consumer(op.output)
    if not isinstance(user, AvgPool | Reshape):
        return False
    shape, scale, bias = draft.shapes()[op.output], draft.load(op.scale), draft.load(op.bias)
    factors = op.factors
    if isinstance(user, AvgPool):
        if not _per_channel((scale,), shape[0]):
            return False
        if bias is not None and (any(user.padding) or not _per_channel((bias,), shape[0])):
            top, bottom, left, right = user.padding
            image = torch.tensor(np.broadcast_to(aligned(shape, bias), shape))
            bias = F.avg_pool2d(F.pad(image, (left, right, top, bottom)), user.kernel, user.stride).numpy()
            bias = _combined(bias.shape, bias)
    elif len(user.shape) == 1:
        scale, bias = (
            None if a is None else np.broadcast_to(aligned(shape, a), shape).reshape(-1) for a in (scale, bias)
        )
        factors = None if factors is None else tuple(np.repeat(factors, math.prod(shape[1:])).tolist())
    else:
        return False
    after = replace(
        op,
        output=user.output,
        inputs=(op.output,),
        scale=draft.store(f"{user.output}.scale", scale),
        bias=draft.store(f"{user.output}.bias", bias),
        factors=factors,
    )
    draft.swap(op, replace(user, output=op.output, inputs=op.inputs))
    draft.swap(user, after)
    return True


def _scale_past_activation(draft: Draft, op: Scale) -> bool:
    """Move a positive scale behind an activation, if a convolution or linear layer can take it there.

    relu(s z + b) = s relu(z + b / s) for s > 0, and so for each surrogate with its coefficients divided; what is left
    before the activation is a bias, which is free.
    """
    user = draft.only_consumer(op.output)
    if not isinstance(user, Activation) or user.unit_square or not _absorbs(draft, user.output):
        return False
    shape = draft.shapes()[op.output]
    scale, bias = _scale_and_bias(draft, op)
    if scale is None or scale.shape != shape[:1] or scale.min() <= 0 or not _divides(scale):
        return False
    dropped = np.broadcast_to(aligned(shape, scale), shape).reshape(-1)[user.rest]
    if user.c0 is not None:
        draft.arrays[user.c0] = draft.arrays[user.c0] / dropped
    if user.c2 is not None:
        draft.arrays[user.c2] = draft.arrays[user.c2] * dropped
    divided = None if bias is None else _combined(shape, aligned(shape, bias) / aligned(shape, scale))
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


def _merge_linear(draft: Draft, op: Linear) -> bool:
    second = draft.only_consumer(op.output)
    if not isinstance(second, Linear):
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


def _merge_convolutions(draft: Draft, op: Conv2d) -> bool:
    """Merge a convolution with a 1x1 convolution before or after it, if that makes it no dearer."""
    second = draft.only_consumer(op.output)
    if not isinstance(second, Conv2d) or op.groups * second.groups > 1:
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


#: What is tried on an operation, in this order.
_RULES: dict[type[Op], tuple[Callable[[Draft, Any], bool], ...]] = {
    Pad: (_pad_into_convolution,),
    Reshape: (_drop_nothing,),
    AvgPool: (_drop_nothing,),
    Scale: (
        _drop_nothing,
        _merge_scales,
        _scale_into_producer,
        _scale_into_consumers,
        _bias_past_convolutions,
        _scale_past_pooling,
        _scale_past_activation,
    ),
    Linear: (_merge_linear,),
    Conv2d: (_merge_convolutions,),
}
_MERGING = (_merge_linear, _merge_convolutions)
