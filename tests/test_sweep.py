"""Sweeps: the points of a folder of recipes, each once, whatever happens on the way."""

import json
import subprocess
import sys
from functools import partial

import pytest

from reluctant.cluster import sweep_on_ray
from reluctant.errors import Paused, UsageError
from reluctant.experiment import Machine
from reluctant.progress import TimeLimit
from reluctant.records import load_records
from reluctant.sweep import _claimed, find_points, run_point, sweep

DENSE = """
task = "digits"
model = "resnet8:width=4"
training = { epochs = 1, batch = 256 }
"""
SMALL = """
budget = "10%"
method = { name = "random" }
finetune = { epochs = 1, batch = 256 }
"""


@pytest.fixture
def recipes(tmp_path):
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "dense.toml").write_text(DENSE)
    (folder / "random-10%.toml").write_text(SMALL)
    (folder / "taylor-10%.toml").write_text(SMALL.replace("random", "taylor"))
    return folder


def names(points):
    return [point.name for point in points]


def test_points_come_in_order_each_after_its_teacher(recipes):
    points = find_points([recipes / "taylor-10%.toml", recipes])
    assert names(points) == ["dense-s0", "taylor-10%-s0", "random-10%-s0"]
    assert [point.teacher for point in points] == [None, "dense-s0", "dense-s0"]
    assert points[1].recipe.task == "digits"


def test_budgets_and_seeds_multiply_them(recipes):
    points = find_points([recipes / "random-10%.toml"], budgets=["10%", "20%"], seeds=2)
    assert names(points) == [
        "dense-s0", "random-10%-s0", "random-20%-s0", "dense-s1", "random-10%-s1", "random-20%-s1",
    ]  # fmt: skip
    assert (points[5].recipe.seed, points[5].recipe.budget, points[5].teacher) == (1, "20%", "dense-s1")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("snl.toml", "budget = '10%'\n", "names no method or no budget"),
        ("snl.toml", "budget = 'many'\nmethod = 'snl'\n", "snl.toml: .*many"),
        ("snl.toml", "budget = '10%'\nmethod = 'sln'\n", "snl.toml: unknown method 'sln'.*snl"),
        ("other/snl.toml", SMALL, r"has no dense.toml beside it"),
        ("other/dense.toml", DENSE.replace("epochs = 1", "epochs = 2"), "two recipes are called dense-s0"),
    ],
)
def test_wrong_recipes_are_refused_before_anything_runs(recipes, file, text, message):
    path = recipes / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        find_points([recipes, path])


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no recipe"):
        find_points([tmp_path])


def test_every_point_runs_once_and_is_tested_once(recipes, tmp_path):
    points, seen = find_points([recipes]), []
    swept = sweep(points, tmp_path / "runs", Machine(), progress=lambda stage, *_, **__: seen.append(stage))
    assert list(swept.records) == names(points)
    assert not swept.failed
    assert {record.kind for record in swept.records.values()} == {"evaluate"}
    assert "random-10%-s0: finetune" in seen
    seen.clear()
    again = sweep(points, tmp_path / "runs", Machine(), progress=lambda stage, *_, **__: seen.append(stage))
    assert again == swept
    assert set(seen) == {"points"}


def test_one_failure_does_not_stop_the_others(recipes, tmp_path):
    (recipes / "autorep-1.toml").write_text(SMALL.replace("random", "autorep").replace("10%", "100%"))
    swept = sweep(find_points([recipes]), tmp_path / "runs", Machine())
    assert list(swept.failed) == ["autorep-1-s0"]
    assert list(swept.records) == ["dense-s0", "random-10%-s0", "taylor-10%-s0"]


def test_without_their_teacher_students_fail(recipes, tmp_path):
    (recipes / "dense.toml").write_text(DENSE.replace("digits", "cifar10"))
    swept = sweep(find_points([recipes]), tmp_path / "runs", Machine(data=tmp_path))
    assert list(swept.failed) == ["dense-s0", "random-10%-s0", "taylor-10%-s0"]
    assert swept.failed["taylor-10%-s0"] == "its teacher dense-s0 failed"


