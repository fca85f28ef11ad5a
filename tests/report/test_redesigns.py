"""The page of designs, from records of experiments that never happened, of networks that exist."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ABOUT, cost, secure

from reluctant.candidates import Pricing
from reluctant.models import ModelSpec
from reluctant.records import Record, describe_kept
from reluctant.report import redesigns
from reluctant.report.redesigns import designs_figure, designs_page, read_designs
from reluctant.report.results import read_recipes
from reluctant.sites import find_sites

MODELS = {"resnet20": "resnet8:width=2", "other": "hybrenet:blocks=1-1,multipliers=3,width=2"}
Make = Callable[..., list[Record]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(redesigns, "BUDGETS", ("40", "10"))
    for name, model in MODELS.items():
        place = tmp_path / redesigns.FOLDER / name
        place.mkdir(parents=True)
        (place / "dense.toml").write_text(f'# Why {name}.\ntask = "digits"\nmodel = "{model}"\n')
        (place / "ebb.toml").write_text('budget = "40"\nmethod = "ebb"\n')
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Make:
    """Makes the records of a network: of its accuracy, and of a secure run if it has ``seconds``."""

    def make(
        name: str,
        budget: str | None,
        test: float,
        seed: int = 0,
        seconds: float | None = None,
        size: int = 1000,
        network: str = "lan",
    ) -> list[Record]:
        recipe = read_recipes(folder / redesigns.FOLDER / name)["ebb.toml" if budget else "dense.toml"]
        sites = find_sites(ModelSpec.parse(MODELS[name]).build(10, 1, 8), torch.zeros(1, 1, 8, 8))
        share = int(budget or 0)
        keep = {site: torch.ones(found.shape, dtype=torch.bool) for site, found in sites.items()}
        if budget:
            first = next(iter(sites))
            keep = {site: torch.zeros_like(kept) for site, kept in keep.items()}
            keep[first].view(-1)[:share] = True
        kept = sum(int(each.sum()) for each in keep.values())
        alive = sum(bool(each.any()) for each in keep.values())
        common: dict[str, Any] = {
            **ABOUT, "model": MODELS[name], "seed": seed, "seconds": 60.0, "epochs": 5,
            "relus": {"total": sites.total, "kept": kept, "sites": len(sites), "sites_kept": alive},
            "checkpoint": f"{name}{budget}{seed}", "recipe": recipe.to_json() | {"seed": seed, "budget": budget},
        }  # fmt: skip
        if budget:
            common |= {"method": "ebb", "surrogate": "reciprocal", "budget": budget}
            common |= {"mask": describe_kept(keep, budget)}
        accuracy = {"val": 0.9, "test": test, "n_test": 50}
        records = [Record(kind="evaluate", accuracy=accuracy, **common)]
        if seconds is not None:
            rows = [
                {**row, "name": site, "kept": 0, "comparisons": 0}
                for site in sites
                for row in cost((0, 0), 2)["by_site"][:1]
            ]
            spent = cost((0, 0), 2, bytes=2 * size, seconds=2 * seconds, by_site=rows, comparisons=0)
            which = "linearized" if budget else "dense"
            nothing = {"val": None, "test": None, "n_test": None}
            records.append(
                Record(kind="run", accuracy=nothing, **common | {"secure": secure(**{which: spent}, network=network)})
            )
        return records

    return make


@pytest.fixture
def page(folder: Path) -> Callable[[list[Record]], str]:
    return lambda records: designs_page(read_designs(folder, records), [])


def rows(text: str, title: str) -> list[list[str]]:
    """The rows of the table under a heading."""
    part = re.split(r"^## ", text.split(f"## {title}")[1], flags=re.M)[0]
    lines = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    return [[entry.strip("` ") for entry in line] for line in lines[1:]]


def test_ratios_are_of_what_was_measured(run, page):
    records = run("resnet20", "40", 0.70, seconds=6.0, size=3000) + run("other", "40", 0.72, seconds=2.0, size=2000)
    text = page(records)
    assert rows(text, "At equal ReLUs") == [["40", "other", "+2.00 (1)", "1.50", "3.00"]]
    by_name = {row[0]: row for row in rows(text, "Every point")}
    assert by_name["other"][1:3] == ["40", "72.0 (1)"]
    assert by_name["other"][6:8] == ["2 kB", "2.0 s"]
    assert "seeds 0, 1" in text.split("## Not run")[1]


def test_who_sends_no_more_bytes_is_ranked_by_accuracy(run, page):
    """More bytes by over two percent are no equal bytes; with two seeds a difference is told from its spread."""
    records = run("resnet20", "40", 0.70, seconds=6.0, size=1000) + run("resnet20", "40", 0.71, 1, 6.0, 1000)
    assert rows(page(records), "At ResNet-20's bytes") == []
    records += run("other", "10", 0.72, seconds=2.0, size=1019) + run("other", "10", 0.74, 1, 2.0, 1019)
    records += run("other", "40", 0.99, seconds=2.0, size=1021) + run("other", None, 0.70, seconds=2.0, size=900)
    found = rows(page(records), "At ResNet-20's bytes")
    assert [(row[1], row[4], row[5]) for row in found] == [
        ("10", "+2.50 ± 0.71 (2)", "yes"),
        ("576", "+0.00 (1)", "one seed"),
    ]


def test_the_fastest_that_is_as_accurate(run, page):
    """All ReLUs kept counts as a point, too; who is not as accurate is said to be none."""
    records = run("resnet20", None, 0.80, seconds=9.0) + run("resnet20", "40", 0.70, seconds=6.0)
    records += run("resnet20", "10", 0.60, seconds=5.0)
    records += run("other", None, 0.75, seconds=4.0) + run("other", "40", 0.71, seconds=3.0)
    records += run("other", "10", 0.69, seconds=1.0)
    found = {row[0]: row[2:] for row in rows(page(records), "At equal accuracy")}
    assert found["80.0 % (576 ReLUs)"] == ["none as accurate", "–", "–"]
    assert found["70.0 % (40 ReLUs)"] == ["71.0 % (40 ReLUs)", "1.00", "2.00"]
    assert found["60.0 % (10 ReLUs)"] == ["69.0 % (10 ReLUs)", "1.00", "5.00"]


def test_what_was_not_measured_is_not_made_up(run, page):
    text = page(run("resnet20", "40", 0.70, seconds=6.0) + run("other", "40", 0.72))
    assert rows(text, "At equal ReLUs") == [["40", "other", "+2.00 (1)", "–", "–"]]
    assert rows(text, "At equal accuracy")[0][2:] == ["as accurate, not run", "–", "–"]


def test_runs_over_another_link_are_not_compared(run, page):
    records = run("resnet20", "40", 0.70, seconds=6.0) + run("other", "40", 0.72, seconds=2.0, network="wan")
    assert rows(page(records), "At equal ReLUs")[0][3:] == ["–", "–"]


def test_delphi_prices_fewer_relus_lower(run, page, folder):
    records = run("resnet20", None, 0.8) + run("resnet20", "10", 0.6)
    dense, few, other = rows(page(records + run("other", None, 0.6)), "The same networks under DELPHI")
    assert dense[5] == few[5] == "1.00"
    assert other[5] != "1.00"
    assert [row[1] for row in (dense, few)] == ["576", "10"]
    bench = read_designs(folder, records)[0]
    seconds = [point.predict(Pricing.load("delphi", "lan")).seconds for point in redesigns.points_of(bench)]
    assert seconds[0] > seconds[1]


def test_means_over_seeds(run, page, folder):
    records = run("resnet20", "40", 0.70) + run("resnet20", "40", 0.72, seed=1)
    assert rows(page(records), "Every point")[0][2] == "71.0 ± 1.4 (2)"
    picture = designs_figure(read_designs(folder, records))
    assert picture is not None
    assert "<svg" in picture
    assert designs_figure(read_designs(folder, [])) is None


def test_the_same_networks_on_another_task_stand_apart(run, folder, monkeypatch):
    first = designs_page(read_designs(folder, records := run("resnet20", "40", 0.7) + run("other", "40", 0.8)), [])
    again = designs_page([], read_designs(folder, records))
    assert rows(first, "Every point") == rows(again, "CIFAR-100")[:2]
    assert "Nothing was run." in first.partition("## CIFAR-100")[2]
    assert "other on CIFAR-100: " in again.partition("## Not run")[2]


def test_what_no_network_of_that_size_can_keep_is_not_missing(run, page, monkeypatch):
    monkeypatch.setattr(redesigns, "BUDGETS", ("999999", "10"))
    waiting = page(run("other", None, 0.9) + run("other", None, 0.9, seed=1)).partition("## Not run")[2]
    assert "* other: `ebb`: 10 seeds 0, 1\n" in waiting
    assert "* resnet20: `ebb`: 999999 seeds 0, 1; 10 seeds 0, 1" in waiting


def test_no_empty_tables_of_another_task(run, folder):
    benches = read_designs(folder, run("other", "40", 0.9))
    assert "## CIFAR-100\n\nNothing was run.\n" in designs_page(benches, read_designs(folder, []))
