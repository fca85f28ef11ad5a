"""The operations of a program as functions of JAX arrays; maps are ``[B, H, W, C]``. Needs jax, imported when used."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluctant.program.operations import (
    Activation,
    Add,
    Array,
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

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def apply(op: Op, values: Mapping[str, Any], shapes: Sequence[Shape]) -> Any:
    """Return the output of the linear operation ``op``.

    Args:
        values: by name, the server's arrays among them.
        shapes: of one sample of each input, as the program has them.
    """
    inputs = [values[name] for name in op.inputs]
    return _FUNCTIONS[type(op)](op, values, inputs, shapes)


def relu(z: Any) -> Any:
    """Return max(z, 0): one comparison an element."""
    import jax.numpy as jnp

    return jnp.maximum(z, 0)


def flatten(z: Any) -> Any:
    """Return ``z`` as ``[B, E]`` in its own order."""
    return z.reshape(z.shape[0], -1)


def take(z: Any, index: NDArray[np.int64]) -> Any:
    """Return the elements ``index`` of each flattened sample of ``z``, as ``[B, len(index)]``."""
    return flatten(z)[:, index]


def multiply(z: Any, factors: NDArray[np.int64]) -> Any:
    """Return ``z``, ``[B, E]``, times public whole numbers ``[E]`` of which equal ones are next to each other.

    By additions, which are exact and free on shares: a product with a constant would be truncated.
    """
    import jax.numpy as jnp

    edges = [0, *(np.flatnonzero(np.diff(factors)) + 1).tolist(), len(factors)]
    parts = [_multiple(z[:, start:stop], int(factors[start])) for start, stop in itertools.pairwise(edges)]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, 1)


def _multiple(z: Any, factor: int) -> Any:
    if factor == 1:
        return z
    half = _multiple(z, factor // 2)
    return half + half + z if factor % 2 else half + half


def put_together(first: Any | None, second: Any, order: NDArray[np.int64]) -> Any:
    """Return ``[B, E]``: element ``i`` is number ``order[i]`` of ``first`` followed by ``second``."""
    import jax.numpy as jnp

    if first is None and np.array_equal(order, np.arange(second.shape[1])):
        return second
    return (second if first is None else jnp.concatenate([first, second], 1))[:, order]


def polynomial(z: Callable[[], Any], batch: int, size: int, c0: Any, c1: Any, c2: Any, op: Activation) -> Any:
    """Return ``c0 + c1 z + c2 z^2`` as ``[B, size]``; ``z`` is only made if it is needed.

    By Horner: under CHEETAH a square costs as much as any product of two shares (314 bytes an element), so
    ``(c2 z + c1) z`` saves one of three products. A c2 of 1 saves another.
    """
    import jax.numpy as jnp

    if op.squares:
        rest = z()
        slope = rest if c2 is None else rest * c2
        if c1 is not None or op.unit_slope:
            slope = slope + (1.0 if c1 is None else c1)
        value = slope * rest
    elif c1 is not None:
        value = z() * c1
    elif op.unit_slope:
        value = z()
    else:
        return jnp.broadcast_to(jnp.zeros(size) if c0 is None else c0, (batch, size))
    return value if c0 is None else value + c0


def max_pool(z: Any, op: MaxPool) -> Any:
    """Return the largest of each window, rows first, then columns: the fewest comparisons for a window of any size.

    The edge is repeated as padding: an element that stands in the window already changes no maximum.
    """
    import jax.numpy as jnp

    for axis in (1, 2):
        window = (op.kernel[axis - 1], op.stride[axis - 1], op.padding[axis - 1], op.dilation[axis - 1])
        kernel, stride, padding, dilation = window
        if padding:
            z = jnp.pad(z, [(padding, padding) if a == axis else (0, 0) for a in range(4)], mode="edge")
        count = (z.shape[axis] - dilation * (kernel - 1) - 1) // stride + 1
        parts = [_strided(z, axis, offset * dilation, count, stride) for offset in range(kernel)]
        while len(parts) > 1:
            pairs = [jnp.maximum(a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)]
            parts = pairs + parts[len(parts) & ~1 :]
        z = parts[0]
    return z


def _strided(z: Any, axis: int, start: int, count: int, stride: int) -> Any:
    """Return ``count`` slices of ``z`` along ``axis``, from ``start`` in steps of ``stride``."""
    import jax

    return jax.lax.slice_in_dim(z, start, start + (count - 1) * stride + 1, stride, axis)


def kernel_layout(op: Conv2d) -> Callable[[Array], Array]:
    """Return what brings a kernel ``[O, I / groups, kh, kw]`` to the ``[kh, kw, I, O]`` that the executable reads.

    Groups become zeros in a dense kernel: under CHEETAH one large product costs fewer bytes and messages than several
    small ones (4 images, 32 channels of 8x8: 0.65 MB as one, 1.3 MB as two groups, 5.0 MB as eight).
    """

    def move(weight: Array) -> Array:
        outputs, inputs = weight.shape[0] // op.groups, weight.shape[1]
        dense = np.zeros((weight.shape[0], inputs * op.groups, *weight.shape[2:]), np.float32)
        for group in range(op.groups):
            rows = slice(group * outputs, (group + 1) * outputs)
            dense[rows, group * inputs : (group + 1) * inputs] = weight[rows]
        return np.ascontiguousarray(dense.transpose(2, 3, 1, 0))

    return move


def _conv2d(op: Conv2d, values: Mapping[str, Any], inputs: Sequence[Any], shapes: Sequence[Shape]) -> Any:
    import jax

    y = jax.lax.conv_general_dilated(
        inputs[0],
        values[op.weight],
        op.stride,
        (op.padding[:2], op.padding[2:]),
        rhs_dilation=op.dilation,
        dimension_numbers=_DIMENSIONS,
    )
    return y if op.bias is None else y + values[op.bias]


def _linear(op: Linear, values: Mapping[str, Any], inputs: Sequence[Any], shapes: Sequence[Shape]) -> Any:
    y = inputs[0] @ values[op.weight].T
    return y if op.bias is None else y + values[op.bias]


def _scale(op: Scale, values: Mapping[str, Any], inputs: Sequence[Any], shapes: Sequence[Shape]) -> Any:
    (y,) = inputs
    if op.factor == -1:
        y = -y
    elif op.factor != 1:
        y = y * op.factor
    if op.factors is not None:
        y = y * np.asarray(op.factors, np.float32)
    if op.scale is not None:
        y = y * values[op.scale]
    return y if op.bias is None else y + values[op.bias]


def _add(op: Add, values: Mapping[str, Any], inputs: Sequence[Any], shapes: Sequence[Shape]) -> Any:
    return inputs[0] + inputs[1]


def _concat(op: Concat, values: Mapping[str, Any], inputs: Sequence[Any], shapes: Sequence[Shape]) -> Any:
    import jax.numpy as jnp

    return jnp.concatenate(inputs, 3 if len(shapes[0]) == 3 else 1)


def _avg_pool(op: AvgPool, values: Mapping[str, Any], inputs: Sequence[Any], shapes: Sequence[Shape]) -> Any:
    import jax.numpy as jnp

    (z,) = inputs
    if any(op.padding):
        z = jnp.pad(z, ((0, 0), op.padding[:2], op.padding[2:], (0, 0)))
    if z.shape[1:3] == op.kernel:
        z = jnp.sum(z, (1, 2), keepdims=True)
    else:
        for axis, kernel, stride in zip((1, 2), op.kernel, op.stride, strict=True):
            count = (z.shape[axis] - kernel) // stride + 1
            parts = [_strided(z, axis, offset, count, stride) for offset in range(kernel)]
            z = sum(parts[1:], parts[0])
    return z * (1 / math.prod(op.kernel))


def _reshape(op: Reshape, values: Mapping[str, Any], inputs: Sequence[Any], shapes: Sequence[Shape]) -> Any:
    (z,) = inputs
    if z.ndim == 4:
        z = z.transpose(0, 3, 1, 2)
    z = z.reshape(z.shape[0], *op.shape)
    return z.transpose(0, 2, 3, 1) if len(op.shape) == 3 else z


def _inner(items: Sequence[Any]) -> list[Any]:
    """Return per-axis settings in the inner order of axes."""
    return [*items[1:], items[0]] if len(items) == 3 else list(items)


def _pad(op: Pad, values: Mapping[str, Any], inputs: Sequence[Any], shapes: Sequence[Shape]) -> Any:
    import jax.numpy as jnp

    return jnp.pad(inputs[0], [(0, 0), *_inner(list(zip(op.low, op.high, strict=True)))])


def _slice(op: Slice, values: Mapping[str, Any], inputs: Sequence[Any], shapes: Sequence[Shape]) -> Any:
    import jax

    (z,) = inputs
    return jax.lax.slice(z, [0, *_inner(op.start)], [z.shape[0], *_inner(op.stop)], [1, *_inner(op.step)])


_FUNCTIONS: dict[type[Op], Callable[..., Any]] = {
    Conv2d: _conv2d,
    Linear: _linear,
    Scale: _scale,
    Add: _add,
    Concat: _concat,
    AvgPool: _avg_pool,
    Reshape: _reshape,
    Pad: _pad,
    Slice: _slice,
}
