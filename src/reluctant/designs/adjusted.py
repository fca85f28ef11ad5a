"""Adjusted widths.

Paper:    Chen, Niu, Xie, Liu, Wei, Tian. Network Adjustment: Channel Search Guided by FLOPs Utilization Ratio.
          CVPR 2020, arXiv:2004.02767.
Deviates: convolutions begin as in the other residual networks here (He et al.), not uniform. Only the networks for
          CIFAR are here: those for ImageNet have another stem and convolutions at their shortcuts. The released network
          has 42.9 M multiply-adds, 7 % more than the row of the paper's table that it is listed for.
Symbols:  channel numbers c0, c1, ... -> widths; initial channels -> width; "max" padding -> the only one here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reluctant.designs.base import Design, check_multiple
from reluctant.errors import UsageError
from reluctant.models.resnet import doubling


@dataclass(frozen=True, kw_only=True)
class Adjusted(Design):
    """A residual network of basic blocks with a width of its own for every 3x3 convolution but the stem.

    A block puts out as many channels as the wider of its input and its second convolution; the narrower one gets zeros
    in front. Where a stage begins, the shortcut is a 2x2 average. There is no ReLU after the stem, and no convolution
    at a shortcut.

    Args:
        width: channels of the stem; all others follow in proportion.
        blocks: residual blocks of each stage; every stage after the first halves the map.
        widths: channels of the first and the second convolution of each block, in order; none stands for ``width`` in
            the first stage, and twice as many in each further one.
        base: the width at which layers are as wide as ``widths`` says.
    """

    name: ClassVar[str] = "adjusted"

    width: int = 16
    blocks: tuple[int, ...] = (3, 3, 3)
    widths: tuple[int, ...] = ()
    base: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.blocks:
            raise UsageError("adjusted.blocks is empty, expected the blocks of each stage, such as 3-3-3")
        if len(self.widths) not in (0, 2 * sum(self.blocks)):
            raise UsageError(
                f"adjusted.widths has {len(self.widths)} numbers, expected {2 * sum(self.blocks)}: two for each of "
                f"{sum(self.blocks)} blocks"
            )

    @property
    def layers(self) -> tuple[int, ...]:
        """The channels of each 3x3 convolution but the stem, in the order of the forward pass."""
        if self.widths:
            return tuple(max(1, round(width * self.width / self.base)) for width in self.widths)
        stages = zip(self.blocks, doubling(self.width, len(self.blocks)), strict=True)
        return tuple(width for blocks, width in stages for _ in range(2 * blocks))

    @property
    def stages(self) -> tuple[int, ...]:
        """The stage of each of :attr:`layers`, counted from 0: so often its map was halved."""
        return tuple(stage for stage, blocks in enumerate(self.blocks) for _ in range(2 * blocks))

    @property
    def streams(self) -> tuple[int, ...]:
        """The channels that each block takes, and those that the last one puts out."""
        channels = [self.width]
        for width in self.layers[1::2]:
            channels.append(max(channels[-1], width))
        return tuple(channels)

    @property
    def halvings(self) -> int:
        return len(self.blocks) - 1

    def check_side(self, side: int) -> None:
        """Refuse images whose map cannot be halved exactly: shortcut and convolutions must fit each other.

        Raises:
            ShapeError: the side is no multiple of what it is divided by.
        """
        check_multiple(self, side)

    def network(self, classes: int, channels: int) -> "AdjustedNetwork":
        return AdjustedNetwork(self, classes, channels)

    def relus(self, side: int) -> dict[str, int]:
        counts = {f"stage {number}": 0 for number in range(1, len(self.blocks) + 1)}
        for stage, inner, outer in zip(self.stages[::2], self.layers[::2], self.streams[1:], strict=True):
            counts[f"stage {stage + 1}"] += (inner + outer) * (side >> stage) ** 2
        return counts

    @classmethod
    def candidates(cls, order: tuple[int, ...] | None, settings: Mapping[str, Any]) -> tuple["Adjusted", ...]:
        """Return the network before and after the authors' adjustment, or the one that is given."""
        if order is not None:
            raise UsageError("adjusted has a width for every layer, so its stages have no order: leave --order out")
        given = cls.from_json(settings)
        if settings.keys() & {"blocks", "widths"}:
            return (given,)
        return (given, *(given.changed({"widths": found.widths}) for found in cls.released().values()))

    @classmethod
    def released(cls) -> Mapping[str, "Adjusted"]:
        """Return the network that the authors published for CIFAR-100: ResNet-20, adjusted."""
        first, second, third = (6, 17, 6, 17, 9, 16), (26, 23, 28, 24, 29, 29), (78, 66, 93, 97, 112, 128)
        return {"cifar100-resnet20": cls(widths=first + second + third)}


class AdjustedNetwork(nn.Module):
    """A 3x3 stem, stages of blocks, the mean over the last map, a linear classifier."""

    def __init__(self, design: Adjusted, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, design.width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(design.width)
        self.names = tuple(f"layer{number}" for number in range(1, len(design.blocks) + 1))
        for name in self.names:
            self.add_module(name, nn.Sequential())
        before = 0
        for stage, inputs, inner, outer in zip(
            design.stages[::2], design.streams, design.layers[::2], design.layers[1::2], strict=False
        ):
            getattr(self, self.names[stage]).append(Block(inputs, inner, outer, 2 if stage > before else 1))
            before = stage
        self.fc = nn.Linear(design.streams[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        x = self.bn1(self.conv1(x))
        for name in self.names:
            x = getattr(self, name)(x)
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]

    @property
    def adjusted(self) -> tuple[nn.Module, ...]:
        """What puts out the channels of each of the design's layers: the ReLU behind it, or its norm before a sum."""
        blocks = (block for name in self.names for block in getattr(self, name))
        return tuple(module for block in blocks for module in (block.relu1, block.bn2))


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, as wide as the wider of the two; a ReLU after the first, one after the sum.

    Args:
        inputs, inner, outer: channels that it takes, and those of its convolutions.
    """

    def __init__(self, inputs: int, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(inner, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.shortcut: nn.Module = nn.AvgPool2d(2) if stride == 2 else nn.Identity()
        self.relu2 = nn.ReLU()
        self.channels = max(inputs, outer)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H2 W2"]:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(widened(y, self.channels) + widened(self.shortcut(x), self.channels))  # type: ignore[no-any-return]


def widened(x: Float[Tensor, "B C H W"], channels: int) -> Float[Tensor, "B D H W"]:
    """Return ``x`` with zeros in front, so that it has so many channels."""
    return x if x.shape[1] == channels else F.pad(x, (0, 0, 0, 0, channels - x.shape[1], 0))
