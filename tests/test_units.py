"""Quantities in and out, and budgets."""

import pytest
import torch
from torch import nn

from reluctant.budget import Budget
from reluctant.errors import BudgetError
from reluctant.prices import Prices, SitePrice
from reluctant.sites import find_sites
from reluctant.units import Quantity, format_bytes, format_seconds, parse_quantity

MODEL = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(300, 20), nn.ReLU())
SITES = find_sites(MODEL, torch.zeros(1, 3, 10, 10))


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("50k", 50_000, "relus"),
        ("12.9K", 12_900, "relus"),
        ("1.2M", 1_200_000, "relus"),
        ("600,000", 600_000, "relus"),
        ("7", 7, "relus"),
        ("10%", 0.1, "share"),
        ("12.5 %", 0.125, "share"),
        ("250ms", 0.25, "seconds"),
        ("2s", 2, "seconds"),
        ("40MB", 4e7, "bytes"),
    ],
)
def test_quantities_are_read(text, value, unit):
    quantity = parse_quantity(text)
    assert quantity == Quantity(quantity.value, unit)
    assert quantity.value == pytest.approx(value)


def test_where_a_cost_applies_is_kept():
    assert parse_quantity("250ms@cheetah/wan").where == "cheetah/wan"


@pytest.mark.parametrize("text", ["", "lots", "k", "10 bananas", "0", "-5", "0%", "-1k", "1..2", "nan", "inf"])
def test_nonsense_is_refused_with_what_to_write(text):
    with pytest.raises(BudgetError, match=r"write ReLUs \(50k, 12900\), a share"):
        parse_quantity(text)


@pytest.mark.parametrize(("text", "limit"), [("10%", 32), ("99.9%", 319), ("31", 31), (100, 100), ("0.3k", 300)])
def test_budgets_resolve_to_whole_relus_never_more(text, limit):
    assert Budget.parse(text).resolve(SITES, Prices.count(SITES)) == limit


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("600k", "reaches all 320 ReLUs of this model \\(2 sites\\); nothing to linearize"),
        ("100%", "nothing to linearize"),
        (320, "nothing to linearize"),
        ("0.1%", "under one of the 320 ReLUs"),
        ("40MB@cheetah", "in bytes, but the price list counts relus"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(text, reason):
    with pytest.raises(BudgetError, match=reason):
        Budget.parse(text).resolve(SITES, Prices.count(SITES))


def test_costs_add_up_by_hand():
    prices = Prices({"a": SitePrice(2, 5), "b": SitePrice(3, 7)}, "bytes", floor=100)
    assert prices.cost({"a": 4, "b": 0}) == 100 + 2 * 4 + 5
    assert prices.cost({"a": 0, "b": 2}) == 100 + 3 * 2 + 7


def test_printing():
    assert [format_bytes(n) for n in (12, 3_160_000, 98_500, 2.5e9)] == ["12 B", "3.16 MB", "98.5 kB", "2.5 GB"]
    assert [format_seconds(s) for s in (0.85, 12.34, 245, 7380)] == ["850 ms", "12.3 s", "4 min 05 s", "2 h 03 min"]
