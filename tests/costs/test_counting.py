"""Counts against sums made by hand."""

import json

import pytest
import torch
from torch import Tensor, nn

from reluctant.costs.counting import count
from reluctant.masked import attach
from reluctant.models import MODELS
from reluctant.sites import find_sites

EXAMPLE = torch.zeros(2, 3, 8, 8)


class Small(nn.Module):
    """A strided, grouped and biased convolution, one that runs twice, pooling, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.again = nn.Conv2d(6, 6, 3, padding=1, groups=2, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(6 * 2 * 2, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = self.again(self.again(x)).clamp(min=0)
        return self.head(self.pool(x).flatten(1))


FIRST = 3 * 3 * 3 * 6 * 4 * 4  # kernel, input channels, output channels, output pixels
AGAIN = 3 * 3 * 3 * 6 * 4 * 4  # two groups: each output sees 3 channels
HEAD = 24 * 5


def test_multiply_adds_of_each_module_and_of_all() -> None:
    model = Small()
    counted = count(model, find_sites(model, EXAMPLE), EXAMPLE)
    assert counted.macs == {"first": FIRST, "again": 2 * AGAIN, "head": HEAD}
    assert counted.total_macs == FIRST + 2 * AGAIN + HEAD


def test_relus_parameters_and_what_is_neither() -> None:
    model = Small()
    counted = count(model, find_sites(model, EXAMPLE), EXAMPLE)
    assert list(counted.relus.values()) == [6 * 4 * 4, 6 * 4 * 4]
    assert counted.total_relus == 192
    assert counted.parameters == (3 * 9 * 6 + 6) + 2 * 6 + 3 * 9 * 6 + (24 * 5 + 5)
    assert [(call.kind, call.elements) for call in counted.other] == [("max_pool2d", 24)]


def test_what_was_not_counted_is_listed_and_nothing_that_was() -> None:
    model = Small()
    counted = count(model, find_sites(model, EXAMPLE), EXAMPLE)
    assert counted.uncounted == {"_native_batch_norm_legit_no_training": 1, "max_pool2d_with_indices": 1}


def test_additions_are_not_passed_over() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x) + x * 2 + x

    model = Twice()
    assert count(model, find_sites(model, EXAMPLE), EXAMPLE).uncounted == {"add": 2, "mul": 1}


def test_a_masked_network_counts_as_the_one_in_it() -> None:
    model = Small()
    sites = find_sites(model, EXAMPLE)
    masked = attach(model, sites)
    assert count(masked, sites, EXAMPLE).total_macs == count(model, sites, EXAMPLE).total_macs


def test_the_model_is_left_as_it_was() -> None:
    model = Small().train()
    model.norm.eval()
    before = model.norm.running_mean.clone()
    count(model, find_sites(model, EXAMPLE), EXAMPLE)
    assert (model.training, model.norm.training) == (True, False)
    assert torch.equal(model.norm.running_mean, before)


def test_counts_go_to_json() -> None:
    model = Small()
    content = json.loads(json.dumps(count(model, find_sites(model, EXAMPLE), EXAMPLE).to_json()))
    assert content["relus"]["total"] == 192
    assert content["macs"]["by_module"]["head"] == HEAD
    assert content["other"][0]["shape"] == [6, 2, 2]


def resnet_macs(widths: list[int], blocks: int, classes: int) -> int:
    """Of a CIFAR ResNet: stem, stages of basic blocks, a 1x1 shortcut where the size halves, head."""
    total, size, channels = 9 * 3 * widths[0] * 32 * 32, 32, widths[0]
    for stage, width in enumerate(widths):
        size = 32 >> stage
        for _ in range(blocks):
            shortcut = channels * width if channels != width else 0
            total += (9 * (channels + width) * width + shortcut) * size * size
            channels = width
    return total + channels * classes


@pytest.mark.parametrize(
    ("name", "widths", "blocks", "classes", "millions"),
    [("resnet18", [64, 128, 256, 512], 2, 100, 555.5), ("resnet20", [16, 32, 64], 3, 10, 40.8)],
)
def test_published_networks(name: str, widths: list[int], blocks: int, classes: int, millions: float) -> None:
    model, example = MODELS[name](classes, 3), torch.zeros(1, 3, 32, 32)
    counted = count(model, find_sites(model, example), example).total_macs
    assert counted == resnet_macs(widths, blocks, classes)
    assert round(counted / 1e6, 1) == millions
