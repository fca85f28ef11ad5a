"""What a program means, in float64: each operation by its own definition, nothing shared with an engine."""

import torch
import torch.nn.functional as F

from reluctant.program.operations import INPUT
from reluctant.program.ops import Program


def interpret(program: Program, images: torch.Tensor) -> list[torch.Tensor]:
    """Return all outputs of ``program`` for ``images``."""
    arrays = {name: torch.from_numpy(array).double() for name, array in program.arrays.items()}
    values = {INPUT: images.double()}
    for op in program.ops:
        inputs = [values[name] for name in op.inputs]
        values[op.output] = FUNCTIONS[op.kind](op, *inputs, get=lambda name: None if name is None else arrays[name])
        assert tuple(values[op.output].shape[1:]) == program.shapes[op.output]
    return [values[name] for name in program.outputs]


def conv2d(op, x, get):
    top, bottom, left, right = op.padding
    x = F.pad(x, (left, right, top, bottom))
    return F.conv2d(x, get(op.weight), get(op.bias), op.stride, 0, op.dilation, op.groups)


def scale(op, x, get):
    scales, biases = (
        array if array is None or array.shape == x.shape[1:] else array.reshape(-1, *[1] * (x.ndim - 2))
        for array in (get(op.scale), get(op.bias))
    )
    if op.factors is not None:
        x = x * torch.tensor(op.factors, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 2))
    return op.factor * x * (1 if scales is None else scales) + (0 if biases is None else biases)


def avgpool(op, x, get):
    top, bottom, left, right = op.padding
    return F.avg_pool2d(F.pad(x, (left, right, top, bottom)), op.kernel, op.stride)


def pad(op, x, get):
    amounts = [amount for pair in zip(op.low[::-1], op.high[::-1], strict=True) for amount in pair]
    return F.pad(x, amounts)


def sliced(op, x, get):
    index = [slice(None)] + [slice(*item) for item in zip(op.start, op.stop, op.step, strict=True)]
    return x[tuple(index)]


def activation(op, x, get):
    flat = x.flatten(1)
    z = flat[:, op.rest]
    c0, c1, c2 = (get(name) for name in (op.c0, op.c1, op.c2))
    rest = (z if op.unit_slope else 0 * z) if c1 is None else c1 * z
    rest = rest + (0 if c0 is None else c0) + (float(op.unit_square) if c2 is None else c2) * z**2
    kept = flat[:, op.kept].relu()
    if op.factors is not None:
        channels = torch.tensor(op.factors).repeat_interleave(flat.shape[1] // x.shape[1])
        kept = kept * channels[op.kept]
    return torch.cat([kept, rest], 1)[:, op.inverse].reshape(x.shape)


FUNCTIONS = {
    "conv2d": conv2d,
    "linear": lambda op, x, get: F.linear(x, get(op.weight), get(op.bias)),
    "scale": scale,
    "add": lambda op, x, y, get: x + y,
    "concat": lambda op, *xs, get: torch.cat(xs, 1),
    "avgpool": avgpool,
    "maxpool": lambda op, x, get: F.max_pool2d(x, op.kernel, op.stride, op.padding, op.dilation),
    "reshape": lambda op, x, get: x.reshape(len(x), *op.shape),
    "pad": pad,
    "slice": sliced,
    "activation": activation,
}
