"""Published points and the page of CIFAR-100."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from reluctant.errors import UsageError
from reluctant.models import ModelSpec
from reluctant.recipe import Recipe, merge
from reluctant.records import Record, load_records
from reluctant.report.published import (
    BACKBONES,
    OURS,
    PUBLISHED,
    PublishedPoint,
    cifar100_figure,
    cifar100_page,
)
from reluctant.report.results import read_recipes, was_run
from reluctant.sites import find_sites

Make = Callable[..., Record]
ROOT = Path(__file__).parents[2]
BASE = {"task": "cifar100", "model": "resnet18:stem_relu=false"}
SNL = {**BASE, "budget": "25%", "method": {"name": "snl", "max_epochs": 9}, "finetune": {"epochs": 6}}


def recipe(**changes: object) -> Recipe:
    return Recipe.from_json(merge(SNL, changes))


@pytest.fixture
def run(linearized: Make) -> Make:
    """Makes a record of an SNL recipe that was run on CIFAR-100."""

    def make(kind: str = "linearize", ran: Recipe | None = None, **changes: object) -> Record:
        ran = ran or recipe()
        return linearized(kind, **{**BASE, "seed": ran.seed, "recipe": ran.to_json(), "budget": ran.budget, **changes})

    return make


def section(page: str, title: str) -> str:
    return page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def tables(text: str) -> list[list[str]]:
    """The lines of each table."""
    return [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", text + "\n", re.MULTILINE)]


def test_every_point_says_where_it_is_from():
    for point in PUBLISHED:
        assert re.search(r"\d{4}|github\.com", point.source), point
        assert point.task == "cifar100"
        assert point.sure or "uncertain" in point.source


def test_counts_and_accuracies_are_possible():
    for point in PUBLISHED:
        assert 0 < point.relus <= point.total, point
        assert 0.5 < point.accuracy < 0.85, point
        assert (BACKBONES[point.model] is None) == (point.track is None), point
    assert len({(p.method, p.model, p.relus) for p in PUBLISHED}) == len(PUBLISHED)


def test_backbones_have_the_relus_that_our_networks_have():
    zoo = {
        "ResNet-18": "resnet18:stem_relu=false",
        "ResNet-18 with stem ReLU": "resnet18",
        "ResNet-18, half width": "deepreduce:width=32,cull=none",
        "ResNet-18, half resolution": "deepreduce:stem_stride=2,cull=none",
        "WRN-22-8 with last ReLU": "wrn-22-8",
    }
    ours = {name: specs[0] for name, specs in OURS.items()}
    assert set(zoo.items()) > {(name, spec) for name, spec in ours.items() if name in zoo}
    for name, spec in (zoo | ours).items():
        with torch.device("meta"):
            model = ModelSpec.parse(spec).build(100, 3)
        assert find_sites(model.to_empty(device="cpu"), torch.zeros(1, 3, 32, 32)).total == BACKBONES[name]


def test_later_points_are_what_the_sources_say():
    found = {(point.method, point.relus): 100 * point.accuracy for point in PUBLISHED}
    assert found["SNL", 49_900] == pytest.approx(73.75)
    assert found["SENet", 24_600] == pytest.approx(70.59)
    assert found["AutoReP", 12_900] == pytest.approx(74.92)


def test_the_page_says_that_checkpoints_were_chosen_on_the_test_set():
    assert "chosen on the test set" in section(cifar100_page([], {}), "Published points")


def test_published_and_own_rows_stand_in_no_table_together(run: Make):
    page = cifar100_page([run(), run("evaluate")], {"resnet18/snl-25%.toml": recipe()})
    published, own = section(page, "Published points"), section(page, "Records of this project")
    methods = {point.method for point in PUBLISHED}
    assert {line.split(" | ")[0].strip("| ") for table in tables(published) for line in table[2:]} == methods
    assert len(tables(own)) == 1
    assert len(tables(own)[0]) == 3
    assert not any(method in own for method in methods)
    assert "`resnet18/snl-25%.toml`" not in published
    assert len(tables(page)) == len(tables(published)) + 1


def test_a_row_of_ours_says_what_was_measured(run: Make):
    head, _, row = tables(
        section(cifar100_page([run(), run("evaluate")], {"snl-25%.toml": recipe()}), "Records of this project")
    )[0]
    cells = dict(zip(*([cell.strip() for cell in line.strip("|").split(" | ")] for line in (head, row)), strict=True))
    assert (cells["method"], cells["surrogate"], cells["track"]) == ("snl", "identity", "free")
    assert (cells["ReLUs kept"], cells["share"], cells["seeds"]) == ("3", "25.0 %", "1")
    assert (cells["val"], cells["test"], cells["test images"]) == ("97.00", "96.00", "50")
    assert (cells["recipe"], cells["device"], cells["time"]) == ("`snl-25%.toml`", "cpu, 2 threads", "1 min 30 s")


def test_seeds_are_one_row_at_their_mean(run: Make):
    records = [run("evaluate", recipe(seed=seed), test=test) for seed, test in enumerate((0.5, 0.7))]
    (table,) = tables(section(cifar100_page(records, {}), "Records of this project"))
    assert len(table) == 3
    assert "| 2 |" in table[2]
    assert "60.00 (50.00–70.00)" in table[2]


def test_networks_have_tables_of_their_own(run: Make):
    small = Recipe.from_json({**SNL, "model": "resnet20"})
    own = section(cifar100_page([run(), run(ran=small, model="resnet20")], {}), "Records of this project")
    assert re.findall(r"^### (.*)$", own, re.MULTILINE) == [
        "resnet18:stem\\_relu=false: 12 ReLUs",
        "resnet20: 12 ReLUs",
    ]
    assert [len(table) for table in tables(own)] == [3, 3]


def test_recipes_without_a_record_are_not_run(run: Make):
    recipes = {"a.toml": recipe(), "b.toml": recipe(method={"max_epochs": 10}), "dense.toml": Recipe.from_json(BASE)}
    waiting = section(cifar100_page([run()], recipes), "Not run")
    assert re.findall(r"^\* `(.*)`$", waiting, re.MULTILINE) == ["b.toml", "dense.toml"]
    assert "a.toml" in section(cifar100_page([run(status="failed", mask=None)], recipes), "Not run")


def test_records_of_another_task_are_not_shown(linearized: Make):
    page = cifar100_page([linearized()], {})
    assert "no record in `results/`" in section(page, "Records of this project")


def test_a_recipe_is_recognised_whatever_the_seed(run: Make, dense: Make):
    assert was_run(recipe(), run(ran=recipe(seed=5, note="a note")))
    assert was_run(recipe(training={"epochs": 7}), run())  # of the teacher, not of this
    assert not was_run(recipe(finetune={"epochs": 7}), run())
    assert not was_run(recipe(method={"surrogate": "shift"}), run())
    assert not was_run(recipe(budget="24%"), run())
    assert not was_run(Recipe.from_json(BASE), run())
    assert was_run(Recipe.from_json(BASE), dense("train", **BASE, recipe=Recipe.from_json(BASE).to_json()))


def test_a_setting_younger_than_the_record_had_its_default(run: Make):
    ran = recipe().to_json()
    del ran["method"]["growth"]
    assert was_run(recipe(), run(recipe=ran))
    assert not was_run(recipe(method={"growth": 1.2}), run(recipe=ran))


def test_recipes_take_task_and_model_of_the_dense_one_beside_them(tmp_path: Path):
    folder = tmp_path / "resnet20"
    folder.mkdir()
    (folder / "dense.toml").write_text('task = "cifar100"\nmodel = "resnet20"\n[training]\nepochs = 3\n')
    (folder / "snl-10%.toml").write_text('budget = "10%"\n[method]\nname = "snl"\n')
    found = read_recipes(tmp_path)
    assert list(found) == ["resnet20/dense.toml", "resnet20/snl-10%.toml"]
    snl = found["resnet20/snl-10%.toml"]
    assert (snl.task, snl.model, snl.training.epochs) == ("cifar100", "resnet20", Recipe(**BASE).training.epochs)
    (folder / "bad.toml").write_text("epochs = 3\n")
    with pytest.raises(UsageError, match=r"resnet20/bad\.toml"):
        read_recipes(tmp_path)


def fills(svg: str) -> list[str]:
    """How each marker of a point is filled."""
    styles = re.findall(r"<use [^>]*style=\"([^\"]*stroke-width: 1\.5[^\"]*)\"", svg)
    return ["none" if "fill-opacity: 0" in style else "full" for style in styles]


def test_published_points_are_hollow_and_joined_by_nothing():
    svg = cifar100_figure([])
    assert len(fills(svg)) > len(PUBLISHED)  # those of the legend, too
    assert set(fills(svg)) == {"none"}
    assert not re.search(r"<path d=\"M[^\"]*\" clip-path=\"[^\"]*\" style=\"fill: none; stroke: #(?!dddddd)", svg)


def test_published_results_of_the_same_network_stand_under_our_table(run: Make):
    model = OURS["ResNet-18, half width and resolution"][0]
    own = section(
        cifar100_page([run(ran=Recipe.from_json({**SNL, "model": model}), model=model)], {}), "Records of this project"
    )
    assert "not run by this project: DeepReDuce 64.97 % with 12,288 ReLUs" in own


def test_only_our_own_of_the_same_network_is_drawn_beside_published_ones(run: Make, dense: Make):
    points = (PublishedPoint("SNL", "cifar100", "ResNet-18", 12_900, 0.6653, "free", "a source"),)
    alone = cifar100_figure([], points)
    small = Recipe.from_json({**SNL, "model": "resnet20"})
    assert cifar100_figure([run("evaluate", small, model="resnet20")], points) == alone
    assert fills(cifar100_figure([run("evaluate")], points)).count("full") == 2  # with the legend's
    half = "deepreduce-cifar100-12k"
    built = dense("evaluate", model=half, task="cifar100")
    assert fills(cifar100_figure([built], points)).count("full") == 2


def test_the_page_in_the_repository_is_made_of_the_records_and_recipes():
    page = cifar100_page(load_records([ROOT / "results"]), read_recipes(ROOT / "recipes" / "cifar100"))
    assert (ROOT / "docs" / "cifar100.md").read_text() == page, "run: python docs/generate.py"
