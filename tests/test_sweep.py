"""Sweeps: the points of a folder of recipes, each once, whatever happens on the way."""

import json
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from reluctant.cluster import sweep_on_ray
from reluctant.errors import Paused, UsageError
from reluctant.experiment import Machine
from reluctant.progress import TimeLimit
from reluctant.recipe import Recipe
from reluctant.records import Record, load_records
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


def test_at_a_budget_that_a_file_is_named_for_that_file_counts(recipes):
    (recipes / "taylor-10%.toml").unlink()
    for name, epochs in (("random-20%", 2), ("taylor", 3), ("taylor-20%", 4)):
        method, _, budget = name.partition("-")
        text = SMALL.replace("random", method).replace("10%", budget or "10%")
        (recipes / f"{name}.toml").write_text(text.replace("epochs = 1", f"epochs = {epochs}"))
    points = find_points([recipes], budgets=["10%", "20%"])
    assert {point.name: point.recipe.finetune.epochs for point in points if point.teacher} == {
        "random-10%-s0": 1, "random-20%-s0": 2, "taylor-10%-s0": 3, "taylor-20%-s0": 4,
    }  # fmt: skip
    assert {point.recipe.budget for point in points} == {None, "10%", "20%"}
    with pytest.raises(UsageError, match="two recipes are called random-30%-s0"):
        find_points([recipes], budgets=["30%"])


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


DIVERGES = """
budget = "10%"
method = "random"
finetune = { epochs = 1, batch = 64, lr = 1e30, warmup = 0.0, distil = 0.0 }
"""


def counted(progress):
    """Progress that adds every stage of work to the list ``progress``."""
    return lambda stage, *_, **__: progress.append(stage) if stage != "points" else None


@pytest.fixture
def broken(recipes):
    """A recipe that trains and diverges, beside its teacher."""
    path = recipes / "broken.toml"
    path.write_text(DIVERGES)
    return path


def test_a_failure_leaves_a_record_and_is_not_tried_again(broken, tmp_path):
    points, out = find_points([broken]), tmp_path / "runs"
    first = sweep(points, out, Machine())
    assert list(first.failed) == ["broken-s0"]
    (record,) = load_records((out / "broken-s0").glob("failed-*.record.json"))
    assert (record.status, record.kind, record.method, record.budget) == ("failed", "linearize", "random", "10%")
    assert record.note == first.failed["broken-s0"]
    assert "\n" not in record.note
    assert record.accuracy["test"] is None
    assert Recipe.from_json(record.recipe) == points[1].recipe

    seen = []
    again = sweep(points, out, Machine(), progress=counted(seen))
    assert (seen, again.records) == ([], first.records)
    assert again.failed["broken-s0"].startswith(record.note)
    assert "--retry trains it again" in again.failed["broken-s0"]


def test_a_failure_is_tried_again_when_asked_and_a_success_takes_its_place(broken, tmp_path):
    out, seen = tmp_path / "runs", []
    sweep(find_points([broken]), out, Machine())
    (first,) = (out / "broken-s0").glob("failed-*")
    assert sweep(find_points([broken]), out, Machine(), retry=True, progress=counted(seen)).failed
    assert seen
    (second,) = (out / "broken-s0").glob("failed-*")
    assert second != first

    broken.write_text(DIVERGES.replace("1e30", "0.01"))
    refused = sweep(find_points([broken]), out, Machine())
    assert "is of other settings or another teacher" in refused.failed["broken-s0"]
    mended = sweep(find_points([broken]), out, Machine(), retry=True)
    assert list(mended.records) == ["dense-s0", "broken-s0"]
    assert {record.status for record in load_records([out])} == {"complete"}


def test_a_retry_that_was_stopped_goes_on_without_asking_again(broken, tmp_path):
    out = tmp_path / "runs"
    sweep(find_points([broken]), out, Machine())

    def interrupt(stage, *_, **__):
        if "finetune" in stage:
            raise KeyboardInterrupt

    broken.write_text(DIVERGES.replace("1e30", "0.01"))
    with pytest.raises(KeyboardInterrupt):
        sweep(find_points([broken]), out, Machine(), retry=True, progress=interrupt)
    assert not sweep(find_points([broken]), out, Machine()).failed


