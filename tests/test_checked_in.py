"""What is checked in under results/ was not edited, and its page is made of it."""

import re
from pathlib import Path

from reluctant.recipe import Recipe, merge, read_toml
from reluctant.records import load_records
from reluctant.report import results_page

ROOT = Path(__file__).parents[1]


def test_the_page_is_what_the_records_say():
    records = load_records([ROOT / "results"])  # refuses a record that was changed
    assert (ROOT / "results" / "README.md").read_text() == results_page(records)


def test_records_name_no_folder_of_a_machine():
    for path in (ROOT / "results").glob("*.json"):
        assert not re.search(r'["\s=]/[a-z]+/', path.read_text()), path


def test_every_recipe_resolves():
    paths = sorted((ROOT / "recipes").rglob("*.toml"))
    assert paths
    for path in paths:
        task, model = path.parts[-3:-1]
        recipe = Recipe.from_json(merge({"task": task, "model": model}, read_toml(path)))
        assert (recipe.task, recipe.model) == (task, model)
        if recipe.method is not None:
            assert path.stem == f"{recipe.method.name}-{recipe.budget}"
