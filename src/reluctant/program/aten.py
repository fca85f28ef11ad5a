"""How each aten operation that a program can hold becomes operations of it."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reluctant.program.conversion import BATCH, Refused, Value, emit, infer, numbers, optional, pair, value
from reluctant.program.draft import Draft, Numbers
from reluctant.program.operations import (
    Add,
    AvgPool,
    Concat,
    Conv2d,
    Linear,
    MaxPool,
    Pad,
    Reshape,
    Scale,
    Slice,
)


def _around(items: Sequence[int]) -> tuple[int, int, int, int]:
    vertical, horizontal = pair(items)
    return vertical, vertical, horizontal, horizontal


def _convolution(draft: Draft, name: str, _: Any, x: Any, weight: Any, bias: Any, *settings: Any) -> Value:
    stride, padding, dilation, transposed, _, groups = settings
    if transposed or len(stride) != 2:
        raise Refused("it is transposed" if transposed else "it is not two-dimensional")
    op = Conv2d(
        output=name,
        inputs=(value(x).name,),
        weight=str(draft.store(f"{name}.weight", numbers(weight))),
        bias=draft.store(f"{name}.bias", optional(bias)),
        stride=pair(stride),
        padding=_around(padding),
        dilation=pair(dilation),
        groups=groups,
    )
    return infer(draft, op, x)


def _batch_norm(
    draft: Draft, name: str, _: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any, *settings: Any
) -> tuple[Value, None, None, None]:
    if settings[0] is True or mean is None or var is None:
        raise Refused("it uses the statistics of the batch; give it track_running_stats=True")
    source, centre, spread = value(x), numbers(mean), numbers(var)
    scale = (1.0 if weight is None else numbers(weight)) / np.sqrt(spread + settings[-1])
    shift = (0.0 if bias is None else numbers(bias)) - centre * scale
    return _scale(draft, name, source, scale, shift), None, None, None


def _scale(draft: Draft, name: str, x: Value, scale: Numbers | None, bias: Numbers | None, factor: float = 1) -> Value:
    op = Scale(
        output=name,
        inputs=(x.name,),
        scale=draft.store(f"{name}.scale", scale),
        bias=draft.store(f"{name}.bias", bias),
        factor=factor,
    )
    return infer(draft, op, x)


def _linear(draft: Draft, name: str, _: Any, x: Any, weight: Any, bias: Any = None) -> Value:
    matrix, offset = numbers(weight), optional(bias)
    if offset is not None:
        offset = np.broadcast_to(offset, matrix.shape[:1])
    op = Linear(
        output=name,
        inputs=(value(x).name,),
        weight=str(draft.store(f"{name}.weight", matrix)),
        bias=draft.store(f"{name}.bias", offset),
    )
    return infer(draft, op, x)


def _addmm(
    draft: Draft, name: str, meta: Any, bias: Any, x: Any, weight: Any, *, beta: float = 1, alpha: float = 1
) -> Value:
    return _linear(draft, name, meta, x, _turned(weight) * alpha, bias * beta if isinstance(bias, Tensor) else bias)


def _mm(draft: Draft, name: str, meta: Any, x: Any, weight: Any) -> Value:
    return _linear(draft, name, meta, x, _turned(weight))


def _turned(weight: Any) -> Tensor:
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise Refused("it is not a product of the input with a fixed matrix")
    return weight.T


def _constant(x: Value, operand: Any) -> Numbers:
    """Return a constant operand as one number a channel, or of the shape of a sample of ``x``."""
    array = np.asarray(operand.detach().double().numpy() if isinstance(operand, Tensor) else float(operand))
    try:
        whole = np.broadcast_to(array, (1, *x.shape))[0]
    except ValueError as error:
        raise Refused(f"a constant of shape {array.shape} does not fit samples of shape {x.shape}") from error
    channels: Numbers = whole.reshape(x.shape[0], -1)
    one_each = len(x.shape) != 2 and bool((channels == channels[:, :1]).all())
    return channels[:, 0] if one_each else whole


def _add(draft: Draft, name: str, meta: Any, a: Any, b: Any, alpha: float = 1) -> Value:
    if isinstance(a, Value) and isinstance(b, Value):
        if a.shape != b.shape:
            raise Refused(f"shapes {a.shape} and {b.shape} differ")
        if alpha != 1:
            b = _scale(draft, f"{name}.scaled", b, None, None, float(alpha))
        return emit(draft, Add(output=name, inputs=(a.name, b.name)), a.shape)
    if isinstance(a, Value):
        return _scale(draft, name, a, None, _constant(a, b) * alpha)
    return _scale(draft, name, b, None, _constant(b, a), float(alpha))


def _sub(draft: Draft, name: str, meta: Any, a: Any, b: Any, alpha: float = 1) -> Value:
    return _add(draft, name, meta, a, b, -alpha)


def _rsub(draft: Draft, name: str, meta: Any, a: Any, b: Any, alpha: float = 1) -> Value:
    return _add(draft, name, meta, b, a, -alpha)


def _mul(draft: Draft, name: str, _: Any, a: Any, b: Any) -> Value:
    if isinstance(a, Value) and isinstance(b, Value):
        raise Refused("it multiplies two values that both depend on the input")
    x, constant = (a, b) if isinstance(a, Value) else (b, a)
    if isinstance(constant, Tensor):
        return _scale(draft, name, x, _constant(x, constant), None)
    return _scale(draft, name, x, None, None, float(constant))


def _div(draft: Draft, name: str, meta: Any, a: Any, b: Any, *, rounding_mode: str | None = None) -> Value:
    if isinstance(b, Value) or rounding_mode is not None:
        raise Refused("it divides by a value that depends on the input" if rounding_mode is None else "it rounds")
    return _mul(draft, name, meta, a, 1 / b)


def _neg(draft: Draft, name: str, _: Any, x: Value) -> Value:
    return _scale(draft, name, x, None, None, -1.0)


def _mean(draft: Draft, name: str, meta: Any, x: Value, dims: Sequence[int] | None = None, *rest: Any) -> Value:
    axes = {d % (1 + len(x.shape)) for d in dims or ()}
    if len(x.shape) != 3 or not axes or axes - {2, 3}:
        raise Refused("it averages over more than height and width")
    kernel = (x.shape[1] if 2 in axes else 1, x.shape[2] if 3 in axes else 1)
    pooled = infer(draft, AvgPool(output=f"{name}.pooled", inputs=(x.name,), kernel=kernel, stride=kernel), x)
    return _reshape(draft, name, meta, pooled)


def _settings(given: Sequence[Any], *defaults: Any) -> tuple[Any, ...]:
    return (*given, *defaults[len(given) :])


def _avg_pool(
    draft: Draft, name: str, meta: Tensor, x: Value, kernel: Sequence[int], stride: Sequence[int] = (), *rest: Any
) -> Value:
    padding, ceil_mode, count_padding, divisor = _settings(rest, [0, 0], False, True, None)
    if any(padding) and not count_padding:
        raise Refused("it leaves its padding out of the mean; use count_include_pad=True")
    if divisor is not None:
        raise Refused("it has a divisor of its own")
    op = AvgPool(
        output=name,
        inputs=(x.name,),
        kernel=pair(kernel),
        stride=pair(stride or kernel),
        padding=_around(padding),
    )
    return _floored(infer(draft, op, x), meta, bool(ceil_mode))


def _floored(result: Value, meta: Tensor, ceil_mode: bool) -> Value:
    if ceil_mode and result.shape != tuple(meta.shape[1:]):
        raise Refused("ceil_mode makes windows that reach over the edge; use ceil_mode=False")
    return result


def _adaptive_avg_pool(draft: Draft, name: str, _: Any, x: Value, size: Sequence[int]) -> Value:
    rows, columns = pair(size)
    if x.shape[1] % rows or x.shape[2] % columns:
        raise Refused(f"maps of {x.shape[1]}x{x.shape[2]} do not divide into {rows}x{columns}")
    kernel = (x.shape[1] // rows, x.shape[2] // columns)
    return infer(draft, AvgPool(output=name, inputs=(x.name,), kernel=kernel, stride=kernel), x)


def _max_pool(
    draft: Draft, name: str, meta: Any, x: Value, kernel: Sequence[int], stride: Sequence[int] = (), *rest: Any
) -> tuple[Value, None]:
    padding, dilation, ceil_mode = _settings(rest, [0, 0], [1, 1], False)
    op = MaxPool(
        output=name,
        inputs=(x.name,),
        kernel=pair(kernel),
        stride=pair(stride or kernel),
        padding=pair(padding),
        dilation=pair(dilation),
    )
    return _floored(infer(draft, op, x), meta[0], bool(ceil_mode)), None


def _reshape(draft: Draft, name: str, meta: Tensor, x: Value, *_: Any) -> Value:
    """A view, a flattening, a squeeze: each image keeps its elements in their order."""
    if meta.shape[0] != BATCH or meta.numel() != BATCH * math.prod(x.shape):
        raise Refused(f"its result of shape {tuple(meta.shape)} is not one of {BATCH} images apart")
    return infer(draft, Reshape(output=name, inputs=(x.name,), shape=tuple(meta.shape[1:])), x)


def _same(draft: Draft, name: str, meta: Any, x: Any, *_: Any, **__: Any) -> Value:
    return value(x)


def _copy(draft: Draft, name: str, meta: Any, old: Any, new: Any, *_: Any) -> Value:
    return value(new)


def _to_copy(draft: Draft, name: str, meta: Any, x: Value, *, dtype: Any = None, **_: Any) -> Value:
    if dtype not in (None, torch.float32):
        raise Refused(f"it changes the type to {dtype}")
    return x


def _cat(draft: Draft, name: str, _: Any, items: Sequence[Any], dim: int = 0) -> Value:
    values = [item for item in items if isinstance(item, Value)]
    if dim % (1 + len(values[0].shape)) != 1:
        raise Refused("it is along another axis than the channels")
    first, last = (next(i for i, item in order if isinstance(item, Value)) for order in _both_ways(items))
    inner = items[first : last + 1]
    zeros = [*items[:first], *items[last + 1 :]]
    if len(inner) != len(values) or any(bool(item.any()) for item in zeros):
        raise Refused("it joins values of the input with a constant that is not zero")
    made = f"{name}.joined" if zeros else name
    result = values[0]
    if len(values) > 1:
        result = infer(draft, Concat(output=made, inputs=tuple(v.name for v in values)), *values)
    low, high = (sum(item.shape[1] for item in side) for side in (items[:first], items[last + 1 :]))
    if not zeros:
        return result
    rest = (0,) * (len(result.shape) - 1)
    return infer(draft, Pad(output=name, inputs=(result.name,), low=(low, *rest), high=(high, *rest)), result)


def _both_ways(items: Sequence[Any]) -> tuple[Any, Any]:
    numbered = list(enumerate(items))
    return numbered, numbered[::-1]


def _pad(draft: Draft, name: str, _: Any, x: Value, amounts: Sequence[int], filling: float = 0) -> Value:
    pairs = list(zip(amounts[::2], amounts[1::2], strict=True))[::-1]
    around = [(0, 0)] * (len(x.shape) - len(pairs)) + pairs
    if filling != 0 or len(around) != len(x.shape) or min(amounts) < 0:
        raise Refused("it pads with something else than zeros, crops, or pads the batch")
    low, high = (tuple(side) for side in zip(*around, strict=True))
    return infer(draft, Pad(output=name, inputs=(x.name,), low=low, high=high), x)


def _slice(
    draft: Draft,
    name: str,
    _: Any,
    x: Value,
    dim: int = 0,
    start: int | None = None,
    stop: int | None = None,
    step: int = 1,
) -> Value:
    axis = dim % (1 + len(x.shape)) - 1
    if axis < 0:
        return x  # all images or fewer: the check of shapes tells
    begin, end, _ = slice(start, stop).indices(x.shape[axis])
    starts, stops, strides = [0] * len(x.shape), list(x.shape), [1] * len(x.shape)
    starts[axis], stops[axis], strides[axis] = begin, end, step
    op = Slice(output=name, inputs=(x.name,), start=tuple(starts), stop=tuple(stops), step=tuple(strides))
    return infer(draft, op, x)


def _split(draft: Draft, name: str, meta: Any, x: Value, sizes: Any, dim: int = 0) -> tuple[Value, ...]:
    axis = dim % (1 + len(x.shape)) - 1
    if axis < 0:
        raise Refused("it splits the batch")
    whole = x.shape[axis]
    parts = [min(sizes, whole - at) for at in range(0, whole, sizes)] if isinstance(sizes, int) else list(sizes)
    edges = np.cumsum([0, *parts]).tolist()
    return tuple(
        _slice(draft, f"{name}.{number}", meta, x, dim, start, stop)
        for number, (start, stop) in enumerate(itertools.pairwise(edges))
    )


def _filled(filling: float) -> Callable[..., Tensor]:
    def fill(draft: Draft, name: str, meta: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.full(tuple(meta.shape), filling)

    return fill


CONVERTERS: dict[str, Callable[..., Any]] = {
    "aten::convolution": _convolution,
    "aten::native_batch_norm": _batch_norm,
    "aten::_native_batch_norm_legit": _batch_norm,
    "aten::_native_batch_norm_legit_no_training": _batch_norm,
    "aten::addmm": _addmm,
    "aten::mm": _mm,
    "aten::linear": _linear,
    "aten::add": _add,
    "aten::sub": _sub,
    "aten::rsub": _rsub,
    "aten::mul": _mul,
    "aten::div": _div,
    "aten::neg": _neg,
    "aten::mean": _mean,
    "aten::avg_pool2d": _avg_pool,
    "aten::_adaptive_avg_pool2d": _adaptive_avg_pool,
    "aten::max_pool2d_with_indices": _max_pool,
    "aten::cat": _cat,
    "aten::constant_pad_nd": _pad,
    "aten::slice": _slice,
    "aten::split": _split,
    "aten::split_with_sizes": _split,
    "aten::copy": _copy,
    "aten::_to_copy": _to_copy,
    "aten::zeros_like": _filled(0.0),
    "aten::new_zeros": _filled(0.0),
    "aten::ones_like": _filled(1.0),
    "aten::new_ones": _filled(1.0),
    **dict.fromkeys(
        ("aten::view", "aten::_unsafe_view", "aten::reshape", "aten::squeeze", "aten::unsqueeze", "aten::expand"),
        _reshape,
    ),
    **dict.fromkeys(("aten::clone", "aten::detach", "aten::alias", "aten::contiguous", "aten::lift_fresh_copy"), _same),
}
