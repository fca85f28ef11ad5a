"""Layers of low rank become two smaller ones that compute the same; others are left alone."""

import pytest
import torch
from test_channels import check_same
from test_lower import masked
from torch import nn

from reluctant.costs.model import CostModel
from reluctant.models.resnet import resnet18
from reluctant.program.factors import ERROR
from reluctant.program.lower import lower
from reluctant.program.operations import Conv2d, Linear


def shapes(program):
    """Return the weights' shape of each layer, in order."""
    return [program.array_shapes[op.weight] for op in program.ops if isinstance(op, Conv2d | Linear)]


class Layers(nn.Module):
    """A convolution between two others, and a head."""

    def __init__(self, **conv):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.conv = nn.Conv2d(24, 16, **{"kernel_size": 3, "padding": 1, **conv})
        self.hidden, self.head = nn.LazyLinear(32), nn.Linear(32, 5)
        self.forward(torch.zeros(1, 3, 8, 8))

    def forward(self, x):
        x = torch.relu(self.conv(torch.relu(self.stem(x))))
        return self.head(torch.relu(self.hidden(x.flatten(1))))


def of_rank(layer, rank, axis=0):
    """Give ``layer`` weights of so low a rank, by outputs (axis 0) or inputs (axis 1)."""
    with torch.no_grad():
        flat = layer.weight.transpose(0, axis).flatten(1)
        left, sizes, right = torch.linalg.svd(flat.double(), full_matrices=False)
        low = (left[:, :rank] * sizes[:rank]) @ right[:rank]
        layer.weight.copy_(low.reshape(layer.weight.transpose(0, axis).shape).transpose(0, axis))


@pytest.mark.parametrize(
    ("axis", "conv", "expected"),
    [
        (0, {}, [(4, 24, 3, 3), (16, 4, 1, 1)]),
        (1, {}, [(4, 24, 1, 1), (16, 4, 3, 3)]),
        (0, {"stride": 2, "dilation": 2, "padding": 2}, [(4, 24, 3, 3), (16, 4, 1, 1)]),
        (1, {"stride": 2, "padding": (2, 1)}, [(4, 24, 1, 1), (16, 4, 3, 3)]),
        (0, {"kernel_size": 1, "stride": 2, "padding": 0}, [(4, 24, 1, 1), (16, 4, 1, 1)]),
    ],
)
def test_a_kernel_of_low_rank_is_two(axis, conv, expected):
    """A rank by inputs needs the 1x1 first; else it is as the fewer multiply-accumulates have it."""
    model = masked(Layers(**conv), 0.5)
    of_rank(model.model.conv, 4, axis)
    whole, program = check_same(model, ["factors"]), check_same(model)
    assert shapes(program)[1:3] == expected
    assert shapes(program)[3:] == shapes(whole)[2:]
    strides = [op.stride for op in program.ops if isinstance(op, Conv2d)]
    assert strides.count((2, 2)) == (conv.get("stride") == 2)


def test_a_matrix_of_low_rank_is_two():
    model = masked(Layers(), 0.5)
    of_rank(model.model.hidden, 8)
    assert shapes(check_same(model))[2:4] == [(8, 1024), (32, 8)]


@pytest.mark.parametrize("rank", [5, 16])
def test_a_higher_rank_is_left_alone(rank):
    model = masked(Layers(), 0.5)
    of_rank(model.model.conv, rank)
    assert shapes(check_same(model)) == shapes(lower(model.float(), ["factors"]))


def test_what_is_left_away_is_bounded():
    """Noise of a hundred times the bound is information; a tenth of it is not."""
    for noise, count in ((100 * ERROR, 4), (ERROR / 10, 5)):
        model = masked(Layers(), 0.5).double()
        of_rank(model.model.conv, 4)
        weight = model.model.conv.weight.data
        weight += torch.randn_like(weight) * noise * weight.square().mean().sqrt()
        assert len(shapes(lower(model))) == count


def test_later_rewrites_do_not_undo_it():
    model = masked(Layers(), 0.5)
    of_rank(model.model.conv, 2)
    assert shapes(lower(model))[1:3] == [(2, 24, 3, 3), (16, 2, 1, 1)]
    assert sum(lower(model).macs().values()) < sum(lower(model, ["factors"]).macs().values())


def test_it_is_cheaper_by_the_prices_of_cheetah():
    """ResNet-18's second half at an eighth of its ranks."""
    model = masked(resnet18(10, 3), 0.05, shape=(3, 32, 32))
    for name, layer in model.model.named_modules():
        if isinstance(layer, nn.Conv2d) and name.startswith(("layer3", "layer4")):
            of_rank(layer, min(layer.weight.shape[:2]) // 8)
    prices = CostModel.load("cheetah")
    before, after = (prices.predict(lower(model, without)) for without in (["factors"], []))
    assert after.seconds < 0.8 * before.seconds
    assert after.bytes < before.bytes
