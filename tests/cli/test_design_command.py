"""``reluctant design`` and ``reluctant designs``."""

import json
from pathlib import Path

import pytest

from reluctant.designs import DESIGNS
from reluctant.models import ModelSpec
from reluctant.recipe import resolve

SMALL = ("--blocks", "1,1,1", "--order", "2,3,1", "--task", "digits")


def test_every_design_is_listed_with_its_paper_and_released_networks(cli):
    rows = {row["name"]: row for row in json.loads(cli("designs", "--json").out)}
    assert list(rows) == DESIGNS.names()
    assert rows["deepreduce"]["paper"].startswith("Jha et al. ")
    assert all(ModelSpec.parse(name).design is not None for row in rows.values() for name in row["released"])
    text = cli("designs").out
    assert all(name in text for row in rows.values() for name in row["released"])


def test_candidates_under_a_number_of_relus(cli):
    found = json.loads(cli("design", "hybrenet", *SMALL, "--target", "4000", "--json").out)
    assert [row["model"].partition("multipliers=")[2] for row in found["candidates"]] in (
        ["6-3", "9-2"],
        ["9-2", "6-3"],
    )
    for row in found["candidates"]:
        assert 3000 < row["relus"]["total"] <= 4000
        shares = row["relus"]["shares"]
        assert shares["stage 2"] > shares["stage 3"] > shares["stage 1"]
        assert sum(shares.values()) == pytest.approx(1)
        wider = ModelSpec.parse(row["model"]).design
        assert sum(wider.changed({"width": wider.width + 1}).relus(8).values()) > 4000
        assert row["predicted"]["bytes"] > 0
    macs = [row["macs"]["total"] for row in found["candidates"]]
    assert macs == sorted(macs)
    assert found["taken"] == found["candidates"][0]["model"]


def test_bytes_of_an_image_decide_the_width(cli):
    found = json.loads(cli("design", "hybrenet", *SMALL, "--target", "5MB@cheetah", "--json").out)
    assert found["candidates"]
    assert all(3.5e6 < row["predicted"]["bytes"] <= 5e6 for row in found["candidates"])
    cost = json.loads(cli("cost", found["taken"], "--task", "digits", "--json").out)
    assert cost["bytes"] == found["candidates"][0]["predicted"]["bytes"]


def test_one_is_taken_as_a_recipe_that_train_takes_and_drawn(cli):
    ended = cli("design", "hybrenet", *SMALL, "--target", "1MMAC", "--pick", 2, "--out", "r.toml", "--plot", "p.svg")
    taken = next(line for line in ended.out.splitlines() if line.startswith("* 2")).split()[2]
    assert resolve(Path("r.toml"), {}, None).model == taken
    assert ended.out.splitlines()[-1] == f"{taken}; next: reluctant train --recipe r.toml --out ..."
    assert Path("p.svg").read_text().startswith("<?xml")


def test_images_too_small_are_said_of_each_candidate(cli):
    ended = cli("design", "deepreduce", "--set", "width=8", "--set", "thin=true")
    assert ended.code == 0
    assert sum("as predicted" in line for line in ended.out.splitlines()) == 3
    assert sum(line.startswith("left out: deepreduce") for line in ended.out.splitlines()) == 3
    assert "images need a side of 16 or more, got 8" in ended.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("hybrnet",), "unknown design 'hybrnet'; did you mean 'hybrenet'"),
        (("hybrenet", "--order", "3,2,3,1"), "names stage 3 twice"),
        (("hybrenet", "--order", "high"), "--order is 'high', expected a list of whole numbers such as 3-2-4-1"),
        (("hybrenet", "--blocks", "1,1,1"), "3 stages have no usual order"),
        (("hybrenet", "--blocks", "1,1,8,1", "--order", "1,3,2,4"), "stage 1 cannot have more ReLUs than stage 3"),
        (("hybrenet", *SMALL, "--set", "multipliers=0-2"), "leave one out"),
        (("hybrenet", "--set", "multipliers=5-0-3"), "multipliers is 0, expected a value above zero"),
        (("hybrenet", "--set", "block=bottleneck", "--set", "groups=3"), "do not divide into 3 groups"),
        (("hybrenet", *SMALL, "--target", "1kB@cheetah"), "the narrowest of its kind: give more"),
        (("hybrenet", *SMALL, "--target", "10"), "is under the"),
        (("hybrenet", *SMALL, "--target", "10%"), "no network yet to have a share of"),
        (("hybrenet", *SMALL, "--target", "1MB"), "write 40MB@cheetah"),
        (("hybrenet", *SMALL, "--target", "1s@cheetah"), "write 20s@cheetah/wan"),
        (("hybrenet", *SMALL, "--target", "0MMAC"), "must be above zero"),
        (("hybrenet", *SMALL, "--target", "2000", "--pick", "9", "--json"), "--pick 9: there are 2 candidates"),
        (("sphynx", "--order", "1,2,3"), "no order: leave --order out"),
        (("sphynx", "--set", "reductions=5-1"), "expected rising places among the cells"),
        (("cryptonas", "--set", "genotype=3-5.7-3"), "layer 2 of '3-5.7-3' is '5.7'"),
        (("deepreduce", "--set", "cull=1-2-3-4"), "no ReLU would be left"),
        (("deepreduce", "--set", "stem_stride=2"), "images need a side of 16 or more, got 8"),
    ],
)
def test_what_cannot_be_designed_is_refused_with_the_constraint(refused, words, message):
    assert message in refused("design", *words)


def test_a_design_is_named_in_every_command(cli, refused):
    model = "hybrenet:width=8,blocks=1-1-1,multipliers=6-3"
    assert cli("sites", model).out.splitlines()[-1].startswith("4,224 ReLUs at 7 sites")
    trained = cli("train", model, "--task", "digits", "--epochs", 1, "--out", "t")
    assert trained.code == 0, trained
    small = cli("linearize", "t", "--method", "random", "--budget", "50%", "--set", "finetune.epochs=1", "--out", "s")
    assert small.code == 0, small
    assert "2,112 of 4,224 ReLUs" in small.out
    assert "did you mean 'hybrenet'" in refused("sites", "hybrnet")
