"""Analytic profiles: what is published of a protocol that does not run here, as prices of a program.

A profile states what some ReLUs, a layer and a square take, before an image comes and afterwards. What is public or
local is free under all of them: sums, pooling by means, public factors, biases, and whatever one party computes with
numbers of its own. A maximum of two values is priced as the ReLU of their difference.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from reluctant.costs.model import UNKNOWN, Account, Cost, CostModel, Spent, Step, total
from reluctant.costs.work import Holder, holders, maxima
from reluctant.errors import UsageError
from reluctant.program.operations import Activation, Conv2d, Linear, MaxPool, Op, Scale
from reluctant.program.ops import Program


class Layer(NamedTuple):
    """A product with private numbers, for one image.

    Args:
        inputs, outputs: elements that it reads and makes.
        side: of the map that it reads, in pixels; 1 for a vector.
        places: of the kernel.
        stride: input pixels for each output pixel.
        macs: multiply-accumulates with an output at every pixel that is read, whatever the stride.
    """

    inputs: int
    outputs: int
    side: float = 1.0
    places: int = 1
    stride: int = 1
    macs: int = 0


def layer_of(op: Op, program: Program) -> Layer | None:
    """Return the product with private numbers that ``op`` is, or ``None`` if it is none.

    A strided 1x1 convolution reads only the pixels that it needs: the parties drop the others from their shares.
    """
    inputs, outputs = (math.prod(program.shapes[name]) for name in (op.inputs[0], op.output))
    if isinstance(op, Conv2d):
        channels, *size = program.shapes[op.inputs[0]]
        weight = program.array_shapes[op.weight]
        strides = [1 if places == 1 else stride for places, stride in zip(weight[2:], op.stride, strict=True)]
        read = [-(-pixels // (stride // left)) for pixels, stride, left in zip(size, op.stride, strides, strict=True)]
        pixels = math.prod(read)
        return Layer(
            inputs=channels * pixels,
            outputs=outputs,
            side=math.sqrt(pixels),
            places=math.prod(weight[2:]),
            stride=math.prod(strides),
            macs=math.prod(weight) * pixels,
        )
    if isinstance(op, Linear):
        return Layer(inputs, outputs, macs=math.prod(program.array_shapes[op.weight]))
    if isinstance(op, Scale) and op.scale is not None:
        return slopes(outputs)
    return None


def slopes(elements: int) -> Layer:
    """Return the product of so many elements with a private factor each."""
    return Layer(elements, elements, macs=elements)


class Profile(CostModel):
    """Prices programs by what is published. Settings are the fields of the dataclass that implements it.

    Images are priced one by one; those that travel together share the round trips alone. Work before an image comes is
    assumed to wait for nothing, since all layers can be prepared at once. How many messages there are, and what a
    party holds in memory, is not known of any profile.
    """

    provenance = "analytic profile"

    @classmethod
    def open(cls, engine: str, table: Path | None = None) -> "Profile":
        """Return the profile in its usual settings.

        Raises:
            UsageError: a table is given, which is of an engine that can be measured.
        """
        if table is not None:
            raise UsageError(f"{engine} is an analytic profile, which takes no table of prices: leave out {table}")
        return cls()

    @abstractmethod
    def relus(self, count: int) -> Spent:
        """Return what ``count`` ReLUs of one step take."""

    @abstractmethod
    def linear(self, layer: Layer) -> Spent:
        """Return what a product with private numbers takes."""

    @abstractmethod
    def squares(self, count: int) -> Spent:
        """Return what ``count`` squares of shared values take."""

    @abstractmethod
    def ends(self, elements: int) -> Spent:
        """Return what an image and its answers take on their way, of so many elements in all."""

    @abstractmethod
    def once(self) -> Cost:
        """Return what is done once for all images."""

    def account(self, program: Program, sizes: Sequence[int]) -> Account:
        """See :meth:`CostModel.account`."""
        once = list(self._steps(program))
        steps = [
            Step(op, part, Spent(*(_times(cost, size) for cost in spent))) for size in sizes for op, part, spent in once
        ]
        return Account(steps, self.once(), UNKNOWN)

    def relu(self) -> Spent:
        """See :meth:`CostModel.relu`."""
        return Spent(*(cost._replace(trips=0.0) for cost in self.relus(1)))

    def activation(self, op: Activation) -> Spent:
        """See :meth:`CostModel.activation`."""
        return _sum(step.spent for step in self._activation(op, "shared"))

    def _steps(self, program: Program) -> Iterator[Step]:
        held = holders(program)
        for op in program.ops:
            if isinstance(op, Activation):
                yield from self._activation(op, held[op.inputs[0]])
            elif held[op.output] == "shared" and isinstance(op, MaxPool):
                compared = maxima(op, program.shapes[op.inputs[0]])
                yield Step(op, "pooling", _sum(self.relus(count) for count in compared))
            elif held[op.output] == "shared" and (layer := layer_of(op, program)) is not None:
                yield Step(op, "linear", self.linear(layer))
        elements = math.prod(program.input_shape) + sum(math.prod(program.shapes[name]) for name in program.outputs)
        yield Step(None, "answer", self.ends(elements))

    def _activation(self, op: Activation, holder: Holder) -> Iterator[Step]:
        """Yield the work of an activation whose input ``holder`` has: its ReLUs, then ``c0 + (c1 + c2 z) z``."""
        if len(op.kept) and holder == "shared":
            yield Step(op, "comparison", self.relus(len(op.kept)))
        dropped = len(op.rest)
        if dropped and holder != "server" and (op.scales or op.squares):
            parts = [self.linear(slopes(dropped))] if op.scales else []
            yield Step(op, "surrogate", _sum([*parts, self.squares(dropped)] if op.squares else parts))


def _times(cost: Cost, images: int) -> Cost:
    """Return what ``cost`` is for so many images; how many messages it takes is not known."""
    return Cost(cost.bytes * images, UNKNOWN, cost.seconds * images, cost.trips)


def _sum(spent: Iterator[Spent] | Sequence[Spent]) -> Spent:
    both = list(spent)
    return Spent(total(one.online for one in both), total(one.offline for one in both))
