"""Settings out of range: one line and exit code 2, before anything is computed or written."""

from pathlib import Path

import pytest
import torch

TRAIN = ("train", "resnet8:width=8", "--task", "digits", "--out", "x")


@pytest.mark.parametrize(
    ("method", "setting", "reason"),
    [
        ("snl", "batch=0", "snl.batch is 0, expected a value above zero"),
        ("snl", "batch=-3", "snl.batch is -3, expected a value above zero"),
        ("snl", "max_epochs=0", "snl.max_epochs is 0, expected a value above zero"),
        ("snl", "max_epochs=inf", "snl.max_epochs is 'inf', expected a int"),
        ("snl", "lr=nan", "snl.lr is 'nan', expected a float"),
        ("snl", "lr=inf", "snl.lr is 'inf', expected a float"),
        ("snl", "lr=-1", "snl.lr is -1.0, expected a value above zero"),
        ("snl", "penalty=-1", "snl.penalty is -1.0, expected a value of zero or more"),
        ("autorep", "refresh_every=0", "autorep.refresh_every is 0, expected a value above zero"),
        ("autorep", "search_epochs=0", "autorep.search_epochs is 0, expected a value above zero"),
        ("autorep", "coefficients=mine", "expected 'exact' or 'released'"),
        ("taylor", "images=0", "taylor.images is 0, expected a value above zero"),
        ("taylor", "batch=1e12", "taylor.batch is 1000000000000, expected a whole number of at most"),
        ("autorep", "surrogate.scale=-1", "quadratic surrogate: scale is -1.0, expected a value above zero"),
        ("snl", "surrogate.scale=1", "surrogate identity has no settings"),
        ("snl", "surrogate=5", "unknown surrogate '5'"),
    ],
)
def test_settings_of_a_method(refused, teacher, method, setting, reason):
    words = ("linearize", teacher, "--method", method, "--budget", "10%", "--out", "x")
    assert reason in refused(*words, "--set", f"method.{setting}")


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("finetune.lr=inf", "finetune.lr is 'inf', expected a float"),
        ("finetune.batch=0", "finetune: batch is 0, expected a value above zero"),
        ("finetune.weight_decay=-1", "finetune: weight_decay is -1.0, expected a value of zero or more"),
        ("method.lr=1", "name a method and a budget"),
        ("budget=10%@cheetah/wan", "leave out '@cheetah/wan'"),
        ("budget=1,5k", "a comma only parts groups of three digits"),
        ("budget=1e400", "too large"),
    ],
)
def test_settings_of_the_rest(refused, teacher, setting, reason):
    assert reason in refused("linearize", teacher, "--out", "x", "--set", setting)


@pytest.mark.parametrize("seed", ["-1", "4294967296"])
def test_seeds_out_of_range(refused, seed):
    expected = f"seed is {seed}, expected a whole number from 0 to 4,294,967,295"
    assert expected in refused(*TRAIN, f"--seed={seed}")
    assert expected in refused(*TRAIN, "--set", f"seed={seed}")


@pytest.mark.parametrize("device", ["cpu:x", "cpu:0", "cpu:-1", "cpu:", "cpu:1.5", "cpu:2:2", "cpu:99999", "auto:x"])
def test_devices_that_are_no_number_of_them(refused, device):
    assert f"device '{device}' says no number of them; expected for instance" in refused(*TRAIN, "--device", device)


def test_more_gpus_than_there_are(refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch finds none; use --device cpu" in refused(*TRAIN, "--device", "cuda:99")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "device 'cuda:99' was asked for, but torch finds 1 here" in refused(*TRAIN, "--device", "cuda:99")
    assert "device 'auto:2' was asked for, but torch finds 1 here" in refused(*TRAIN, "--device", "auto:2")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("task = 5", "the recipe is for task 5, the network given is of 'digits'"),
        ("model = 5", "the recipe is for model 5, the network given is of"),
        ("method = 3", "method is 3, expected a name"),
        ("training = 5", "training is 5, expected a table"),
        ("finetune = 5", "finetune is 5, expected a table"),
        ("note = 5", "note is 5, expected text"),
        ("budget = 4.5", "budget is 4.5, expected text"),
        ('seed = "x"', "seed is 'x', expected a int"),
        ("seed = -1", "seed is -1, expected a whole number from 0"),
    ],
)
def test_recipes_with_values_of_the_wrong_kind(refused, teacher, line, reason):
    Path("r.toml").write_text(f"{line}\n")
    assert reason in refused("linearize", teacher, "--recipe", "r.toml", "--out", "x")


def test_a_trained_network_needs_names_that_are_text(refused):
    Path("r.toml").write_text('task = 5\nmodel = "resnet8"\n')
    assert "task is 5, expected text" in refused("train", "--recipe", "r.toml", "--out", "x")
    Path("r.toml").write_text('task = "digits"\nmodel = 5\n')
    assert "model is 5, expected text" in refused("train", "--recipe", "r.toml", "--out", "x")


def test_a_budget_is_a_whole_number_and_a_surrogate_is_set(cli, teacher):
    """The way through: nothing of the above is refused where it makes sense."""
    from reluctant.checkpoints import load_checkpoint

    Path("r.toml").write_text('budget = 40\nmethod = "random"\n[finetune]\nepochs = 1\n')
    words = ("--set", "method.surrogate.name=quadratic", "--set", "method.surrogate.scale=0.2", "--device", "cpu:1")
    assert cli("linearize", teacher, "--recipe", "r.toml", *words, "--out", "small").code == 0
    small = load_checkpoint(Path("small")).masked
    assert small.mask.kept == 40
    assert small.surrogate.to_json() == {"name": "quadratic", "scale": 0.2}
