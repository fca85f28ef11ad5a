"""StreamliNet, as reconstructed: negativity, metric, two solvers, consistency."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reluctant.errors import UsageError
from reluctant.linearization import linearize
from reluctant.loop import Counters
from reluctant.mask import Mask
from reluctant.masked import attach
from reluctant.methods.streamlinet import (
    Relaxed,
    Seen,
    StreamliNet,
    TopK,
    negativity,
    select,
    standardised,
)
from reluctant.prices import Prices, SitePrice
from reluctant.sites import find_sites
from reluctant.surrogates import Affine


@pytest.fixture
def masked(trained, few_digits):
    return attach(trained, find_sites(trained, few_digits.example))


def negativity_of(z, power=0.5):
    return negativity((z < 0).float().mean(0), z.clamp(max=0).neg().mean(0), z.abs().mean(0), power)


def test_negativity_is_zero_without_negative_inputs_and_one_without_others():
    z = torch.stack([torch.rand(50), -torch.rand(50) - 0.1, torch.randn(50), torch.zeros(50)], 1)
    for power in (0.0, 0.3, 0.5, 1.0):
        nu = negativity_of(z, power)
        torch.testing.assert_close(nu[:2], torch.tensor([0.0, 1.0]))
        assert 0 < nu[2] < 1
        assert nu[3] == 0
    assert negativity_of(z, 1.0)[2] == (z[:, 2] < 0).float().mean()
    torch.testing.assert_close(negativity_of(1000 * z), negativity_of(z))


def test_negativity_rises_as_inputs_sink():
    z = torch.randn(500, 1) - torch.linspace(-2, 2, 9)
    nu = negativity_of(z)
    assert torch.equal(nu.sort().values, nu)


def test_what_calibration_sees_is_of_the_dense_network(trained, masked, few_digits, make_job):
    seen = StreamliNet(images=16, batch=8).calibrate(masked, make_job(masked, few_digits, 0.5))
    caught = {}
    handle = trained.relu.register_forward_hook(lambda m, args, y: (y.retain_grad(), caught.update(z=args[0], y=y))[0])
    images, labels = few_digits.train.inputs(slice(16)), few_digits.train.labels[:16]
    F.cross_entropy(trained.eval()(images.requires_grad_()), labels, reduction="sum").backward()
    handle.remove()
    trained.zero_grad(set_to_none=True)
    torch.testing.assert_close(seen["relu"].negativity, negativity_of(caught["z"].detach()), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen["relu"].gradient, caught["y"].grad.square().mean(0), atol=1e-6, rtol=1e-3)


def test_the_metric_is_a_product_of_powers():
    seen = {"a": Seen(torch.full((4,), 0.2), torch.full((4,), 4.0)), "b": Seen(torch.full((9,), 0.4), torch.ones(9))}
    metric = StreamliNet().metric(seen)
    assert metric["a"] == pytest.approx(0.5 * 1.0, rel=1e-4)
    assert metric["b"] == pytest.approx(1.0 * 0.5, rel=1e-4)
    squared = StreamliNet(negativity_weight=2.0, gradient_weight=0.0, depth_weight=1.0).metric(seen)
    assert squared["a"] / squared["b"] == pytest.approx(0.25 * 0.5, rel=1e-4)
    even = StreamliNet(negativity_weight=0.0, gradient_weight=0.0).metric(seen)
    assert even["a"] == even["b"]


def test_a_global_budget_is_the_layers_share_of_the_best(masked, few_digits, make_job):
    job = make_job(masked, few_digits, 0.1)
    method = StreamliNet(images=64, budgets="global")
    seen = method.calibrate(masked, job)
    best = torch.cat([s.score.flatten() for s in seen.values()]).topk(int(job.limit)).values.min()
    counts = method.counts(seen, job)
    assert counts == {name: int((s.score >= best).sum()) for name, s in seen.items()}


class Lifted(nn.Module):
    """Its first ReLU never sees a negative input, its last one never any other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = torch.relu(self.conv1(x).square() + 1)
        x = torch.relu(self.conv2(x))
        return self.fc(torch.cat([x, torch.relu(-x - 1)], 1).mean((2, 3)))


