"""Linear stretches become one product where that is cheaper, and the answer stays the same."""

import pytest
import torch
from interpret import interpret
from test_lower import PreActivation, check_same, kinds, masked
from torch import nn

from reluctant.errors import UnknownName, UnsupportedOperation
from reluctant.mask import Mask
from reluctant.models.resnet import resnet8
from reluctant.program import affine, collapse
from reluctant.program.collapse import straighten
from reluctant.program.lower import REWRITES, lower
from reluctant.program.operations import Activation, Add, Conv2d, Linear, Reshape
from reluctant.surrogates import Affine, Constant, Identity, Quadratic, Reciprocal, Shift

IMAGE = (3, 16, 16)


def emptied(model, share, empty, surrogate=None):
    """The model with a random mask that keeps nothing at its last ``empty`` sites."""
    found = masked(model, share, surrogate, IMAGE)
    names = list(found.sites)[-empty:]
    keep = {name: found.mask[name] & (name not in names) for name in found.sites}
    return found.set_mask(Mask(keep))


@pytest.mark.parametrize("surrogate", [Identity(), Shift(), Reciprocal(), Affine()], ids=lambda s: s.name)
@pytest.mark.parametrize("model", [resnet8, PreActivation], ids=["resnet", "preactivation"])
def test_network_without_relus_is_one_affine_map(model, surrogate):
    program = check_same(masked(model(5, 3) if model is resnet8 else model(), 0.0, surrogate, IMAGE), IMAGE)
    assert kinds(program) == ["reshape", "linear"]
    assert program.array_shapes[program.ops[1].weight] == (5, 3 * 16 * 16)


@pytest.mark.parametrize("surrogate", [Identity(), Shift(), Reciprocal(), Constant()], ids=lambda s: s.name)
def test_tail_without_relus_is_one_product_for_each_value_that_enters_it(surrogate):
    network = emptied(resnet8(5, 3), 0.3, 2, surrogate)
    program = check_same(network, IMAGE)
    after = [op.kind for op in program.ops[[isinstance(op, Activation) for op in program.ops][::-1].index(True) * -1 :]]
    assert "conv2d" not in after
    assert len([op for op in program.ops if isinstance(op, Activation) and op.keep.any()]) == 5
    whole = lower(network, without=["collapse"])
    assert sum(program.macs().values()) < sum(whole.macs().values())
    assert [site.kept for site in program.sites] == [site.kept for site in whole.sites]


def test_shortcut_that_enters_the_tail_is_a_product_of_its_own():
    network = emptied(resnet8(5, 3), 0.3, 1)
    linears = [op for op in check_same(network, IMAGE).ops if isinstance(op, Linear)]
    assert len(linears) == 2  # the residual branch's last activation, and the block's input


def test_squares_are_no_linear_stretch():
    program = check_same(masked(resnet8(5, 3), 0.0, Quadratic(), IMAGE), IMAGE)
    assert kinds(program).count("activation") == 7


def test_dearer_stretch_stays():
    """A convolution between two activations has fewer multiply-accumulates than its matrix."""
    program = check_same(masked(resnet8(5, 3), 0.3, None, IMAGE), IMAGE)
    assert kinds(program).count("linear") == 1
    assert kinds(program).count("conv2d") == 9


def test_value_that_is_needed_elsewhere_is_still_made():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            shared = self.conv1(x)
            return self.head(self.conv2(shared).mean((2, 3))), torch.relu(shared)

    program = check_same(masked(Both(), 0.5, None, IMAGE), IMAGE)
    assert kinds(program).count("conv2d") == 1


def test_rewrites_can_be_left_out():
    network = masked(resnet8(5, 3), 0.0, Reciprocal(), IMAGE)
    for rewrite in REWRITES:
        assert len(lower(network, without=[rewrite]).ops) >= 2
    assert kinds(lower(network, without=["collapse", "carry"])).count("scale") > 0
    with pytest.raises(UnknownName, match="unknown rewrite 'fold'"):
        lower(network, without=["fold"])


class Bare(nn.Module):
    """Activations with nothing linear before, between or behind them."""

    def forward(self, x):
        return torch.relu(torch.relu(x).flatten(1))


@pytest.mark.parametrize("model", [lambda: resnet8(5, 3, width=2), PreActivation, Bare])
def test_straight_programs_are_matrices_between_squares(model):
    program = lower(masked(model(), 0.0, Quadratic(), (3, 8, 8)))
    straight = straighten(program)
    for op in straight.ops:
        assert isinstance(op, Linear | Add | Reshape | Activation)
    entering = {name for op in straight.activations() for name in op.inputs} | set(straight.outputs)
    assert not entering & {op.output for op in straight.activations()}
    images = torch.randn(3, 3, 8, 8)
    for made, expected in zip(interpret(straight, images), interpret(program, images), strict=True):
        torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)


def test_a_matrix_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(collapse, "LARGEST_MATRIX", 1000)
    with pytest.raises(UnsupportedOperation, match=r"is a matrix of .* numbers, expected at most 1,000"):
        straighten(lower(masked(resnet8(5, 3, width=2), 0.0, Quadratic(), (3, 8, 8))))


class Convolved(nn.Module):
    """A convolution alone between two activations."""

    def __init__(self, stride, padding, dilation, bias):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv = nn.Conv2d(6, 8, (3, 2), stride, padding, dilation, bias=bias)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        return self.head(torch.relu(self.conv(torch.relu(self.stem(x))))).mean((2, 3))


@pytest.mark.parametrize("limit", [1 << 22, 0], ids=["written down", "sent through"])
@pytest.mark.parametrize(
    "settings",
    [(1, 1, 1, True), ((1, 2), (2, 1), 1, False), (1, (3, 2), 2, True), (2, 2, (1, 2), False)],
    ids=["plain", "strided", "dilated", "both"],
)
def test_a_convolution_is_the_matrix_of_its_weights(settings, limit, monkeypatch):
    """Whether its columns are read off the weights, or computed, as those of anything else."""
    monkeypatch.setattr(affine, "MOST_NUMBERS", limit)
    program = lower(masked(Convolved(*settings), 1.0, None, (3, 3, 4)))
    straight, images = straighten(program), torch.randn(3, 3, 3, 4)
    assert not any(isinstance(op, Conv2d) for op in straight.ops)
    for made, expected in zip(interpret(straight, images), interpret(program, images), strict=True):
        torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)
