"""The page of the bench, from records of experiments that never happened."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reluctant.records import Record, load_records
from reluctant.report.bench import bench_figure, bench_page
from reluctant.report.grid import Grid, read_benches
from reluctant.report.results import read_recipes
from reluctant.training import Training

Make = Callable[..., Record]
ROOT = Path(__file__).parents[2]
GRID = Grid("digits-resnet8", "Digits", "digits", budgets=("10%", "25%"), seeds=3)
FILES = {
    "dense": 'task = "digits"\nmodel = "resnet8"\n',
    "random": '# The floor.\nbudget = "10%"\nmethod = "random"\nfinetune.epochs = 6\n',
    "snl": (
        '# Tuned on the held-out split\n# of seed 0.\nbudget = "10%"\nmethod = { name = "snl", max_epochs = 2 }\n'
        "finetune.epochs = 4\n"
    ),
    "taylor": 'budget = "10%"\nmethod = "taylor"\nfinetune.epochs = 6\n',
    "autorep": 'budget = "10%"\nmethod = { name = "autorep", search_epochs = 2 }\nfinetune.epochs = 4\n',
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / GRID.folder
    place.mkdir()
    for name, text in FILES.items():
        (place / f"{name}.toml").write_text(text)
    return tmp_path


@pytest.fixture
def run(folder: Path, linearized: Make, dense: Make) -> Make:
    """Makes the record of a recipe of the folder, at a budget, with a seed."""
    recipes = read_recipes(folder / GRID.folder)

    def make(name: str, test: float = 0.5, seed: int = 0, budget: str = "10%", **changes: Any) -> Record:
        ran = recipes[f"{name}.toml"]
        about: dict[str, Any] = {"seed": seed, "command": f"reluctant sweep {name}.toml", **changes}
        if ran.method is None:
            return dense(test=test, recipe=ran.to_json() | {"seed": seed}, checkpoint=f"dense{seed}", **about)
        surrogate = ran.method.surrogate
        settings = {**ran.to_json(), "seed": seed, "budget": budget}
        kept = (1, 0) if budget == "10%" else (3, 0)
        more = {"kept": kept, "surrogate": surrogate.name, "track": surrogate.track, "budget": budget}
        return linearized(**{"method": ran.method.name, "test": test, "recipe": settings} | more | about)

    return make


@pytest.fixture
def page(folder: Path) -> Callable[[list[Record]], str]:
    return lambda records: bench_page(read_benches(folder, records, [GRID]))


def part(text: str, title: str) -> str:
    """What stands under a heading that begins so."""
    return re.split(r"^#+ ", re.split(rf"^#+ {title}.*$", text, flags=re.M)[1], flags=re.M)[0]


def rows(text: str) -> dict[str, list[str]]:
    """The rows of the tables, by their first cell."""
    lines = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0].strip(" `"): [entry.strip() for entry in row[1:]] for row in lines}


def test_an_entry_is_mean_deviation_and_seeds_and_the_best_is_bold(run, page):
    records = [run("snl", test, seed) for seed, test in enumerate((0.70, 0.71, 0.72))]
    records += [run("random", test, seed) for seed, test in enumerate((0.5, 0.5, 0.5))]
    free = rows(part(page(records), "Free"))
    assert free["snl"][0] == "**71.0 ± 1.0** (3)"
    assert free["random"][0] == "50.0 ± 0.0 (3)"
    assert free["snl"][1] == free["taylor"][0] == "–"
    assert free["snl"][2:] == ["12", "1 min 30 s"]


def test_a_lucky_seed_is_not_ranked_before_three(run, page):
    records = [run("snl", test, seed) for seed, test in enumerate((0.70, 0.71, 0.72))] + [run("taylor", 0.9)]
    free = rows(part(page(records), "Free"))
    assert (free["snl"][0], free["taylor"][0]) == ("**71.0 ± 1.0** (3)", "90.0 (1)")


def test_the_difference_is_paired_by_seed(run, page):
    """Each is spread by 10 points, their difference by none."""
    records = [run("snl", test, seed) for seed, test in enumerate((0.52, 0.62, 0.72))]
    records += [run("taylor", test, seed) for seed, test in enumerate((0.5, 0.6, 0.7))]
    first = re.search(r"^\| 10 % \| (.*) \|$", page(records), flags=re.M)
    assert first is not None
    assert first[1] == "`snl` | `taylor` | +2.00 ± 0.00 (3)"
    records[3:] = [run("taylor", test, seed) for seed, test in ((1, 0.6), (2, 0.7), (3, 0.5))]
    assert "`snl` | `taylor` | +2.00 ± 0.00 (2)" in page(records)


def test_tracks_are_ranked_apart(run, page):
    text = page([run("snl", 0.5), run("autorep", 0.9)])
    assert "autorep" not in part(text, "Free")
    assert rows(part(text, "Polynomial"))["autorep"][0] == "**90.0** (1)"
    assert "difference" not in text.split("## Digits")[1]
    assert "### Affine" not in text


def test_a_track_without_a_random_mask_says_so_and_names_the_other(run, page):
    text = page([run("random", 0.4), run("autorep", 0.9)])
    told = "No recipe has a random mask with a surrogate of this track; `random` (free) reaches 40.0 (1) at 10 %."
    assert told in part(text, "Polynomial")
    assert "No recipe has a random mask" not in part(text, "Free")


def test_only_records_of_the_recipes_belong(run, page):
    other = run("snl").recipe
    assert isinstance(other, dict)
    records = [
        run("snl", recipe=other | {"finetune": other["finetune"] | {"epochs": 5}}),
        run("snl", task="cifar10", recipe=other | {"task": "cifar10"}),
        run("snl", model="resnet20", recipe=other | {"model": "resnet20"}),
    ]
    assert part(page(records), "Every run").strip() == "None yet."
    assert part(page([run("snl")]), "Every run").count("| `snl` |") == 1


def test_of_a_run_that_was_repeated_the_newest_counts_whatever_it_reached(run, page):
    old, new = "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"
    records = [run("snl", 0.9, created=old, checkpoint="a"), run("snl", 0.5, created=new, checkpoint="b")]
    for order in (records, records[::-1]):
        assert rows(part(page(order), "Free"))["snl"][0] == "**50.0** (1)"


def test_what_failed_stays_with_its_reason_until_it_is_complete(run, page):
    failure = run("taylor", kind="linearize", status="failed", mask=None, note="loss is nan")
    text = page([failure])
    assert rows(part(text, "Free"))["taylor"][0] == "failed"
    assert "* `taylor` at 10 %, seed 0: loss is nan ([linearize](../results/failed-linearize-" in part(text, "Failed")
    assert "`taylor`: 10 % seeds 1, 2; 25 % seeds 0, 1, 2" in part(text, "Not run")
    text = page([failure, run("taylor", 0.6, seed=1)])
    assert rows(part(text, "Free"))["taylor"][0] == "**60.0** (1, 1 failed)"
    assert part(page([failure, run("taylor", 0.6)]), "Failed").strip() == "Nothing."


def test_what_was_not_run_is_named(run, page):
    missing = part(page([run("dense", seed=seed) for seed in range(3)] + [run("snl", seed=1)]), "Not run")
    assert "`dense`" not in missing
    assert "* `snl`: 10 % seeds 0, 2; 25 % seeds 0, 1, 2" in missing


def test_teachers_are_of_the_bench(run, page):
    records = [run("dense", 0.90), run("dense", 0.92, seed=1)]
    assert f"Teachers: resnet8, {Training().epochs} epochs, 91.0 ± 1.4 (2), of 50 test images." in page(records)


def test_every_row_has_its_command_and_its_records(run, page):
    first, second = run("snl", 0.5), run("snl", 0.75, seed=1, command="reluctant sweep snl.toml --seeds 2")
    row = rows(part(page([first, second]), "Every run"))["snl"]
    assert row[:4] == ["10 %", "1", "50.00, 75.00", "`reluctant sweep snl.toml --seeds 2`"]
    for record in (first, second):
        assert f"(../results/{record.name}.record.json)" in row[4].replace("\\_", "_")


def test_recipes_are_listed_with_their_comments_and_departures(folder, page):
    text = page([])
    assert rows(part(text, "Recipes"))["snl"] == ["identity", "2 + 4", "Tuned on the held-out split of seed 0."]
    assert "Epochs of search and finetune: 6 in every recipe." in text
    path = folder / GRID.folder / "taylor.toml"
    path.write_text(path.read_text().replace("6", "7"))
    assert "Epochs of search and finetune: 6 in every recipe, but `taylor` has 7." in page([])


def test_files_of_one_method_are_each_for_their_budget(folder, run, page):
    place = folder / GRID.folder
    records = [run("taylor", 0.6), run("taylor", 0.7, budget="25%")]
    (place / "taylor-25%.toml").write_text(FILES["taylor"].replace("10%", "25%").replace("6", "9"))
    for name in ("taylor", "taylor-10%"):
        assert rows(part(page(records), "Free"))["taylor"][:2] == ["**60.0** (1)", "–"]
        assert "6 in every recipe, but `taylor-25%` has 9" in page([])
        assert {name, "taylor-25%"} <= set(rows(part(page([]), "Recipes")))
        if name == "taylor":
            (place / "taylor.toml").rename(place / "taylor-10%.toml")


def test_tracks_meet_in_predicted_megabytes(run, page):
    def price(size: int) -> dict[str, Any]:
        parts = dict.fromkeys(("messages", "comparison_bytes", "surrogate_bytes", "linear_bytes", "pooling_bytes"), 0)
        return {"engine": "cheetah", "bytes": size, **parts}

    records = [run("snl", 0.5, seed, predicted=price(size)) for seed, size in enumerate((2_000_000, 4_000_000))]
    records += [run("autorep", 0.6, predicted=price(9_120_000)), run("dense", predicted=price(12_000_000))]
    text = part(page(records), "Where the tracks meet")
    assert rows(text)["snl"] == ["free", "3.00", "–"]
    assert rows(text)["autorep"] == ["polynomial", "9.12", "–"]
    assert rows(text)["taylor"] == ["free", "–", "–"]
    assert "The dense network: 12.00." in text


def test_grids_without_a_folder_are_left_out(folder):
    assert [bench.grid for bench in read_benches(folder, [], [GRID, Grid("other", "Other", "other")])] == [GRID]


def test_the_figure_has_a_line_a_method_and_none_without_records(folder, run):
    def drawn(records: list[Record]) -> str | None:
        (bench,) = read_benches(folder, records, [GRID])
        return bench_figure(bench)

    assert drawn([run("dense")]) is None
    records = [run("snl", 0.5, budget=budget) for budget in GRID.budgets]
    one = drawn(records)
    two = drawn([*records, run("autorep", 0.9), run("random", 0.2)])
    assert one is not None
    assert two is not None
    assert drawn(records) == one
    assert two.count("LineCollection") - one.count("LineCollection") == 4  # their error bars, in the legend, too
    assert not re.search(r'(href|src)="http', one)


def test_the_page_in_the_repository_is_made_of_the_records_and_recipes():
    page = bench_page(read_benches(ROOT / "recipes" / "bench", load_records([ROOT / "results"])))
    assert (ROOT / "docs" / "bench.md").read_text() == page, "run: python docs/generate.py"
