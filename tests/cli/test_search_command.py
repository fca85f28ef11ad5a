"""``reluctant search``."""

import json


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
