"""Recipes: what is read, merged and refused before anything is computed."""

from pathlib import Path

import pytest

from reluctant.errors import ReluctantError, UnknownName, UsageError
from reluctant.methods.autorep import AutoReP
from reluctant.methods.ebb import Ebb
from reluctant.methods.snl import SNL
from reluctant.recipe import Recipe, merge, nested, read_toml, resolve
from reluctant.surrogates import Identity, Quadratic, Shift, surrogate_from_json
from reluctant.training import FINETUNE, Training

BASE = {"task": "digits", "model": "resnet8"}


def made(*settings: str, **keys: object) -> Recipe:
    return Recipe.from_json(merge({**BASE, **keys}, nested(list(settings))))


def test_what_is_not_said_is_the_default():
    recipe = made()
    assert recipe == Recipe(task="digits", model="resnet8")
    assert (recipe.training, recipe.finetune, recipe.seed) == (Training(), FINETUNE, 0)
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_it_round_trips_and_its_digest_is_of_all_of_it():
    recipe = made("method.surrogate.scale=0.2", method="autorep", budget="10%", note="short")
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert recipe.digest == Recipe.from_json(recipe.to_json()).digest
    assert recipe.digest != made("method.surrogate.scale=0.3", method="autorep", budget="10%", note="short").digest


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("task", 5, "task is 5, expected text"),
        ("task", ["digits"], "task is \\['digits'\\], expected text"),
        ("model", 5, "model is 5, expected text"),
        ("note", 5, "note is 5, expected text"),
        ("budget", True, "budget is True, expected text"),
        ("budget", 4.5, "budget is 4.5, expected text"),
        ("budget", -1, "must be above zero"),
        ("budget", "1e400", "too large"),
        ("method", 3, "method is 3, expected a name"),
        ("method", ["snl"], "expected a name"),
        ("method", {}, "name no method"),
        ("method", {"lr": 0.1}, "name no method"),
        ("method", {"name": 3}, "unknown method '3'"),
        ("method", {"name": "snl", "surrogate": 5}, "surrogate is 5, expected a name"),
        ("training", 5, "training is 5, expected a table of settings"),
        ("training", "long", "training is 'long', expected a table"),
        ("finetune", [1], "finetune is \\[1\\], expected a table"),
        ("training", {"epochs": True}, "training.epochs is True, expected a int"),
        ("finetune", {"lr": -1}, "finetune: lr is -1.0, expected a value above zero"),
        ("finetune", {"clip": -1}, "finetune: clip is -1.0, expected a value of zero or more"),
        ("finetune", {"weight_decay": -1}, "finetune: weight_decay is -1.0"),
        ("training", {"warmup": 1}, "training: warmup is 1.0, expected a value from 0 to under 1"),
        ("seed", "x", "seed is 'x', expected a int"),
        ("seed", -1, "seed is -1, expected a whole number from 0 to 4,294,967,295"),
        ("seed", 2**32, "seed is 4294967296"),
        ("seed", 1.5, "seed is 1.5"),
        ("seed", "1e400", "seed is '1e400'"),
        ("seed", True, "seed is True"),
    ],
)
def test_values_of_the_wrong_kind_are_refused_in_one_line(key, value, reason):
    with pytest.raises(ReluctantError, match=reason) as refused:
        made(**{key: value})
    assert "\n" not in str(refused.value)


def test_bounds_themselves_are_accepted():
    assert [made(seed=seed).seed for seed in (0, "7", 2**32 - 1)] == [0, 7, 4_294_967_295]
    assert made(budget=40).budget == "40"
    assert made(training={"clip": 0, "weight_decay": 0, "distil": 0}).training.clip == 0


@pytest.mark.parametrize("key", ["lr", "weight_decay", "clip", "distil", "temperature", "momentum", "epochs"])
@pytest.mark.parametrize("value", ["inf", "nan", "-1"])
def test_a_training_takes_no_number_that_it_cannot_train_with(key, value):
    with pytest.raises(UsageError, match=rf"^finetune[:.] ?{key} is "):
        made(f"finetune.{key}={value}")
    with pytest.raises(UsageError, match=f"training: {key} is "):
        Training(**{key: -1 if key == "epochs" else float(value)})


