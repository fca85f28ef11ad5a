"""DeepReShape: HybReNets.

Paper:    Jha, Reagen. DeepReShape: Redesigning Neural Networks for Efficient Private Inference. TMLR 2024,
          arXiv:2304.10593.
Deviates: ReLU-equalization is a reconstruction. The paper's body could not be read; that ReLUs must be strictly ordered
          like the criticality, that the stem's do not count and that the least multipliers are taken is concluded from
          the published names, three of which are among the four least solutions for ResNet-18 (5x5x3, 5x7x2, 6x6x2).
          Widths and layers are those of the networks 5x5x3 and 2x5x3 in the code of PrivCirNet (NeurIPS 2024).
          Criticality is measured by ``reluctant search criticality``. ReLU-reuse is an experiment: that the ReLUs of
          one group of channels are added to each other group is our reading; how the paper joins groups is not known.
Recalled: that 7x5x2 is a name of the paper, that its HybReNet of ResNet-34 is 4x6x3, the ReLU-thinning before a finer
          reduction, and bottlenecks as a backbone, could not be checked against the paper.
Symbols:  phi -> blocks; (alpha, beta, gamma) -> multipliers; m -> width.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reluctant.designs.base import check_order
from reluctant.designs.residual import Residual, relus_a_channel
from reluctant.errors import UsageError
from reluctant.models.resnet import ResNet
from reluctant.units import as_type_of

#: Of the stages of ResNet-18, most critical first.
ORDER = (3, 2, 4, 1)
#: The largest multiplier that equalization tries.
MAX_MULTIPLIER = 64


@dataclass(frozen=True, kw_only=True)
class HybReNet(Residual):
    """A residual network whose stages are as wide as makes their ReLUs follow how critical the stages are.

    Args:
        width: channels of the stem and of the first stage.
        multipliers: how many times as wide each further stage is than the one before.
        block: ``basic``, or ``bottleneck``, which puts out four times its stage's width.
        groups: of the bottlenecks' 3x3 convolutions.
        stem_relu: whether a ReLU follows the stem. Stages are compared without it.
        reuse: an experiment: so many groups of channels share the ReLUs of the first of them.
    """

    name: ClassVar[str] = "hybrenet"
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"block": ("basic", "bottleneck")}

    width: int = 16
    multipliers: tuple[int, ...] = (5, 5, 3)
    block: str = "basic"
    groups: int = 1
    stem_relu: bool = True
    reuse: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.multipliers) != len(self.blocks) - 1:
            raise UsageError(
                f"hybrenet.multipliers has {len(self.multipliers)} numbers for {len(self.blocks)} stages, expected one "
                f"for each stage after the first: {len(self.blocks) - 1}"
            )
        if self.groups > 1 and self.block != "bottleneck":
            raise UsageError(f"hybrenet.groups is {self.groups}, but basic blocks have none: add block=bottleneck")
        for stage, width in enumerate(self.widths, start=1):
            if width % self.groups:
                raise UsageError(
                    f"hybrenet: the {width} channels of stage {stage} do not divide into {self.groups} groups; take a "
                    f"width that is a multiple of {self.groups}"
                )
            if width % self.reuse:
                raise UsageError(
                    f"hybrenet: the {width} channels of stage {stage} do not divide into the {self.reuse} groups that "
                    f"reuse ReLUs; take a width that is a multiple of {self.reuse}"
                )

    @property
    def widths(self) -> tuple[int, ...]:
        widths = [self.width]
        for multiplier in self.multipliers:
            widths.append(widths[-1] * multiplier)
        return tuple(widths)

    @property
    def width_step(self) -> int:
        return math.lcm(self.groups, self.reuse)

    @property
    def has_stem_relu(self) -> bool:
        return self.stem_relu

    @property
    def bottleneck_groups(self) -> int:
        return self.groups if self.block == "bottleneck" else 0

    def network(self, classes: int, channels: int) -> ResNet:
        network = super().network(classes, channels)
        for name, module in list(network.named_modules()) if self.reuse > 1 else []:
            if isinstance(module, nn.ReLU):
                network.set_submodule(name, ReusedReLU(self.reuse))
        return network

    def relus(self, side: int) -> dict[str, int]:
        return {part: relus // self.reuse for part, relus in super().relus(side).items()}

    @classmethod
    def candidates(cls, order: tuple[int, ...] | None, settings: Mapping[str, Any]) -> tuple["HybReNet", ...]:
        """Return a network for each solution of :func:`equalize`, or the one whose multipliers are given."""
        if "multipliers" in settings:
            if order is not None:
                raise UsageError("hybrenet: an order decides the multipliers, and they are given, too: leave one out")
            return (cls.from_json(settings),)
        usual = cls.blocks
        blocks = as_type_of(usual, settings.get("blocks", usual), "hybrenet.blocks")
        if order is None and len(blocks) != len(ORDER):
            raise UsageError(f"{len(blocks)} stages have no usual order of criticality; give one: --order 2,3,1")
        bottleneck = settings.get("block") == "bottleneck"
        found = equalize(blocks, order or ORDER, bottleneck=bottleneck)
        return tuple(cls.from_json({**settings, "multipliers": multipliers}) for multipliers in found)

    @classmethod
    def released(cls) -> Mapping[str, "HybReNet"]:
        """Return the two networks whose definition is public, and the other solutions for ResNet-18 at their width."""
        return {
            "5x5x3": cls(),
            "2x5x3": cls(multipliers=(2, 5, 3), width=32),
            "5x7x2": cls(multipliers=(5, 7, 2)),
            "6x6x2": cls(multipliers=(6, 6, 2)),
            "7x5x2": cls(multipliers=(7, 5, 2)),
        }


class ReusedReLU(nn.Module):
    """ReLU on the first of so many groups of channels; its outputs are added to each of the others."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Return a tensor of the shape of ``x``, whose channels divide by the groups."""
        first, *others = x.chunk(self.groups, 1)
        active = torch.relu(first)
        return torch.cat([active, *(other + active for other in others)], 1)


