"""``reluctant advise``: what it prints can be typed, and what came of it is read again."""

import json
import shlex

import pytest

MODEL = ("--model", "resnet8:width=4")


def test_the_last_line_can_be_typed_and_its_records_are_ranked_then(cli):
    budget = ("--task", "digits", "--budget", "3.7s@cheetah/wan", *MODEL)
    ended = cli("advise", *budget)
    assert ended.code == 0, ended
    assert "Recorded" not in ended.out
    train, linearize = ended.out.splitlines()[-1].removeprefix("next: ").split(" && ")
    assert cli(*shlex.split(train)[1:], "--epochs", 2).code == 0
    quick = ("--method", "random", "--set", "finetune.epochs=1")
    made = json.loads(cli(*shlex.split(linearize)[1:], *quick, "--json").out)
    assert made["predicted"]["seconds"]["wan"] <= 3.7

    found = json.loads(cli("advise", *budget, "--records", "runs", "--json").out)
    best = found["rows"][0]
    assert best["inside"]
    assert best["recorded"]["method"] == "random"
    assert best["recorded"]["val"] == made["accuracy"]["val"]
    assert best["relus"]["kept"] == made["relus"]["kept"]
    assert best["predicted"]["bytes"] == made["predicted"]["bytes"]
    assert best["cost"] == pytest.approx(made["predicted"]["seconds"]["wan"])
    assert "--method random --budget 3.7s@cheetah/wan" in found["next"]
    dense = next(row for row in found["rows"] if row["budget"] == "100%")
    assert dense["recorded"]["method"] is None
    assert not dense["inside"]

    text = cli("advise", *budget, "--records", "runs", "--all").out
    assert f"{100 * made['accuracy']['val']:.1f} %" in text
    assert text.startswith("Recorded, within 3.7s@cheetah/wan")
    assert "Over the budget" in text
    assert "1 is recorded, with its settings, in linearize-digits-resnet8_width_4-random" in text
    assert max(map(len, text.splitlines()[:-2])) <= 110


def test_one_row_a_network_unless_all_are_asked_for(cli):
    words = ("advise", "--budget", "9MB@cheetah", *MODEL, "--densities", "100%,50%")
    short, whole = cli(*words).out, cli(*words, "--all").out
    assert short.count("resnet8:width=4") == 2
    assert "--all shows 1 more within the budget, 0 over it, 0 left out" in short
    assert whole.count("resnet8:width=4") == 3
    assert whole.splitlines()[-1] == "next: reluctant train resnet8:width=4 --task digits --out runs/teacher"
    assert "left out" not in whole


def test_all_says_what_was_left_out_and_why(cli):
    deep = "hybrenet:blocks=1-1-1-1-1,multipliers=2-2-2-2,width=2"
    words = ("advise", "--budget", "9MB@cheetah", *MODEL, "--model", deep, "--densities", "50%", "--all")
    assert f"left out: {deep}: " in cli(*words).out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--budget", "9ms@cheetah/wan", *MODEL), "comes closest, with"),
        (("--budget", "9ms@cheetah/wan", "--task", "digit", *MODEL), "did you mean 'digits'"),
        (("--budget", "9MB", *MODEL), "write 9MB@cheetah"),
        (("--budget", "9MB@chetah", *MODEL), "did you mean 'cheetah'"),
        (("--budget", "9MB@cheetah", *MODEL, "--records", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_advised_ends_with_a_line(refused, words, message):
    assert message in refused("advise", *words, "--json")
