"""What every search promises, whatever it looks for."""

import json
from dataclasses import fields, replace

import pytest

from reluctant.errors import UnknownName, UsageError
from reluctant.experiment import Machine
from reluctant.models import ModelSpec
from reluctant.progress import silent
from reluctant.recipe import Recipe
from reluctant.searches import SEARCHES
from reluctant.searches.base import Search, Study
from reluctant.studies import FOUND, run_search
from reluctant.training import Training

pytestmark = pytest.mark.parametrize("name", SEARCHES.names())

SHORT = Training(epochs=1, batch=128, lr=0.02)
BATCHES = {"cell_batch": 128, "place_batch": 128}
#: A network to start from, and settings with which a search takes seconds.
SMALL = {
    "criticality": ("resnet8:width=4", {}),
    "adjustment": ("adjusted:width=8,blocks=1-1", {"rounds": 1, "repeats": 1, "update_num": 1}),
    "sphynx": (
        "sphynx:width=4,cells=3,reductions=0-1",
        {
            "search_cells": 3,
            "search_width": 4,
            "cell_epochs": 1,
            "place_epochs": 1,
            "cell_batch": 128,
            "place_batch": 128,
        },
    ),
}


def small(name) -> tuple[str, Search]:
    model, settings = SMALL[name]
    return model, SEARCHES[name]().changed(settings)


def test_its_header_names_the_paper(name):
    assert "arXiv" in SEARCHES[name].citation() or "20" in SEARCHES[name].citation()
    assert {"Paper", "Deviates", "Symbols"} <= {line.partition(":")[0] for line in SEARCHES[name].header().splitlines()}


def test_it_works_without_a_test_split_and_tells_what_it_found(name, without_test, fabric, tmp_path):
    model, search = small(name)
    study = Study(without_test, model, SHORT, SHORT, 0, fabric, tmp_path, silent)
    search.check(study)
    found = search.run(study)
    assert json.loads(json.dumps(found)) == found
    told = search.tell({**found, "task": "digits"})
    assert "next: reluctant" in told
    if "model" in found:
        assert ModelSpec.parse(found["model"]).design is not None
        assert found["model"] in told


def test_what_it_found_is_kept_and_not_looked_for_again(name, tmp_path, monkeypatch):
    model, search = small(name)
    recipe = Recipe(task="digits", model=model, training=SHORT, finetune=SHORT)
    monkeypatch.setattr(type(search), "run", lambda self, study: {"answer": 42})
    found = run_search(search, recipe, tmp_path, Machine(device="cpu"))
    assert found == json.loads((tmp_path / FOUND).read_text())
    assert found["answer"] == 42
    monkeypatch.setattr(type(search), "run", lambda self, study: {"answer": 43})
    assert run_search(search, recipe, tmp_path, Machine(device="cpu")) == found
    with pytest.raises(UsageError, match="holds a run of other settings"):
        run_search(search, replace(recipe, seed=1), tmp_path, Machine(device="cpu"))


def test_settings_are_checked(name):
    search = SEARCHES[name]()
    with pytest.raises(UnknownName, match=f"setting of search {name}"):
        search.changed({"no_such_setting": 1})
    for field in fields(search):
        if isinstance(field.default, int | float):
            with pytest.raises(UsageError, match=f"{name}.{field.name}"):
                search.changed({field.name: -1})
            with pytest.raises(UsageError, match=f"{name}.{field.name}"):
                search.changed({field.name: "nan"})


def test_trained_weights_are_taken_or_refused(name, without_test, fabric, tmp_path):
    model, search = small(name)
    study = Study(without_test, model, SHORT, SHORT, 0, fabric, tmp_path, silent)
    given = replace(study, given=study.build(model))
    if search.from_trained:
        search.check(given)
    else:
        with pytest.raises(UsageError, match="starts from a name, not from trained weights"):
            search.check(given)
    assert list(tmp_path.iterdir()) == []
