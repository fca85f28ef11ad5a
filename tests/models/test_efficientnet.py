"""EfficientNet-B2 against the counts of the network that AutoReP linearized, and against itself with SiLU."""

from typing import Any

import pytest
import torch
from torch import nn

from reluctant.data import load_task
from reluctant.errors import UsageError
from reluctant.masked import attach
from reluctant.models import MODELS, ModelSpec, load_model
from reluctant.models.efficientnet import widened
from reluctant.sites import find_sites, swap_activations

BUILD = MODELS["efficientnet-b2"]


def seeded(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return BUILD(5, 1, **options)


def test_counts_are_those_of_the_network_of_autorep() -> None:
    with torch.device("meta"):
        model = BUILD(1000, 3)
        sites = find_sites(model, torch.zeros(1, 3, 224, 224))
    excites = [name for name in sites if "excite" in name]
    assert (len(sites), sites.total) == (69, 8_804_162)
    assert (len(excites), sum(sites[name].relus for name in excites)) == (23, 626)
    assert {call.kind for call in sites.other} == {"sigmoid"}
    assert sum(call.elements for call in sites.other) == 14_784
    assert sum(p.numel() for p in model.parameters()) == 9_109_994


def test_sites_have_good_names() -> None:
    with torch.device("meta"):
        names = list(find_sites(BUILD(10, 3), torch.zeros(1, 3, 32, 32)))
    assert names[:3] == ["stem.act", "stages.0.0.depthwise.act", "stages.0.0.excite.act"]
    assert names[-1] == "head.act"


@pytest.mark.parametrize(("channels", "b2"), [(32, 32), (16, 16), (24, 24), (40, 48), (320, 352), (1280, 1408)])
def test_channels_are_multiples_of_eight(channels: int, b2: int) -> None:
    assert widened(channels, 1.1) == b2


def test_rounding_loses_a_tenth_at_most() -> None:
    assert widened(10, 1.0) == 16  # 8 is nearer
    assert widened(1, 1.0) == 8


def test_silu_swapped_for_relu_is_the_default() -> None:
    images = torch.randn(2, 1, 32, 32)
    smooth, expected = seeded(activation="silu").eval(), seeded().eval()
    swapped = swap_activations(smooth, "silu", "relu")
    with torch.no_grad():
        assert torch.equal(swapped(images), expected(images))
        assert not torch.equal(smooth(images), expected(images))
    assert list(find_sites(swapped, images)) == list(find_sites(expected, images))


def test_the_activation_is_an_option_of_its_name() -> None:
    task = load_task("digits")
    smooth = load_model("efficientnet-b2:activation=silu", task=task)
    assert not any(isinstance(module, nn.ReLU) for module in smooth.modules())
    with pytest.raises(UsageError, match=r"^[^\n]*activation is 'gelu'; expected relu or silu$"):
        ModelSpec.parse("efficientnet-b2:activation=gelu")


def test_a_masked_one_answers_as_the_dense_one() -> None:
    images, model = torch.randn(2, 1, 32, 32), seeded().eval()
    masked = attach(model, find_sites(model, images)).eval()
    assert torch.equal(masked(images), model(images))


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_every_parameter_learns(activation: str) -> None:
    model = seeded(activation=activation)
    nn.functional.cross_entropy(model(torch.randn(8, 1, 32, 32)), torch.arange(8) % 5).backward()
    still = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []
