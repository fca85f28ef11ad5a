"""A search for a design as a whole: from a recipe and a folder to what was found."""

import json
from pathlib import Path
from typing import Any

from reluctant.checkpoints import weights_digest
from reluctant.experiment import Machine, begin, leave_the_rest_to_the_first, open_dense
from reluctant.files import write_json
from reluctant.progress import Progress, silent
from reluctant.recipe import Recipe
from reluctant.recording import public_name, public_recipe
from reluctant.searches.base import Search, Study
from reluctant.training import make_fabric

FOUND = "search.json"


def run_search(
    search: Search,
    recipe: Recipe,
    out: Path,
    machine: Machine,
    *,
    given: Path | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Return what ``search`` finds, and write it to ``out``; if it was found there before, nothing is trained.

    An interrupted call goes on where it stopped when it is made again.

    Args:
        recipe: task, network, seed, and how dense networks and changed ones are trained.
        given: checkpoint of the recipe's network, if it was trained before.

    Raises:
        UsageError: ``out`` holds something else, or a search with other settings; or the network is none that
            ``search`` can work on; or the checkpoint is linearized, or of another task.
    """
    task = recipe.prepare(machine.task(recipe.task))
    dense = None if given is None else open_dense(given, task).dense
    fabric = make_fabric(device=machine.device, input_shape=task.input_shape)
    study = Study(
        task, recipe.model, recipe.training, recipe.finetune, recipe.seed, fabric, out, progress,
        dense, machine.prices,
    )  # fmt: skip
    search.check(study)
    weights = None if dense is None else weights_digest(dense)
    begin(out, {**public_recipe(recipe), "search": search.to_json(), "given": weights})
    if (out / FOUND).exists():
        leave_the_rest_to_the_first(fabric)
        return dict(json.loads((out / FOUND).read_text()))
    start = {"task": public_name(task.name), "start": public_name(recipe.model), "seed": recipe.seed}
    found = {**search.to_json(), **start, **search.run(study)}
    leave_the_rest_to_the_first(fabric)
    write_json(out / FOUND, found)
    return found
