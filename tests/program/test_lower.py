"""A lowered model computes what the model does, in fewer operations, and refuses what no program has."""

import pytest
import torch
import torch.nn.functional as F
from interpret import interpret
from torch import nn
from torch.utils import _pytree as pytree
from zoo import Concat, DataFlow, NotReLU, ShapeFlow, SharedBlock, Spellings, TwoOutputs

from reluctant.errors import SiteError, UnsupportedOperation
from reluctant.mask import Mask
from reluctant.masked import MaskedModel, attach
from reluctant.models.resnet import resnet8, resnet18
from reluctant.program.lower import lower
from reluctant.program.operations import Activation, Conv2d, Linear, Reshape, Scale
from reluctant.sites import find_sites
from reluctant.surrogates import Affine, Constant, Identity, Quadratic, Reciprocal, Shift

IMAGE = (3, 8, 8)


def masked(model, share=0.5, surrogate=None, shape=IMAGE) -> MaskedModel:
    """The model with lively batch norms and a random mask."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
    found = attach(model, find_sites(model, torch.zeros(1, *shape)), surrogate or Identity()).eval()
    for parameter in found.constants():
        parameter.data.uniform_(0.2, 0.8)
    for activation in found.masked():
        if activation.divisor is not None:
            activation.divisor.random_(1, 6)
    return found.set_mask(Mask({name: torch.rand(site.shape) < share for name, site in found.sites.items()}))


def check_same(model: MaskedModel, shape=IMAGE, without=()):
    """Return the program of ``model`` once it has given the model's outputs."""
    program = lower(model, without)
    images = torch.randn(3, *shape)
    with torch.no_grad():
        expected = pytree.tree_leaves(model(images))
    found = interpret(program, images)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() < 1e-4
    return program


def kinds(program):
    return [op.kind for op in program.ops]


class PreActivation(nn.Module):
    """Batch norm and ReLU before each convolution, as in wide residual networks."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.bn1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.bn3, self.head = nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return self.head(F.relu(self.bn3(x)).mean((2, 3)))


class Odds(nn.Module):
    """Every layout and arithmetic operation that a program holds."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding="same", padding_mode="zeros")
        self.grouped = nn.Conv2d(8, 8, (3, 1), stride=(2, 1), padding=(1, 0), groups=2)
        self.bn = nn.BatchNorm2d(8)
        self.scale, self.shift = nn.Parameter(torch.rand(4, 1, 1) + 0.5), nn.Parameter(torch.rand(4, 8, 8))
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(4 * 16, 5)
        self.matrix = nn.Parameter(torch.randn(5, 4))

    def forward(self, x):
        x = 1.5 - self.conv(x) * self.scale / 2 + self.shift
        x = x.relu_()
        shortcut = F.pad(x, (0, 0, 0, 0, 2, 2))
        x = torch.cat([x, torch.zeros_like(x)], 1)
        x = self.bn(self.grouped(x.sub(shortcut, alpha=0.5))).contiguous()
        a, b = x.chunk(2, 1)
        x = torch.add(a, -b, alpha=0.25)[:, :, ::2, 1:5].clone()
        x = F.max_pool2d(F.pad(x, (1, 0, 2, 1)), 3, 2, 1)
        x = self.drop(x)
        x = torch.flatten(F.relu(x), 1)
        x = F.pad(x, (0, 4 * 16 - x.shape[1]))
        return torch.mm(self.head(x).unsqueeze(2).squeeze(2), self.matrix) + 1


@pytest.mark.parametrize(
    "surrogate", [Identity(), Shift(), Constant(), Reciprocal(), Affine(), Quadratic()], ids=lambda s: s.name
)
@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("model", [resnet8, PreActivation], ids=["resnet", "preactivation"])
def test_surrogates(model, surrogate, share):
    network = model(5, 3) if model is resnet8 else model()
    program = check_same(masked(network, share, surrogate))
    assert "scale" not in kinds(program) or isinstance(surrogate, Affine | Shift | Reciprocal) or model is PreActivation


@pytest.mark.parametrize("model", [Spellings, SharedBlock, Concat, TwoOutputs, ShapeFlow], ids=lambda m: m.__name__)
@pytest.mark.parametrize("share", [1.0, 0.4, 0.0])
def test_zoo(model, share):
    program = check_same(masked(model(), share))
    assert len(program.sites) == len(find_sites(model(), torch.zeros(1, *IMAGE)))


def test_layouts_and_arithmetic():
    program = check_same(masked(Odds(), 0.5))
    assert {"conv2d", "add", "concat", "maxpool", "pad", "slice", "linear"} - set(kinds(program)) <= {"concat"}


