"""``reluctant search``."""

import json
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
    refused = cli("search", "criticality", "resnet8", "--out", tmp_path / "d", "--set", "exponents=1")
    assert refused.code == 2
    assert "did you mean 'exponent'?" in refused.err


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
