"""The commands, as a user types them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reluctant.checkpoints import load_checkpoint
from reluctant.records import load_records
from reluctant.training import evaluate

QUICK = ("--set", "finetune.epochs=1", "--set", "finetune.batch=128")

MINE = '''
"""A network as somebody wrote it: functional ReLUs, one module called twice, a residual."""
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.conv1 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.conv2, self.bn, self.act = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.head = nn.Linear(8 * 4, 10)

    def forward(self, x):
        x = self.act(self.stem(x))
        y = F.relu(self.bn(self.conv1(x)))
        x = self.act(self.conv2(y) + x)
        return self.head(torch.flatten(F.avg_pool2d(x.clamp(min=0), 4), 1))


def build():
    return Net()
'''


def test_sites_as_text_and_json(cli):
    ended = cli("sites", "resnet18", "--task", "cifar100")
    assert ended.code == 0
    assert "557,056 ReLUs at 17 sites, input 3x32x32" in ended.out
    made = json.loads(cli("sites", "resnet18:stem_relu=false", "--task", "cifar100", "--json").out)
    assert made["total"] == 491_520
    assert len(made["sites"]) == 16
    assert made["sites"][0] == {"name": "layer1.0.relu1", "shape": [64, 32, 32], "relus": 65_536}
    assert made["other"] == []
    assert [o["kind"] for o in json.loads(cli("sites", "vgg16-bn", "--task", "cifar10", "--json").out)["other"]] == [
        "max_pool2d"
    ] * 5


def test_cost_counts(cli):
    made = json.loads(cli("cost", "resnet20", "--task", "cifar10", "--json").out)
    assert made["ckks_levels"] == {"levels": 19 * 14 + 20, "relu_levels": 19 * 14, "ring": None, "modulus_bits": None}
    assert made["relus"]["kept"] == made["relus"]["total"] == 188_416
    assert made["macs"]["total"] == pytest.approx(40.8e6, rel=0.01)
    assert made["surrogates"]["squares"] == 0
    assert made["bytes"] == pytest.approx(36_979_074, rel=0.02)  # a run with one image
    assert (made["engine"], made["network"], made["images"], len(made["by_site"])) == ("cheetah", "loopback", 1, 19)
    assert made["online"] == {key: made[key] for key in ("bytes", "messages", "seconds")}
    assert made["offline"]["bytes"] > 20e6
    assert 1e9 < made["memory"] < 2e9
    assert made["dollars"] == pytest.approx(0.09 * made["bytes"] / 1e6 + 2 * 0.17 * made["seconds"] / 3.6)
    assert cli("cost", "resnet20", "--engine", "twin").code == 2


def test_cost_over_a_slow_link_takes_longer_and_what_is_paid_is_said(cli):
    words = ("cost", "resnet8:width=8", "--task", "digits", "--json")
    near, far = (json.loads(cli(*words, "--network", link).out) for link in ("loopback", "100mbps/40ms"))
    assert (near["bytes"], near["messages"]) == (far["bytes"], far["messages"])
    trips = far["seconds"] - near["seconds"] - 8 * far["bytes"] / 1e8
    assert 2 < trips < 7  # seven comparisons of some eleven round trips of 40 ms each, and the products
    free = json.loads(cli(*words, "--dollars-per-gb", "1", "--dollars-per-hour", "0").out)
    assert free["dollars"] == pytest.approx(free["bytes"] / 1e6)
    assert free["tariff"] == {"dollars_per_gb": 1.0, "dollars_per_hour": 0.0}


def test_cost_by_an_analytic_profile_has_the_same_keys_and_says_what_it_is(cli):
    words = ("cost", "resnet8:width=8", "--task", "digits", "--network", "lan")
    measured, made = (json.loads(cli(*words, "--engine", name, "--json").out) for name in ("cheetah", "delphi"))
    assert made.keys() == measured.keys()
    assert made["bytes"] == made["offline"]["bytes"] + made["online"]["bytes"]
    assert made["seconds"] == pytest.approx(made["offline"]["seconds"] + made["online"]["seconds"])
    assert (made["provenance"], made["memory"], made["messages"]) == ("analytic profile", None, None)
    assert [site["kept"] for site in made["by_site"]] == [site["kept"] for site in measured["by_site"]]
    line = cli(*words, "--engine", "delphi").out
    assert "an analytic profile, not measured here, from figures of DELPHI's code in the artifact" in line
    assert " - of memory a party" in line


def test_cost_under_all_protocols_is_a_table(cli):
    words = ("cost", "resnet8:width=8", "--task", "digits", "--engine", "all")
    made = json.loads(cli(*words, "--json").out)
    assert list(made) == ["cheetah", "delphi", "circa", "cryptflow2"]
    assert made["delphi"]["comparison_bytes"] == 2304 * (20_272 + 9)
    rows = cli(*words).out.splitlines()
    assert [row.split()[0] for row in rows] == ["protocol", *made]
    assert "46.7 MB" in rows[2]
    assert rows[4].count("  -  ") == 2  # CrypTFlow2: bytes and seconds of a whole network are not known


def test_budget_in_bytes_is_kept_and_used(cli, teacher):
    words = ("linearize", teacher, "--method", "random", "--budget", "4.95MB@cheetah", *QUICK, "--out", "s", "--json")
    made = json.loads(cli(*words).out)
    assert 4.9e6 < made["predicted"]["bytes"] <= 4.95e6
    assert made["budget"] == "4.95MB@cheetah"
    assert 0 < made["relus"]["kept"] < made["relus"]["total"]


@pytest.mark.secure
def test_a_budget_is_measured_in_the_run_that_it_is_for(cli, teacher):
    words = ("linearize", teacher, "--method", "random", "--budget", "4.95MB@cheetah", *QUICK, "--measure", "1")
    line = cli(*words, "--out", "s").out
    assert "MB an image as measured, the budget of 4.95 MB is kept" in line
    (record,) = [record for record in load_records(["s"]) if record.kind == "run"]
    assert record.secure["linearized"]["bytes"] <= 4.95e6


def test_cost_of_what_no_program_computes(cli):
    Path("net.py").write_text(
        "from torch import nn\n\ndef net(classes, channels):\n"
        "    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Softmax(1), nn.Flatten(), "
        "nn.Linear(144, classes))\n"
    )
    assert "bytes" not in json.loads(cli("cost", "net.py:net", "--json").out)
    assert "no prediction" in cli("cost", "net.py:net").out


def test_train_linearize_evaluate_report(cli):
    made = json.loads(cli("train", "resnet8:width=8", "--task", "digits", "--epochs", "2", "--out", "t", "--json").out)
    assert (made["kind"], made["relus"]["kept"], made["epochs"]) == ("train", 2304, 2)
    assert made["accuracy"]["test"] is None

    words = ("linearize", "t", "--method", "autorep", "--budget", "10%", "--set", "method.search_epochs=2", *QUICK)
    made = json.loads(cli(*words, "--out", "s", "--json").out)
    assert made["kind"] == "linearize"
    assert made["relus"] == {"total": 2304, "kept": 230, "sites": 7, "sites_kept": made["relus"]["sites_kept"]}
    assert (made["track"], made["squares"], made["budget"]) == ("polynomial", 2304 - 230, "10%")
    assert made["recipe"]["method"]["search_epochs"] == 2
    assert Path("s/finetune.metrics.jsonl").exists()
    assert not list(Path("s").glob("*.state"))

    ended = cli("evaluate", "s")
    assert "of 359 test images" in ended.out
    evaluated = [record for record in load_records(["s"]) if record.kind == "evaluate"]
    assert len(evaluated) == 1
    assert cli("evaluate", "s").out == ended.out
    assert len([record for record in load_records(["s"]) if record.kind == "evaluate"]) == 1

    counted = json.loads(cli("cost", "s", "--json").out)
    assert (counted["relus"]["kept"], counted["surrogates"]["squares"]) == (230, 2074)
    predicted = made["predicted"]
    assert (predicted["bytes"], predicted["memory"]) == (counted["bytes"], counted["memory"])
    assert predicted["seconds"]["loopback"] == counted["seconds"] < predicted["seconds"]["wan"]
    assert json.loads(cli("sites", "s", "--json").out)["total"] == 2304
    assert made["teacher"] == next(r.checkpoint for r in load_records(["t"]))

    private = ["channels", "factors", "squares"]
    for words in ((), ("--without", ",".join(private))):
        assert cli("run", "s", "--engine", "twin", *words).code == 0
    tells, told = sorted((r for r in load_records(["s"]) if r.kind == "run"), key=lambda r: "without" in r.secure)
    assert (tells.predicted, told.predicted, told.secure["without"]) == (predicted, predicted, private)
    assert set(tells.secure["public"]) > set(told.secure["public"])

    assert cli("evaluate", "t").code == 0
    ended = cli("report", "t", "s", "--out", "page.html")
    assert "page.html" in ended.out
    assert "autorep" in Path("page.html").read_text()


def test_the_accuracy_in_the_record_is_the_networks(cli, teacher, digits):
    made = json.loads(cli("evaluate", teacher, "--json").out)
    assert made["accuracy"]["test"] == evaluate(load_checkpoint(teacher).model, digits).accuracy
    assert made["accuracy"]["n_test"] == 359


def test_accuracy_in_fixed_point_stands_beside_the_one_in_floats(cli, teacher):
    ended = cli("evaluate", teacher, "--twin")
    floats, both = sorted(load_records([teacher]), key=lambda record: "twin" in record.accuracy)
    assert both.accuracy["n_twin"] == both.accuracy["n_test"] == 359
    assert both.accuracy["test"] == floats.accuracy["test"]
    assert abs(both.accuracy["twin"] - both.accuracy["test"]) < 0.01
    assert f"{100 * both.accuracy['twin']:.2f} % of 359 test images in fixed point" in ended.out
    assert f"{100 * both.accuracy['test']:.2f} % in floats" in ended.out
    assert cli("evaluate", teacher, "--twin").out == ended.out
    assert len(load_records([teacher])) == 2


def test_run_and_its_record_say_whether_the_fixed_point_was_proven(cli, teacher):
    ended = cli("run", teacher, "--engine", "twin", "--images", "2")
    (record,) = [record for record in load_records([teacher]) if record.kind == "run"]
    found = record.secure["dense"]["fixed_point"]
    assert found["certified"]
    assert found["statement"] in ended.out
    assert (
        found["statement"]
        == f"fixed point: certified for inputs in [-0.81, 1.85], {found['margin_bits']:.1f} bits of margin"
    )


def test_circa_says_that_it_simulates(cli, teacher):
    assert "mode is 'maybe'" in cli("circa", teacher, "--mode", "maybe").err
    ended = cli("circa", teacher, "--json")
    found = json.loads(ended.out)
    assert found["simulation"]
    assert found["accuracy"] > found["exact"] - 0.005
    assert sum(row["kept"] for row in found["sites"]) == 2304
    assert found["gates_before"] == 2304 * 253
    assert found["gates"] == sum(row["kept"] * (64 - row["truncation"]) for row in found["sites"])
    assert not list(Path(teacher).glob("*.record.json"))


def test_recipes_and_settings(cli, teacher):
    Path("r.toml").write_text(
        'budget = "20%"\nseed = 7\n[method]\nname = "taylor"\nimages = 128\n[finetune]\nepochs = 1\n'
    )
    made = json.loads(cli("linearize", teacher, "--recipe", "r.toml", "--budget", "15%", "--out", "s", "--json").out)
    assert (made["method"], made["budget"], made["seed"]) == ("taylor", "15%", 7)
    assert made["recipe"]["method"]["images"] == 128
    assert made["relus"]["kept"] == int(0.15 * 2304)


def test_interrupted_linearization_goes_on(cli, teacher):
    from reluctant.loop import Loop

    words = ("linearize", teacher, "--method", "snl", "--budget", "10%", "--set", "method.max_epochs=2")
    cli(*words, *QUICK, "--out", "whole")
    note = Loop.note

    def interrupt(self, **metrics):
        note(self, **metrics)
        if self.stage == "search" and metrics["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "note", interrupt)
        ended = cli(*words, *QUICK, "--out", "parts")
    assert ended.code == 130
    assert "goes on where it stopped" in ended.err
    assert not (Path("parts") / "model.safetensors").exists()
    ended = cli(*words, "--set", "finetune.epochs=2", "--out", "parts")
    assert ended.code == 2
    assert "a run of other settings" in ended.err
    assert cli(*words, *QUICK, "--out", "parts").code == 0
    one, two = load_checkpoint(Path("whole")).model, load_checkpoint(Path("parts")).model
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.secure
def test_a_users_own_model_all_the_way(cli):
    """Functional ReLUs, a shared module and a residual: sites, train, linearize, run, without a change to the file."""
    Path("mine.py").write_text(MINE)
    made = json.loads(cli("sites", "mine.py:build", "--task", "digits", "--json").out)
    assert [site["name"] for site in made["sites"]] == ["act", ":relu", "act#2", ":relu#2"]
    assert cli("train", "mine.py:build", "--task", "digits", "--epochs", "3", "--out", "t").code == 0
    words = ("linearize", "t", "--method", "snl", "--budget", "10%", "--set", "method.max_epochs=2", *QUICK)
    record = json.loads(cli(*words, "--out", "s", "--json").out)
    assert record["relus"]["kept"] == record["relus"]["total"] // 10
    assert record["model"] == "mine.py:build"
    assert str(Path.cwd()) not in json.dumps(record)
    ended = cli("run", "s", "--engine", "cheetah", "--images", "2", "--json")
    assert ended.code == 0, ended.err
    run = json.loads(ended.out)
    assert run["comparisons"] == 2 * record["relus"]["kept"]
    assert run["argmax_equal_twin"] == 2
    assert run["max_abs_error_twin"] < 0.01
    assert {row["name"]: row["kept"] for row in run["by_site"]} == {
        site["name"]: site["kept"] for site in record["mask"]["sites"]
    }
    assert Path("mine.py").read_text() == MINE


def test_a_simulation_says_so_beside_its_numbers(cli, refused, teacher):
    ended = cli("run", teacher, "--engine", "twin", "--images", "2")
    assert "(twin, NOT PRIVATE, loopback)" in ended.out
    made = json.loads(cli("run", teacher, "--engine", "twin", "--json").out)
    assert (made["engine"], made["adversary"], made["private"]) == ("twin", "none", False)
    line = refused("run", teacher, "--engine", "aby3", "--transfers", "auto")
    assert "engine aby3 makes no oblivious transfers" in line
    assert "unknown transfers 'iknp'" in refused("run", teacher, "--transfers", "iknp")


def test_two_processes_train_together_and_write_once(in_folder):
    words = [
        "train",
        "resnet8:width=4",
        "--task",
        "digits",
        "--epochs",
        "2",
        "--device",
        "cpu:2",
        "--out",
        "t",
        "--json",
    ]
    done = subprocess.run([sys.executable, "-m", "reluctant", *words, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epochs"] == 2
    assert len(load_records(["t"])) == 1
    assert load_checkpoint(Path("t")).origin.facts["val"] == json.loads(done.stdout)["accuracy"]["val"]


def test_sweep_runs_what_is_missing(cli):
    Path("recipes").mkdir()
    Path("recipes/dense.toml").write_text('task = "digits"\nmodel = "resnet8:width=4"\ntraining.epochs = 1\n')
    Path("recipes/random-10%.toml").write_text('budget = "10%"\nmethod = "random"\nfinetune.epochs = 1\n')
    ended = cli("sweep", "recipes", "--out", "runs")
    assert ended.code == 0, ended.err
    assert "random-10%-s0: 115 ReLUs" in ended.out
    assert ended.out.endswith("2 of 2 points are there; next: reluctant report runs\n")
    made = json.loads(cli("sweep", "recipes", "--out", "runs", "--json").out)
    assert set(made["records"]) == {"dense-s0", "random-10%-s0"}
    assert cli("report", "runs", "--out", "report.html").code == 0

    Path("recipes/autorep-all.toml").write_text('budget = "100%"\nmethod = "autorep"\n')
    ended = cli("sweep", "recipes", "--out", "runs")
    assert ended.code == 2
    assert "error: 1 of 3 points failed, first autorep-all-s0: " in ended.err


def test_a_time_limit_stops_and_the_same_command_goes_on(cli, monkeypatch):
    """The limit is over after an epoch; the command says so, with exit code 0, and ends as if it had not stopped."""
    from reluctant import loop

    words = ("train", "resnet8:width=4", "--task", "digits", "--epochs", "2", "--set", "training.batch=256")
    whole = json.loads(cli(*words, "--out", "whole", "--json").out)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "is_late", lambda self, needed=None: len(self.history) == 1)
        ended = cli(*words, "--out", "sliced", "--max-seconds", "600")
        assert ended.code == 0
        assert ended.out.startswith("stopped in time at train 5 of 10, everything saved, about ")
        assert ended.out.endswith("; the same command goes on\n")
        assert not list(Path("sliced").glob("*.record.json"))
        ended = cli(*words, "--out", "again", "--max-seconds", "600", "--json")
        assert json.loads(ended.out)["paused"]["done"] == 5
    made = json.loads(cli(*words, "--out", "sliced", "--max-seconds", "600", "--json").out)
    assert made["checkpoint"] == whole["checkpoint"]


def test_a_limit_below_a_step_is_refused_with_what_it_takes(cli):
    ended = cli("train", "resnet8:width=4", "--task", "digits", "--out", "t", "--max-seconds", "1")
    assert ended.code == 2
    assert "leave no time for the next step of train (0 of" in ended.err
    assert "give more" in ended.err


def test_only_its_own_files_are_cleared_away(cli):
    mine = [Path(name) for name in (".pre-commit-config.yaml", "machine.state", "x.state")]
    for path in mine:
        path.write_text("mine")
    assert cli("train", "resnet8:width=4", "--task", "digits", "--epochs", "1", "--out", ".").code == 0
    assert all(path.exists() for path in mine)
    assert not Path("train.state").exists()


def test_a_small_checkpoint_is_measured_as_it_is_kept(cli, digits):
    words = ("train", "resnet8:width=8", "--task", "digits", "--epochs", "1", "--small", "--out", "t", "--json")
    made = json.loads(cli(*words).out)
    assert [path.name for path in Path("t").glob("*.safetensors")] == ["model-00001-of-00001.safetensors"]
    network = load_checkpoint(Path("t")).model
    assert made["accuracy"]["val"] == evaluate(network, digits, "val").accuracy
    assert all(torch.equal(p, p.bfloat16().float()) for p in network.parameters())
    assert made["recipe"]["small"]
    assert cli("linearize", "t", "--method", "random", "--budget", "10%", *QUICK, "--out", "s").code == 0


@pytest.mark.secure
def test_a_polynomial_network_runs_encrypted(in_folder, cli):
    """From a trained network to its encrypted answers, and a card that knows what they were compared with."""
    Path("mine.py").write_text(
        "from torch import nn\n"
        "def build(classes, channels):\n"
        "    parts = [nn.Conv2d(channels, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU()]\n"
        "    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(64, classes))\n"
    )
    assert cli("train", "mine.py:build", "--task", "digits", "--epochs", "3", "--out", "t").code == 0
    words = ("linearize", "t", "--method", "random", "--budget", "0", "--set", "method.surrogate=hermite", *QUICK)
    record = json.loads(cli(*words, "--out", "p", "--json").out)
    assert record["relus"]["kept"] == 0
    assert record["surrogate"] == "hermite"
    assert "keeps 64 ReLUs; CKKS evaluates polynomials only" in cli("run", "t", "--engine", "ckks").err
    assert cli("evaluate", "p", "--twin").code == 0
    ended = cli("run", "p", "--engine", "ckks", "--images", "8")
    assert "8 of 8 as plain torch" in ended.out, ended.err
    card = json.loads(cli("report", ".", "--json").out)
    (secure,) = [one["secure"] for one in card if one["secure"]]
    assert (secure["engine"], secure["processes"], secure["linearized"]["argmax_equal_float"]) == ("ckks", 2, 8)
