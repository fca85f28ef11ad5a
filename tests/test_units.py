"""Quantities in and out, and budgets."""

import math

import pytest
import torch
from torch import nn

from reluctant.budget import Budget
from reluctant.errors import BudgetError, UsageError
from reluctant.prices import Prices, SitePrice
from reluctant.sites import find_sites
from reluctant.units import (
    Quantity,
    as_type_of,
    check_number,
    format_bytes,
    format_seconds,
    parse_quantity,
    parse_rate,
)

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
        ("1,234,567", 1_234_567, "relus"),
        ("50_000", 50_000, "relus"),
        (".5k", 500, "relus"),
        ("1e3", 1000, "relus"),
        ("0", 0, "relus"),
        ("0.0%", 0, "share"),
    ],
)
def test_quantities_are_read(text, value, unit):
    quantity = parse_quantity(text)
    assert quantity == Quantity(quantity.value, unit)
    assert quantity.value == pytest.approx(value)


def test_where_a_cost_applies_is_kept():
    assert parse_quantity("250ms@cheetah/wan").where == "cheetah/wan"


@pytest.mark.parametrize(
    "text",
    [
        *("", "lots", "k", "10 bananas", "0MB", "-5", "0s@cheetah", "-1k", "1..2", "nan", "inf", "-inf", "infinity"),
        *("1e400", "1e400%", "1e999999999k", "1e-400", "9" * 400),
        *("1,5", "1,5k", "1,5000", "12345,678", ",500", "600,00", "1,,000", "1_5", "0,5%"),
        *("10%@cheetah/wan", "50k@cheetah", "7@lan", "10%@", "40MB@", "@cheetah"),
    ],
)
def test_nonsense_is_refused_with_what_to_write(text):
    with pytest.raises(BudgetError, match=r"write ReLUs \(50k, 12900\), a share"):
        parse_quantity(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1,5k", "a comma only parts groups of three digits"),
        ("1e400", "too large"),
        ("50k@cheetah", "leave out '@cheetah'"),
        ("40MB@ ", "names nothing behind the @"),
    ],
)
def test_what_was_probably_meant_is_said(text, reason):
    with pytest.raises(BudgetError, match=reason):
        parse_quantity(text)


def test_counts_are_exact_where_binary_fractions_are_not():
    assert int(32.3 * 1000) == 32_299
    assert [parse_quantity(text).value for text in ("32.3k", "1.001k", "8.2M")] == [32_300, 1_001, 8_200_000]
    hundred, thousand = (find_sites(nn.Sequential(nn.ReLU()), torch.zeros(1, relus)) for relus in (100, 1000))
    for percent in range(1, 100):
        assert Budget.parse(f"{percent}%").resolve(hundred, Prices.count(hundred)) == percent
    for tenths in range(1, 1000):
        assert Budget.parse(f"{tenths / 10}%").resolve(thousand, Prices.count(thousand)) == tenths


@pytest.mark.parametrize("text", ["0mbps", "20", "mbps", "9" * 400 + "mbps"])
def test_links_that_cannot_be_are_refused(text):
    with pytest.raises(UsageError, match="is not a number above zero with a unit"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("default", "value", "read"),
    [
        (3, "7", 7),
        (3, "1e3", 1000),
        (3, 4.0, 4),
        (3, 10**20 - 1, 10**20 - 1),
        (0.5, "2", 2.0),
        (0.5, 1, 1.0),
        (True, "False", False),
        ("a", "b", "b"),
    ],
)
def test_settings_are_read_in_the_type_of_their_default(default, value, read):
    made = as_type_of(default, value, "x.y")
    assert made == read
    assert type(made) is type(default)


@pytest.mark.parametrize(
    ("default", "value"),
    [
        *((3, value) for value in ("many", "1.5", "inf", "nan", "1e400", math.inf, True, None, [3], {})),
        *((0.5, value) for value in ("many", "inf", "-inf", "nan", math.inf, 10**400, False, None, [0.5])),
        *((True, value) for value in ("maybe", 2, None)),
        *(("a", value) for value in (3, None, ["a"])),
    ],
)
def test_settings_of_another_type_are_refused(default, value):
    with pytest.raises(UsageError, match=rf"^x.y is .*, expected a {type(default).__name__} such as"):
        as_type_of(default, value, "x.y")


@pytest.mark.parametrize(
    ("value", "bounds"),
    [
        (1, {"whole": True}),
        (0, {"whole": True, "zero": True}),
        (2**31 - 1, {"whole": True}),
        (1e-9, {}),
        (3, {}),
        (0.0, {"zero": True}),
        (-1e9, {"negative": True}),
    ],
)
def test_numbers_in_their_bounds_pass(value, bounds):
    check_number(value, "x.y", **bounds)


@pytest.mark.parametrize(
    ("value", "bounds", "reason"),
    [
        (0, {"whole": True}, "above zero"),
        (-1, {"whole": True, "zero": True}, "of zero or more"),
        (1.0, {"whole": True}, "whole number"),
        (2**31, {"whole": True}, "at most 2,147,483,647"),
        (True, {"whole": True}, "whole number"),
        ("3", {}, "finite number"),
        (None, {}, "finite number"),
        (math.nan, {"negative": True}, "finite number"),
        (-math.inf, {"negative": True}, "finite number"),
        (0.0, {}, "above zero"),
        (-1e-9, {"zero": True}, "of zero or more"),
    ],
)
def test_numbers_out_of_their_bounds_are_refused(value, bounds, reason):
    with pytest.raises(UsageError, match=rf"^x.y is .*, expected a .*{reason}"):
        check_number(value, "x.y", **bounds)


@pytest.mark.parametrize(
    ("text", "limit"), [("10%", 32), ("99.9%", 319), ("31", 31), (100, 100), ("0.3k", 300), (0, 0), ("0%", 0)]
)
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
