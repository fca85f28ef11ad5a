"""Channels that were pruned away cost nothing in a lowered network, and what is left computes the same."""

import pytest
import torch
import torch.nn.functional as F
from interpret import interpret
from test_lower import masked
from torch import nn
from torch.nn.utils import prune
from zoo import Concat, ShapeFlow, SharedBlock, Spellings, TwoOutputs

from reluctant.costs.model import CostModel
from reluctant.errors import UsageError
from reluctant.models.resnet import resnet8, resnet20
from reluctant.program.lower import lower
from reluctant.program.operations import Activation, Conv2d, Scale
from reluctant.surrogates import Affine, Constant, Hermite, Identity, Quadratic, Reciprocal, Shift

SURROGATES = [Identity(), Shift(), Constant(), Affine(), Reciprocal(), Quadratic(), Hermite()]


def pruned(model, names, share, axis):
    """Return ``model`` without so many of the filters (axis 0) or input channels (axis 1) of the layers called so."""
    for name, module in model.model.named_modules():
        if name in names:
            prune.ln_structured(module, "weight", share, n=1, dim=axis)
            prune.remove(module, "weight")
    return model


def check_same(model, without=(), size=8):
    """Return the program of ``model`` once it has given the model's outputs, both in float64."""
    program, images = lower(model.float(), without), torch.randn(3, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        expected = model.double()(images)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for one, other in zip(interpret(program, images), expected, strict=True):
        assert (one - other).abs().max() < 1e-5 * max(1, other.abs().max())
    return program


def widths(program):
    """Return outputs and inputs of each convolution."""
    return [program.array_shapes[op.weight][:2] for op in program.ops if isinstance(op, Conv2d)]


@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: s.name)
@pytest.mark.parametrize("axis", [0, 1])
def test_pruned_channels_inside_blocks_are_dropped(axis, surrogate, share):
    """Filters of a block's first convolution hold constants behind batch norm and ReLU, up to the edges' padding."""
    name = "layer2.0.conv1" if axis == 0 else "layer2.0.conv2"
    model = pruned(masked(resnet8(5, 3), share, surrogate), [name], 0.75, axis)
    whole, program = check_same(model, ["channels", "factors", "collapse"]), check_same(model, ["collapse"])
    changed = [(a, b) for a, b in zip(widths(whole), widths(program), strict=True) if a != b]
    assert changed == [((32, 16), (8, 16)), ((32, 32), (32, 8))]
    assert check_same(model).kept == program.kept <= whole.kept
    assert program.kept < whole.kept or share == 0


def test_relus_of_dropped_channels_are_not_compared():
    model = pruned(masked(resnet8(5, 3), 1.0), ["layer1.0.conv1"], 4, 0)
    program = check_same(model)
    site = next(op for op in program.ops if isinstance(op, Activation) and op.site == "layer1.0.relu1")
    assert len(site.kept) == 12 * 64
    assert [s.kept for s in program.sites if s.name == site.site] == [12 * 64]
    assert sum(int(kept.sum()) for kept in model.mask.values()) - program.kept == 4 * 64


@pytest.mark.parametrize("surrogate", [Shift(), Affine(), Identity()])
def test_a_dropped_channel_was_all_a_site_kept(surrogate):
    """What is left of the site folds away as if it had kept nothing."""
    model = masked(resnet8(5, 3), 0.0, surrogate)
    name = "layer1.0.relu1"
    keep = {site: kept.clone() for site, kept in model.mask.items()}
    keep[name][2] = True
    model.set_mask(type(model.mask)(keep))
    assert lower(model).kept == 64
    with torch.no_grad():
        model.model.get_submodule("layer1.0.conv1").weight[2] = 0
    program = check_same(model, ["collapse"])
    assert program.kept == 0
    assert not list(program.activations())
    assert not any(op.scale for op in program.ops if isinstance(op, Scale))


@pytest.mark.parametrize("make", [Concat, ShapeFlow, SharedBlock, Spellings, TwoOutputs])
@pytest.mark.parametrize("axis", [0, 1])
def test_any_structure_stays_the_same(make, axis):
    model = masked(make(), 0.5, Shift())
    layers = [n for n, m in model.model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    pruned(model, layers, 0.4, axis)
    check_same(model)
    check_same(model, ["collapse"])
    check_same(model, ["factors", "carry", "collapse"])


def test_layers_of_zeros_only():
    model = masked(resnet8(5, 3), 0.5)
    check_same(pruned(model, ["layer1.0.conv2", "layer3.0.conv1"], 1.0, 0))


class Cut(nn.Module):
    """Pooling, padding of channels and cutting between layers."""

    def __init__(self):
        super().__init__()
        self.stem, self.second, self.third = (nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 8), (8, 8), (10, 8)))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.max_pool2d(torch.relu(self.stem(x)), 2)[:, :, 1:, :-1]
        x = F.pad(torch.relu(self.second(x))[:, 1:], (0, 0, 0, 0, 1, 2))
        return self.head(torch.relu(self.third(x)).mean((2, 3)))


@pytest.mark.parametrize("axis", [0, 1])
def test_pooled_padded_and_cut_channels(axis):
    """Channels are not followed through padding with more of them: those stay, and all is right."""
    model = masked(Cut(), 0.5, Shift())
    program = check_same(pruned(model, ["stem", "second", "third"], 0.5, axis), ["collapse"])
    assert widths(program) == ([(4, 3), (8, 4), (4, 10)] if axis == 0 else [(4, 3), (8, 4), (8, 10)])


class Joined(nn.Module):
    """Two branches, one of them pooled, side by side."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, 2, 1)
        self.last, self.head = nn.Conv2d(16, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x):
        left = F.max_pool2d(torch.relu(self.left(x)), 3, 2, 1)
        x = torch.cat([left, torch.relu(self.right(x))], 1)
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


def test_filters_before_pools_and_joints_are_dropped():
    model = masked(Joined(), 0.5, Shift())
    program = check_same(pruned(model, ["left", "right"], 0.5, 0), ["collapse"])
    assert widths(program) == [(4, 3), (4, 3), (8, 8)]
    assert program.kept < model.mask.kept


def test_weights_that_are_no_numbers_are_refused_as_ever():
    model = masked(resnet8(5, 3), 0.5)
    model.model.get_submodule("layer2.0.conv2").weight.data[0, 0] = float("nan")
    with pytest.raises(UsageError, match="finite"):
        lower(model)


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(torch.relu(self.conv(torch.relu(self.stem(x)))).mean((2, 3)))


def test_grouped_convolutions_keep_their_widths():
    program = check_same(pruned(masked(Grouped(), 0.5), ["stem", "conv"], 0.5, 0))
    assert widths(program) == [(8, 3), (8, 2)]


def test_the_narrower_network_is_what_is_paid():
    """A ResNet-20 whose blocks lost half of their inner filters costs about what half the inner width costs."""
    names = [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)]
    model = pruned(masked(resnet20(10, 3), 0.1, shape=(3, 32, 32)), names, 0.5, 0)
    prices = CostModel.load("cheetah")
    before, after = (prices.predict(lower(model, without)) for without in (["channels"], []))
    assert after.comparison_bytes < 0.85 * before.comparison_bytes
    assert after.seconds < 0.7 * before.seconds
