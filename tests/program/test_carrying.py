"""Slopes that are reciprocals of public whole numbers leave a lowered network without one product more."""

import base64
import itertools
import math

import numpy as np
import pytest
import torch
from interpret import interpret
from test_lower import Narrowing, Odds, PreActivation, masked
from torch import nn
from torch.utils import _pytree as pytree
from zoo import Concat, ShapeFlow, SharedBlock, Spellings, TwoOutputs

from reluctant.errors import UsageError
from reluctant.mask import Mask
from reluctant.models.resnet import resnet8, resnet18, resnet20
from reluctant.models.vgg import vgg16_bn
from reluctant.models.wrn import wrn
from reluctant.program.carrying import FAINTEST, LARGEST, SMALLEST
from reluctant.program.lower import lower
from reluctant.program.operations import LARGEST_FACTOR, Activation, Scale
from reluctant.program.ops import Program
from reluctant.surrogates import LARGEST_DIVISOR, Hermite, Identity, Quadratic, Reciprocal

CIFAR = (3, 32, 32)


def check_same(model, images):
    """Return the program of ``model`` once it has given the model's outputs, both in float64."""
    program = lower(model)
    with torch.no_grad():
        expected = pytree.tree_leaves(model.double()(images.double()))
    for one, other in zip(interpret(program, images), expected, strict=True):
        assert (one - other).abs().max() < 1e-5 * max(1, other.abs().max())
    return program


def products(program):
    """Return how many scales with private factors are in ``program``, and how many with public ones."""
    scales = [op for op in program.ops if isinstance(op, Scale)]
    return sum(op.scale is not None for op in scales), sum(op.factors is not None or op.factor != 1 for op in scales)


def factors(program):
    return [op.factors for op in program.ops if isinstance(op, Activation)]


SMALL = {
    "resnet8": lambda: resnet8(5, 3),
    "narrowing": lambda: Narrowing(20),
    **{c.__name__: c for c in (PreActivation, Odds, SharedBlock, Concat, TwoOutputs, ShapeFlow)},
}


@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("name", SMALL)
def test_no_product_more_than_with_the_identity(name, share):
    program = check_same(masked(SMALL[name](), share, Reciprocal()), torch.randn(3, 3, 8, 8))
    plain = lower(masked(SMALL[name](), share, Identity()))
    assert products(program) == products(plain)
    assert sum(program.macs().values()) == sum(plain.macs().values())
    assert sum(op.kind in ("conv2d", "linear") for op in program.ops) == len(plain.macs()) - products(plain)[0]


@pytest.mark.parametrize(
    "make", [resnet20, resnet18, wrn(16, 1), vgg16_bn], ids=["resnet20", "resnet18", "wrn-16-1", "vgg16"]
)
def test_no_scale_is_left_in_networks_of_the_papers(make):
    model = masked(make(10, 3), 0.1, Reciprocal(), CIFAR)
    for activation in model.masked():
        activation.divisor.random_(1, 4)
    program, plain = lower(model), lower(masked(make(10, 3), 0.1, Identity(), CIFAR))
    assert products(program) == products(plain) == (0, 0)
    assert program.macs() == plain.macs()
    assert any(factors(program))


def test_what_is_told_of_a_channel():
    """Its n, if it keeps some ReLUs and drops some; of all others nothing."""
    model = masked(resnet8(5, 3), 1.0, Reciprocal())
    name = list(model.sites)[2]
    keep = {site: kept.clone() for site, kept in model.mask.items()}
    keep[name][0] = False
    keep[name][1, ::2] = False
    model.set_mask(Mask(keep))
    for activation in model.masked():
        activation.divisor.fill_(7)
    program = check_same(model, torch.randn(2, 3, 8, 8))
    channels = len(keep[name])
    assert factors(program) == [None, None, (1, 7, *[1] * (channels - 2)), None, None, None, None]


class Chain(nn.Module):
    """Sums in a row, whose scales multiply."""

    def __init__(self, length):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.branches = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(length))

    def forward(self, x):
        x = torch.relu(self.stem(x))
        for branch in self.branches:
            x = torch.relu(x + branch(x))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(("length", "left"), [(2, 0), (3, 0), (4, 1), (7, 2)])
def test_products_are_bounded(length, left):
    """Ten thousand does not fit into the square of 32, a thousand does; what does not fit stays public."""
    model = masked(Chain(length), 0.5, Reciprocal())
    for activation in model.masked():
        activation.divisor.fill_(10)
    program = check_same(model, torch.randn(2, 3, 8, 8))
    assert products(program) == (0, left)
    stayed = [op.factors for op in program.ops if isinstance(op, Scale) and op.factors]
    bits = [math.log2(factor) for factor in itertools.chain(*stayed)]
    assert bits == pytest.approx([round(b) for b in bits])
    dropped = lower(masked(Chain(length), 0.5, Identity()))
    for name, array in program.arrays.items():
        largest = abs(array / dropped.arrays[name]).max() if name in dropped.arrays else 1
        assert largest < LARGEST**2 * 1.01


