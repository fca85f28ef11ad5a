"""Water-filling: exact sums, proportion, room, and prices."""

import random

import pytest

from reluctant.budget import affordable, waterfill
from reluctant.errors import BudgetError
from reluctant.methods.senet import PUBLISHED
from reluctant.prices import Prices, SitePrice

RESNET18 = [eta for stage in PUBLISHED["resnet18"] for eta in stage]
ROOM = [65536] * 5 + [32768] * 4 + [16384] * 4 + [8192] * 4
#: Computed from SENet's rule (ICLR 2023) and its sensitivities of ResNet-18.
SHARES = {
    12_900: "74 239 275 324 355 457 630 658 719 869 1050 1068 1112 1214 1278 1288 1290",
    50_000: "287 927 1065 1254 1377 1772 2443 2550 2786 3369 4071 4138 4312 4706 4952 4993 4998",
    100_000: "635 2053 2359 2779 3051 3925 5411 5649 6171 7464 9018 9166 9551 8192 8192 8192 8192",
    150_000: "1110 3590 4125 4859 5335 6862 9460 9876 10789 13050 15767 16025 16384 8192 8192 8192 8192",
}


def named(values):
    return {f"site{place}": value for place, value in enumerate(values)}


def some(seed):
    """A random case: weights of very different sizes, rooms, and a budget that fits."""
    draw = random.Random(seed)
    count = draw.randint(1, 12)
    weights = named(10 ** draw.uniform(-6, 3) for _ in range(count))
    room = named(draw.randint(1, 5000) for _ in range(count))
    return weights, room, draw.randint(0, sum(room.values())), draw


@pytest.mark.parametrize("limit", SHARES)
def test_the_budgets_of_resnet18(limit):
    assert list(waterfill(named(RESNET18), named(ROOM), limit).values()) == [int(n) for n in SHARES[limit].split()]


@pytest.mark.parametrize("seed", range(60))
def test_shares_sum_exactly_fit_and_are_in_proportion(seed):
    weights, room, limit, _ = some(seed)
    counts = waterfill(weights, room, limit)
    assert sum(counts.values()) == limit
    assert all(0 <= counts[name] <= room[name] for name in room)
    open_ = [name for name in room if counts[name] < room[name]]
    level = max((counts[name] / weights[name] for name in open_), default=0.0)
    for name in open_:  # one ReLU off at most, for a whole number of them
        least = max((counts[other] - 1) / weights[other] for other in room)
        assert counts[name] + 1 >= least * weights[name] - 1e-6
        assert counts[name] - 1 <= level * weights[name] + 1e-6


@pytest.mark.parametrize("seed", range(20))
def test_the_size_of_weights_is_of_no_matter_and_all_can_be_kept(seed):
    weights, room, limit, _ = some(seed)
    doubled = {name: 8 * weight for name, weight in weights.items()}
    assert waterfill(doubled, room, limit) == waterfill(weights, room, limit)
    assert waterfill(weights, room, sum(room.values())) == room
    assert not any(waterfill(weights, room, 0).values())


@pytest.mark.parametrize("seed", range(20))
def test_groups_are_kept_whole_and_never_above_the_limit(seed):
    weights, room, _, draw = some(seed)
    groups = {name: draw.choice([1, 4, 64]) for name in room}
    room = {name: room[name] * groups[name] for name in room}
    limit = draw.randint(0, sum(room.values()))
    counts = waterfill(weights, room, limit, groups)
    assert limit - sum(groups.values()) <= sum(counts.values()) <= limit
    assert all(count % groups[name] == 0 and count <= room[name] for name, count in counts.items())


@pytest.mark.parametrize("seed", range(30))
def test_under_any_prices_the_limit_holds_and_one_more_would_break_it(seed):
    weights, room, _, draw = some(seed)
    fixed = draw.choice([0.0, 50.0])
    prices = Prices({name: SitePrice(draw.uniform(0.1, 9), fixed) for name in room}, "bytes", 7.0)
    limit = draw.uniform(7.0, prices.cost(room))
    counts = affordable(weights, room, prices, limit)
    assert prices.cost(counts) <= limit
    more = waterfill(weights, room, sum(counts.values()) + 1)
    assert prices.cost(more) > limit


def test_at_one_price_the_whole_limit_is_shared():
    prices = Prices({name: SitePrice() for name in named(ROOM)})
    assert affordable(named(RESNET18), named(ROOM), prices, 50_000.0) == waterfill(named(RESNET18), named(ROOM), 50_000)


def test_what_cannot_be_shared_is_refused_in_one_line():
    room = {"a": 5, "b": 5}
    for weights, limit in (({"a": 0.0, "b": 0.0}, 1), ({"a": 0.0, "b": 1.0}, 6), ({"a": 1.0, "b": 1.0}, 11)):
        with pytest.raises(BudgetError, match="are to be shared, but the sites that have a weight hold"):
            waterfill(weights, room, limit)
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(BudgetError, match="site a has the weight"):
            waterfill({"a": weight, "b": 1.0}, room, 3)
    prices = Prices({name: SitePrice() for name in room})
    with pytest.raises(BudgetError, match="the 5 ReLUs of the sites that have a weight; give less"):
        affordable({"a": 0.0, "b": 1.0}, room, prices, 6.0)
    assert affordable({"a": 0.0, "b": 1.0}, room, prices, 5.0) == {"a": 0, "b": 5}