def test_an_error_that_says_nothing_is_named(broken, tmp_path):
    """Torch's and Python's are outcomes as ours are; memory errors often come without a word."""

    def full(stage, *_, **__):
        if "finetune" in stage:
            raise error

    error: Exception = MemoryError()
    swept = sweep(find_points([broken]), tmp_path / "runs", Machine(), progress=full)
    assert swept.failed == {"broken-s0": "out of memory"}
    (record,) = load_records((tmp_path / "runs" / "broken-s0").glob("failed-*.record.json"))
    assert record.note == "out of memory"
    error = RuntimeError("no kernel in /opt/torch/lib/x.so\nand more")
    assert sweep(find_points([broken]), tmp_path / "runs", Machine(), retry=True, progress=full).failed
    (record,) = load_records((tmp_path / "runs" / "broken-s0").glob("failed-*.record.json"))
    assert record.note == "no kernel in .../x.so"


def test_what_can_be_put_right_leaves_no_failure(recipes, tmp_path):
    (recipes / "dense.toml").write_text(DENSE.replace("digits", "cifar10"))
    (recipes / "random-10%.toml").write_text(SMALL.replace("10%", "100%"))
    assert sweep(find_points([recipes]), tmp_path / "runs", Machine(data=tmp_path)).failed
    assert not list((tmp_path / "runs").rglob("*.record.json"))


def test_a_folder_of_another_format_is_refused(recipes, tmp_path):
    points, out = find_points([recipes / "random-10%.toml"]), tmp_path / "runs"
    swept = sweep(points, out, Machine())
    assert json.loads((out / "sweep.json").read_text()) == {"format": 1}
    (out / "sweep.json").unlink()  # as before it was noted
    assert sweep(points, out, Machine()) == swept
    (out / "sweep.json").write_text('{"format": 99}')
    with pytest.raises(UsageError, match="holds a sweep in format 99, this version of reluctant writes 1; choose"):
        sweep(points, out, Machine())
    (out / "sweep.json").write_text("[")
    with pytest.raises(UsageError, match=r"cannot read .*choose another --out"):
        sweep(points, out, Machine())


def test_the_command_of_a_record_makes_its_point_and_no_other_recipe(recipes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [recipes.relative_to(tmp_path) / f"{name}-10%.toml" for name in ("random", "taylor")]
    sweep(find_points(files, budgets=["5%", "20%"], seeds=2), Path("runs"), Machine())
    made = {path.parent.name: Record.load(path) for path in Path("runs").glob("*/linearize-*.record.json")}
    record = made["taylor-5%-s1"]
    assert record.command.endswith(" sweep recipes/taylor-10%.toml --budgets 5% --seeds 2 --out runs")
    words = shlex.split(record.command)
    words[words.index("--out") + 1] = "again"
    ended = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    again = {path.parent.name: Record.load(path) for path in Path("again").glob("*/linearize-*.record.json")}
    assert sorted(again) == ["taylor-5%-s0", "taylor-5%-s1"]
    assert again["taylor-5%-s1"].checkpoint == record.checkpoint


def test_two_sweeps_at_once_do_every_point_once(recipes, tmp_path):
    words = [
        sys.executable,
        "-m",
        "reluctant",
        "--threads",
        "1",
        "sweep",
        str(recipes),
        "--out",
        str(tmp_path / "runs"),
    ]
    words += ["--seeds", "2", "--json"]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=250) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    ends = [json.loads(out) for out, _ in told]
    points = names(find_points([recipes], seeds=2))
    assert set(ends[0]["records"]) | set(ends[1]["records"]) == set(points)
    for ended in ends:
        assert not ended["failed"]
        assert set(ended["records"]) | set(ended["elsewhere"]) == set(points)
    for name in points:
        kinds = sorted(Record.load(path).kind for path in (tmp_path / "runs" / name).glob("*.record.json"))
        assert kinds == ["evaluate", "train" if name.startswith("dense") else "linearize"]


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
        assert re.search(r"^reluctant --threads \d+ sweep \S+\.toml --out \S+$", record.command), record.command


def test_an_absent_cluster_is_said_at_once(recipes, tmp_path):
    with pytest.raises(UsageError, match=r"no Ray cluster at 127\.0\.0\.1:1: .*refused"):
        sweep_on_ray(find_points([recipes]), tmp_path / "runs", Machine(), address="127.0.0.1:1")
