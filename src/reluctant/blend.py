"""The arithmetic of a partly dropped ReLU, forward and backward.

Both functions keep one tensor of the input's size for the backward pass, and have first derivatives alone. They are
written in the element-wise operations that torch has vectorised kernels for on a CPU, which those on booleans are not:
a mask becomes a floor under the input (0 where the ReLU stays, minus infinity where it goes), an identity blended in a
slope below zero, and the backward kernels of ReLU and hardtanh do the comparisons. ``benchmarks/training.py`` measures
what that is worth.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_threshold: Callable[..., Tensor] = (
    torch.ops.aten.threshold_backward
)  # (gradient, x, t): the gradient where x > t, else 0
_hardtanh: Callable[..., Tensor] = torch.ops.aten.hardtanh_backward  # (gradient, x, a, b): where a < x < b, else 0
_leaky: Callable[..., Tensor] = torch.ops.aten._prelu_kernel  # (x, slope): x where x > 0, else slope x


class KeptReLU(torch.autograd.Function):
    """``where(keep, relu(z), z)``, keeping only its output for the backward pass.

    Args (of ``apply``):
        z: ``[B, *shape]``.
        keep: ``bool [*shape]``.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, keep: Tensor) -> Tensor:
        floor = torch.zeros(keep.shape, dtype=z.dtype, device=z.device).masked_fill(~keep, -torch.inf)
        y = torch.maximum(z, _laid_out(floor, z))
        ctx.save_for_backward(y, keep)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        y, keep = ctx.saved_tensors
        bits = _bits(y)
        passing = torch.maximum(bits, _laid_out((~keep).to(bits.dtype), y))
        return _threshold(_bits(grads[0]), passing, 0).view(y.dtype), None


