"""The masked model: same outputs with a full mask, right ones with any other, and nothing fires unseen."""

import copy
import subprocess
import sys

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from reluctant.distillation import logits
from reluctant.errors import ShapeError, SiteError
from reluctant.mask import Mask
from reluctant.masked import MaskedActivation, attach
from reluctant.methods.snl import SoftGate
from reluctant.sites import ActivationSite, find_sites
from reluctant.surrogates import SURROGATES, Affine, Hermite, Identity, Quadratic, Shift

SURROGATE_KINDS = list(SURROGATES.values())


def images(count=4):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("network", zoo.LINEARIZABLE)
@pytest.mark.parametrize("surrogate", SURROGATE_KINDS)
def test_a_full_mask_changes_nothing(network, surrogate):
    torch.manual_seed(0)
    model = network().eval()
    masked = attach(model, find_sites(model, images(1)), surrogate())
    assert torch.equal(logits(masked(images())), logits(model(images())))
    assert masked.model.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("network", zoo.LINEARIZABLE)
def test_dropped_sites_are_linear_and_the_original_is_untouched(network):
    torch.manual_seed(0)
    model = network().eval()
    before = logits(model(images()))
    masked = attach(model, find_sites(model, images(1)))
    changed = masked.with_mask(~masked.mask)
    assert changed.mask.kept == 0
    assert masked.mask.kept == masked.sites.total
    assert not torch.allclose(logits(changed(images())), before)
    assert torch.equal(logits(model(images())), before)


def test_in_place_calls_still_overwrite_their_input():
    class Reuses(nn.Module):
        def forward(self, x):
            y = x * 1
            torch.relu_(y)
            return y + 1

    model = Reuses()
    masked = attach(model, find_sites(model, torch.zeros(1, 3)))
    half = masked.with_mask(Mask({":relu": torch.tensor([True, False, True])}))
    assert half(torch.tensor([[-1.0, -1.0, 2.0]])).tolist() == [[1.0, 0.0, 3.0]]


@pytest.mark.parametrize("network", zoo.LINEARIZABLE)
@pytest.mark.parametrize("surrogate", [Shift, Quadratic])
def test_every_network_can_be_trained_with_gates_and_without(network, surrogate):
    model = network()
    masked = attach(model, find_sites(model, images(1)), surrogate()).train()
    with masked.gates(SoftGate) as gates:
        logits(masked(images())).square().sum().backward()
        assert all(gate.alpha.grad is not None for gate in gates.values())
    masked.zero_grad()
    masked.set_mask(~masked.mask)
    logits(masked(images())).square().sum().backward()
    assert all(constant.grad is not None for constant in masked.constants())


@pytest.mark.parametrize("surrogate", SURROGATE_KINDS)
def test_activation_is_where_keep_relu_else_polynomial(surrogate):
    site = ActivationSite("s", "", (2, 3, 3), 0)
    activation = MaskedActivation(site, surrogate()).eval()
    activation.start(torch.tensor([0.3, -0.5]), torch.tensor([1.0, 2.0]))
    activation.keep.copy_(torch.rand(2, 3, 3) > 0.5)
    z = torch.randn(5, 2, 3, 3)
    c0, c1, c2 = activation.coefficients()
    expected = torch.where(activation.keep, z.relu(), c0 + c1 * z + c2 * z**2)
    torch.testing.assert_close(activation(z), expected)


def test_deep_copies_do_not_share_state():
    model = zoo.SharedBlock().eval()
    masked = attach(model, find_sites(model, images(1)))
    twin = copy.deepcopy(masked)
    twin.set_mask(~masked.mask)
    assert masked.mask.kept == masked.sites.total
    assert torch.equal(masked(images()), model(images()))
    assert twin._stack is not masked._stack
    twin(images())
    assert not masked._stack.paths


def test_sites_that_appear_only_in_training_are_not_missed():
    masked = attach(zoo.TrainingOnly(), find_sites(zoo.TrainingOnly(), images(1)))
    masked.eval()(images())
    with pytest.raises(SiteError, match=r"fired at zoo\.py:\d+ .* was not there"):
        masked.train()(images())


