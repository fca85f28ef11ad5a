"""A search for a design as a whole: from a recipe and a folder to what was found."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from reluctant.checkpoints import weights_digest
from reluctant.experiment import Machine, begin, leave_the_rest_to_the_first
from reluctant.files import write_json
from reluctant.progress import Progress, silent
from reluctant.recipe import Recipe
from reluctant.recording import public_recipe
from reluctant.searches.base import Search, Study
from reluctant.training import make_fabric

FOUND = "search.json"


def run_search(
    search: Search,
    recipe: Recipe,
    out: Path,
    machine: Machine,
    *,
    given: nn.Module | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Return what ``search`` finds, and write it to ``out``; if it was found there before, nothing is trained.

    An interrupted call goes on where it stopped when it is made again.

    Args:
        recipe: task, network, seed, and how dense networks and changed ones are trained.
        given: the recipe's network, trained, if there is one.

    Raises:
        UsageError: ``out`` holds something else, or a search with other settings; or the network is none that
            ``search`` can work on.
    """
    task = recipe.prepare(machine.task(recipe.task))
    fabric = make_fabric(device=machine.device, input_shape=task.input_shape)
    study = Study(task, recipe.model, recipe.training, recipe.finetune, recipe.seed, fabric, out, progress, given)
    search.check(study)
    begin(out, {**public_recipe(recipe), "search": search.to_json(), "given": given and weights_digest(given)})
    if (out / FOUND).exists():
        leave_the_rest_to_the_first(fabric)
        return dict(json.loads((out / FOUND).read_text()))
    found = {**search.to_json(), "task": task.name, "start": recipe.model, "seed": recipe.seed, **search.run(study)}
    leave_the_rest_to_the_first(fabric)
    write_json(out / FOUND, found)
    return found
