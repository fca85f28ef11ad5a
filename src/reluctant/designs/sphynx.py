"""Sphynx.

Paper:    Cho, Ghodsi, Reagen, Garg, Hegde. Sphynx: ReLU-Efficient Network Design for Private Inference. IEEE Security
          and Privacy 2022, arXiv:2106.11755.
Deviates: the cells are those that the authors' search found; the search itself is left out. So are the auxiliary head
          and drop-path of their training: they change how the network is trained, not what it computes. The
          configuration of the network with 230 thousand ReLUs is not public.
Symbols:  C0 -> width; L -> cells; places of the reduction cells -> reductions, counted from 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reluctant.designs.base import Design, check_multiple
from reluctant.errors import UsageError


class Edge(NamedTuple):
    """An operation and which node it reads: 0 and 1 are the inputs, 2 to 5 the cell's own."""

    operation: str
    source: int


#: Of the released genotype: the two edges of each of a cell's four nodes.
NORMAL = (
    (Edge("skip", 0), Edge("skip", 1)),
    (Edge("skip", 2), Edge("dilated5", 0)),
    (Edge("conv5", 2), Edge("dilated3", 0)),
    (Edge("conv3", 1), Edge("skip", 2)),
)
REDUCTION = (
    (Edge("conv3", 0), Edge("conv3", 1)),
    (Edge("skip", 0), Edge("conv3", 2)),
    (Edge("dilated3", 0), Edge("skip", 2)),
    (Edge("conv5", 0), Edge("skip", 4)),
)


@dataclass(frozen=True, kw_only=True)
class Sphynx(Design):
    """Cells of full convolutions with one ReLU each, after a 1x1 convolution to a quarter of the channels.

    A reduction cell halves the map and has four times the channels, so every cell has as many ReLUs.

    Args:
        width: channels of a cell before the first reduction.
        cells: how many there are.
        reductions: which of them are reduction cells, counted from 0.
        stem: ``small`` has no ReLU; ``imagenet`` takes three convolutions of stride 2, with two ReLUs.
    """

    name: ClassVar[str] = "sphynx"
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"stem": ("small", "imagenet")}
    may_be_zero: ClassVar[tuple[str, ...]] = ("reductions",)

    width: int = 5
    cells: int = 10
    reductions: tuple[int, ...] = (0, 5)
    stem: str = "small"

    def __post_init__(self) -> None:
        super().__post_init__()
        rising = all(a < b for a, b in pairwise(self.reductions))
        if not rising or any(place >= self.cells for place in self.reductions):
            raise UsageError(
                f"sphynx.reductions is {self.reductions}, expected rising places among the cells, 0 to {self.cells - 1}"
            )
        if self.stem == "imagenet" and self.width % 2:
            raise UsageError(
                f"sphynx.width is {self.width}; the imagenet stem has half as many channels: take an even one"
            )

    @property
    def halvings(self) -> int:
        return len(self.reductions) + (3 if self.stem == "imagenet" else 0)

    @property
    def width_step(self) -> int:
        return 2 if self.stem == "imagenet" else 1

    def check_side(self, side: int) -> None:
        """Refuse images whose map cannot be halved exactly: the two halves of a reduction must fit each other.

        Raises:
            ShapeError: the side is no multiple of what it is divided by.
        """
        check_multiple(self, side)

    def network(self, classes: int, channels: int) -> nn.Module:
        return SphynxNetwork(self, classes, channels)

    def relus(self, side: int) -> dict[str, int]:
        counts: dict[str, int] = {}
        if self.stem == "imagenet":
            counts["stem"] = self.width // 2 * (side // 2) ** 2 + self.width * (side // 4) ** 2
            side //= 8
        for stage, cells in enumerate(self._cells_a_stage(), start=1):
            if cells:
                counts[f"stage {stage}"] = cells * self.width * side**2
        return counts

    def _cells_a_stage(self) -> list[int]:
        """Return the cells before the first reduction cell, and from each on."""
        return [b - a for a, b in pairwise((0, *self.reductions, self.cells))]

    @classmethod
    def candidates(cls, order: tuple[int, ...] | None, settings: Mapping[str, Any]) -> tuple["Sphynx", ...]:
        """Return one network for each arrangement of cells that was released, or the one that is given."""
        if order is not None:
            raise UsageError("sphynx has as many ReLUs in every cell, so its stages have no order: leave --order out")
        given = cls.from_json(settings)
        if settings.keys() & {"cells", "reductions"}:
            return (given,)
        if given.stem == "imagenet":
            return (given.changed({"reductions": (1, 5)}),)
        arrangements = dict.fromkeys((d.cells, d.reductions) for d in cls.released().values() if d.stem == given.stem)
        return tuple(given.changed({"cells": cells, "reductions": places}) for cells, places in arrangements)

    @classmethod
    def released(cls) -> Mapping[str, "Sphynx"]:
        """Return the published networks; ``tiny`` stands for Tiny-ImageNet (64x64 images)."""
        imagenet = {
            f"imagenet-{thousands}k": cls(width=width, reductions=(1, 5), stem="imagenet")
            for thousands, width in ((345, 20), (517, 30), (690, 40), (862, 50), (1034, 60))
        }
        return {
            "cifar100-25k": cls(cells=5, reductions=(0, 1)),
            "cifar100-30k": cls(cells=6, reductions=(0, 1)),
            "cifar100-40k": cls(cells=8, reductions=(1, 3)),
            "cifar100-50k": cls(),
            "cifar100-70k": cls(width=7),
            "cifar100-100k": cls(width=10),
            "tiny-102k": cls(cells=5, reductions=(0, 1)),
            "tiny-204k": cls(),
            "tiny-286k": cls(width=7),
            "tiny-492k": cls(width=12),
            "tiny-614k": cls(width=15),
        } | imagenet