class Diamond(nn.Module):
    """The sum of a stream and its own activation: no convolution could take a scale."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x):
        x = self.conv(x)
        return self.head((x + torch.relu(x)).mean((2, 3)))


def test_a_scale_that_nothing_takes_stays_public():
    model = masked(Diamond(), 0.5, Reciprocal())
    model.masked()[0].divisor.copy_(torch.tensor([1, 2, 3, 4.0]).reshape(4, 1, 1))
    program = check_same(model, torch.randn(2, 3, 8, 8))
    (scale,) = [op for op in program.ops if isinstance(op, Scale)]
    assert not scale.arrays()
    assert scale.factors == pytest.approx((1, 1 / 2, 1 / 3, 1 / 4))


def test_a_long_chain_without_convolutions():
    """Products over the bound meet here; each public scale that stays has its biases with it."""
    model = masked(Spellings(), 0.4, Reciprocal())
    program = check_same(model, torch.randn(2, 3, 8, 8))
    private, public = products(program)
    assert private == 0
    assert 0 < public <= 3


def test_outputs_are_not_scaled():
    model = masked(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), 0.5, Reciprocal())
    program = check_same(model, torch.randn(2, 3, 8, 8))
    assert products(program) == (0, 0)


def test_public_numbers_depend_on_no_weight():
    first, second = (masked(Chain(7), 0.5, Reciprocal()) for _ in range(2))
    for activation, other in zip(first.masked(), second.masked(), strict=True):
        other.divisor.copy_(activation.divisor.random_(8, 11))
    for parameter in second.parameters():
        parameter.data.mul_(1.7)
    assert lower(first).digest == lower(second).digest


def test_largest_slopes_fit_into_an_operation():
    assert LARGEST_DIVISOR == LARGEST_FACTOR == LARGEST**2


def rid(program):
    """Return the sites whose squares have no factor any more, and those whose squares have one."""
    ops = [op for op in program.ops if isinstance(op, Activation) and op.squares]
    return [op.site for op in ops if op.unit_square], [op.site for op in ops if not op.unit_square]


@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("name", SMALL)
def test_parabolas_with_a_factor_less(name, share):
    model = masked(SMALL[name](), share, Quadratic())
    program, plain = check_same(model, torch.randn(3, 3, 8, 8)), lower(model.float(), ["carry"])
    assert rid(plain)[0] == []
    outputs_fix_all = name == "TwoOutputs"  # the client learns what the activation makes
    assert bool(rid(program)[0]) == (share < 1 and not outputs_fix_all)
    squared = {op.site: len(op.rest) for op in program.ops if isinstance(op, Activation)}
    saved = sum(squared[site] for site in rid(program)[0])
    assert sum(program.macs().values()) == sum(plain.macs().values()) - saved


def test_one_site_of_a_stage_and_all_in_blocks():
    """The stem and the ends of the first stage's blocks share one stream; only one of them can be rid of its factor."""
    program = lower(masked(resnet20(10, 3), 0.1, Quadratic(), CIFAR))
    found, left = rid(program)
    assert {f"layer{i}.{k}.relu1" for i in (1, 2, 3) for k in range(3)} < set(found)
    assert len([site for site in found if not site.endswith("relu1")]) == 3
    assert len(found) + len(left) == 19


@pytest.mark.parametrize("c2", [-0.1, 0.0, 1e-6, 1e4])
def test_a_channel_that_cannot_be_carried_keeps_its_site_as_it_is(c2):
    model = masked(resnet8(5, 3), 0.3, Quadratic())
    sites = list(model.sites)
    assert sites[1] in rid(lower(model))[0]
    model.masked()[1].c2.data[3] = c2
    program = check_same(model, torch.randn(2, 3, 8, 8))
    assert sites[1] in rid(program)[1]


def test_a_channel_that_keeps_all_has_no_square_to_ask_for():
    model = masked(resnet8(5, 3), 0.3, Quadratic())
    keep = {site: kept.clone() for site, kept in model.mask.items()}
    name = list(model.sites)[1]
    keep[name][3] = True
    model.set_mask(Mask(keep))
    model.masked()[1].c2.data[3] = -1
    assert name in rid(check_same(model, torch.randn(2, 3, 8, 8)))[0]


