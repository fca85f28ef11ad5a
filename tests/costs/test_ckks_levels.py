"""Levels under CKKS: one a matrix, one a square, fourteen a site with a ReLU left, whatever it keeps."""

import pytest
from engines.small import masked_small
from torch import nn

from reluctant.costs.ckks import RELU_LEVELS, levels, modulus_bits
from reluctant.engines.packing import layers, parameters_of
from reluctant.program.collapse import straighten
from reluctant.program.lower import lower
from reluctant.surrogates import Affine, Identity, Quadratic


def of(share, surrogate, *layers, shape=(4, 8, 8)):
    """The levels of a network of ``layers`` that keeps a ``share`` of each site."""
    network = nn.Sequential(*layers, nn.Flatten())
    sites = sum(isinstance(module, nn.ReLU) for module in network.modules())
    return levels(lower(masked_small((share,) * sites, surrogate, network, shape)))


def convolution(size=3):
    return nn.Conv2d(4, 4, size, padding=size // 2)


def test_a_relu_is_three_polynomials_and_a_product():
    """Of degrees 15, 15 and 27: 4 + 4 + 5 levels, and one."""
    assert RELU_LEVELS == 14


@pytest.mark.parametrize(
    ("share", "surrogate", "total", "relus"),
    [
        (1.0, Identity(), 1 + 14 + 1, 14),
        (0.1, Identity(), 1 + 14 + 1, 14),
        (0.0, Identity(), 1, 0),
        (0.0, Affine(), 1, 0),
        (0.0, Quadratic(), 1 + 1 + 1, 0),
        (0.1, Quadratic(), 1 + 14 + 1, 14),
    ],
)
def test_a_site_between_two_convolutions(share, surrogate, total, relus):
    found = of(share, surrogate, convolution(), nn.ReLU(), convolution())
    assert (found.total, found.relus) == (total, relus)


SQUARES = {
    "last": [convolution(), nn.ReLU()],
    "first": [nn.ReLU(), convolution()],
    "alone": [nn.ReLU()],
    "twice": [convolution(), nn.ReLU(), nn.ReLU(), convolution()],
    "between": [convolution(), nn.ReLU(), convolution()],
}


@pytest.mark.parametrize("case", SQUARES)
def test_squares_take_what_the_engine_takes(case):
    """A matrix stands before each, and takes its factor behind it."""
    network = nn.Sequential(*SQUARES[case], nn.Flatten())
    sites = sum(isinstance(module, nn.ReLU) for module in network)
    program = lower(masked_small((0.0,) * sites, Quadratic(), network, (4, 4, 4)))
    assert levels(program).total == parameters_of(layers(straighten(program))).levels


def test_a_maximum_is_a_relu_of_a_difference():
    """Of two by two values: two, one after the other."""
    assert of(1.0, Identity(), convolution(), nn.ReLU(), nn.MaxPool2d(2)).total == 1 + 14 + 2 * 14
    assert of(1.0, Identity(), convolution(), nn.ReLU(), nn.MaxPool2d(3, 2, 1)).total == 1 + 14 + 4 * 14
    assert of(1.0, Identity(), convolution(), nn.ReLU(), nn.MaxPool2d(5, 1)).total == 1 + 14 + 5 * 14


class Shortcut(nn.Module):
    """A block whose shortcut is shorter by two convolutions and a site."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.relu = convolution(), convolution(), nn.ReLU()

    def forward(self, x):
        return x + self.second(self.relu(self.first(x)))


def test_the_longest_way_counts():
    assert of(1.0, Identity(), convolution(), nn.ReLU(), Shortcut(), convolution()).total == 1 + 14 + 1 + 14 + 1


@pytest.mark.parametrize(("sites", "ring"), [(1, 16384), (2, 16384), (3, 16384), (4, 32768), (9, 32768)])
def test_the_smallest_ring_at_128_bits(sites, ring):
    parts = [part for _ in range(sites) for part in (convolution(), nn.ReLU())]
    found = of(0.0, Quadratic(), *parts, convolution())
    assert found.total == 2 * sites + 1
    assert found.to_json() == {
        "levels": found.total,
        "relu_levels": 0,
        "ring": ring,
        "modulus_bits": modulus_bits(found.total),
    }


def test_one_affine_map_takes_the_smallest_ring():
    assert of(0.0, Identity(), convolution(), nn.ReLU(), convolution()).ring == 8192


def test_too_deep_for_any_ring():
    found = of(1.0, Identity(), convolution(), nn.ReLU(), Shortcut())
    assert found.to_json() == {"levels": 31, "relu_levels": 28, "ring": None, "modulus_bits": None}
