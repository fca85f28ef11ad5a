"""Cells of Sphynx: nodes that sum two edges each, no ReLU but the one at the end; and how a cell is written.

``0s.1s-2s.0d5-2c5.0d3-1c3.2s`` is a cell: of each of its four nodes the two edges, of each edge the node that it reads
(0 and 1 are the cell's inputs, 2 to 5 its own nodes) and its operation, one of :data:`OPERATIONS`.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reluctant.errors import UsageError

#: What an edge may do. All operations keep the channels, and none has a ReLU.
OPERATIONS = {
    "s": "skip",
    "a3": "3x3 average pool",
    "c3": "two 3x3 convolutions",
    "c5": "two 5x5 convolutions",
    "d3": "3x3 convolution with dilation 2",
    "d5": "5x5 convolution with dilation 2",
}
#: Of a cell, beside its two inputs.
NODES = 4


class Edge(NamedTuple):
    """The node that is read, and the operation."""

    source: int
    operation: str


Nodes = tuple[tuple[Edge, Edge], ...]


def read_cell(text: str, where: str) -> Nodes:
    """Return the two edges of each node of the cell that ``text`` describes.

    Args:
        where: what the text is, for errors.

    Raises:
        UsageError: not four nodes, or a node that is not the sum of two edges from different nodes before it.
    """
    words = text.split("-")
    if len(words) != NODES:
        raise UsageError(
            f"{where} {text!r} has {len(words)} nodes, expected {NODES}, as in 0s.1s-2s.0d5-2c5.0d3-1c3.2s"
        )
    return tuple(
        _read_node(word, number, f"{where}: node {number} of {text!r}") for number, word in enumerate(words, 2)
    )


def _read_node(word: str, number: int, where: str) -> tuple[Edge, Edge]:
    found = [re.fullmatch(rf"([0-9])({'|'.join(OPERATIONS)})", edge) for edge in word.split(".")]
    edges = [Edge(int(match[1]), match[2]) for match in found if match]
    if len(found) != 2 or len(edges) != 2 or any(edge.source >= number for edge in edges):
        known = ", ".join(f"{code} {meaning}" for code, meaning in OPERATIONS.items())
        raise UsageError(
            f"{where} is {word!r}, expected two edges such as 0c3.1s: a node from 0 to {number - 1}, and an operation "
            f"({known})"
        )
    if edges[0].source == edges[1].source:
        raise UsageError(f"{where} is {word!r}, expected edges from two different nodes")
    return edges[0], edges[1]


def write_cell(nodes: Iterable[Iterable[Edge]]) -> str:
    """Return the text that :func:`read_cell` reads."""
    return "-".join(".".join(f"{edge.source}{edge.operation}" for edge in node) for node in nodes)


class Cell(nn.Module):
    """Four nodes, each the sum of two edges; all of them, by a 1x1 convolution to ``width`` channels; one ReLU.

    Args:
        nodes: the edges of each.
        before, last: channels of what the two cells before put out.
        halved: whether the map of the former is twice as large as that of the latter.
        reduces: whether this cell halves the map.
    """

    def __init__(self, nodes: Nodes, before: int, last: int, width: int, halved: bool, reduces: bool) -> None:
        super().__init__()
        self.input0, self.input1 = inputs(before, last, width, halved)
        self.sources = tuple(tuple(edge.source for edge in node) for node in nodes)
        self.nodes = nn.ModuleList(
            nn.ModuleList(operation(edge.operation, width, 2 if reduces and edge.source < 2 else 1) for edge in node)
            for node in nodes
        )
        self.output = mixed(len(nodes) * width, width)
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


def inputs(before: int, last: int, width: int, halved: bool) -> tuple[nn.Module, nn.Module]:
    """Return what brings the outputs of the two cells before to ``width`` channels and one size, see :class:`Cell`."""
    return Halved(before, width, affine=False) if halved else mixed(before, width), mixed(last, width)


def mixed(inputs: int, outputs: int) -> nn.Sequential:
    """Return a 1x1 convolution and a batch norm without weights."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs, affine=False))


def normed(
    inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, *, affine: bool = True
) -> tuple[nn.Module, nn.Module]:
    """Return a convolution that keeps the size of the map, but for the stride, and a batch norm."""
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)
    return convolution, nn.BatchNorm2d(outputs, affine=affine)


def operation(code: str, width: int, stride: int, *, affine: bool = True) -> nn.Module:
    """Return an edge's operation, one of :data:`OPERATIONS`; a skip does nothing at stride 1.

    Args:
        affine: whether its batch norms have weights.
    """
    if code == "s":
        return nn.Identity() if stride == 1 else Halved(width, width, affine=affine)
    kind, kernel = code[0], int(code[1])
    if kind == "a":
        return nn.Sequential(nn.AvgPool2d(kernel, stride, kernel // 2), nn.BatchNorm2d(width, affine=affine))
    if kind == "d":
        return nn.Sequential(*normed(width, width, kernel, stride, dilation=2, affine=affine))
    first, second = (normed(width, width, kernel, step, affine=affine) for step in (stride, 1))
    return nn.Sequential(*first, *second)
