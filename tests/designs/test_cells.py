"""Cells as text: what the released ones are, that any cell can be named, and what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reluctant.costs.counting import count
from reluctant.designs.base import part_of
from reluctant.designs.cells import NODES, OPERATIONS, Cell, Edge, read_cell, write_cell
from reluctant.designs.sphynx import Sphynx
from reluctant.errors import UsageError
from reluctant.mask import Mask
from reluctant.masked import attach
from reluctant.models import ModelSpec
from reluctant.program.lower import lower
from reluctant.sites import find_sites


@st.composite
def cells(draw):
    """A cell of the search space."""
    nodes = []
    for number in range(2, 2 + NODES):
        sources = draw(st.permutations(range(number)))[:2]
        nodes.append(tuple(Edge(source, draw(st.sampled_from(list(OPERATIONS)))) for source in sources))
    return tuple(nodes)


def test_the_released_cells():
    """Of the authors' genotype, node by node."""
    design = Sphynx()
    assert read_cell(design.normal_cell, "") == (
        (Edge(0, "s"), Edge(1, "s")),
        (Edge(2, "s"), Edge(0, "d5")),
        (Edge(2, "c5"), Edge(0, "d3")),
        (Edge(1, "c3"), Edge(2, "s")),
    )
    assert read_cell(design.reduction_cell, "") == (
        (Edge(0, "c3"), Edge(1, "c3")),
        (Edge(0, "s"), Edge(2, "c3")),
        (Edge(0, "d3"), Edge(2, "s")),
        (Edge(0, "c5"), Edge(4, "s")),
    )


@settings(max_examples=12, deadline=None)
@given(normal=cells(), reduction=cells(), width=st.integers(1, 6))
def test_any_cells_are_named_and_have_one_relu_each(normal, reduction, width):
    assert read_cell(write_cell(normal), "") == normal
    design = Sphynx(
        width=width,
        cells=4,
        reductions=(1, 3),
        normal_cell=write_cell(normal),
        reduction_cell=write_cell(reduction),
    )
    assert ModelSpec.parse(design.spec).design == design
    assert str(ModelSpec.parse(design.spec)) == design.spec
    with torch.device("meta"):
        network, example = design.network(10, 3), torch.zeros(1, 3, 16, 16)
        sites = find_sites(network, example)
    found = count(network, sites, example).relus
    assert len(found) == 4
    assert set(found.values()) == {width * 16 * 16}
    assert [part_of(site) for site in found] == ["stage 1", "stage 2", "stage 2", "stage 3"]
    assert sum(design.relus(16).values()) == sum(found.values())


@settings(max_examples=2, deadline=None)
@given(normal=cells(), reduction=cells())
def test_any_cells_are_masked_and_lowered(digits, normal, reduction):
    names = {"normal_cell": write_cell(normal), "reduction_cell": write_cell(reduction)}
    network = Sphynx(width=2, cells=2, reductions=(1,)).changed(names).build(digits).eval()
    masked = attach(network, find_sites(network, digits.example))
    third = {name: (torch.arange(site.relus) % 3 == 0).view(site.shape) for name, site in masked.sites.items()}
    masked.set_mask(Mask(third))
    assert {site.name: site.kept for site in lower(masked).sites} == masked.mask.by_site()


def test_a_cell_is_the_sum_of_its_edges():
    """With identity for every 1x1 convolution of equal width, a cell of skips is arithmetic on its inputs."""
    cell = Cell(read_cell("0s.1s-0s.2s-1s.2s-3s.4s", ""), 2, 2, 2, False, False).eval()
    for mixed in (cell.input0, cell.input1):
        mixed[0].weight.data = torch.eye(2)[:, :, None, None]
    cell.output[0].weight.data = torch.cat([weight * torch.eye(2) for weight in (1, 10, 100, 1000)], 1)[
        :, :, None, None
    ]
    x, y = torch.rand(1, 2, 4, 4), torch.rand(1, 2, 4, 4)
    by_hand = (x + y) + 10 * (2 * x + y) + 100 * (x + 2 * y) + 1000 * (3 * x + 3 * y)
    torch.testing.assert_close(cell(x, y), by_hand, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0s.1s", "sphynx.normal_cell '0s.1s' has 1 nodes, expected 4, as in 0s.1s-"),
        ("0s.1s-0s.1s-0s.1s-0s.5s", "node 5 of '0s.1s-0s.1s-0s.1s-0s.5s' is '0s.5s', expected two edges.*from 0 to 4"),
        ("0s.1s-0s.1s-0s.1s.2s-0s.1s", "node 4 .* is '0s.1s.2s', expected two edges"),
        ("0s.1s-0s.1s-0s.c3-0s.1s", "node 4 .* is '0s.c3'"),
        ("0s.1s-0s.1c7-0s.1s-0s.1s", r"node 3 .* is '0s.1c7'.*\(s skip, a3 3x3 average pool, c3 two"),
        ("0s.1s-0s.0c3-0s.1s-0s.1s", "node 3 .* is '0s.0c3', expected edges from two different nodes"),
        ("none", "'none' has 1 nodes"),
    ],
)
def test_what_is_no_cell_is_refused(text, message):
    with pytest.raises(UsageError, match=message):
        ModelSpec.parse(f"sphynx:normal_cell={text}")
