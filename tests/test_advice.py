"""What is advised: ranks, prices of recorded masks, what is looked at. The networks are small enough to be quick."""

from pathlib import Path

import pytest
import torch

from reluctant import advice
from reluctant.advice import advise, usual_families
from reluctant.budget import Budget
from reluctant.errors import BudgetError, UnknownName, UsageError
from reluctant.models import ModelSpec
from reluctant.plans import PricedNetwork
from reluctant.records import Record, describe_kept

DIGITS = (10, (1, 8, 8))

NETS = '''
"""A chain of convolutions and ReLUs, and one without ReLUs."""
from torch import nn


def chain(width, sites):
    layers, before = [], 1
    for _ in range(sites):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def wide():
    return chain(8, 2)


def narrow():
    return chain(2, 2)


def deep():
    return chain(16, 5)


def curved():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))
'''


@pytest.fixture(scope="module")
def nets(tmp_path_factory) -> dict[str, str]:
    """Their names, as models."""
    file: Path = tmp_path_factory.mktemp("nets") / "nets.py"
    file.write_text(NETS)
    return {name: f"{file}:{name}" for name in ("wide", "narrow", "deep", "curved")}


def made(val: float, kept: tuple[int, int], model: str = "nets.py:wide", **changes) -> Record:
    """The record of a network of two sites; the experiment never happened."""
    keep = {name: (torch.arange(512) < k).view(8, 8, 8) for name, k in zip(("1", "3"), kept, strict=True)}
    content = {
        "kind": "evaluate", "task": "digits", "model": model, "method": "snl", "budget": "20%", "seed": 0,
        "relus": {"total": 1024, "kept": sum(kept), "sites": 2, "sites_kept": sum(k > 0 for k in kept)},
        "accuracy": {"val": val, "n_val": 100, "test": 0.5, "n_test": 200}, "mask": describe_kept(keep, str(kept)),
        "epochs": 6, "seconds": 9.0, "device": "cpu", "surrogate": "identity",
    }  # fmt: skip
    return Record(**content | changes)


def advised(budget, models, *records, **options):
    return advise("digits", *DIGITS, budget, models=models, records=records, **options).rows


@pytest.fixture(scope="module")
def one_site(nets) -> str:
    """A budget under what the wide network costs with a ReLU at both of its sites."""
    network = PricedNetwork(nets["wide"], *DIGITS, Budget.parse("9s@cheetah/wan"))
    both, first = ({"1": 1, "3": 1}, {"1": 512, "3": 0})
    low, high = (network.plan(Budget.parse("50%"), kept).cost for kept in (first, both))
    assert low < high
    return f"{(low + high) / 2}s@cheetah/wan"


def test_recorded_networks_come_first_by_held_out_accuracy_and_not_by_test_accuracy(nets, one_site):
    first = made(0.8, (300, 0), accuracy={"val": 0.8, "n_val": 100, "test": 0.95, "n_test": 200})
    rows = advised(
        one_site, [nets["wide"]], first, made(0.85, (301, 0), budget="21%"), made(0.99, (200, 1), budget="9%")
    )
    assert [row.plan.budget.text for row in rows[:4]] == ["21%", "20%", one_site, "2%"]
    assert [row.evidence and row.evidence.val for row in rows[:3]] == [0.85, 0.8, None]
    assert [row.inside for row in rows] == [True] * 3 + [False] * 6
    assert [row.plan.cost for row in rows[3:]] == sorted(row.plan.cost for row in rows[3:])
    assert next(row.evidence.val for row in rows[3:] if row.evidence) == 0.99


def test_a_recorded_network_is_priced_with_the_mask_it_has_at_its_dearest_seed(nets, one_site):
    network = PricedNetwork(nets["wide"], *DIGITS, Budget.parse(one_site))
    (cheap, *_) = advised(one_site, [nets["wide"]], made(0.8, (300, 0)))
    assert cheap.plan.predicted == network.plan(cheap.plan.budget, {"1": 300, "3": 0}).predicted
    assert cheap.plan.cost < network.spread(Budget.parse("29.3%")).cost
    rows = advised(one_site, [nets["wide"]], made(0.8, (300, 0)), made(0.8, (299, 1), seed=1))
    dear = next(row for row in rows if row.evidence)
    assert (dear.inside, dear.plan.kept, dear.evidence.seeds) == (False, {"1": 299, "3": 1}, [0, 1])


def test_the_better_of_two_methods_stands_for_a_plan_where_both_are_inside(nets, one_site):
    settings = (("snl", 0.8, (300, 0)), ("ebb", 0.9, (301, 0)), ("taylor", 0.95, (200, 1)))
    rows = advised(one_site, [nets["wide"]], *(made(val, kept, method=method) for method, val, kept in settings))
    found = [(row.evidence.method, row.inside) for row in rows if row.evidence]
    assert found == [("ebb", True), ("taylor", False)]


