"""Killed at any moment, or out of disk: nothing is lost but the step in hand, and no part of a file is taken for one.

Commands run in processes forked from one that has loaded everything, so that dozens of them can be killed in a minute.
"""

import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from reluctant.cli.main import main
from reluctant.experiment import Machine
from reluctant.loop import Loop
from reluctant.records import load_records
from reluctant.sweep import find_points, sweep

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["test_survival", "lightning_fabric", "reluctant.cli.sweep", "reluctant.report"])
DENSE = 'task = "digits"\nmodel = "resnet8:width=4"\ntraining = { epochs = 3, batch = 128 }\n'
FINETUNE = "finetune = { epochs = 2, batch = 128 }\n"
RECIPES = {
    "dense": DENSE,
    "snl-10%": 'budget = "10%"\nviews = 2\nmethod = { name = "snl", max_epochs = 2, batch = 128 }\n' + FINETUNE,
    "autorep-10%": 'budget = "10%"\nmethod = { name = "autorep", search_epochs = 2, batch = 128 }\n' + FINETUNE,
    "taylor-10%": 'budget = "10%"\nmethod = { name = "taylor", images = 256 }\n' + FINETUNE,
}


def child(words, errors, before):
    """What a forked process does: run ``reluctant``, its messages in a file."""
    sys.stdout = sys.stderr = errors.open("w")
    before()
    main([str(word) for word in words])


def nothing():
    """Leaves a process as it is."""


def die_in_write(number):
    """Makes a process kill itself when its ``number``-th file is written, but not yet in its place."""
    left, fsync = iter(range(1, number)), os.fsync

    def die(handle):
        fsync(handle)
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = die


def pause_after_two_epochs():
    """Puts the time limit of a process after the second epoch."""
    Loop.is_late = lambda self, needed=None: len(self.history) == 2


def leave_room(size):
    """Lets no file of a process grow beyond ``size`` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts ``reluctant`` with the given words in a process of its own, ``before`` called in it first."""
    monkeypatch.chdir(tmp_path)

    def run(*words, before=nothing):
        process = SERVER.Process(target=child, args=(words, tmp_path / "errors.txt", before))
        process.start()
        return process

    return run


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> Path:
    """A folder of recipes with a teacher and three methods."""
    folder = tmp_path_factory.mktemp("grid")
    for name, text in RECIPES.items():
        (folder / f"{name}.toml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def whole(grid, tmp_path_factory):
    """What an undisturbed sweep of the grid makes, and the seconds it takes."""
    runs, begun = tmp_path_factory.mktemp("whole"), time.monotonic()
    swept = sweep(find_points([grid]), runs, Machine())
    assert not swept.failed
    return made(runs), time.monotonic() - begun


def ended(process, seconds=120):
    process.join(seconds)
    assert not process.is_alive()
    return process.exitcode


def made(runs):
    """Return what a sweep made: kind and digest of the network of every record, and the files left in its folders."""
    records = sorted((r.kind, str(r.method), r.checkpoint, json.dumps(r.accuracy)) for r in load_records([runs]))
    files = sorted(str(p.relative_to(runs)) for p in runs.rglob("*") if p.is_file() and ".record." not in p.name)
    return records, files


def test_killed_at_random_moments_a_sweep_ends_as_if_it_had_not_been(start, grid, whole, tmp_path):
    expected, seconds = whole
    assert len(expected[0]) == 8
    chance, kills, sweeps = random.Random(0), 0, 0
    while kills < 20:
        runs = f"runs{sweeps}"
        code = None
        while code != 0:
            process = start("sweep", grid, "--out", runs)
            process.join(chance.uniform(0, seconds / 2))
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
            code = ended(process)
            assert code in (0, -signal.SIGKILL), (tmp_path / "errors.txt").read_text()
        assert made(tmp_path / runs) == expected
        sweeps += 1


@pytest.mark.parametrize("write", [1, 2, 6, 11])
def test_killed_in_the_middle_of_a_write(start, grid, whole, tmp_path, write):
    words = ("sweep", grid / "snl-10%.toml", "--out", "runs")
    assert ended(start(*words, before=partial(die_in_write, write))) == -signal.SIGKILL
    assert ended(start(*words)) == 0, (tmp_path / "errors.txt").read_text()
    records, files = made(tmp_path / "runs")
    assert len(records) == 4
    assert set(records) <= set(whole[0][0])
    assert set(files) <= set(whole[0][1])


def test_a_report_is_whole_or_not_there(start, grid, tmp_path):
    assert ended(start("sweep", grid / "taylor-10%.toml", "--out", "runs")) == 0
    page = tmp_path / "report.html"
    chance, kills = random.Random(1), 0
    begun = time.monotonic()
    assert ended(start("report", "runs", "--out", "report.html")) == 0
    duration, old = time.monotonic() - begun, page.read_text()
    for _ in range(8):
        process = start("report", "runs", "--out", "report.html")
        process.join(chance.uniform(0, 1.1 * duration))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        ended(process)
        assert page.read_text().rstrip().endswith("</html>")
    assert kills >= 3
    assert len(page.read_text()) == pytest.approx(len(old), rel=0.01)


def test_a_full_disk_is_said_and_the_last_good_state_stands(start, tmp_path):
    words = ("train", "resnet8:width=4", "--task", "digits", "--set", "training.batch=128", "--epochs", "4")
    assert ended(start(*words, "--out", "runs", "--max-seconds", "600", before=pause_after_two_epochs)) == 0
    state = (tmp_path / "runs" / "train.state").read_bytes()

    assert ended(start(*words, "--out", "runs", before=partial(leave_room, len(state) // 2))) == 2
    message = (tmp_path / "errors.txt").read_text().splitlines()[-1]
    assert message.startswith("error: cannot write runs/train.state: File too large; free some space")
    assert (tmp_path / "runs" / "train.state").read_bytes() == state
    assert not list((tmp_path / "runs").glob(".train.state*"))

    assert ended(start(*words, "--out", "runs")) == 0
    assert ended(start(*words, "--out", "whole")) == 0
    assert made(tmp_path / "runs") == made(tmp_path / "whole")