def test_what_is_told_of_a_parabola():
    """One power of two a site, however its coefficients differ from channel to channel."""
    model = masked(resnet8(5, 3), 0.3, Quadratic())
    for activation in model.masked():
        activation.c2.data.copy_(torch.linspace(0.05, 0.08, len(activation.c2)).reshape(-1, 1, 1))
        activation.c1.data.copy_(torch.linspace(-1, 1, len(activation.c1)).reshape(-1, 1, 1))
    program = check_same(model, torch.randn(2, 3, 8, 8))
    assert len(rid(program)[0]) == 6
    for op in program.ops:
        if isinstance(op, Activation) and op.unit_square:
            kept = op.keep.reshape(len(op.factors), -1).any(1)
            assert op.factors == tuple(np.where(kept, 4, 1))  # 4 * 0.1 * 0.05 is the first that is not under 1 / 64


def test_scales_of_parabolas_are_bounded():
    model = masked(resnet20(10, 3), 0.1, Quadratic(), CIFAR)
    for activation in model.masked():
        activation.c2.data.uniform_(0.5, 20)
    assert rid(lower(model))[0]
    before, after = lower(model, ["carry"]).arrays, lower(model).arrays
    shared = [name for name in after if name in before and name.endswith("bias")]
    assert shared
    for name in shared:
        ratio = abs(after[name]) / abs(before[name]).clip(1e-12)
        assert ((ratio > SMALLEST * 0.99) & (ratio < LARGEST * 1.01))[abs(before[name]) > 1e-6].all()


@pytest.mark.parametrize(("high", "all_rid"), [(0.1, True), (8, False)])
def test_weights_do_not_become_too_faint(high, all_rid):
    """A site's c2 far below that of the site before it costs the weights between them bits, and so may be refused."""
    model, low = masked(resnet8(5, 3), 0.3, Quadratic()), 1 / 50
    for number, activation in enumerate(model.masked()):
        activation.c2.data.fill_((low, high)[number % 2] / Quadratic.scale)
    program, plain = check_same(model, torch.randn(2, 3, 8, 8)), lower(model.float(), ["carry"])
    found = rid(program)[0]
    assert found
    assert (len(found) == 7) == all_rid
    for name, weights in plain.arrays.items():
        if name.endswith("weight"):
            ratio = abs(program.arrays[name]) / abs(weights).clip(1e-12)
            assert (ratio > FAINTEST * 0.99)[abs(weights) > 1e-6].all()


class Standing(nn.Module):
    """A batch norm that no layer can take, for its factors have both signs, between two squares."""

    def __init__(self):
        super().__init__()
        self.stem, self.last, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 5)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        x = torch.relu(self.norm(torch.relu(self.stem(x))))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


def test_nor_do_private_scales():
    model = masked(Standing(), 0.3, Quadratic())
    model.model.norm.weight.data = torch.tensor([1, -1, 1, -1.0])
    for activation, c2 in zip(model.masked(), (8, 1 / 50, 8), strict=True):
        activation.c2.data.fill_(c2 / Quadratic.scale)
    program, plain = check_same(model, torch.randn(2, 3, 8, 8)), lower(model.float(), ["carry"])
    (scale,) = [op.scale for op in program.ops if isinstance(op, Scale) and op.scale]
    assert (abs(program.arrays[scale]) >= FAINTEST * 0.99 * abs(plain.arrays[scale])).all()
    assert len(rid(program)[0]) == 2


def test_hermite_squares_are_rid_of_their_factors():
    model = masked(resnet8(5, 3), 0.0, Hermite())
    assert rid(check_same(model, torch.randn(2, 3, 8, 8)))[0]


class Twice(nn.Module):
    """A scale that reads another, and a sum of both."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x):
        y = torch.relu(self.stem(x))
        return self.head((y + torch.relu(y)).mean((2, 3)))


@pytest.mark.parametrize("surrogate", [Reciprocal(), Quadratic()])
def test_scales_that_read_each_other(surrogate):
    check_same(masked(Twice(), 0.0, surrogate), torch.randn(2, 3, 8, 8))


def test_a_square_that_contradicts_itself_is_refused():
    """What the other party says of squares is not taken on trust; what is right comes back the same."""
    program = lower(masked(resnet8(5, 3), 0.3, Quadratic()))
    assert Program.from_public(program.public()).digest == program.digest
    for change in ({"unit_square": True, "c2": "layer1.0.conv1.weight"}, {"unit_square": True, "keep_all": True}):
        value = program.public()
        op = next(op for op in value["ops"] if op["kind"] == "activation" and op["unit_square"])
        if change.pop("keep_all", False):
            size = op["keep"]["bits"]
            ones = base64.b64encode(np.packbits(np.ones(size, np.bool_)).tobytes()).decode()
            change |= {"keep": {"bits": size, "base64": ones}, "c0": None, "c1": None}
        op |= change
        with pytest.raises(UsageError, match=r"squares with c2 and one, or of nothing|coefficients|array"):
            Program.from_public(value)