def test_what_the_budget_bought_is_not_bought_again(nets, one_site):
    rows = advised(one_site, [nets["wide"]], made(0.8, (300, 0), budget=one_site))
    assert [row.plan.relus for row in rows if row.plan.budget.text == one_site] == [300]
    over = advised(one_site, [nets["wide"]], made(0.8, (200, 1), budget=one_site))
    assert [row.inside for row in over if row.plan.budget.text == one_site] == [True, False]


def test_a_record_of_a_network_with_other_sites_does_not_count(nets, one_site):
    assert not any(row.evidence for row in advised(one_site, [nets["narrow"]], made(0.9, (300, 0), "nets.py:narrow")))
    dense = made(0.9, (512, 512), budget=None, method=None, surrogate=None)
    (row,) = (row for row in advised(one_site, [nets["wide"]], dense) if row.evidence)
    assert (row.plan.budget.text, row.plan.relus) == ("100%", 1024)


def test_networks_without_records_are_ordered_by_sites_then_size_then_relus(nets):
    deep = PricedNetwork(nets["deep"], *DIGITS, Budget.parse("9s@cheetah/wan"))
    two = deep.plan(Budget.parse("1%"), dict(zip(deep.sites, (512, 512, 0, 0, 0), strict=True))).cost
    budget = f"{two + 0.1}s@cheetah/wan"
    rows = advised(budget, [nets["deep"], nets["narrow"], nets["wide"]], densities=["0%", "30%", "100%"])
    inside = [(row.plan.model.partition(":")[2], row.plan.budget.text) for row in rows if row.inside]
    assert inside[:4] == [("wide", "100%"), ("wide", "30%"), ("narrow", "100%"), ("narrow", "30%")]
    assert inside[4:] == [("deep", budget), ("deep", "0%"), ("wide", "0%"), ("narrow", "0%")]
    assert 0 < rows[4].plan.sites_kept <= 2


def test_usual_networks_are_the_narrowest_first_and_what_is_too_dear_is_not_widened(monkeypatch):
    families = usual_families()
    assert {"resnet8", "resnet18", "hybrenet", "sphynx"} <= {spec for family in families for spec in family}
    assert all(ModelSpec.parse(spec).name == ModelSpec.parse(family[0]).name for family in families for spec in family)
    monkeypatch.setattr(advice, "usual_families", lambda: [("resnet8:width=1",), ("resnet20:width=1", "resnet20")])
    monkeypatch.setattr(advice, "REACH", 1.5)
    mine = [made(0.9, (300, 0), model) for model in ("nets.py:wide", "Sequential")]  # cannot be built from their names
    found = advise("digits", *DIGITS, "4.3s@cheetah/wan", densities=["10%"], records=mine)
    assert list(found.refused) == ["resnet20"]
    assert "wider than resnet20:width=1, which costs" in found.refused["resnet20"]
    assert [(row.plan.model, row.inside) for row in found.rows] == [
        ("resnet8:width=1", True),
        ("resnet20:width=1", False),
    ]


def test_what_is_recorded_is_looked_at_where_nothing_is_named(monkeypatch):
    monkeypatch.setattr(advice, "usual_families", lambda: [("resnet8:width=1",)])
    other = made(0.9, (300, 0), "resnet8:width=2")
    found = advised("9s@cheetah/wan", (), other, densities=["10%"])
    assert [row.plan.model for row in found] == ["resnet8:width=2", "resnet8:width=1"]


def test_a_record_under_another_name_of_the_network_counts(monkeypatch):
    monkeypatch.setattr(advice, "usual_families", lambda: [("resnet8:width=1",), ("resnet8",)])
    other = made(0.9, (300, 0), "resnet8:width=1,stem_relu=true", mask=None, method=None, budget=None)
    first, *rest = advised("9s@cheetah/wan", (), other, densities=["10%"])
    assert (first.plan.model, first.evidence is not None) == ("resnet8:width=1", True)
    assert {row.plan.model for row in rest} <= {"resnet8:width=1", "resnet8"}


def test_what_cannot_be_advised_is_refused_with_what_to_do(nets):
    wide = [nets["wide"]]
    with pytest.raises(BudgetError, match=r"nets.py:wide comes closest, with .* at 51 of 1,024 ReLUs: give more"):
        advised("9ms@cheetah/wan", wide, densities=["5%"])
    with pytest.raises(BudgetError, match=r"counts ReLUs, .* as in 10s@cheetah/wan"):
        advised("10%", wide)
    with pytest.raises(BudgetError, match="write 3s@cheetah/wan"):
        advised("3s@cheetah", wide)
    with pytest.raises(UnknownName, match="did you mean 'resnet8'"):
        advised("9s@cheetah/wan", ["rsnet8"])
    with pytest.raises(BudgetError, match="density '5k' is not a share"):
        advised("9s@cheetah/wan", wide, densities=["5k"])
    with pytest.raises(BudgetError, match="under cryptflow2: not known are layers"):
        advised("9MB@cryptflow2", wide)
    with pytest.raises(UsageError, match="no secure program has it"):
        advised("9s@cheetah/wan", [nets["curved"]])
    found = advise("digits", *DIGITS, "9s@cheetah/wan", models=[nets["curved"], *wide], densities=["5%"])
    assert list(found.refused) == [nets["curved"]]
