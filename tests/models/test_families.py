"""The networks of the zoo against the counts of the papers and codes they come from."""

import pytest
import torch
from torch import nn

from reluctant.models import MODELS


def relu_shapes(model: nn.Module, side: int, channels: int = 3) -> list[tuple[str, tuple[int, ...]]]:
    """Name and output shape of every call of an nn.ReLU for one image, in order; on the meta device."""
    calls = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda _, __, y, name=name: calls.append((name, tuple(y.shape[1:]))))
    model.eval()(torch.zeros(1, channels, side, side, device="meta"))
    return calls


def count(name: str, side: int = 32, classes: int = 10, channels: int = 3, **options: bool | int | str) -> int:
    with torch.device("meta"):
        model = MODELS[name](classes, channels, **options)
    return sum(torch.Size(shape).numel() for _, shape in relu_shapes(model, side, channels))


@pytest.mark.parametrize(
    ("name", "side", "options", "relus"),
    [
        ("resnet18", 32, {}, 557_056),
        ("resnet18", 32, {"stem_relu": False}, 491_520),
        ("resnet18", 64, {"stem_relu": False}, 1_966_080),
        ("resnet18", 32, {"width": 32}, 278_528),
        ("resnet34", 32, {}, 966_656),
        ("resnet34", 32, {"stem_relu": False}, 901_120),
        ("resnet20", 32, {}, 188_416),
        ("resnet20", 32, {"stem_relu": False}, 172_032),
        ("resnet32", 32, {}, 303_104),
        ("resnet8", 8, {}, 16 * 64 * 3 + 32 * 16 * 2 + 64 * 4 * 2),
        ("wrn-22-8", 32, {}, 1_392_640),
        ("wrn-22-8", 32, {"last_relu": False}, 1_359_872),
        ("wrn-22-8", 64, {"last_relu": False}, 5_439_488),
        ("vgg16-bn", 32, {}, 276_480),
        ("vgg16-bn", 32, {"pool": "avg"}, 276_480),
    ],
)
def test_relus_are_those_of_the_papers(name: str, side: int, options: dict[str, bool | int | str], relus: int) -> None:
    assert count(name, side, **options) == relus


@pytest.mark.parametrize(
    ("name", "options", "millions"),
    [("resnet18", {"stem_relu": False}, 11.22), ("wrn-22-8", {"last_relu": False}, 17.20)],
)
def test_parameters_are_those_of_the_papers(name: str, options: dict[str, bool], millions: float) -> None:
    with torch.device("meta"):
        model = MODELS[name](100, 3, **options)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_cifar_resnets_have_the_papers_parameters() -> None:
    # He et al. 2016, table 6: 0.27 M and 0.46 M, there without the convolutions at the shortcuts.
    for name, weights in (("resnet20", 0.27), ("resnet32", 0.46)):
        model = MODELS[name](10, 3)
        shortcuts = sum(p.numel() for key, p in model.named_parameters() if "downsample" in key)
        assert (sum(p.numel() for p in model.parameters()) - shortcuts) / 1e6 == pytest.approx(weights, abs=0.005)


@pytest.mark.parametrize("name", [*MODELS, "wrn-10-1"])
def test_each_relu_is_a_module_of_its_own_called_once(name: str) -> None:
    with torch.device("meta"):
        model = MODELS[name](10, 3)
    calls = [site for site, _ in relu_shapes(model, 32)]
    relus = {site: module for site, module in model.named_modules() if isinstance(module, nn.ReLU)}
    assert calls == list(dict.fromkeys(calls))
    assert set(calls) == set(relus)
    assert not any(module.inplace for module in relus.values())


@pytest.mark.parametrize("name", [*MODELS, "wrn-10-1"])
@pytest.mark.parametrize(("side", "channels"), [(8, 1), (28, 1), (64, 3)])
def test_small_and_grey_images_work(name: str, side: int, channels: int) -> None:
    with torch.device("meta"):
        model = MODELS[name](7, channels)
    assert model(torch.zeros(2, channels, side, side, device="meta")).shape == (2, 7)


def test_sites_have_good_names() -> None:
    with torch.device("meta"):
        names = {name: [site for site, _ in relu_shapes(MODELS[name](10, 3), 32)] for name in ("resnet8", "vgg16-bn")}
        wide = [site for site, _ in relu_shapes(MODELS["wrn-10-1"](10, 3), 32)]
    assert names["resnet8"][:3] == ["relu", "layer1.0.relu1", "layer1.0.relu2"]
    assert names["vgg16-bn"][:3] == ["features.relu1_1", "features.relu1_2", "features.relu2_1"]
    assert wide[:2] == ["group1.0.relu1", "group1.0.relu2"]
    assert wide[-1] == "relu"


def test_every_parameter_of_a_network_learns() -> None:
    torch.manual_seed(0)
    for name in ("resnet8", "wrn-10-1"):
        model = MODELS[name](3, 1)
        nn.functional.cross_entropy(model(torch.randn(4, 1, 8, 8)), torch.tensor([0, 1, 2, 0])).backward()
        still = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert still == []


def test_convolutions_begin_kaiming_normal() -> None:
    torch.manual_seed(0)
    weight = MODELS["resnet20"](10, 3).get_parameter("layer3.1.conv1.weight")
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


def test_a_wide_shortcut_reads_what_the_first_convolution_reads() -> None:
    model = MODELS["wrn-10-2"](3, 1).eval()
    seen = {}
    for name in ("relu1", "shortcut", "conv1"):
        module = model.get_submodule(f"group2.0.{name}")
        module.register_forward_hook(lambda _, x, y, name=name: seen.update({name: (x[0], y)}))
    model(torch.randn(1, 1, 8, 8))
    activation = seen["relu1"][1]
    assert seen["shortcut"][0] is activation
    assert seen["conv1"][0] is activation
    assert model.get_submodule("group1.0").shortcut is not None
    assert MODELS["wrn-16-2"](3, 1).get_submodule("group1.1").shortcut is None


def test_vgg_pools_as_it_is_told() -> None:
    kinds = {pool: {type(m) for m in MODELS["vgg16-bn"](10, 3, pool=pool).modules()} for pool in ("max", "avg")}
    assert nn.MaxPool2d in kinds["max"]
    assert nn.AvgPool2d not in kinds["max"]
    assert nn.AvgPool2d in kinds["avg"]
    assert nn.MaxPool2d not in kinds["avg"]
