"""Networks that Sphynx's search trains: all cells at once, and one cell at all places at once."""

from collections.abc import Sequence
from itertools import combinations, islice

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reluctant.designs.cells import NODES, OPERATIONS, Edge, inputs, mixed, normed, operation, write_cell
from reluctant.designs.sphynx import Sphynx

#: Edges that may be: every node may read every one before it.
EDGES = sum(node + 2 for node in range(NODES))
CODES = tuple(OPERATIONS)


class MixedEdge(nn.Module):
    """The sum of all operations on one input, each with its share; what is left of the shares is that of no edge."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.operations = nn.ModuleList(operation(code, width, stride, affine=False) for code in CODES)

    def forward(self, x: Float[Tensor, "B C H W"], shares: Float[Tensor, "O"]) -> Float[Tensor, "B C H2 W2"]:
        parts = [share * each(x) for share, each in zip(shares[:-1], self.operations, strict=True)]
        return torch.stack(parts).sum(0)


class MixedCell(nn.Module):
    """A cell with every edge and every operation. Its ReLU comes before the 1x1 convolution, at all nodes' channels.

    Args:
        before, last, width, halved, reduces: as of :class:`reluctant.designs.cells.Cell`.
    """

    def __init__(self, before: int, last: int, width: int, halved: bool, reduces: bool) -> None:
        super().__init__()
        self.reduces = reduces
        self.input0, self.input1 = inputs(before, last, width, halved)
        self.nodes = nn.ModuleList(
            nn.ModuleList(MixedEdge(width, 2 if reduces and source < 2 else 1) for source in range(node + 2))
            for node in range(NODES)
        )
        self.output = nn.Sequential(nn.ReLU(), *mixed(NODES * width, width))

    def forward(
        self, before: Float[Tensor, "B C H W"], last: Float[Tensor, "B D H2 W2"], shares: Float[Tensor, "E O"]
    ) -> Float[Tensor, "B F H3 W3"]:
        values = [self.input0(before), self.input1(last)]
        rows = iter(shares)
        for edges in self.nodes:
            parts = [edge(value, next(rows)) for edge, value in zip(edges, values, strict=True)]  # type: ignore[call-overload]
            values.append(torch.stack(parts).sum(0))
        return self.output(torch.cat(values[2:], 1))  # type: ignore[no-any-return]


class Supernet(nn.Module):
    """A stem and mixed cells; at a third and at two thirds of them the map is halved and has twice the channels.

    Attributes:
        normal, reduction: of each edge the logits of its operations, and the one of no edge; all cells of a kind have
            the same.
    """

    def __init__(self, cells: int, width: int, classes: int, channels: int) -> None:
        super().__init__()
        before = last = 3 * width
        self.stem = nn.Sequential(*normed(channels, last, 3))
        self.cells = nn.ModuleList()
        halved = False
        for place in range(cells):
            reduces = place in (cells // 3, 2 * cells // 3)
            width = 2 * width if reduces else width
            self.cells.append(MixedCell(before, last, width, halved, reduces))
            before, last, halved = last, width, reduces
        self.fc = nn.Linear(last, classes)
        self.normal, self.reduction = (
            nn.Parameter(1e-3 * torch.randn(EDGES, len(CODES) + 1)) for _ in ("normal", "reduction")
        )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        normal, reduction = self.normal.softmax(1), self.reduction.softmax(1)
        before = last = self.stem(x)
        for cell in self.cells:
            before, last = last, cell(before, last, reduction if cell.reduces else normal)
        return self.fc(last.mean((2, 3)))  # type: ignore[no-any-return]


def derive(logits: Float[Tensor, "E O"]) -> str:
    """Return the cell that the logits of a :class:`Supernet` prefer, as :mod:`reluctant.designs.cells` writes it.

    An edge is as strong as its best operation, and a node keeps its two strongest. No edge is no operation that can be
    best, but its share weakens the others.
    """
    shares, best = logits.detach().softmax(1)[:, :-1].max(1)
    edges = zip(shares.tolist(), best.tolist(), strict=True)
    nodes = []
    for node in range(NODES):
        reading = enumerate(islice(edges, node + 2))
        ranked = sorted(reading, key=lambda row: -row[1][0])
        nodes.append([Edge(source, CODES[choice]) for source, (_, choice) in ranked[:2]])
    return write_cell(nodes)


def pairs(cells: int) -> tuple[tuple[int, int], ...]:
    """Return where two reduction cells may be among ``cells``: none is after the cell at two thirds."""
    return tuple(combinations(range(2 * cells // 3 + 1), 2))


class Skeletons(nn.Module):
    """One network for each pair of reduction cells, with one stem for all and weights of its own else.

    Attributes:
        logits: one a network.
    """

    def __init__(self, designs: Sequence[Sphynx], classes: int, channels: int) -> None:
        super().__init__()
        self.networks = nn.ModuleList(design.network(classes, channels) for design in designs)
        for network in self.networks:
            network.stem, network.stem2 = self.networks[0].stem, self.networks[0].stem2
        self.logits = nn.Parameter(1e-3 * torch.randn(len(designs)))

    def forward(self, x: Float[Tensor, "B C H W"], which: int) -> Float[Tensor, "B K"]:
        return self.networks[which](x)  # type: ignore[no-any-return]
