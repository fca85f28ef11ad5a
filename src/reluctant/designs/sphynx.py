"""Sphynx.

Paper:    Cho, Ghodsi, Reagen, Garg, Hegde. Sphynx: ReLU-Efficient Network Design for Private Inference. IEEE Security
          and Privacy 2022, arXiv:2106.11755.
Deviates: auxiliary head and drop-path of the authors' training are left out: they change how the network is trained,
          not what it computes. The average pool, which no released cell has, counts its padding as zeros; theirs may
          not. The configuration of the network with 230 thousand ReLUs is not public.
Symbols:  C0 -> width; L -> cells; genotype -> normal_cell, reduction_cell; places of the reduction cells -> reductions,
          counted from 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from reluctant.designs.base import Design, check_multiple
from reluctant.designs.cells import Cell, normed, read_cell
from reluctant.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Sphynx(Design):
    """Cells of full convolutions with one ReLU each, after a 1x1 convolution to a quarter of the channels.

    A reduction cell halves the map and has four times the channels, so every cell has as many ReLUs.

    Args:
        width: channels of a cell before the first reduction.
        cells: how many there are.
        reductions: which of them are reduction cells, counted from 0.
        normal_cell: what the cells are, as :mod:`reluctant.designs.cells` writes them; by default the released one.
        reduction_cell: what the reduction cells are.
        stem: ``small`` has no ReLU; ``imagenet`` takes three convolutions of stride 2, with two ReLUs.
    """

    name: ClassVar[str] = "sphynx"
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"stem": ("small", "imagenet")}
    may_be_zero: ClassVar[tuple[str, ...]] = ("reductions",)

    width: int = 5
    cells: int = 10
    reductions: tuple[int, ...] = (0, 5)
    normal_cell: str = "0s.1s-2s.0d5-2c5.0d3-1c3.2s"
    reduction_cell: str = "0c3.1c3-0s.2c3-0d3.2s-0c5.4s"
    stem: str = "small"

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind in ("normal_cell", "reduction_cell"):
            read_cell(getattr(self, kind), f"sphynx.{kind}")
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
                *(*normed(channels, first, 3, 2), nn.ReLU(), *normed(first, width, 3, 2))
            )
            self.stem2: nn.Module = nn.Sequential(nn.ReLU(), *normed(width, width, 3, 2))
            before = last = width
        else:
            self.stem, self.stem2 = nn.Sequential(*normed(channels, 3 * width, 3)), nn.Identity()
            before = last = 3 * width
        halved = design.stem == "imagenet"  # whether the cell before the last one reads a map twice as large
        self.stages = tuple(f"stage{number}" for number in range(1, len(design.reductions) + 2))
        for stage in self.stages:
            self.add_module(stage, nn.ModuleList())
        nodes = [read_cell(text, "sphynx") for text in (design.normal_cell, design.reduction_cell)]
        number = 0
        for place in range(design.cells):
            reduces = place in design.reductions
            number, width = number + reduces, width * 4 if reduces else width
            getattr(self, self.stages[number]).append(Cell(nodes[reduces], before, last, width, halved, reduces))
            before, last, halved = last, width, reduces
        self.fc = nn.Linear(last, classes)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        before = self.stem(x)
        last = self.stem2(before)
        for stage in self.stages:
            for cell in getattr(self, stage):
                before, last = last, cell(before, last)
        return self.fc(last.mean((2, 3)))  # type: ignore[no-any-return]