def equalize(
    blocks: tuple[int, ...], order: tuple[int, ...], *, bottleneck: bool = False, least: int = 2
) -> tuple[tuple[int, ...], ...]:
    """Return the least multipliers that give each stage more ReLUs than every less critical one, smallest first.

    Of two solutions of which one is nowhere larger than the other, only that one is returned. Neither the width nor
    the size of the images matters.

    Args:
        blocks: of each stage.
        order: the stages, most critical first, counted from 1.
        bottleneck: blocks are bottlenecks, whose first one in a stage has its first ReLUs on the larger map.
        least: the least multiplier allowed.

    Raises:
        UsageError: the order does not name each stage once, or no multipliers up to 64 satisfy it.

    Example:
        >>> equalize((2, 2, 2, 2), (3, 2, 4, 1))
        ((5, 5, 3), (5, 7, 2), (6, 6, 2), (7, 5, 2))
    """
    check_order(order, len(blocks))
    if not 2 <= len(blocks) <= 5 or min(blocks) < 1:
        raise UsageError(f"blocks are {blocks}, expected two to five stages of one block or more")
    units = relus_a_stage(blocks, bottleneck)
    found: list[tuple[int, ...]] = []
    for solution in sorted(_solutions(units, order, least)):
        if not any(all(a <= b for a, b in zip(other, solution, strict=True)) for other in found):
            found.append(solution)
    if not found:
        raise UsageError(_why_none(units, order, least))
    return tuple(found)


def relus_a_stage(blocks: tuple[int, ...], bottleneck: bool) -> tuple[int, ...]:
    """Return the ReLUs of each stage, for one channel of its width, on the smallest image that all strides divide."""
    side, units = 1 << (len(blocks) - 1), []
    for number, count in enumerate(blocks):
        before, side = side, side >> (number > 0)
        inner = sum(relus_a_channel(side, side, bottleneck))
        units.append(sum(relus_a_channel(before, side, bottleneck)) + (count - 1) * inner)
    return tuple(units)


def _solutions(units: tuple[int, ...], order: tuple[int, ...], least: int) -> Iterator[tuple[int, ...]]:
    """Yield, for all but the last multiplier, the solution with the least last one, if there is any."""
    stages, place = len(units), order.index(len(units))
    for head in product(range(least, MAX_MULTIPLIER + 1), repeat=stages - 2):
        counts, width = [units[0]], 1
        for stage, multiplier in enumerate(head, start=1):
            width *= multiplier
            counts.append(units[stage] * width)
        ranked = [counts[stage - 1] for stage in order if stage != stages]
        if any(more <= fewer for more, fewer in pairwise(ranked)):
            continue
        each = units[-1] * width
        last = max(least, ranked[place] // each + 1) if place < len(ranked) else least
        if last <= MAX_MULTIPLIER and (place == 0 or each * last < ranked[place - 1]):
            yield (*head, last)


def _why_none(units: tuple[int, ...], order: tuple[int, ...], least: int) -> str:
    """Return which of the wanted inequalities no multipliers satisfy, alone or with the others."""
    for more, fewer in pairwise(order):
        spread = (least if more < fewer else MAX_MULTIPLIER) ** abs(more - fewer)
        high, low = (units[more - 1], units[fewer - 1] * spread) if more < fewer else (
            units[more - 1] * spread, units[fewer - 1]
        )  # fmt: skip
        if high <= low:
            return (
                f"stage {more} cannot have more ReLUs than stage {fewer} with multipliers from {least} to "
                f"{MAX_MULTIPLIER}: change the blocks or the order"
            )
    wanted = " > ".join(f"stage {stage}" for stage in order)
    return f"no multipliers from {least} to {MAX_MULTIPLIER} give {wanted} in ReLUs: change the blocks or the order"
