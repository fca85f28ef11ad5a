"""Plans against predictions of real masks, and what a budget buys before anything is trained."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reluctant.budget import Budget
from reluctant.costs.model import CostModel
from reluctant.costs.networks import NETWORKS
from reluctant.costs.pricing import price_list
from reluctant.errors import BudgetError, ShapeError
from reluctant.mask import Mask
from reluctant.plans import PricedNetwork
from reluctant.program.lower import lower

DIGITS = (10, (1, 8, 8))
SECONDS = Budget.parse("3.2s@cheetah/wan")


@pytest.fixture(scope="module")
def network() -> PricedNetwork:
    return PricedNetwork("resnet8:width=4", *DIGITS, SECONDS)


def random_mask(network: PricedNetwork, kept: list[int], seed: int) -> Mask:
    generator = torch.Generator().manual_seed(seed)
    orders = {name: torch.randperm(site.relus, generator=generator) for name, site in network.sites.items()}
    return Mask(
        {
            name: (order < relus).view(network.sites[name].shape)
            for (name, order), relus in zip(orders.items(), kept, strict=True)
        }
    )


@pytest.mark.parametrize("kept", [(256, 256, 256, 128, 128, 64, 64), (9, 0, 200, 1, 0, 64, 0), (0,) * 7])
@pytest.mark.parametrize("budget", ["3s@cheetah/wan", "9MB@cheetah", "9s@delphi:online/lan"])
def test_a_plan_costs_what_any_mask_of_its_counts_is_predicted_to(kept, budget):
    network = PricedNetwork("resnet8:width=4", *DIGITS, Budget.parse(budget))
    mask = random_mask(network, kept, 3)
    engine, _, link = budget.partition("@")[2].partition("/")
    found = CostModel.load(engine.partition(":")[0]).predict(
        lower(network.masked.with_mask(mask)), network=NETWORKS[link or "loopback"]
    )
    part = found.online if "online" in budget else found
    plan = network.plan(SECONDS, mask.by_site())
    assert (plan.predicted.bytes, plan.predicted.messages) == (part.bytes, part.messages)
    assert plan.predicted.seconds == pytest.approx(part.seconds, abs=1e-12)
    assert plan.cost == (plan.predicted.bytes if "MB" in budget else plan.predicted.seconds)
    assert (plan.relus, plan.sites_kept) == (mask.kept, mask.sites_kept)


@given(tenths=st.integers(0, 1000), more=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_a_share_is_spread_exactly_and_more_of_it_is_no_cheaper(network, tenths, more):
    if (tenths / 1000) * network.sites.total < 1:
        tenths = 0
    plan = network.spread(Budget.parse(f"{tenths / 10}%"))
    assert plan.relus == tenths * network.sites.total // 1000
    for name, site in network.sites.items():
        assert abs(plan.kept[name] - tenths / 1000 * site.relus) <= 1
    larger = network.spread(Budget.parse(f"{max(tenths, more, 1) / 10}%"))
    assert larger.cost >= plan.cost - 1e-9


@given(kept=st.tuples(*(st.integers(0, n) for n in (256, 256, 256, 128, 128, 64, 64))))
@settings(max_examples=15, deadline=None)
def test_no_way_to_keep_so_many_is_dearer_than_the_even_one(network, kept):
    total = network.sites.total
    even = network.spread(Budget.parse(f"{min(total, max(7, sum(kept)) + 1) / total * 100}%"))
    assert network.plan(SECONDS, dict(zip(network.sites, kept, strict=True))).cost <= even.cost + 1e-9


def test_what_the_budget_buys_is_what_a_search_with_sites_alike_would_get(network):
    plan, prices = network.spend(), price_list(network.masked, SECONDS)
    assert 0 < plan.sites_kept < len(network.sites)
    assert plan.budget == SECONDS
    assert plan.cost <= prices.cost(plan.kept) <= 3.2
    alike = {name: torch.rand(s.relus, generator=torch.Generator().manual_seed(1)) for name, s in network.sites.items()}
    searched = Mask.top(alike, prices, 3.2)
    assert searched.sites_kept == plan.sites_kept
    assert searched.kept == pytest.approx(plan.relus, rel=0.05)


@pytest.mark.parametrize("budget", ["100ms@cheetah/wan", "9min@cheetah/wan"])
def test_a_budget_for_all_or_for_none_buys_no_plan(budget):
    assert PricedNetwork("resnet8:width=4", *DIGITS, Budget.parse(budget)).spend() is None


def test_what_cannot_be_priced_is_refused(network):
    with pytest.raises(ShapeError, match="images need a side"):
        PricedNetwork("deepreduce:stem_stride=2", *DIGITS, SECONDS)
    with pytest.raises(BudgetError, match="under cryptflow2: not known are layers"):
        PricedNetwork("resnet8:width=4", *DIGITS, Budget.parse("9MB@cryptflow2")).spread(Budget.parse("10%"))


def test_weights_come_from_a_generator_of_their_own():
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    PricedNetwork("resnet8:width=4", *DIGITS, SECONDS)
    assert torch.equal(torch.rand(1), before)