class BlendedReLU(torch.autograd.Function):
    """``m relu(z) + (1 - m) (c0 + c1 z + c2 z^2)`` and all its gradients, keeping only z for the backward pass.

    For finite values only: infinity times a gate of zero is not a number. The gradients of m and c are sums over the
    batch of delta z^k and delta relu(z), an element; the mask is applied to those sums, not to their terms.

    Args (of ``apply``):
        z: ``[B, *shape]``.
        m: real gates that broadcast to ``shape``.
        c0, c1, c2: broadcast to ``shape``; ``None`` for c0 = 0, c1 = 1, c2 = 0.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, m: Tensor, c0: Tensor | None, c1: Tensor | None, c2: Tensor | None) -> Tensor:
        ctx.save_for_backward(z, m, c0, c1, c2)
        return blended(z, m, c0, c1, c2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, m, c0, c1, c2 = ctx.saved_tensors
        delta = grads[0] if grads[0].stride() == z.stride() else torch.empty_like(z).copy_(grads[0])
        for_z, for_m, *for_c = ctx.needs_input_grad
        gate = _laid_out(m.to(z.dtype), z)
        if c0 is None and c1 is None and c2 is None:
            stopped = _stopped(delta, z)
            grad_m = _like(-_summed(stopped * z), m) if for_m else None
            grad_z = torch.addcmul(delta, gate, stopped, value=-1, out=stopped) if for_z else None
            return grad_z, grad_m, None, None, None
        positive = _threshold(_bits(delta), _bits(z), 0).view(z.dtype)
        first = delta * z if for_m or for_c[1] or for_c[2] or c2 is not None else delta
        moments = [
            _summed(delta) if for_m or for_c[0] else None,
            _summed(first) if for_m or for_c[1] else None,
            _summed(first * z) if (for_m and c2 is not None) or for_c[2] else None,
        ]
        grad_z = grad_m = None
        if for_m:
            values = (0.0 if c0 is None else c0, 1.0 if c1 is None else c1, c2)
            pairs = zip(moments, values, strict=True)
            dropped = [moment * value for moment, value in pairs if moment is not None and value is not None]
            grad_m = _like(_summed(positive * z) - torch.stack([d.expand(z.shape[1:]) for d in dropped]).sum(0), m)
        if for_z:
            slope = (1 - gate) * (1 if c1 is None else _laid_out(c1.to(z.dtype), z))
            grad_z = positive.mul_(gate).addcmul_(delta, slope)
            if c2 is not None:
                grad_z.addcmul_(first, 2 * (1 - gate) * _laid_out(c2.to(z.dtype), z))
        grad_c = [
            _like((1 - gate) * moment, c) if wanted and moment is not None else None
            for wanted, moment, c in zip(for_c, moments, (c0, c1, c2), strict=True)
        ]
        return grad_z, grad_m, *grad_c


def blended(z: Tensor, m: Tensor, c0: Tensor | None, c1: Tensor | None, c2: Tensor | None) -> Tensor:
    """Return what :class:`BlendedReLU` returns, without gradients."""
    m = m.to(z.dtype) if m.dtype == torch.bool else m
    if c0 is None and c1 is None and c2 is None:
        return _leaky(z, _laid_out((1 - m).to(z.dtype), z))  # m relu(z) + (1-m) z = z above zero, else (1-m) z
    gate = _laid_out(m.to(z.dtype), z)
    if c2 is not None:
        return polynomial(z, c0, c1, c2).lerp_(z.clamp(min=0), gate)
    slope = _laid_out(((1 - m) if c1 is None else (1 - m) * c1).to(z.dtype), z)
    dropped = z * slope if c0 is None else torch.addcmul(_laid_out(((1 - m) * c0).to(z.dtype), z), z, slope)
    return dropped.addcmul_(z.clamp(min=0), gate)


def polynomial(z: Tensor, c0: Tensor | None, c1: Tensor | None, c2: Tensor | None) -> Tensor:
    """Return c0 + c1 z + c2 z^2, new and in the type of ``z``, by Horner; ``None`` for c0 = 0, c1 = 1, c2 = 0."""
    if c2 is None:
        value = z.clone() if c1 is None else z * _laid_out(c1.to(z.dtype), z)
    else:
        value = (z * _laid_out(c2.to(z.dtype), z)).add_(1 if c1 is None else _laid_out(c1.to(z.dtype), z)).mul_(z)
    return value if c0 is None else value.add_(_laid_out(c0.to(z.dtype), z))


def _bits(x: Tensor) -> Tensor:
    """Return ``x`` to be compared with zero: half precision as its bits, which as a signed integer have the same sign.

    Processors without arithmetic in half precision are spared two conversions. A NaN counts by its sign bit.
    """
    return x.view(torch.int16) if x.dtype in (torch.bfloat16, torch.float16) else x


def _stopped(gradient: Tensor, x: Tensor) -> Tensor:
    """Return the gradient where x is not above zero (in single precision: not above its smallest normal number)."""
    bits = _bits(x)
    if bits is x:
        return _hardtanh(gradient, x, -torch.inf, torch.finfo(x.dtype).tiny)
    return _threshold(_bits(gradient), ~bits, -2).view(x.dtype)  # ~0 is -1


def _laid_out(values: Tensor, z: Tensor) -> Tensor:
    """Return ``values``, which broadcast to ``[*shape]``, in the memory format of ``z [B, *shape]``.

    Kernels are slow where the two differ, and where they broadcast along what lies innermost.
    """
    if values.dim() == 3 and z.dim() == 4 and not z.is_contiguous():
        return values.expand(z.shape[1:])[None].contiguous(memory_format=torch.channels_last)[0]
    return values


def _summed(terms: Tensor) -> Tensor:
    """Sum ``terms [B, *shape]`` over the batch, in their memory format."""
    if terms.dim() == 4 and not terms.is_contiguous():
        return terms.permute(0, 2, 3, 1).sum(0).permute(2, 0, 1)
    return terms.sum(0)


def _like(grad: Tensor, given: Tensor) -> Tensor:
    """Sum ``grad [*shape]`` over what ``given`` was broadcast along, in the type of ``given``."""
    return grad.to(given.dtype).sum_to_size(given.shape)
