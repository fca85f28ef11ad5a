"""Drop channels that no one reads, and those that hold the same for every image.

A network whose filters were pruned in whole has weights of zero in it. A channel all of whose readers have zeros for it
need not be computed. A channel all of whose own weights are zeros holds what its bias makes of it, through a ReLU, too;
what a convolution makes of that is a bias in turn. So a pruned network costs what the narrower one would that is left
of it: fewer and smaller products, and no comparison in what was dropped.

Zeros are structure here, and structure is public: both parties see that a layer is narrower than it was built. A
network whose zeros are to stay secret is lowered without this rewrite, and without that of low ranks.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from reluctant.program.affine import apply
from reluctant.program.draft import Draft, Numbers
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

Channels = NDArray[np.bool_]


def drop_channels(draft: Draft) -> None:
    """Rewrite ``draft``, which is folded, without its channels that are constant or unread."""
    reads = [_reads(draft, op) for op in draft.ops if isinstance(op, Conv2d | Linear)]
    if all(read.any(0).all() and read.any(1).all() for read in reads):
        return
    _constants_into_biases(draft)
    shapes = draft.shapes()
    needed = _needed(draft, shapes)
    if all(kept.all() for kept in needed.values()):
        return
    for op in list(draft.ops):
        _narrow(draft, op, shapes, needed)
    draft.forget_unused()


def _constants_into_biases(draft: Draft) -> None:
    """Give every layer that reads constant channels a bias for what they add, and zeros for their weights."""
    shapes = draft.shapes()
    held: dict[str, tuple[Channels, Numbers]] = {
        INPUT: (np.zeros(shapes[INPUT][0], np.bool_), np.zeros(shapes[INPUT])),
    }
    for op in list(draft.ops):
        constant, values = _held(draft, op, held, shapes)
        held[op.output] = constant, np.where(_over(constant, shapes[op.output]), values, 0.0)
        if isinstance(op, Conv2d | Linear):
            read = held[op.inputs[0]]
            if (_reads(draft, op) & read[0]).any():
                _take_in(draft, op, *read)


def _held(
    draft: Draft, op: Op, held: Mapping[str, tuple[Channels, Numbers]], shapes: Mapping[str, Shape]
) -> tuple[Channels, Numbers]:
    """Return which channels of the output of ``op`` are the same for every image, and a value that holds them."""
    shape = shapes[op.output]
    constant, values = held[op.inputs[0]]
    if isinstance(op, Conv2d | Linear):
        return ~(_reads(draft, op) & ~constant).any(1), _applied(draft, op, values)
    if isinstance(op, Scale | AvgPool):
        return constant, _applied(draft, op, values)
    if isinstance(op, Activation):
        return constant, _activated(draft, op, values)
    if isinstance(op, Add):
        other = held[op.inputs[1]]
        return constant & other[0], values + other[1]
    if isinstance(op, Reshape) and len(shape) == 1:
        return np.repeat(constant, shape[0] // len(constant)), values.reshape(-1)
    if isinstance(op, MaxPool):
        return constant, _pooled(op, values)
    if isinstance(op, Concat):
        parts, each = zip(*(held[name] for name in op.inputs), strict=True)
        return np.concatenate(parts), np.concatenate(each)
    if isinstance(op, Slice | Pad) and _spares_channels(op, len(constant)):
        return constant, _applied(draft, op, values)
    return np.zeros(shape[0], np.bool_), np.zeros(shape)


def _applied(draft: Draft, op: Op, values: Numbers) -> Numbers:
    return apply(draft, op, torch.from_numpy(values)[None])[0].numpy()


def _pooled(op: MaxPool, values: Numbers) -> Numbers:
    images = torch.from_numpy(values)[None]
    pooled: Numbers = F.max_pool2d(images, op.kernel, op.stride, op.padding, op.dilation)[0].numpy()
    return pooled


def _activated(draft: Draft, op: Activation, values: Numbers) -> Numbers:
    flat = values.reshape(-1)
    c0, c1, c2 = (draft.load(name) for name in (op.c0, op.c1, op.c2))
    z, made = flat[op.rest], np.empty_like(flat)
    slope = float(op.unit_slope) if c1 is None else c1
    made[op.rest] = (0 if c0 is None else c0) + (slope + (float(op.unit_square) if c2 is None else c2) * z) * z
    made[op.kept] = np.maximum(flat[op.kept], 0) * op.kept_factors
    return made.reshape(values.shape)


def _take_in(draft: Draft, op: Conv2d | Linear, constant: Channels, values: Numbers) -> None:
    """Replace what ``op`` makes of its constant channels by a bias, a value an element if padding makes it one."""
    weight, bias = draft.arrays[op.weight], draft.load(op.bias)
    made = _applied(draft, replace(op, bias=None), values)
    groups = op.groups if isinstance(op, Conv2d) else 1
    silenced = np.repeat(constant.reshape(groups, -1), len(weight) // groups, 0)
    draft.store(op.weight, np.where(_over(silenced, weight.shape), 0.0, weight))
    flat = made.reshape(len(made), -1)
    if np.allclose(flat, flat[:, :1], rtol=1e-12, atol=0):
        whole = flat[:, 0] + (0 if bias is None else bias)
        draft.swap(op, replace(op, bias=draft.store(f"{op.output}.bias", whole)))
    else:
        inner = draft.fresh(f"{op.output}.varying")
        layer = replace(op, output=inner, bias=draft.store(f"{inner}.bias", bias))
        draft.swap(op, layer, Scale(output=op.output, inputs=(inner,), bias=draft.store(f"{op.output}.bias", made)))


def _over(channels: Channels, shape: Shape) -> Channels:
    """Return ``channels``, of the first axes of ``shape``, so that it broadcasts to ``shape``."""
    return channels.reshape(*channels.shape, *[1] * (len(shape) - channels.ndim))


def _reads(draft: Draft, op: Conv2d | Linear) -> Channels:
    """Return where ``op`` has weights, ``[O, I]``."""
    weight, groups = draft.arrays[op.weight], op.groups if isinstance(op, Conv2d) else 1
    within = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1).any(3)
    reads = np.zeros((groups, within.shape[1], groups, within.shape[2]), np.bool_)
    each = np.arange(groups)
    reads[each, :, each] = within
    return reads.reshape(len(weight), -1)


def _needed(draft: Draft, shapes: Mapping[str, Shape]) -> dict[str, Channels]:
    """Return which channels of each value stay: those that are read, and what must stay beside them."""
    needed = {name: np.zeros(shape[0], np.bool_) for name, shape in shapes.items()}
    needed[INPUT][:] = True
    for name in draft.outputs:
        needed[name][:] = True
    count, before = 0, -1
    while count != before:
        for op in reversed(draft.ops):
            _need(draft, op, needed, shapes)
        count, before = sum(int(kept.sum()) for kept in needed.values()), count
        if count == before:
            for kept in needed.values():  # no value may be empty
                kept[:1] |= not kept.any()
            count = sum(int(kept.sum()) for kept in needed.values())
    return needed


def _need(draft: Draft, op: Op, needed: dict[str, Channels], shapes: Mapping[str, Shape]) -> None:
    """Add to ``needed`` what ``op`` needs of its inputs, and what its output must have beside that."""
    out, first = needed[op.output], needed[op.inputs[0]]
    if isinstance(op, Conv2d | Linear) and getattr(op, "groups", 1) == 1:
        first |= _reads(draft, op)[out].any(0)
    elif isinstance(op, Concat):
        parts = np.split(out, np.cumsum([len(needed[name]) for name in op.inputs])[:-1])
        for name, part in zip(op.inputs, parts, strict=True):
            part |= needed[name]
            needed[name] |= part
    elif isinstance(op, Reshape) and len(shapes[op.output]) == 1:
        first |= out.reshape(len(first), -1).any(1)
        out |= np.repeat(first, len(out) // len(first))
    elif isinstance(op, Scale | Add | AvgPool | MaxPool | Activation) or _spares_channels(op, len(first)):
        for name in op.inputs:
            out |= needed[name]
        for name in op.inputs:
            needed[name] |= out
    else:
        out[:] = first[:] = True


def _spares_channels(op: Op, channels: int) -> bool:
    """Return whether ``op`` cuts or pads each channel alone."""
    if isinstance(op, Slice):
        return (op.start[0], op.stop[0], op.step[0]) == (0, channels, 1)
    return isinstance(op, Pad) and op.low[0] == op.high[0] == 0


def _narrow(draft: Draft, op: Op, shapes: Mapping[str, Shape], needed: Mapping[str, Channels]) -> None:
    """Make ``op`` compute what is needed alone."""
    kept, shape = needed[op.output], shapes[op.output]

    def cut(name: str | None) -> None:
        if name is not None:
            draft.store(name, draft.arrays[name][kept])

    if isinstance(op, Conv2d | Linear):
        if getattr(op, "groups", 1) == 1:
            draft.store(op.weight, draft.arrays[op.weight][:, needed[op.inputs[0]]])
        cut(op.weight)
        cut(op.bias)
    elif isinstance(op, Scale):
        cut(op.scale)
        cut(op.bias)
        if op.factors is not None:
            draft.swap(op, replace(op, factors=tuple(np.asarray(op.factors)[kept].tolist())))
    elif isinstance(op, Activation):
        _narrow_activation(draft, op, kept, shape)
    elif isinstance(op, Reshape) and len(shape) == 1:
        draft.swap(op, replace(op, shape=(int(kept.sum()),)))
    elif isinstance(op, Slice) and _spares_channels(op, len(kept)):
        draft.swap(op, replace(op, stop=(int(kept.sum()), *op.stop[1:])))


def _narrow_activation(draft: Draft, op: Activation, kept: Channels, shape: Shape) -> None:
    elements = np.repeat(kept, math.prod(shape[1:]))
    dropped = elements[op.rest]
    c0, c1, c2 = (
        None if name is None or not dropped.any() else draft.store(name, draft.arrays[name][dropped])
        for name in (op.c0, op.c1, op.c2)
    )
    factors = None if op.factors is None else tuple(np.asarray(op.factors)[kept].tolist())
    new = replace(op, keep=op.keep[elements], c0=c0, c1=c1, c2=c2, factors=factors)
    if new.keep.any() or new.squares or (c1 is None and not op.unit_slope):
        draft.swap(op, new)
        return
    for name in filter(None, (c0, c1)):  # its last ReLUs are gone
        each = draft.arrays[name].reshape(int(kept.sum()), -1)
        uniform = (each == each[:, :1]).all()
        draft.store(name, each[:, 0] if uniform else each.reshape(-1, *shape[1:]))
    draft.swap(op, Scale(output=op.output, inputs=op.inputs, scale=c1, bias=c0))