def test_sites_that_stay_silent_are_not_missed():
    model = zoo.DataFlow().eval()
    bright = torch.full((1, 3, 8, 8), 9.0)
    nn.init.constant_(model.conv.weight, 0.1)
    sites = find_sites(model, bright)
    assert len(sites) == 2
    masked = attach(model, sites)
    with pytest.raises(SiteError, match=r"1 of 2 sites did not fire in this pass, first :relu#2 \(zoo\.py:\d+\)"):
        masked(torch.zeros(1, 3, 8, 8))


def test_another_input_size_is_refused():
    model = zoo.SharedBlock().eval()
    masked = attach(model, find_sites(model, images(1)))
    with pytest.raises(ShapeError, match=r"its mask is of \(6, 8, 8\): the model was linearized for inputs"):
        masked(torch.zeros(1, 3, 16, 16))


def test_a_mask_of_other_sites_is_refused():
    model = zoo.SharedBlock()
    masked = attach(model, find_sites(model, images(1)))
    with pytest.raises(ShapeError, match="the mask is of 1 sites"):
        masked.set_mask(Mask({"x": torch.ones(3, dtype=torch.bool)}))


@settings(max_examples=25, deadline=None)
@given(st.floats(-2, 2), st.floats(0.3, 3))
@pytest.mark.parametrize("surrogate", [Shift, Affine, Quadratic])
def test_fits_are_the_least_squares_ones(surrogate, mean, std):
    """Closed forms against a numerical least squares on the normal density."""
    t = torch.linspace(-8, 8, 4001, dtype=torch.double)
    z, weight = mean + std * t, torch.exp(-(t**2) / 2).sqrt()
    columns = [z**degree for degree, term in enumerate(surrogate.terms) if term in ("channel", "element")]
    target = z.relu() - (z if surrogate is Shift else 0)
    solved = torch.linalg.lstsq(torch.stack(columns, 1) * weight[:, None], (target * weight)[:, None]).solution
    fit = surrogate().fit(torch.tensor([mean], dtype=torch.double), torch.tensor([std], dtype=torch.double))
    trained = [c for c, term in zip(fit, surrogate.terms, strict=True) if term in ("channel", "element")]
    torch.testing.assert_close(torch.cat(trained), solved.flatten(), atol=1e-4, rtol=1e-4)


def test_the_unit_normal_fit_is_the_known_parabola():
    c0, c1, c2 = Quadratic().fit(torch.zeros(1), torch.ones(1))
    assert (float(c0), float(c1), float(c2)) == pytest.approx((0.1995, 0.5, 0.1995), abs=1e-4)


def test_surrogates_start_from_what_the_sites_see():
    torch.manual_seed(0)
    model = zoo.SharedBlock().eval()
    masked = attach(model, find_sites(model, images(1)), Affine())
    batch = images(64)
    masked.start_surrogates(batch)
    z = model.bn(model.conv(model.stem(batch))).transpose(0, 1).flatten(1)
    expected = Affine().fit(z.mean(1), z.std(1))
    torch.testing.assert_close(masked.masked()[0].c1.flatten(), expected[1])


COMPILED = """
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from reluctant.mask import Mask
from reluctant.masked import attach
from reluctant.sites import find_sites

x = torch.randn(4, 3, 8, 8)
model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))
masked = attach(model.eval(), find_sites(model, x[:1]))
masked.set_mask(Mask({"2": torch.rand(4, 8, 8) > 0.5}))
torch.testing.assert_close(torch.compile(masked, backend="eager", fullgraph=True)(x), masked(x))
"""