@pytest.mark.parametrize("solver", ["topk", "relaxed"])
@pytest.mark.parametrize("consistency", ["pram", "full", "cost-weighted"])
def test_relus_without_negative_inputs_go_first(solver, consistency, few_digits, make_job):
    torch.manual_seed(0)
    network = Lifted()
    masked = attach(network, find_sites(network, few_digits.example))
    first, *others = masked.sites
    weight = 1000.0 if consistency == "pram" else 3.0
    method = StreamliNet(
        solver=solver, consistency=consistency, consistency_weight=weight, search_epochs=2, images=64, lr=0.01
    )
    mask = method.search(masked, make_job(masked, few_digits, 0.6))
    assert mask.kept == int(0.6 * masked.sites.total)
    assert mask.by_site()[first] == 0
    assert all(mask.by_site()[name] for name in others)
    assert all(parameter.isfinite().all() for parameter in masked.parameters())


def test_a_network_none_of_whose_inputs_is_negative_shares_evenly(few_digits, make_job):
    network = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(64, 10))
    masked = attach(network, find_sites(network, few_digits.example))
    train = dataclasses.replace(few_digits.train, mean=(0.0,))
    job = dataclasses.replace(make_job(masked, few_digits, 0.5), train=train)
    assert StreamliNet(search_epochs=1, images=64).search(masked, job).kept == 32


def test_standardised_scores_keep_their_order_and_equal_ones_are_zero():
    score = torch.rand(300) ** 3
    made = standardised(score)
    assert torch.equal(made.argsort(), score.argsort())
    assert float(made.mean()) == pytest.approx(0, abs=1e-5)
    assert float(made.std(correction=0)) == pytest.approx(1, abs=1e-4)
    for value in (0.0, 1e-20, 7.0):
        assert standardised(torch.full((5,), value)).abs().max() < 0.1


@pytest.fixture
def gated(tiny):
    masked = attach(tiny, find_sites(tiny, torch.zeros(1, 1, 8, 8)))
    start = torch.randn(4, 8, 8)
    with masked.gates(lambda activation: TopK(activation, start, 0.1)) as gates:
        (gate,) = gates.values()
        yield gate, start


def test_k_falls_as_a_cubic_and_then_stands():
    method = StreamliNet(fall=0.5)
    ks = [method.kept_now(step / 100, 20, 1020) for step in range(101)]
    assert ks[0] == 1020
    assert ks[25] == 20 + 125
    assert ks[50:] == [20] * 51
    assert ks == sorted(ks, reverse=True)


def test_the_best_scores_are_kept_and_a_little_better_is_not_enough(gated):
    gate, start = gated
    gate.choose(64)
    assert torch.equal(gate.keep.bool(), start >= start.flatten().topk(64).values.min())
    before = gate.keep.clone()
    weakest = start.masked_fill(gate.keep == 0, 9.0).argmin()
    strongest = start.masked_fill(gate.keep > 0, -9.0).argmax()
    least = float(start.flatten()[weakest])
    gate.score.data.flatten()[strongest] = least + 0.09
    gate.choose(64)
    assert torch.equal(gate.keep, before)
    gate.score.data.flatten()[strongest] = least + 0.11
    gate.choose(64)
    assert gate.keep.flatten()[strongest] == 1
    assert gate.keep.flatten()[weakest] == 0
    assert gate.keep.sum() == 64


def test_scores_get_the_gradient_of_their_relu_through_a_sigmoid(gated):
    gate, start = gated
    gate.choose(64)
    z, weight = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    (gate(z) * weight).sum().backward()
    chance = start.sigmoid()
    expected = (weight * (z.relu() - z)).sum(0) * chance * (1 - chance)
    torch.testing.assert_close(gate.score.grad, expected, atol=1e-5, rtol=1e-4)


def test_costs_are_of_mean_one_and_dead_or_negligible_units_do_not_break_them(gated):
    gate, _ = gated
    z = torch.randn(3, 4, 8, 8)
    z[:, 0] = -z[:, 0].abs()
    z[:, 1] = z[:, 1].abs()
    gate.train()(z)
    assert float(gate.cost.mean()) == pytest.approx(1, abs=1e-5)
    assert gate.cost[0].mean() > gate.cost[2:].mean() > gate.cost[1].max() == 0
    assert gate.cost.max() < 20
    gate(z.abs())
    assert gate.cost.abs().max() == 0


def test_the_cost_term_lowers_cheap_scores_against_dear_ones(gated):
    gate, _ = gated
    gate.score.data.zero_()
    gate.train()(torch.randn(3, 4, 8, 8))
    select({"a": gate}).backward()
    assert torch.equal(gate.score.grad.flatten().argsort(descending=True), gate.cost.flatten().argsort())