def test_a_finished_point_of_another_recipe_or_teacher_is_not_taken_for_this_one(recipes, tmp_path):
    def run():
        return sweep(find_points([recipes / "random-10%.toml"]), tmp_path / "runs", Machine()).failed

    assert not run()
    (recipes / "random-10%.toml").write_text(f'note = "as before"\n{SMALL}')
    assert not run()
    (recipes / "random-10%.toml").write_text(SMALL.replace("epochs = 1", "epochs = 2"))
    assert "is of other settings or another teacher; choose another --out" in run()["random-10%-s0"]
    (recipes / "random-10%.toml").write_text(SMALL)
    (tmp_path / "runs" / "dense-s0").rename(tmp_path / "first")
    (recipes / "dense.toml").write_text(DENSE.replace("epochs = 1", "epochs = 2"))
    assert list(run()) == ["random-10%-s0"]


@pytest.mark.parametrize("run", [sweep, partial(sweep_on_ray, address="local")], ids=["here", "ray"])
def test_a_sweep_is_shared_by_points_not_by_batches(recipes, tmp_path, run):
    with pytest.raises(UsageError, match="trains each point in one process, --device cpu:2 asks for several"):
        run(find_points([recipes]), tmp_path / "runs", Machine(device="cpu:2"))


def test_a_point_that_somebody_is_at_is_left_to_them(recipes, tmp_path):
    points = find_points([recipes / "random-10%.toml"])
    with _claimed(tmp_path / "runs" / "dense-s0") as mine:
        assert mine
        swept = sweep(points, tmp_path / "runs", Machine())
    assert swept.elsewhere == ("dense-s0", "random-10%-s0")
    assert not swept.records
    assert run_point(points[0], tmp_path / "runs", Machine()) is not None
    with _claimed(tmp_path / "runs" / "dense-s0"):  # somebody looks at a teacher that is there
        swept = sweep(points, tmp_path / "runs", Machine())
    assert (swept.elsewhere, list(swept.records)) == (("dense-s0",), ["random-10%-s0"])


def test_in_slices_every_point_is_what_it_is_in_one_go(recipes, tmp_path):
    """Each slice ends after three steps of work."""
    points = find_points([recipes])
    whole = sweep(points, tmp_path / "whole", Machine())

    def slice_of_three():
        limit, steps = TimeLimit(1e6), iter(range(1000))

        def count(stage, *_, **__):
            if stage != "points" and next(steps) == 2:
                limit.seconds = 0.0

        limit.progress = count
        return limit

    pauses = []
    while True:
        try:
            sliced = sweep(points, tmp_path / "sliced", Machine(), progress=slice_of_three())
        except Paused as pause:
            pauses.append(str(pause))
        else:
            break
    assert len(pauses) >= 3
    assert all(" of 3 points), " in pause for pause in pauses)
    assert {name: r.checkpoint for name, r in sliced.records.items()} == {
        name: r.checkpoint for name, r in whole.records.items()
    }


@pytest.mark.timeout(300)
def test_a_ray_cluster_runs_the_points_teachers_first(recipes, tmp_path):
    (recipes / "autorep-1.toml").write_text(SMALL.replace("random", "autorep").replace("10%", "100%"))
    words = ["sweep", recipes, "--out", tmp_path / "runs", "--ray", "local", "--json"]
    ended = subprocess.run([sys.executable, "-m", "reluctant", *map(str, words)], capture_output=True, text=True)
    assert ended.returncode == 2
    assert "error: 1 of 4 points failed, first autorep-1-s0: " in ended.stderr
    made = json.loads(ended.stdout)
    assert set(made["records"]) == {"dense-s0", "random-10%-s0", "taylor-10%-s0"}
    assert list(made["failed"]) == ["autorep-1-s0"]
    for record in load_records([tmp_path / "runs"]):
        assert record.command.startswith("__main__.py sweep "), record.command
        assert "--ray local" in record.command


def test_an_absent_cluster_is_said_at_once(recipes, tmp_path):
    with pytest.raises(UsageError, match=r"no Ray cluster at 127\.0\.0\.1:1: .*refused"):
        sweep_on_ray(find_points([recipes]), tmp_path / "runs", Machine(), address="127.0.0.1:1")
