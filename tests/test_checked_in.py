"""What is checked in under results/ was not edited, and its page is made of it."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from reluctant.methods import METHODS
from reluctant.models import ModelSpec
from reluctant.records import load_records
from reluctant.report import grid as grid_module
from reluctant.report import redesigns, results_page
from reluctant.sweep import find_points

ROOT = Path(__file__).parents[1]


def test_the_page_is_what_the_records_say():
    records = load_records([ROOT / "results"])  # refuses a record that was changed
    assert (ROOT / "results" / "README.md").read_text() == results_page(records)


def test_records_name_no_folder_of_a_machine():
    for path in (ROOT / "results").glob("*.json"):
        assert not re.search(r'["\s=]/[a-z]+/', path.read_text()), path


BENCHES = sorted(path.parent for path in (ROOT / "recipes" / "bench").glob("*/dense.toml"))
DESIGNS = ROOT / "recipes" / "bench" / redesigns.FOLDER
GRIDS = sorted(set((ROOT / "recipes").glob("*/*/")) - {*BENCHES, DESIGNS})


@pytest.mark.parametrize("folder", BENCHES, ids=lambda folder: folder.name)
def test_a_bench_has_its_teacher_its_floor_and_equal_epochs(folder):
    assert folder.name in [grid.folder for grid in grid_module.GRIDS], "name it in reluctant.report.grid.GRIDS"
    points = [point for path in sorted(folder.glob("*.toml")) for point in find_points([path])[-1:]]
    names = {path.stem for path in folder.glob("*.toml")}
    assert {"dense", "random"} <= {name.partition("-")[0] for name in names}
    recipes = [point.recipe for point in points if point.teacher]
    for point in points:
        assert point.teacher is None or point.name.startswith(point.recipe.method.name), point.name
    assert len({recipe.method.epochs + recipe.finetune.epochs for recipe in recipes}) == 1
    assert len({(recipe.finetune.batch, recipe.views, recipe.cutout) for recipe in recipes}) == 1


def test_designs_are_trained_and_masked_alike():
    """All but the network is the same."""
    found = [[point.recipe for point in find_points([folder])] for folder in sorted(DESIGNS.glob("*/"))]
    assert (DESIGNS / redesigns.REFERENCE).is_dir()
    for recipes in found:
        alike = [replace(recipe, model="", note=None).to_json() for recipe in recipes]
        assert alike == [replace(recipe, model="", note=None).to_json() for recipe in found[0]]


#: Folders that are called by what readers know, not by the name of a model with its settings.
CALLED = {
    "resnet18-half": "deepreduce",
    "resnet18-half-long": "deepreduce",
    "deepreduce-12k": "deepreduce-cifar100-12k",
}


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "/".join(grid.parts[-2:]))
def test_every_recipe_resolves_and_is_called_what_it_is(grid):
    for path in grid.glob("*.toml"):
        *_, point = find_points([path])
        recipe = point.recipe
        folders = grid.name.split("-", 1) if grid.parent.name == "bench" else grid.parts[-2:]
        assert [recipe.task, ModelSpec.parse(recipe.model).name] == [CALLED.get(folder, folder) for folder in folders]
        if recipe.method is not None:
            surrogate = recipe.method.surrogate.name
            usual = surrogate == METHODS[recipe.method.name]().surrogate.name
            budget = f"{int(recipe.budget) / 1000:.1f}k" if recipe.budget.isdigit() else recipe.budget
            assert path.stem == "-".join([recipe.method.name, *([] if usual else [surrogate]), budget])


def test_the_cifar100_grid_has_every_budget_in_both_tracks():
    points = find_points([ROOT / "recipes" / "cifar100" / "resnet18"])
    budgets = ["100k", "12.9k", "150k", "15k", "25k", "50k", "6k", "9k"]
    for track, methods in {"free": ["ebb", "snl", "autorep"], "polynomial": ["ebb", "snl", "autorep"]}.items():
        for method in methods:
            found = [p.recipe for p in points if p.recipe.method is not None and p.recipe.method.name == method]
            assert sorted(r.budget for r in found if r.method.surrogate.track == track) == budgets
    epochs = {recipe.training.epochs for recipe in (p.recipe for p in points) if recipe.method is None}
    assert epochs == {60}
    searched = [p.recipe for p in points if p.recipe.method is not None]
    assert max(recipe.method.epochs + recipe.finetune.epochs for recipe in searched) <= 60


def test_the_driver_runs_a_grid_in_slices_and_collects_its_records(tmp_path):
    """The one of CIFAR-100, on a grid of digits."""
    grid, runs, records = (tmp_path / name for name in ("grid", "runs", "records"))
    grid.mkdir()
    (grid / "dense.toml").write_text('task = "digits"\nmodel = "resnet8:width=4"\ntraining.epochs = 1\n')
    (grid / "random-5%.toml").write_text('budget = "5%"\nmethod = "random"\nfinetune.epochs = 1\n')
    (grid / "snl-50k.toml").write_text(
        'budget = "10%"\nmethod = { name = "snl", max_epochs = 1 }\nfinetune.epochs = 1\n'
    )
    words = ["--grid", grid, "--out", runs, "--records", records, "--max-seconds"]
    script = [sys.executable, str(ROOT / "recipes" / "cifar100" / "next.py")]

    def run(seconds):
        return subprocess.run([*script, *map(str, words), str(seconds)], capture_output=True, text=True, timeout=300)

    short = run(1)
    assert short.returncode == 1
    assert "leave no time for the next step" in short.stderr
    ended = run(300)
    assert ended.returncode == 0, ended.stderr
    assert "3 of 3 points are there" in ended.stdout
    names = [record.kind for record in load_records([records])]
    assert sorted(names) == ["evaluate"] * 3 + ["linearize"] * 2 + ["train"]
    finished = {path.parent.name: path.stat().st_mtime for path in runs.glob("*/evaluate-*.record.json")}
    assert finished["snl-50k-s0"] < finished["random-5%-s0"]