@pytest.mark.parametrize(
    ("method", "settings", "surrogate"),
    [
        ("snl", ["surrogate.name=quadratic", "surrogate.scale=0.2"], Quadratic(scale=0.2)),
        ("snl", ["surrogate.scale=0.2", "surrogate.name=quadratic"], Quadratic(scale=0.2)),
        ("snl", ["surrogate.scale=0.2", "surrogate=quadratic"], Quadratic(scale=0.2)),
        ("autorep", ["surrogate.scale=0.2"], Quadratic(scale=0.2)),
        ("autorep", ["surrogate=identity"], Identity()),
        ("autorep", [], Quadratic(scale=0.1)),
        ({"name": "snl", "surrogate": "quadratic"}, ["surrogate.scale=0.3"], Quadratic(scale=0.3)),
        ({"name": "snl", "surrogate": {"name": "quadratic", "scale": 2}}, ["surrogate=shift"], Shift()),
    ],
)
def test_a_surrogate_is_named_or_the_methods_own_is_set(method, settings, surrogate):
    recipe = made(*(f"method.{setting}" for setting in settings), method=method, budget="10%")
    assert recipe.method.surrogate == surrogate


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["surrogate=5"], "unknown surrogate '5'"),
        (["surrogate.name=quadratik"], "did you mean 'quadratic'"),
        (["surrogate.scale=0.2"], "surrogate identity has no settings, so no 'scale'"),
        (
            ["surrogate.name=quadratic", "surrogate.scal=1"],
            "unknown setting of surrogate quadratic 'scal'; did you mean",
        ),
        (["surrogate.name=quadratic", "surrogate.scale=big"], "quadratic surrogate: scale is 'big', expected a float"),
        (
            ["surrogate.name=quadratic", "surrogate.scale=0"],
            "quadratic surrogate: scale is 0.0, expected a value above",
        ),
        (["surrogate.name=quadratic", "surrogate.scale=inf"], "quadratic surrogate: scale is 'inf'"),
    ],
)
def test_surrogates_without_sense_are_refused(settings, reason):
    with pytest.raises(UsageError, match=reason):
        made(*(f"method.{setting}" for setting in settings), method="snl", budget="10%")


def test_what_a_surrogate_leaves_out_comes_from_the_default_only_if_it_has_no_name():
    default = Quadratic(scale=2)
    assert surrogate_from_json({}, default) == default
    assert surrogate_from_json({"name": "quadratic"}, default) == Quadratic()
    with pytest.raises(UnknownName, match="unknown surrogate ''"):
        surrogate_from_json({"scale": 1})


def test_tables_are_merged_over_names_and_names_over_tables():
    assert merge({"method": "snl"}, {"method": {"lr": 1}}) == {"method": {"name": "snl", "lr": 1}}
    assert merge({"method": {"name": "snl", "lr": 1}}, {"method": "taylor"}) == {"method": "taylor"}
    assert nested(["method.lr=1", "method=snl"]) == {"method": {"name": "snl", "lr": "1"}}
    assert made("method.lr=0.5", method="snl", budget="5%").method == SNL(lr=0.5)
    assert made("method.batch=64", method="autorep", budget="5%").method == AutoReP(batch=64)


def test_a_file_is_read_and_single_settings_go_over_it(in_folder):
    Path("r.toml").write_text('method = "snl"\nbudget = 40\n[finetune]\nepochs = 3\n')
    recipe = resolve(Path("r.toml"), {**BASE, "seed": None}, ["method.lr=0.5", "finetune.lr=1e-3"])
    assert (recipe.method, recipe.budget) == (SNL(lr=0.5), "40")
    assert (recipe.finetune.epochs, recipe.finetune.lr) == (3, 1e-3)


@pytest.mark.parametrize("text", ["a = ", "a = 1\na = 2", "seed = " + "9" * 5000])
def test_files_that_are_no_toml_are_refused(in_folder, text):
    Path("r.toml").write_text(text)
    with pytest.raises(UsageError, match=r"cannot read the recipe r\.toml"):
        read_toml(Path("r.toml"))


def test_settings_of_no_method_are_refused_unless_one_is_usual():
    with pytest.raises(UsageError, match="name no method; add one of ebb, snl"):
        Recipe.from_json({"task": "digits", "model": "resnet8", "method": {"lr": 1.0}})
    given = {"task": "digits", "model": "resnet8", "budget": "10%"}
    usual = {"method": "ebb"}
    assert resolve(None, given, ["method.lr=0.1"], usual=usual).method == Ebb(lr=0.1)
    assert resolve(None, given | {"method": {"name": "snl"}}, None, usual=usual).method == SNL()