def test_consistency_is_zero_of_equal_features_and_weighted_by_cost_only_where_dropped(gated):
    gate, _ = gated
    gate.choose(64)
    gate.train()(torch.randn(3, 4, 8, 8))
    ours, theirs = {"a": torch.rand(3, 4, 8, 8)}, {"a": torch.rand(3, 4, 8, 8)}
    mixed = {"a": torch.where(gate.keep > 0, ours["a"], theirs["a"])}
    for kind in ("pram", "full", "cost-weighted"):
        method = StreamliNet(consistency=kind)
        assert method.inconsistency(theirs, theirs, {"a": gate}) < 1e-9
        assert method.inconsistency(ours, theirs, {"a": gate}) > 1e-4
        of_kept = method.inconsistency(mixed, theirs, {"a": gate})
        assert (of_kept < 1e-9) == (kind == "cost-weighted")
    full = StreamliNet(consistency="full")
    assert full.inconsistency({"a": 3 * theirs["a"]}, theirs, {"a": gate}) < 1e-9


def test_soft_gates_stay_between_their_bounds_and_a_layer_off_its_budget_is_pulled_harder(tiny):
    masked = attach(tiny, find_sites(tiny, torch.zeros(1, 1, 8, 8)))
    method = StreamliNet(solver="relaxed", penalty=2.0, growth=1.5)
    with masked.gates(Relaxed) as gates:
        (name,) = gates
        pull = Counters({name: {"weight": 2.0, "off": 1.0}})
        excess = method.excess(gates, {name: 56}, pull)
        assert float(excess.detach()) == pytest.approx(2.0 * 200 / 256)
        method._grow(gates, {name: 56}, pull)
        assert pull[name]["weight"] == 2.0  # nearer than at first
        method._grow(gates, {name: 56}, pull)
        assert pull[name]["weight"] == 3.0
        gates[name].score.data.normal_(0.5, 3.0)
        gates[name].bound()
        assert gates[name].score.min() == 0
        assert gates[name].score.max() == 1


@pytest.mark.parametrize("solver", ["topk", "relaxed"])
@pytest.mark.parametrize("budgets", ["metric", "global"])
def test_prices_hold(solver, budgets, masked, few_digits, make_job):
    prices = Prices({name: SitePrice(1.0 + place, 5.0) for place, name in enumerate(masked.sites)}, "bytes", 3.0)
    job = dataclasses.replace(make_job(masked, few_digits, 0.3), prices=prices)
    method = StreamliNet(solver=solver, budgets=budgets, search_epochs=1, images=64)
    mask = method.search(masked, job)
    assert isinstance(mask, Mask)
    assert 0.9 * job.limit < prices.cost(mask.by_site()) <= job.limit


def test_another_surrogate_is_trained_on_the_way(trained, few_digits, make_job):
    masked = attach(trained, find_sites(trained, few_digits.example), Affine())
    method = StreamliNet(surrogate=Affine(), search_epochs=1, images=64, batch=64)
    mask = method.search(masked, make_job(masked, few_digits, 0.1))
    assert mask.kept == masked.sites.total // 10
    fresh = attach(trained, masked.sites, Affine())
    fresh.start_surrogates(few_digits.train.inputs(slice(64)))
    assert any((a.c1 - b.c1).abs().max() > 1e-4 for a, b in zip(masked.masked(), fresh.masked(), strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "snl"}, "streamlinet.solver is 'snl', expected one of topk, relaxed"),
        ({"budgets": "uniform"}, "streamlinet.budgets is 'uniform', expected one of metric, global"),
        ({"consistency": "none"}, "streamlinet.consistency is 'none', expected one of pram, full, cost-weighted"),
        ({"power": 1.5}, "streamlinet.power is 1.5, expected at most 1"),
    ],
)
def test_settings_of_no_meaning_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        StreamliNet(**settings)


@pytest.mark.parametrize("solver", ["topk", "relaxed"])
def test_killed_it_ends_as_if_it_had_not_been(solver, trained, few_digits, fabric, tmp_path):
    method = StreamliNet(solver=solver, search_epochs=3, images=64)

    def killed(at, done, total, **metrics):
        if at == "search" and done > 4:
            raise KeyboardInterrupt

    whole = linearize(trained, method, "10%", few_digits, fabric=fabric)
    with pytest.raises(KeyboardInterrupt):
        linearize(trained, method, "10%", few_digits, fabric=fabric, directory=tmp_path, progress=killed)
    again = linearize(trained, method, "10%", few_digits, fabric=fabric, directory=tmp_path)
    assert again.mask == whole.mask
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in again.state_dict().items())