def test_a_compiled_masked_model_gives_the_same_without_graph_breaks():
    """In a process of its own: run-time checks of annotations do not compile."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_activation_checkpointing_is_refused_rather_than_wrong():
    class Recomputes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            def part(x):
                return self.conv(x).relu()

            return checkpoint(part, x, use_reentrant=True) if self.training else part(x)

    masked = attach(Recomputes(), find_sites(Recomputes(), images(1)))
    masked.eval()(images())
    with pytest.raises(SiteError, match="while the network is trained; is that activation checkpointing"):
        masked.train()(images().requires_grad_())


def test_a_masked_network_is_not_masked_again():
    model = zoo.SharedBlock()
    masked = attach(model, find_sites(model, images(1)))
    with pytest.raises(SiteError, match="masked already"):
        attach(masked, masked.sites)


@pytest.mark.parametrize("surrogate", [Quadratic(), Quadratic(scale=2.0), Affine()])
def test_what_runs_at_the_start_is_the_fit_whatever_the_scale(surrogate):
    activation = MaskedActivation(ActivationSite("s", "", (2, 3, 3), 0), surrogate)
    mean, std = torch.tensor([0.3, -0.5]), torch.tensor([1.0, 2.0])
    activation.start(mean, std)
    for coefficient, value in zip(activation.coefficients(), surrogate.fit(mean, std), strict=True):
        torch.testing.assert_close(coefficient.expand(2, 1, 1).flatten(), value)


def test_hermite_is_normalised_by_the_batch_in_training_and_by_running_statistics_after_it():
    site = ActivationSite("s", "", (2, 4, 4), 0)
    activation = MaskedActivation(site, Hermite())
    activation.keep.fill_(False)
    torch.manual_seed(0)
    z = 3 * torch.randn(512, 2, 4, 4) + torch.tensor([1.0, -2.0]).reshape(2, 1, 1)
    with torch.no_grad():
        activation.c0.zero_()
        activation.c1.fill_(1.0)
    y = activation.train()(z)
    u, s = z.mean((0, 2, 3), keepdim=True), z.std((0, 2, 3), keepdim=True)
    square = (z**2 - 1) / 2**0.5
    second = (square - square.mean((0, 2, 3), keepdim=True)) / square.std((0, 2, 3), keepdim=True)
    torch.testing.assert_close(y, 0.5 * (z - u) / s + second / (2 * torch.pi**0.5), rtol=1e-3, atol=1e-3)
    assert (activation.eval()(z) - y).abs().max() > 0.1  # the running ones have only begun to follow
    for _ in range(100):
        activation.train()(z)
    torch.testing.assert_close(activation.eval()(z), y, rtol=1e-3, atol=1e-3)


def test_hermite_starts_near_relu_and_its_outputs_do_not_grow_with_its_input():
    activation = MaskedActivation(ActivationSite("s", "", (1, 8, 8), 0), Hermite())
    activation.keep.fill_(False)
    activation.start(torch.zeros(1), torch.full((1,), 2.0))
    torch.manual_seed(0)
    z = 2 * torch.randn(256, 1, 8, 8)
    error = (activation.eval()(z) - z.relu()).square().mean() / z.relu().square().mean()
    assert error < 0.03  # 0.0113 / 0.5 at best
    torch.testing.assert_close(activation.train()(1000 * z).std(), activation(z).std(), rtol=1e-3, atol=0)


def gradients(model):
    """Those of all parameters that have one."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("network", zoo.LINEARIZABLE)
@pytest.mark.parametrize("surrogate", [Identity, Shift, Quadratic])
def test_recomputed_outputs_give_the_gradients_of_kept_ones_bit_for_bit(network, surrogate, monkeypatch):
    masked = attach(network(), find_sites(network(), images(1)), surrogate()).train()
    found = []
    with masked.gates(SoftGate):
        for recompute in (True, False):
            if not recompute:
                monkeypatch.setattr("reluctant.masked.Outputs.watch", lambda *args: None)
            masked.zero_grad()
            torch.manual_seed(0)
            logits(masked(images())).square().sum().backward()
            found.append(gradients(masked))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("inplace", [False, True])
