"""How a program falls into ReLUs and layers, and the worked example of three protocols over two links."""

from dataclasses import replace

import pytest
import torch
from engines.small import masked_small
from torch import nn

from reluctant.costs.circa import Circa
from reluctant.costs.cryptflow2 import CrypTFlow2
from reluctant.costs.delphi import Delphi
from reluctant.costs.model import CostModel
from reluctant.costs.networks import Network
from reluctant.costs.profile import Layer, layer_of
from reluctant.errors import UsageError
from reluctant.program.lower import lower

#: The links that OpenCheetah's benchmarks are run over.
LAN, WAN = Network("lan", 3e9, 0.0003), Network("wan", 400e6, 0.040)


def program(*layers, shape=(4, 8, 8)):
    """A network of ``layers`` after a ReLU that is compared, so that what they read is shared."""
    network = nn.Sequential(nn.Conv2d(shape[0], shape[0], 1), nn.ReLU(), *layers, nn.Flatten())
    sites = sum(isinstance(layer, nn.ReLU) for layer in network)
    return lower(masked_small((1.0,) * sites, model=network, shape=shape))


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(4, 8, 3, padding=1), Layer(256, 512, 8, 9, 1, 9 * 4 * 8 * 64)),
        (nn.Conv2d(4, 8, 3, stride=2, padding=1), Layer(256, 128, 8, 9, 4, 9 * 4 * 8 * 64)),  # at all pixels it reads
        (nn.Conv2d(4, 8, 1, stride=2), Layer(64, 128, 4, 1, 1, 4 * 8 * 16)),  # reads a quarter of them
        (nn.Conv2d(4, 8, 3, padding=1, groups=2), Layer(256, 512, 8, 9, 1, 9 * 2 * 8 * 64)),
    ],
    ids=["plain", "stride", "shortcut", "groups"],
)
def test_layers(layer, expected):
    lowered = program(layer, nn.ReLU())
    assert layer_of(lowered.ops[2], lowered) == expected


def test_what_is_no_product_with_private_numbers_is_free():
    lowered = program(nn.AvgPool2d(2))
    steps = Delphi().account(lowered, [1]).steps
    assert [step.part for step in steps] == ["linear", "comparison", "answer"]


def test_maxima_are_relus_of_differences():
    found = Delphi().predict(program(nn.MaxPool2d(2)))
    assert found.pooling_bytes == 3 * 4 * 16 * 20_281
    assert found.round_trips == 1 + 1 + 2  # the image and its answer, the ReLU, rows and columns


def test_a_relu_on_the_clients_own_image_is_free():
    lowered = lower(masked_small((1.0,), model=nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(192, 5))))
    assert Delphi().predict(lowered).comparison_bytes == 0


@pytest.mark.parametrize(
    ("relus", "profile", "lan", "wan"),
    [
        (557_056, Delphi(), 1.78, 14.0),
        (557_056, Circa(), 0.90, 8.0),
        (557_056, CrypTFlow2(), 0.90, 10.6),
        (50_000, Delphi(), 0.16, 1.87),
        (50_000, Circa(), 0.09, 1.96),
        (50_000, CrypTFlow2(), 0.11, 4.7),
    ],
)
def test_worked_example(relus, profile, lan, wan):
    """Seconds that the link takes once the image is there, for ResNet-18 with ReLUs at 17 sites: computed elsewhere."""
    one = profile.relus(relus).online
    cost = one._replace(seconds=0.0, trips=17 * one.trips)
    assert cost.lasts(LAN) == pytest.approx(lan, rel=0.01, abs=0.005)
    assert cost.lasts(WAN) == pytest.approx(wan, rel=0.01)


@pytest.mark.parametrize(("relus", "lan", "wan"), [(557_056, 28, 213), (50_000, 2.5, 19)])
def test_worked_example_before_the_image(relus, lan, wan):
    cost = Delphi().relus(relus).offline._replace(seconds=0.0)
    assert (cost.lasts(LAN), cost.lasts(WAN)) == (pytest.approx(lan, rel=0.02), pytest.approx(wan, rel=0.01))


def test_few_relus_are_cheaper_under_delphi_than_under_circa_on_a_far_link():
    """Circa waits twice where DELPHI waits once."""
    few, many = (
        [profile.relus(count).online._replace(seconds=0.0).lasts(WAN) for profile in (Delphi(), Circa())]
        for count in (1000, 100_000)
    )
    assert few[0] < few[1]
    assert many[0] > many[1]


def test_prices_of_a_site_are_those_of_its_step():
    """One ReLU more, and the first one."""
    op = next(program().activations())
    keep = torch.arange(op.keep.size).numpy()
    for profile in (Delphi(), Circa(), CrypTFlow2()):
        ten, nine, none = (profile.activation(replace(op, keep=keep < count)).total for count in (10, 9, 0))
        assert ten.bytes - nine.bytes == pytest.approx(profile.relu().total.bytes)
        assert (profile.relu().total.trips, none.bytes) == (0, 0)


def test_a_table_of_prices_is_of_no_use_to_a_profile(tmp_path):
    with pytest.raises(UsageError, match="delphi is an analytic profile, which takes no table of prices: leave out"):
        CostModel.load("delphi", tmp_path / "prices.json")
