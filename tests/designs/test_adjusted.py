"""Networks with a width for every layer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reluctant.designs.adjusted import Adjusted, Block, widened
from reluctant.errors import ShapeError, UsageError
from reluctant.masked import attach
from reluctant.program.lower import lower
from reluctant.program.operations import Pad
from reluctant.sites import find_sites

WIDTHS = st.lists(st.integers(1, 40), min_size=6, max_size=6).map(tuple)


@given(WIDTHS)
@settings(max_examples=15, deadline=None)
def test_a_stream_never_gets_narrower(widths):
    design = Adjusted(blocks=(1, 1, 1), widths=widths)
    assert design.layers == widths
    assert list(design.streams) == sorted(design.streams)
    assert design.streams[-1] == max(16, *widths[1::2])
    with torch.device("meta"):
        assert design.network(10, 3)(torch.zeros(2, 3, 8, 8)).shape == (2, 10)


@given(WIDTHS, st.integers(1, 64))
@settings(max_examples=50, deadline=None)
def test_the_width_scales_all_layers(widths, width):
    design = Adjusted(blocks=(1, 1, 1), widths=widths, width=width, base=width)
    assert design.layers == widths
    wide = Adjusted(blocks=(1, 1, 1), widths=widths, width=3 * width, base=width)
    assert wide.layers == tuple(3 * channels for channels in widths)
    assert wide.streams[0] == 3 * width


def test_without_widths_every_stage_is_twice_as_wide():
    assert Adjusted(width=8).layers == (8,) * 6 + (16,) * 6 + (32,) * 6
    assert Adjusted(width=8, widths=Adjusted(width=8).layers, base=8).layers == Adjusted(width=8).layers


def test_the_narrower_one_gets_zeros_in_front():
    x = torch.arange(1.0, 4).view(1, 3, 1, 1)
    assert widened(x, 5).flatten().tolist() == [0, 0, 1, 2, 3]
    assert widened(x, 3) is x


@pytest.mark.parametrize(("inputs", "outer"), [(3, 5), (5, 3), (4, 4)])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_by_hand(inputs, outer, stride):
    torch.manual_seed(0)
    block, x = Block(inputs, 2, outer, stride).eval(), torch.randn(2, inputs, 4, 4)
    y = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
    shortcut = x if stride == 1 else x.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    expected = torch.zeros(2, max(inputs, outer), 4 // stride, 4 // stride)
    expected[:, -outer:] += y
    expected[:, -inputs:] += shortcut
    assert torch.allclose(block(x), expected.relu(), atol=1e-6)


def test_zeros_are_free_where_they_are_run():
    """Zeros in front of channels are no product: the program has no convolution but the network's own."""
    torch.manual_seed(0)
    network = Adjusted(width=8, base=8, blocks=(1, 1), widths=(4, 10, 6, 5)).network(10, 3).eval()
    program = lower(attach(network, find_sites(network, torch.zeros(1, 3, 8, 8))))
    pads = [op for op in program.ops if isinstance(op, Pad)]
    assert [pad.low for pad in pads] == [(2, 0, 0), (5, 0, 0)]
    assert all(pad.output not in program.macs() for pad in pads)
    own = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(program.macs()) == len(own)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": ()}, "blocks is empty"),
        ({"widths": (4, 4)}, "widths has 2 numbers, expected 18: two for each of 9 blocks"),
        ({"blocks": (1,), "widths": (4, 0)}, "expected a value above zero"),
    ],
)
def test_widths_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        Adjusted(**settings)


def test_images_that_cannot_be_halved_exactly_are_refused():
    with pytest.raises(ShapeError, match="multiple of 4, got 30"):
        Adjusted().check_side(30)


def test_candidates_are_the_network_before_and_after():
    assert [design.spec for design in Adjusted.candidates(None, {})] == [
        "adjusted",
        Adjusted.released()["cifar100-resnet20"].spec,
    ]
    assert Adjusted.candidates(None, {"blocks": "1-1"}) == (Adjusted(blocks=(1, 1)),)
    with pytest.raises(UsageError, match="leave --order out"):
        Adjusted.candidates((1, 2, 3), {})
