"""CryptoNAS.

Paper:    Ghodsi, Veldanda, Reagen, Garg. CryptoNAS: Private Inference on a ReLU Budget. NeurIPS 2020, arXiv:2006.08733.
Deviates: the networks are those that the authors' search found; the search itself is left out. Stored outputs that no
          later layer reads are not reduced, which the authors' code does to no effect. As in the other networks here,
          there is no dropout before the classifier.
Symbols:  operations of a layer -> genotype: of each layer the kernel, and behind points the stored outputs that it
          reads besides the one before: 0 is the stem's, 1 the first layer's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reluctant.designs.base import Design, check_multiple
from reluctant.designs.cells import Halved
from reluctant.errors import UsageError

#: The released ones, from the authors' training scripts. Their "separable" choices are built as full convolutions.
GENOTYPES = {
    "cifar100-cnet1": "5-3-3.0.1-3-3-3.3.4",
    "cifar100-cnet2": "5-5-5.0.1-5-5.1.3-5.0.2.4-5.0.3.4-3.0.3.5-3.0.4.5.7-3.1.5.8-3.8-5.2.4.6",
    "cifar100-cnet3": "3-5-5.0.1-3-5-5.2-5.1.3.5-3.1.5-5.0.3.4.6.7-5.1.2.3.5-5.2.4.6.9-3.0.1.3.5.8-3.1.2.3.11-"
    "5.1.3.6.8.11.12-3.0.2.4.5.7.13-5.0.3.12-3.5-3.0.1.7.8.10.11.12.15.16-3.3.6.7.13.14.15.17-"
    "3.0.2.3.4.6.15.16.17.18-3.1.3.4.8.9.12.18.19-3.5.10.13.14.15.17.19-3.2.3.7.9.10.11.12.13.15.17.20.21-"
    "5.2.3.4.8.10.11.13.14.20.22",
    "cifar10-cnet1": "3-3-3.0.1-5.1-3.0.2-3.2.3",
    "cifar10-cnet2": "5-5-5.0.1-5.0-5.1.2-3.0.1.2-3.1-3.2.4.5.6-3.0.4.5-3.5.6-5.4-3.0.3.7.8.9",
    "cifar10-cnet3": "3-3.0-3-3.0.2-5-3.3.4-5.0.3.4.5-3.0.3.5-5.4-5.2.3.5.7.8-5.1.4.6.8-3.6.8-5.0.3.7.8.10-"
    "5.1.2.6.7.10.11-5.3.5-5.4.7.8.10.13-5.6-5.2.4.9.12.14.15.16-3.3.4.6.7.12-5.0.1.11.12.13-"
    "3.2.3.7.10.11.12.13.15.17.19-3.2.5.7.18-3.3.4.12.13.14.15.17.19-5.3.8.14.21.22",
}

Layer = tuple[int, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class CryptoNAS(Design):
    """Layers with one ReLU each, at their input, that read earlier outputs without one.

    Balancing: after a third and two thirds of the layers the map is halved and has four times the channels, so every
    layer has as many ReLUs.

    Args:
        width: channels before the first reduction.
        genotype: a released one by name (``cifar100-cnet2``), or of each layer the kernel and, behind points, what it
            reads besides the layer before: ``3-5-3.0.1``.
    """

    name: ClassVar[str] = "cryptonas"

    width: int = 14
    genotype: str = "cifar100-cnet1"

    def __post_init__(self) -> None:
        super().__post_init__()
        read_genotype(self.genotype)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Of each layer the kernel, and the stored outputs that it reads besides the one before."""
        return read_genotype(self.genotype)

    @property
    def halvings(self) -> int:
        return 2

    def check_side(self, side: int) -> None:
        """Refuse images whose map cannot be halved exactly: the two halves of a reduction must fit each other.

        Raises:
            ShapeError: the side is no multiple of 4.
        """
        check_multiple(self, side)

    def network(self, classes: int, channels: int) -> nn.Module:
        return CryptoNet(self.layers, self.width, classes, channels)

    def relus(self, side: int) -> dict[str, int]:
        third, layers = len(self.layers) // 3, len(self.layers)
        counts = (third, third, layers - 2 * third)
        return {f"stage {stage}": count * self.width * side**2 for stage, count in enumerate(counts, start=1)}

    @classmethod
    def candidates(cls, order: tuple[int, ...] | None, settings: Mapping[str, Any]) -> tuple["CryptoNAS", ...]:
        """Return a network for each released genotype, or the one that is given."""
        if order is not None:
            raise UsageError(
                "cryptonas has as many ReLUs in every layer, so its stages have no order: leave --order out"
            )
        base = cls.from_json(settings)
        return (base,) if "genotype" in settings else tuple(base.changed({"genotype": name}) for name in GENOTYPES)

    @classmethod
    def released(cls) -> Mapping[str, "CryptoNAS"]:
        """Return the published networks."""
        widths = {"cnet1": 14, "cnet2": 28, "cnet3": 56}
        return {name: cls(width=widths[name.partition("-")[2]], genotype=name) for name in GENOTYPES}


def read_genotype(text: str) -> tuple[Layer, ...]:
    """Return the layers that ``text`` names or describes.

    Raises:
        UsageError: neither the name of a released genotype nor three layers or more of that form.
    """
    layers: list[Layer] = []
    for number, word in enumerate(GENOTYPES.get(text, text).split("-")):
        kernel, *sources = word.split(".")
        if kernel not in ("1", "3", "5", "7") or any(not s.isdecimal() or int(s) >= number for s in sources):
            raise UsageError(
                f"cryptonas.genotype: layer {number + 1} of {text!r} is {word!r}, expected a kernel (1, 3, 5, 7) and, "
                f"behind points, outputs before the last one: {', '.join(GENOTYPES)}, or text such as 3-5-3.0.1"
            )
        layers.append((int(kernel), tuple(int(source) for source in sources)))
    if len(layers) < 3:
        raise UsageError(f"cryptonas.genotype {text!r} has {len(layers)} layers, expected three or more: one a stage")
    return tuple(layers)


class CryptoNet(nn.Module):
    """A stem, three stages, the mean over the last map, a linear classifier."""

    def __init__(self, layers: Sequence[Layer], width: int, classes: int, channels: int) -> None:
        super().__init__()
        third = len(layers) // 3
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))
        self.stage1 = Stage(layers, 0, third, width)
        self.stage2 = Stage(layers, third, 2 * third, 4 * width)
        self.stage3 = Stage(layers, 2 * third, len(layers), 16 * width)
        self.fc = nn.Linear(16 * width, classes, bias=False)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        stored = [self.stem(x)]
        for stage in (self.stage1, self.stage2, self.stage3):
            stored = stage(stored)
        return self.fc(stored[-1].mean((2, 3)))  # type: ignore[no-any-return]


class Stage(nn.Module):
    """The layers from ``first`` to before ``end``, behind a reduction of all stored outputs that are still read.

    Args:
        layers: of the whole network.
        width: channels of every output here.
    """

    def __init__(self, layers: Sequence[Layer], first: int, end: int, width: int) -> None:
        super().__init__()
        self.reductions = nn.ModuleDict()
        if first:
            read = {first, *(source for _, sources in layers[first:] for source in sources)}
            self.reductions.update({str(n): Halved(width // 4, width) for n in sorted(read) if n <= first})
        self.layers = nn.ModuleList(
            ReadingLayer(kernel, sources, width, joins=number > 0)
            for number, (kernel, sources) in enumerate(layers[first:end], start=first)
        )

    def forward(self, stored: list[Tensor]) -> list[Tensor]:
        """Return the stored outputs, reduced if any layer still reads them, and those of the layers here."""
        if self.reductions:
            stored = [
                self.reductions[str(n)](output) if str(n) in self.reductions else output
                for n, output in enumerate(stored)
            ]
        for layer in self.layers:
            stored = [*stored, layer(stored)]
        return stored


class ReadingLayer(nn.Module):
    """A ReLU and a convolution of the last output, joined with earlier ones by a 1x1 convolution.

    Args:
        joins: whether there is the latter: not in a network's first layer.
    """

    def __init__(self, kernel: int, sources: tuple[int, ...], width: int, joins: bool) -> None:
        super().__init__()
        self.sources = sources
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(width, width, kernel, 1, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.join: nn.Module = nn.Identity()
        if joins:
            convolution = nn.Conv2d((len(sources) + 1) * width, width, 1, bias=False)
            self.join = nn.Sequential(convolution, nn.BatchNorm2d(width))

    def forward(self, stored: list[Tensor]) -> Float[Tensor, "B C H W"]:
        y = self.bn(self.conv(self.relu(stored[-1])))
        return self.join(torch.cat([*(stored[n] for n in self.sources), y], 1))  # type: ignore[no-any-return]
