"""Masks: exact budgets, ties, prices, packing."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reluctant.errors import ShapeError
from reluctant.knapsack import worth
from reluctant.mask import Mask, grouped
from reluctant.prices import Prices, SitePrice

UNIT = Prices({"a": SitePrice(), "b": SitePrice()})


def scores(a, b):
    return {"a": torch.tensor(a, dtype=torch.float32), "b": torch.tensor(b, dtype=torch.float32)}


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=20),
    st.lists(st.integers(-3, 3), min_size=1, max_size=20),
    st.data(),
)
def test_top_keeps_exactly_the_highest(a, b, data):
    limit = data.draw(st.integers(0, len(a) + len(b)))
    mask = Mask.top(scores(a, b), UNIT, limit)
    assert mask.kept == limit
    kept = [v for v, keep in zip(a + b, mask["a"].tolist() + mask["b"].tolist(), strict=True) if keep]
    assert sorted(kept) == sorted(a + b)[len(a + b) - limit :]


def test_ties_go_by_site_and_element():
    mask = Mask.top(scores([1.0, 1.0], [1.0, 1.0]), UNIT, 3)
    assert mask["a"].tolist() == [True, True]
    assert mask["b"].tolist() == [True, False]


def test_a_site_that_does_not_earn_its_price_is_emptied_whole():
    prices = Prices({"a": SitePrice(alive=5), "b": SitePrice(alive=5)})
    mask = Mask.top(scores([9.0, 8.0, 7.0, 6.0], [3.0, 0.1, 0.1, 0.1]), prices, 10)
    assert mask.by_site() == {"a": 4, "b": 0}


def test_the_first_relus_of_many_sites_are_worth_more_than_all_of_one():
    drawn = {name: torch.rand(100, dtype=torch.float64) for name in ("a", "b", "c")}
    prices = Prices(dict.fromkeys(drawn, SitePrice(0.1, 1.0)))
    assert min(Mask.top(drawn, prices, 13.0).by_site().values()) > 10


@settings(max_examples=60)
@given(st.data())
def test_priced_top_is_near_the_best_there_is(data):
    """Against every choice of counts a site: never over the limit, and seldom far from the best there is."""
    sizes = {name: data.draw(st.integers(1, 5)) for name in ("a", "b", "c")}
    order = data.draw(st.permutations(range(sum(sizes.values()))))
    values = dict(zip(sizes, np.split(worth(np.array(order, float)), np.cumsum([*sizes.values()])[:-1]), strict=True))
    synergy = data.draw(st.sampled_from([0.0, 6.0]))
    by_site = {
        name: SitePrice(data.draw(st.sampled_from([1.0, 2.0, 3.0])), data.draw(st.sampled_from([0.0, 4.0])))
        for name in values
    }
    prices = Prices(by_site, beside=lambda alive: synergy if {"b", "c"} & alive else 0.0)
    limit = data.draw(st.floats(1, 30))
    mask = Mask.top({name: torch.from_numpy(value) for name, value in values.items()}, prices, limit)
    assert prices.cost(mask.by_site()) <= limit + 1e-9
    best = 0.0
    for counts in itertools.product(*(range(len(v) + 1) for v in values.values())):
        if prices.cost(dict(zip(values, counts, strict=True))) <= limit:
            best = max(best, sum(sum(sorted(v)[len(v) - c :]) for v, c in zip(values.values(), counts, strict=True)))
    got = sum(float(value[mask[name].numpy()].sum()) for name, value in values.items())
    assert got >= best / 3


def test_worth_goes_by_rank_and_follows_the_curve():
    scores = np.random.default_rng(0).normal(size=100_000)
    assert (worth(scores) == worth(np.exp(scores))).all()
    found = np.sort(worth(scores))[::-1].cumsum() / worth(scores).sum()
    for share, gained in ((0.02, 0.635), (0.05, 0.775), (0.10, 0.868), (0.25, 0.958)):
        assert found[int(share * len(scores)) - 1] == pytest.approx(gained, abs=0.01)
    assert len(set(worth(np.array([2.0, 1.0, 2.0, 0.0])))) == 3


def test_scores_that_are_not_numbers_are_refused():
    with pytest.raises(ShapeError, match="site b hold NaN"):
        Mask.top(scores([1.0], [float("nan")]), UNIT, 1)


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_packing_is_eight_a_byte_and_reversible(bits):
    mask = Mask({"a": torch.tensor(bits), "b": torch.tensor([[True, False]])})
    packed = mask.pack()
    assert len(packed["a"]) == -(-len(bits) // 8)
    assert Mask.unpack(packed, mask.shapes) == mask


def test_unpacking_another_shape_is_refused():
    mask = Mask({"a": torch.ones(9, dtype=torch.bool)})
    with pytest.raises(ShapeError, match=r"of a has 2 bytes, \(20,\) needs 3"):
        Mask.unpack(mask.pack(), {"a": (20,)})
    with pytest.raises(ShapeError, match="expected \\['b'\\]"):
        Mask.unpack(mask.pack(), {"b": (9,)})


def test_set_algebra_and_digest():
    one, two = Mask({"a": torch.tensor([True, True, False])}), Mask({"a": torch.tensor([False, True, True])})
    assert (one & two)["a"].tolist() == [False, True, False]
    assert (one | two).kept == 3
    assert (one - two)["a"].tolist() == [True, False, False]
    assert (~one)["a"].tolist() == [False, False, True]
    assert one.digest != two.digest
    assert one.digest == Mask({"a": torch.tensor([True, True, False])}).digest
    with pytest.raises(ShapeError):
        one & Mask({"b": torch.tensor([True])})


@pytest.mark.parametrize(
    "prices", [{"a": SitePrice(1), "b": SitePrice(2)}, {"a": SitePrice(1, 5), "b": SitePrice(1, 5)}]
)
def test_equal_scores_are_bought_as_far_as_the_limit_goes(prices):
    mask = Mask.top(scores([1.0] * 10, [1.0] * 10), Prices(prices), 15)
    spent = Prices(prices).cost(mask.by_site())
    assert 15 - max(price.relu for price in prices.values()) < spent <= 15


def test_groups_are_kept_or_dropped_whole():
    shapes = {"a": (4, 3, 3), "b": (6,)}
    given = {"a": torch.tensor([1.0, 5.0, 2.0, 4.0]).reshape(4, 1, 1), "b": torch.tensor([3.0, 0, 0, 0, 6.0, 0])}
    prices = Prices({name: SitePrice() for name in shapes})
    mask = Mask.top(given, prices, 20, shapes)
    assert mask.shapes == shapes
    assert mask["a"].flatten(1).any(1).tolist() == mask["a"].flatten(1).all(1).tolist() == [False, True, False, True]
    assert mask["b"].tolist() == [True, False, False, False, True, False]
    assert Mask.top(given, prices, 8, shapes).by_site()["a"] == 0


def test_the_mean_of_a_group_counts_not_its_size():
    score = torch.zeros(2, 2, 2)
    score[1] = 1.0
    assert grouped(score, "channel").flatten().tolist() == [0, 1]
    assert grouped(score, "spatial").shape == (1, 2, 2)
    assert grouped(score, "pixel") is score


def test_each_site_keeps_its_own_count():
    given = {"a": torch.tensor([[3.0, 1.0], [2.0, 2.0]]), "b": torch.zeros(5)}
    mask = Mask.top_of_sites(given, {"a": 2, "b": 3})
    assert mask["a"].tolist() == [[True, False], [True, False]]
    assert mask["b"].tolist() == [True] * 3 + [False] * 2
    whole = Mask.top_of_sites({"a": torch.rand(2, 1)}, {"a": 3}, {"a": (2, 2)})
    assert whole.kept == 2