def test_the_model_is_left_as_it_was():
    model = masked(resnet8(5, 3)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lower(model)
    assert model.training
    assert len(model.masked()) == 7
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_batch_norms_fold_into_convolutions():
    program = lower(masked(resnet8(5, 3)))
    assert kinds(program).count("conv2d") == 9
    assert "scale" not in kinds(program)


def test_scales_before_activations_move_behind_them():
    """Of x -> s x + b only the free sum stays before a ReLU; the products go into the next layer."""
    program = check_same(masked(PreActivation(), 0.5, Shift()))
    scales = [op for op in program.ops if isinstance(op, Scale)]
    assert len(scales) == 2  # after the stem and before the head; the one between folds into conv1
    assert all(op.scale is None and op.bias is not None for op in scales)


@pytest.mark.parametrize("weight", [-1.0, 0.0, 1e-6])
def test_scale_that_one_should_not_divide_by_stays_before_the_activation(weight):
    network = masked(PreActivation(), 0.5)
    network.model.bn1.weight.data[0] = weight
    program = check_same(network)
    assert any(isinstance(op, Scale) and op.scale is not None for op in program.ops)


def test_empty_site_with_identity_vanishes():
    network = masked(resnet8(5, 3), 0.5)
    name = next(iter(network.sites))
    keep = dict(network.mask.items())
    keep[name] = torch.zeros_like(keep[name])
    program = check_same(network.set_mask(Mask(keep)))
    assert program.sites[0].name == name
    assert program.sites[0].kept == 0
    assert name not in {op.site for op in program.activations()}
    assert len(list(program.activations())) == 6


def test_full_mask_has_no_coefficients():
    program = lower(masked(resnet8(5, 3), 1.0, Quadratic()))
    assert all(not op.arrays() for op in program.ops if isinstance(op, Activation))


class Narrowing(nn.Module):
    """Two linear layers and two pairs of convolutions, of which one layer is a ReLU away from vanishing."""

    def __init__(self, wide):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 2, 3, stride=2, padding=1), nn.Conv2d(2, 6, 1, stride=2)
        self.c, self.d = nn.Conv2d(6, 4, 1, bias=False), nn.Conv2d(4, 6, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(6, wide), nn.Linear(wide, 5)

    def forward(self, x):
        x = F.relu(self.b(F.relu(self.a(x))))
        return self.fc2(F.relu(self.fc1(self.d(self.c(x)).mean((2, 3)))))


@pytest.mark.parametrize(("wide", "linear"), [(20, 1), (2, 2)])
def test_linear_stretches_merge_where_that_is_no_dearer(wide, linear):
    program = check_same(masked(Narrowing(wide), 0.0), without=["collapse"])
    assert kinds(program).count("linear") == linear
    dense = lower(masked(Narrowing(wide), 1.0), without=["collapse"])
    assert sum(program.macs().values()) < sum(dense.macs().values())
    convolutions = [op for op in program.ops if isinstance(op, Conv2d)]
    assert len(convolutions) < 4


def test_macs_of_resnet18():
    """0.56 G multiply-accumulates with a 3x3 stem on 32x32 (He et al. count 1.8 G on 224x224)."""
    program = lower(masked(resnet18(10, 3), 1.0, shape=(3, 32, 32)))
    assert sum(program.macs().values()) == 555_422_720
    assert program.kept == 557_056


def test_flattening_is_row_major_over_channels():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 2, 1), nn.Linear(2 * 64, 5)

        def forward(self, x):
            return self.head(F.relu(self.conv(x)).view(x.shape[0], -1))

    program = check_same(masked(Flat()))
    assert [op.shape for op in program.ops if isinstance(op, Reshape)] == [(128,)]
    assert sum(isinstance(op, Linear) for op in program.ops) == 1


class Wrapped(nn.Module):
    """A ReLU and then whatever is to be refused."""

    def __init__(self, function, channels=4):
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, channels, 3, padding=1), function

    def forward(self, x):
        return self.function(F.relu(self.conv(x)))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: F.softmax(x.mean((2, 3)), 1), ["_softmax", "leave it out"]),
        (lambda x: F.silu(x), ["silu", "swap_activations"]),
        (lambda x: F.relu6(x), ["hardtanh", "swap_activations"]),
        (lambda x: x * x, ["aten.mul", "two values that both depend on the input"]),
        (lambda x: 1 / x, ["no secure program has it"]),
        (lambda x: x.flatten(2) @ x.flatten(2).transpose(1, 2), ["aten"]),
        (lambda x: F.conv_transpose2d(x, torch.ones(4, 2, 2, 2)), ["it is transposed"]),
        (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), ["count_include_pad=True"]),
        (lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True), ["ceil_mode=False"]),
        (lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True), ["ceil_mode=False"]),
        (lambda x: F.adaptive_avg_pool2d(x, 3), ["do not divide"]),
        (lambda x: F.dropout(x), ["use nn.Dropout"]),
        (lambda x: x + torch.randn(4, 1, 1), ["draws random numbers"]),
        (lambda x: x.reshape(-1, 8, 8), ["not one of 2 images apart"]),
        (lambda x: x - x.mean(0), ["more than height and width"]),
        (lambda x: x.permute(0, 2, 3, 1), ["permute"]),
        (lambda x: F.batch_norm(x, None, None, training=True), ["track_running_stats"]),
        (lambda x: F.layer_norm(x, [8, 8]), ["layer_norm", "batch norm"]),
        (lambda x: torch.cat([x, x], 2), ["another axis than the channels"]),
        (lambda x: F.pad(x, (1, 1), value=1.0), ["something else than zeros"]),
        (lambda x: x.double().mean((2, 3)), ["changes the type"]),
        (lambda x: torch.ones(2, 5), ["does not depend on its input"]),
    ],
)
def test_what_no_program_has_is_refused_with_its_line_and_a_way_out(function, words):
    with pytest.raises(UnsupportedOperation) as caught:
        lower(masked(Wrapped(function)))
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    if "does not depend" not in message:
        assert "test_lower.py:" in message


def test_values_that_steer_the_model_are_refused():
    with pytest.raises((UnsupportedOperation, SiteError), match=r"depends on (the values|data)"):
        lower(masked(DataFlow()))


def test_a_comparison_of_values_is_refused():
    with pytest.raises(UnsupportedOperation, match=r"zoo\.py:\d+"):
        lower(masked(NotReLU()))


def test_shape_of_another_size_is_not_lowered_by_accident():
    program = lower(masked(ShapeFlow(), shape=(3, 16, 16)))
    assert program.input_shape == (3, 16, 16)
    assert len(program.sites) == 3
