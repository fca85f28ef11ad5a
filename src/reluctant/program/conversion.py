"""What the conversion of aten operations works with: values in the place of tensors, refusals, and hints."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from reluctant.program.draft import Draft, Numbers
from reluctant.program.operations import Op, Shape

#: Images in the traced batch: more than one, so that what mixes images shows in the shapes.
BATCH = 2


class Refused(Exception):
    """An operation, or a setting of one, that no program has."""


@dataclass(frozen=True)
class Value:
    """A value of the program in the place of a tensor: its name and the shape of one sample."""

    name: str
    shape: Shape


#: What to do instead, by a part of the operation's name; the first that fits.
HINTS = {
    "softmax": "leave it out: the client can apply it to the scores",
    "silu": "swap_activations makes a ReLU of it",
    "gelu": "swap_activations makes a ReLU of it",
    "mish": "swap_activations makes a ReLU of it",
    "hardtanh": "swap_activations makes a ReLU of it",
    "hardswish": "swap_activations makes a ReLU of it",
    "hardsigmoid": "swap_activations makes a ReLU of it",
    "leaky_relu": "swap_activations makes a ReLU of it",
    "elu": "swap_activations makes a ReLU of it",
    "tanh": "swap_activations makes a ReLU of it",
    "sigmoid": "swap_activations makes a ReLU of it",
    "dropout": "use nn.Dropout, which does nothing in evaluation mode",
    "bernoulli": "use nn.Dropout, which does nothing in evaluation mode",
    "native_layer_norm": "use a batch norm, which folds into the convolution before",
    "native_group_norm": "use a batch norm, which folds into the convolution before",
    "": "use convolutions, linear layers, ReLUs, sums, concatenations, average and max pooling",
}


def emit(draft: Draft, op: Op, shape: Shape) -> Value:
    draft.ops.append(op)
    return Value(op.output, shape)


def infer(draft: Draft, op: Op, *inputs: Value) -> Value:
    arrays = {name: draft.arrays[name].shape for name in op.arrays()}
    try:
        return emit(draft, op, op.infer([value.shape for value in inputs], arrays))
    except ValueError as error:
        raise Refused(str(error)) from error


def numbers(value: Any) -> Numbers:
    if not isinstance(value, Tensor):
        raise Refused("it takes two operands that both depend on the input")
    return value.detach().double().numpy()


def optional(value: Any) -> Numbers | None:
    return None if value is None else numbers(value)


def value(value: Any) -> Value:
    if not isinstance(value, Value):
        raise Refused("it takes its operands in an order that no program has")
    return value


def pair(items: Sequence[int]) -> tuple[int, int]:
    if len(items) not in (1, 2):
        raise Refused(f"it is {len(items)}-dimensional; only images have operations")
    return items[0], items[-1]
