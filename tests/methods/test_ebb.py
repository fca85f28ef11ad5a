"""Ebb: an exact budget at every step, scores of one scale, units that cost nothing."""

import copy

import pytest
import torch
import torch.nn.functional as F

from reluctant.errors import UsageError
from reluctant.mask import Mask
from reluctant.masked import attach
from reluctant.methods.ebb import Ebb, Scored, keep_best, quantiles
from reluctant.prices import Prices, SitePrice
from reluctant.sites import find_sites
from reluctant.surrogates import Identity, Reciprocal
from reluctant.training import Training, fit


def test_the_budget_falls_as_a_cubic_and_then_stands():
    ebb = Ebb(fall=0.8)
    falling = [ebb.budget(step / 100, 1000, 20) for step in range(101)]
    assert falling[0] == 1000
    assert falling[40] == pytest.approx(20 + 980 / 8)
    assert falling[80:] == [20] * 21
    assert falling == sorted(falling, reverse=True)


def test_quantiles_are_normal_and_keep_the_order_over_all_sites():
    scores = {"a": torch.rand(4, 5, 5), "b": 1e6 * torch.rand(300)}
    made = quantiles(scores)
    flat, before = (torch.cat([s.flatten() for s in given.values()]) for given in (made, scores))
    assert torch.equal(flat.argsort(), before.argsort())
    assert abs(float(flat.mean())) < 1e-3
    assert float(flat.std()) == pytest.approx(1, abs=0.02)
    assert made["a"].shape == (4, 5, 5)


def test_equal_scores_do_not_collapse():
    assert len(quantiles({"a": torch.zeros(100)})["a"].unique()) == 100


@pytest.fixture
def gated(trained, few_digits):
    masked = attach(trained, find_sites(trained, few_digits.example), Reciprocal())
    with masked.gates(Scored) as gates:
        for gate in gates.values():
            torch.nn.init.normal_(gate.score)
        yield masked, gates


def test_the_mask_is_the_exact_top_of_all_scores(gated):
    masked, gates = gated
    prices = Prices.count(masked.sites)
    for limit in (1, 100, masked.sites.total - 1):
        keep_best(gates, prices, limit, 7)
        expected = Mask.top({name: gate.score for name, gate in gates.items()}, prices, limit)
        assert Mask({name: gate.keep > 0 for name, gate in gates.items()}) == expected
        assert expected.kept == limit


def test_under_other_prices_the_mask_is_a_knapsack_that_empties_sites(gated):
    masked, gates = gated
    prices = Prices({name: SitePrice(1.0, 200.0) for name in masked.sites}, "bytes")
    keep_best(gates, prices, 700.0, 0)
    mask = Mask({name: gate.keep > 0 for name, gate in gates.items()})
    assert 0 < prices.cost(mask.by_site()) <= 700
    assert mask.sites_kept < len(mask)
    before = mask
    keep_best(gates, prices, 100.0, 1)  # solved at every 20th step only
    assert Mask({name: gate.keep > 0 for name, gate in gates.items()}) == before


def test_dropped_and_kept_scores_get_the_gradient_of_their_relu(tiny):
    masked = attach(tiny, find_sites(tiny, torch.zeros(1, 1, 8, 8)), Identity())
    with masked.gates(Scored) as gates:
        (gate,) = gates.values()
        gate.keep[:2] = 0
        z = torch.randn(3, 4, 8, 8, requires_grad=True)
        weight = torch.randn(3, 4, 8, 8)
        (gate(z) * weight).sum().backward()
        torch.testing.assert_close(gate.score.grad, (weight * (z.relu() - z)).sum(0).detach())


def test_stakes_are_the_mean_square_of_gradient_times_gap(trained, few_digits, make_job):
    network = copy.deepcopy(trained)
    masked = attach(network, find_sites(network, few_digits.example))
    found = Ebb(surrogate=Identity(), images=16, batch=8).stakes(masked, make_job(masked, few_digits, 0.5))
    seen = {}
    handle = network.relu.register_forward_hook(lambda m, args, y: (y.retain_grad(), seen.update(z=args[0], y=y))[0])
    images, labels = few_digits.train.inputs(slice(16)), few_digits.train.labels[:16]
    F.cross_entropy(network.eval()(images.requires_grad_()), labels, reduction="sum").backward()
    handle.remove()
    expected = (seen["y"].grad * (seen["y"] - seen["z"])).square().sum(0).detach()
    torch.testing.assert_close(found["relu"], expected / 16, atol=1e-6, rtol=1e-3)


def test_the_result_keeps_its_accuracy_where_a_random_mask_does_not(trained, digits, make_job, fabric):
    from reluctant.linearization import linearize
    from reluctant.methods.random import Random
    from reluctant.training import evaluate

    short = Training(epochs=2, batch=64, lr=0.02)
    accuracy = {}
    for method in (Ebb(search_epochs=3, batch=64), Random()):
        small = linearize(trained, method, "5%", digits, fabric=fabric)
        small = fit(small, digits, short, teacher=trained, fabric=fabric)
        accuracy[method.name] = evaluate(small, digits, "val").accuracy
        if method.name == "ebb":
            slopes = torch.cat([a.divisor.flatten() for a in small.masked()])
            assert torch.equal(slopes, slopes.round())
            assert 1 <= slopes.min() < slopes.max() <= 10
    assert accuracy["ebb"] > accuracy["random"]


@pytest.mark.parametrize("settings", [{"fall": 1.5}, {"lr_end": 1.0}])
def test_shares_above_one_are_refused(settings):
    with pytest.raises(UsageError, match="expected shares of 1"):
        Ebb(**settings)