class SphynxNetwork(nn.Module):
    """A stem, the cells in stages (a reduction cell begins one), the mean over the last map, a linear classifier."""

    def __init__(self, design: Sphynx, classes: int, channels: int) -> None:
        super().__init__()
        width = design.width
        if design.stem == "imagenet":
            first = width // 2
            self.stem: nn.Module = nn.Sequential(
                *(*_normed(channels, first, 3, 2), nn.ReLU(), *_normed(first, width, 3, 2))
            )
            self.stem2: nn.Module = nn.Sequential(nn.ReLU(), *_normed(width, width, 3, 2))
            before = last = width
        else:
            self.stem, self.stem2 = nn.Sequential(*_normed(channels, 3 * width, 3)), nn.Identity()
            before = last = 3 * width
        halved = design.stem == "imagenet"  # whether the cell before the last one reads a map twice as large
        self.stages = tuple(f"stage{number}" for number in range(1, len(design.reductions) + 2))
        for stage in self.stages:
            self.add_module(stage, nn.ModuleList())
        number = 0
        for place in range(design.cells):
            reduces = place in design.reductions
            number, width = number + reduces, width * 4 if reduces else width
            getattr(self, self.stages[number]).append(Cell(before, last, width, halved, reduces))
            before, last, halved = last, width, reduces
        self.fc = nn.Linear(last, classes)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        before = self.stem(x)
        last = self.stem2(before)
        for stage in self.stages:
            for cell in getattr(self, stage):
                before, last = last, cell(before, last)
        return self.fc(last.mean((2, 3)))  # type: ignore[no-any-return]


class Cell(nn.Module):
    """Four nodes, each the sum of two edges; all of them, by a 1x1 convolution to ``width`` channels; one ReLU.

    Args:
        before, last: channels of what the two cells before put out.
        halved: whether the map of the former is twice as large as that of the latter.
        reduces: whether this cell halves the map.
    """

    def __init__(self, before: int, last: int, width: int, halved: bool, reduces: bool) -> None:
        super().__init__()
        self.input0 = Halved(before, width, affine=False) if halved else _mixed(before, width)
        self.input1 = _mixed(last, width)
        nodes = REDUCTION if reduces else NORMAL
        self.sources = tuple(tuple(edge.source for edge in node) for node in nodes)
        self.nodes = nn.ModuleList(
            nn.ModuleList(_operation(edge.operation, width, 2 if reduces and edge.source < 2 else 1) for edge in node)
            for node in nodes
        )
        self.output = _mixed(len(nodes) * width, width)
        self.relu = nn.ReLU()

    def forward(self, before: Float[Tensor, "B C H W"], last: Float[Tensor, "B D H2 W2"]) -> Float[Tensor, "B E H3 W3"]:
        values = [self.input0(before), self.input1(last)]
        for sources, edges in zip(self.sources, self.nodes, strict=True):
            first, second = (edge(values[source]) for source, edge in zip(sources, edges, strict=True))  # type: ignore[call-overload]
            values.append(first + second)
        return self.relu(self.output(torch.cat(values[2:], 1)))  # type: ignore[no-any-return]


class Halved(nn.Module):
    """Half the resolution: 1x1 convolutions of every second pixel and of those between, side by side, and BN."""

    def __init__(self, inputs: int, outputs: int, *, affine: bool = True) -> None:
        super().__init__()
        self.even = nn.Conv2d(inputs, outputs // 2, 1, 2, bias=False)
        self.odd = nn.Conv2d(inputs, outputs // 2, 1, 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs // 2 * 2, affine=affine)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H2 W2"]:
        return self.bn(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], 1))  # type: ignore[no-any-return]


def _normed(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> tuple[nn.Module, nn.Module]:
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)
    return convolution, nn.BatchNorm2d(outputs)


def _mixed(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs, affine=False))


def _operation(name: str, width: int, stride: int) -> nn.Module:
    """Return an edge: all of them keep the channels, ``skip`` does nothing at stride 1."""
    kernel = int(name[-1]) if name[-1].isdigit() else 1
    if name == "skip":
        return nn.Identity() if stride == 1 else Halved(width, width)
    if name.startswith("dilated"):
        return nn.Sequential(*_normed(width, width, kernel, stride, dilation=2))
    return nn.Sequential(*_normed(width, width, kernel, stride), *_normed(width, width, kernel))
