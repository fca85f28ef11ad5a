"""``reluctant search``."""

import json
import subprocess
import sys
from pathlib import Path


def test_criticality_from_the_command_line(cli, tmp_path):
    quick = ("--set", "training.epochs=1", "--set", "finetune.epochs=1", "--set", "exponent=0")
    ended = cli("search", "criticality", "resnet8:width=4", "--task", "digits", "--out", tmp_path / "c", *quick)
    assert ended.code == 0
    assert "next: reluctant design hybrenet --order" in ended.out
    found = json.loads((tmp_path / "c" / "search.json").read_text())
    assert found["exponent"] == 0
    assert found["start"] == "resnet8:width=4"
    assert "criticality" in cli("searches").out
    assert "adjustment" in cli("searches").out
    refused = cli("search", "criticality", "resnet8", "--out", tmp_path / "d", "--set", "exponents=1")
    assert refused.code == 2
    assert "did you mean 'exponent'?" in refused.err


def test_adjustment_from_the_command_line(cli, tmp_path):
    quick = [
        word for setting in ("training.epochs=1", "rounds=1", "repeats=1", "eta=0.5") for word in ("--set", setting)
    ]
    words = ("search", "adjustment", "adjusted:width=8,blocks=1-1", "--task", "digits", "--out", tmp_path / "a")
    ended = cli(*words, *quick)
    assert ended.code == 0
    found = json.loads((tmp_path / "a" / "search.json").read_text())
    assert f"next: reluctant train {found['model']} --task digits" in ended.out
    assert json.loads((tmp_path / "a" / "recipe.json").read_text())["training"]["lr"] == 0.15
    assert cli(*words, *quick).out == ended.out
    refused = cli("search", "adjustment", "resnet8", "--task", "digits", "--out", tmp_path / "b")
    assert refused.code == 2
    assert "start from adjusted" in refused.err


def test_cells_found_from_the_command_line_are_a_network_like_any_other(cli):
    quick = [f"--set={setting}" for setting in ("search_cells=3", "search_width=2", "cell_epochs=1", "place_epochs=1")]
    start = "sphynx:width=2,cells=3,reductions=0-1"
    ended = cli("search", "sphynx", start, "--task", "digits", "--out", "s", "--set=cell_batch=256", *quick)
    assert ended.code == 0, ended
    model = json.loads(Path("s/search.json").read_text())["model"]
    assert f"next: reluctant train {model} --task digits" in ended.out
    assert cli("sites", model).out.splitlines()[-1].startswith("384 ReLUs at 3 sites")
    assert cli("train", model, "--task", "digits", "--epochs", 1, "--out", "t").code == 0
    assert cli("sites", "t").out.splitlines()[-1].startswith("384 ReLUs at 3 sites")


def test_two_processes_find_one_thing_and_say_it_once(in_folder):
    words = ["search", "adjustment", "adjusted:width=8,blocks=1", "--task", "digits", "--device", "cpu:2", "--out", "a"]
    quick = ["rounds=1", "repeats=1", "update_num=1", "resource=relus", "training.epochs=1", "training.batch=128"]
    settings = [word for setting in quick for word in ("--set", setting)]
    done = subprocess.run(
        [sys.executable, "-m", "reluctant", *words, *settings, "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((in_folder / "a" / "search.json").read_text())