def test_a_gated_site_leaves_no_output_behind_for_the_backward_pass(inplace):
    convolutions = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace), nn.Conv2d(4, 4, 3), nn.Flatten())
    model = nn.Sequential(*convolutions, nn.Linear(64, 2))
    masked = attach(model, find_sites(model, images(1)))
    outputs = []
    masked.model[2].register_forward_hook(lambda m, i, y: outputs.append(StorageWeakRef(y.untyped_storage())))
    with masked.gates(SoftGate):
        loss = masked(images()).sum()
        assert outputs[0].expired()
        loss.backward()


class Reads(nn.Module):
    """A site whose output is read by ``second``, and what ``change`` does in between."""

    def __init__(self, change):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.change = change

    def forward(self, x):
        z = self.first(x)
        y = z.relu()
        return self.change(self, x, z, y)


def changes_the_input(net, x, z, y):
    out = net.second(y)
    return net.third(z.add_(out))


def changes_another_value(net, x, z, y):
    return net.second(y) + net.third(x.sigmoid().mul_(2) if not x.requires_grad else net.first(x).sigmoid().mul_(2))


@pytest.mark.parametrize("change", [changes_the_input, changes_another_value])
def test_what_the_backward_pass_needs_is_still_checked(change):
    """As by autograd everywhere: an error, not a gradient of other values."""
    model = Reads(change)
    masked = attach(model, find_sites(model, torch.zeros(1, 3)))
    with masked.gates(SoftGate), pytest.raises(RuntimeError, match="modified by an inplace operation"):
        masked(torch.randn(5, 3, requires_grad=True)).sum().backward()


def test_gates_must_not_change_before_the_backward_pass():
    model = Reads(lambda net, x, z, y: net.second(y))
    masked = attach(model, find_sites(model, torch.zeros(1, 3)))
    with masked.gates(SoftGate) as gates:
        loss = masked(torch.randn(5, 3)).sum()
        with torch.no_grad():
            next(iter(gates.values())).alpha.mul_(0.5)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_a_detached_head_has_its_own_backward_pass():
    model = Reads(lambda net, x, z, y: (net.second(y), net.third(y.detach())))
    masked = attach(model, find_sites(model, torch.zeros(1, 3)))
    with masked.gates(SoftGate):
        one, other = masked(x := torch.randn(5, 3))
        one.sum().backward()
        other.sum().backward()
    for output in model(x):
        output.sum().backward()
    torch.testing.assert_close(gradients(masked.model), gradients(model))


def test_hooks_of_the_caller_see_what_they_saw():
    model = Reads(lambda net, x, z, y: net.second(y))
    masked = attach(model, find_sites(model, torch.zeros(1, 3)))
    seen = []
    with (
        masked.gates(SoftGate),
        torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t),
    ):
        loss = masked(torch.randn(5, 3)).sum()
    assert len(seen) >= 5
    loss.backward()


def test_second_derivatives_are_refused_rather_than_wrong():
    model = Reads(lambda net, x, z, y: net.second(y))
    masked = attach(model, find_sites(model, torch.zeros(1, 3)))
    (gradient,) = torch.autograd.grad(masked(torch.randn(5, 3)).sum(), masked.model.first.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_recomputation_under_autocast():
    masked = attach(
        model := nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), find_sites(model, images(1))
    )
    outputs = []
    masked.model[1].register_forward_hook(lambda m, i, y: outputs.append(StorageWeakRef(y.untyped_storage())))
    with masked.gates(SoftGate) as gates:
        with torch.autocast("cpu", torch.bfloat16):
            loss = masked(images()).float().sum()
        assert outputs[0].expired()
        loss.backward()
        assert all(gate.alpha.grad is not None for gate in gates.values())


def test_an_output_that_is_changed_afterwards_is_kept_as_it_was_used():
    class Changes(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            y = self.first(x).relu()
            return self.second(y.add_(1) if self.training else y + 1)

    torch.manual_seed(0)
    model = Changes()
    masked = attach(model, find_sites(model, torch.zeros(1, 3)))
    x = torch.randn(5, 3)
    with masked.gates(SoftGate):
        masked(x).square().sum().backward()
    model.eval()(x).square().sum().backward()
    for parameter, right in zip(masked.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, right.grad)
