"""Finding sites: every spelling, every difficulty, and nothing missed in silence."""

import warnings

import pytest
import torch
import zoo
from torch import Tensor, nn

from reluctant.errors import SiteError, UnknownName
from reluctant.models import MODELS
from reluctant.sites import find_sites, swap_activations

IMAGE = torch.zeros(1, 3, 8, 8)


@pytest.mark.parametrize(("network", "count"), zoo.LINEARIZABLE.items())
def test_every_relu_call_is_a_site(network, count):
    sites = find_sites(network(), IMAGE)
    assert len(sites) == count
    assert len(set(sites)) == count
    assert [site.order for site in sites.values()] == list(range(count))


def test_sites_know_module_shape_line_and_spelling():
    sites = find_sites(zoo.Spellings(), torch.zeros(2, 3, 8, 8))
    assert list(sites)[:3] == ["relu", ":relu", ":relu#2"]
    assert list(sites)[-1] == "relu#2"
    assert {site.shape for site in sites.values()} == {(4, 8, 8)}
    assert sites.total == 11 * 256
    assert all(site.line.startswith("zoo.py:") for site in sites.values())
    assert [site.inplace for site in sites.values()].count(True) == 5


def test_a_module_called_twice_in_a_block_run_twice_is_four_sites():
    assert list(find_sites(zoo.SharedBlock(), IMAGE)) == ["relu", "relu#2", "relu#3", "relu#4"]


def test_the_model_is_left_as_it_was():
    model = zoo.SharedBlock().train()
    model.bn.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    find_sites(model, IMAGE)
    assert model.training
    assert not model.bn.training
    assert not model.conv._forward_hooks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_other_activations_are_reported_as_not_relu():
    sites = find_sites(zoo.NotReLU(), IMAGE)
    assert [call.kind for call in sites.other] == ["silu", "relu6", "gelu", "hardswish", "max_pool2d", "gt"]
    assert sites.other[4].shape == (4, 4, 4)
    assert list(sites) == ["relu"]


def test_swapping_makes_relus_and_leaves_the_original():
    model = zoo.NotReLU()
    swapped = swap_activations(model, "silu", "relu")
    assert isinstance(model.silu, nn.SiLU)
    assert list(find_sites(swapped, IMAGE)) == ["silu", "relu"]
    assert swapped.state_dict().keys() == model.state_dict().keys()
    with pytest.raises(UnknownName, match=r"'silo'; did you mean 'silu'"):
        swap_activations(model, "silo", "relu")
    with pytest.raises(SiteError, match="no Tanh"):
        swap_activations(model, "tanh", "relu")


@pytest.mark.parametrize(
    ("name", "options", "total", "count"),
    [
        ("resnet18", {}, 557_056, 17),
        ("resnet18", {"stem_relu": False}, 491_520, 16),
        ("wrn-22-8", {}, 1_392_640, 19),
        ("wrn-22-8", {"last_relu": False}, 1_359_872, 18),
    ],
)
def test_published_counts(name, options, total, count):
    with torch.device("meta"):
        model = MODELS[name](100, 3, **options)
        sites = find_sites(model, torch.zeros(1, 3, 32, 32))
    assert (sites.total, len(sites)) == (total, count)


def script(code):
    """TorchScript, whose deprecation is not what is tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(code)


def test_relus_hidden_in_script_are_refused():
    @script
    def hidden(x: Tensor) -> Tensor:
        return torch.relu(x)

    class Hiding(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return hidden(x) + x.relu()

    with pytest.raises(SiteError, match="computes 2 ReLUs on its example but only 1"):
        find_sites(Hiding(), IMAGE)


def test_relus_without_gradients_are_refused_with_their_line():
    class Frozen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return x.relu()

    with pytest.raises(SiteError, match=r"test_sites\.py:\d+ .* without gradients"):
        find_sites(Frozen(), IMAGE)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.SiLU()), "no ReLU; it has silu: see swap_activations"),
        (nn.Sequential(nn.Linear(7, 7), nn.ReLU()), "does not run on a batch of shape \\(2, 3, 8, 8\\)"),
        (script(nn.Sequential(nn.ReLU())), "TorchScript"),
        (torch.compile(nn.Sequential(nn.ReLU()), backend="eager"), "compiled"),
    ],
)
def test_what_cannot_be_seen_is_refused_with_a_way_out(model, reason):
    with pytest.raises(SiteError, match=reason):
        find_sites(model, IMAGE)


class Folds(nn.Module):
    """Takes a ReLU of something whose first dimension is not the image."""

    def __init__(self, fold):
        super().__init__()
        self.fold, self.weight = fold, nn.Parameter(torch.ones(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x.relu().mean() + self.fold(self, x).relu().mean()


@pytest.mark.parametrize(
    "fold",
    [
        lambda model, x: x.reshape(2 * len(x), -1),
        lambda model, x: model.weight[:3],
        lambda model, x: x.mean((1, 2, 3)),
        lambda model, x: x.transpose(0, 1),
    ],
)
def test_a_relu_whose_first_dimension_is_not_the_image_is_refused(fold):
    with pytest.raises(SiteError, match=r"test_sites\.py:\d+ .* its first dimension must be the image"):
        find_sites(Folds(fold), IMAGE)


def test_two_argument_maxima_and_in_place_functions_are_listed():
    class Many(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.max(x.relu(), x * 0.1)
            x = x.min(x * 2).fmax(x) + x.max()
            x = x * 1
            return x.sigmoid_().tanh_().abs_()

    kinds = [call.kind for call in find_sites(Many(), IMAGE).other]
    assert kinds == ["maximum", "minimum", "fmax", "sigmoid", "tanh", "abs"]


def test_a_network_that_caches_activations_is_left_without_them():
    class Caches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.seen = x.relu()
            return self.seen

    model = Caches()
    find_sites(model, IMAGE)
    assert not hasattr(model, "seen")


def test_a_network_that_cannot_be_copied_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    model.leaf = model[0].weight * 2
    with pytest.raises(SiteError, match="cannot be copied"):
        find_sites(model, IMAGE)
