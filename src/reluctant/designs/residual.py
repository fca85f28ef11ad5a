"""Residual networks described stage by stage: what several designs are made of."""

from abc import abstractmethod
from dataclasses import dataclass

from torch import nn

from reluctant.designs.base import Design, halve
from reluctant.errors import UsageError
from reluctant.models.resnet import ResNet


@dataclass(frozen=True, kw_only=True)
class Residual(Design):
    """A residual network whose stages may lose ReLUs, whole or in turn.

    Args:
        blocks: residual blocks of each stage; every stage after the first halves the map.
        thin: drop every other ReLU of a stage, its second, fourth, ...: in basic blocks the one after the sum.
    """

    blocks: tuple[int, ...] = (2, 2, 2, 2)
    thin: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.blocks:
            raise UsageError(f"{self.name}.blocks is empty, expected the blocks of each stage, such as 2-2-2-2")

    @property
    @abstractmethod
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage; bottlenecks put out four times as many."""

    @property
    @abstractmethod
    def has_stem_relu(self) -> bool:
        """Whether a ReLU follows the stem."""

    @property
    def culled(self) -> tuple[int, ...]:
        """Stages that have no ReLUs, counted from 1."""
        return ()

    @property
    def first_stride(self) -> int:
        """Stride of the stem."""
        return 1

    @property
    def bottleneck_groups(self) -> int:
        """Groups of the bottlenecks' 3x3 convolutions; 0 for basic blocks."""
        return 0

    @property
    def halvings(self) -> int:
        return len(self.blocks) - 1 + (self.first_stride == 2)

    def network(self, classes: int, channels: int) -> ResNet:
        network = ResNet(
            self.blocks,
            self.widths,
            classes,
            channels,
            self.has_stem_relu,
            self.first_stride,
            self.bottleneck_groups,
        )
        for number, stage in enumerate(network.stages, start=1):
            layers = [name for name, module in getattr(network, stage).named_modules() if isinstance(module, nn.ReLU)]
            for name in layers if number in self.culled else layers[1::2] if self.thin else []:
                getattr(network, stage).set_submodule(name, nn.Identity())
        return network

    def relus(self, side: int) -> dict[str, int]:
        side = halve(side, self.first_stride - 1)
        counts = {"stem": self.width * side**2} if self.has_stem_relu else {}
        for number, (count, width) in enumerate(zip(self.blocks, self.widths, strict=True), start=1):
            before, side = side, halve(side, int(number > 1))
            layers = [
                width * units
                for block in range(count)
                for units in relus_a_channel(before if block == 0 else side, side, bool(self.bottleneck_groups))
            ]
            if number not in self.culled:
                counts[f"stage {number}"] = sum(layers[::2] if self.thin else layers)
        return counts


def relus_a_channel(before: int, after: int, bottleneck: bool) -> tuple[int, ...]:
    """Return the ReLUs of one block at each of its activations, for one channel of its stage's width.

    Args:
        before, after: sides of the maps that it takes and puts out.
    """
    return (before**2, after**2, 4 * after**2) if bottleneck else (after**2, after**2)
