"""Prices in bytes and seconds against predictions, and budgets in them."""

import pytest
import torch
from engines.small import masked_small

from reluctant.budget import Budget
from reluctant.costs.model import CostModel
from reluctant.costs.networks import NETWORKS
from reluctant.costs.pricing import price_list
from reluctant.errors import BudgetError
from reluctant.knapsack import worth
from reluctant.mask import Mask
from reluctant.program.lower import lower
from reluctant.surrogates import Affine, Identity, Quadratic, Shift

SHARES = [(1.0, 1.0), (0.3, 0.01), (0.0, 0.5), (0.004, 0.0)]


@pytest.mark.parametrize("surrogate", [Identity(), Shift()])
@pytest.mark.parametrize("shares", SHARES)
def test_prices_add_up_to_the_prediction(surrogate, shares):
    masked = masked_small(shares, surrogate)
    kept, model = masked.mask.by_site(), CostModel.load("cheetah")
    for text, unit, link in (("9MB@cheetah", "bytes", "loopback"), ("9s@cheetah/wan", "seconds", "wan")):
        priced = price_list(masked, Budget.parse(text)).cost(kept)
        predicted = getattr(model.predict(lower(masked), network=NETWORKS[link]), unit)
        assert predicted - 1e-9 <= priced <= 1.1 * predicted


@pytest.mark.parametrize("protocol", ["delphi", "circa"])
@pytest.mark.parametrize("surrogate", [Identity(), Affine(), Quadratic()])
@pytest.mark.parametrize("shares", SHARES[1::2])
def test_prices_of_a_profile_add_up_to_its_prediction(protocol, surrogate, shares):
    """All work of an image, or what is left of it once the image is there."""
    masked, link = masked_small(shares, surrogate, shape=(3, 32, 32)), NETWORKS["wan"]
    found = CostModel.load(protocol).predict(lower(masked), network=link)
    for text, predicted in (
        (f"9GB@{protocol}", found.bytes),
        (f"9GB@{protocol}:online", found.online.bytes),
        (f"9s@{protocol}/wan", found.seconds),
        (f"9s@{protocol}:online/wan", found.online.seconds),
    ):
        priced = price_list(masked, Budget.parse(text)).cost(masked.mask.by_site())
        assert predicted - 1e-6 * predicted <= priced <= 1.25 * predicted, text


def test_prices_do_not_depend_on_the_mask_and_leave_it():
    masked = masked_small((0.3, 0.6))
    before, budget = masked.mask, Budget.parse("9MB@cheetah")
    found = price_list(masked, budget)
    assert masked.mask == before
    again = price_list(masked.set_mask(Mask.full(masked.sites)), budget)
    assert again == found
    for kept in (before.by_site(), dict.fromkeys(masked.sites, 0)):
        assert again.cost(kept) == found.cost(kept)


def test_what_an_emptied_site_makes_cheaper_beside_it_is_foreseen():
    masked = masked_small((1.0, 1.0))
    prices = price_list(masked, Budget.parse("9s@cheetah/wan"))
    first, last = masked.sites
    whole, tail = prices.fixed([first, last]), prices.fixed([first])
    assert tail < whole - prices.by_site[last].alive
    assert prices.fixed([]) == prices.floor < tail - prices.by_site[first].alive


@pytest.mark.parametrize("budget", ["1.99MB@cheetah", "3.2s@cheetah/wan", "900ms@cheetah/loopback"])
def test_more_budget_is_never_worth_less_and_little_buys_one_site(budget):
    masked = masked_small((1.0, 1.0))
    prices = price_list(masked, Budget.parse(budget))
    unit = f"B@{budget.partition('@')[2]}" if prices.unit == "bytes" else f"s@{budget.partition('@')[2]}"
    scores = {name: torch.rand(site.shape) for name, site in masked.sites.items()}
    full = prices.cost({name: site.relus for name, site in masked.sites.items()})
    one = min(prices.cost({name: 1}) for name in masked.sites)
    limits = torch.linspace(1.0001 * one, full, 12).tolist()
    kept = [Mask.top(scores, prices, limit) for limit in limits]
    earned = worth(torch.cat([score.reshape(-1) for score in scores.values()]).double().numpy())
    bits = [torch.cat([mask[name].reshape(-1) for name in scores]).numpy() for mask in kept]
    got = [float(earned[taken].sum()) for taken in bits]
    assert got == sorted(got)
    assert got[0] > 0
    assert all(prices.cost(mask.by_site()) <= limit for mask, limit in zip(kept, limits, strict=True))
    assert Mask.top(scores, prices, 1.0001 * one).sites_kept == 1
    with pytest.raises(BudgetError, match="costs with a single ReLU"):
        Budget.parse(f"{0.9999 * one!r}{unit}").resolve(masked.sites, prices)


def test_a_round_trip_makes_keeping_a_site_dear():
    masked = masked_small()
    near, far = (price_list(masked, Budget.parse(f"9s@cheetah/{link}")) for link in ("loopback", "mobile"))
    for name in masked.sites:
        assert far.by_site[name].alive - near.by_site[name].alive > 10 * NETWORKS["mobile"].rtt_seconds
        assert far.by_site[name].relu - near.by_site[name].relu < 0.001


@pytest.mark.parametrize("surrogate", [Affine(), Quadratic()])
def test_surrogates_dearer_than_a_relu_are_refused(surrogate):
    with pytest.raises(BudgetError, match=r"costs more bytes than the ReLU.*take a surrogate of the free track"):
        price_list(masked_small((0.5, 0.5), surrogate), Budget.parse("9MB@cheetah"))


def test_a_budget_does_not_count_on_zeros_that_training_can_fill():
    """The one ReLU with which a site is priced stands in its first channel; here that is pruned away."""
    masked = masked_small((1.0, 1.0))
    whole = price_list(masked, Budget.parse("9MB@cheetah"))
    with torch.no_grad():
        first = next(m for m in masked.model.modules() if isinstance(m, torch.nn.Conv2d))
        first.weight[0] = 0
    assert price_list(masked, Budget.parse("9MB@cheetah")) == whole
