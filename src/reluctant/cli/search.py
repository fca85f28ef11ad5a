"""``reluctant search`` and ``reluctant searches``: what designs are found with, by training."""

from pathlib import Path
from typing import Annotated

import typer

from reluctant.cli.main import app, show
from reluctant.cli.options import Data, Device, Download, Json, MaxSeconds, RecipeFile, Seed, TaskName
from reluctant.cli.progress import shown
from reluctant.searches import SEARCHES


@app.command()
def searches(json: Json = False) -> None:
    """List the searches for a design, with their papers."""
    rows = [{"name": name, "paper": search.citation()} for name, search in SEARCHES.items()]
    show(rows, "\n".join(f"{row['name']:<14}{row['paper']}" for row in rows), json)


@app.command()
def search(
    name: Annotated[str, typer.Argument(help=f"{', '.join(SEARCHES)}.")],
    out: Annotated[
        Path, typer.Option("--out", help="Folder for what is found, and the networks it took.", show_default=False)
    ],
    model: Annotated[
        str | None,
        typer.Argument(
            help="What to start from: of the zoo, a design, or a trained checkpoint's folder.", show_default=False
        ),
    ] = None,
    task: TaskName = None,
    recipe: RecipeFile = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="One setting of the search, as in exponent=0, or of the recipe, as in training.epochs=10 and "
            "finetune.epochs=3; may be repeated.",
            show_default=False,
        ),
    ] = None,
    seed: Seed = None,
    data: Data = None,
    download: Download = False,
    device: Device = "auto",
    max_seconds: MaxSeconds = None,
    json: Json = False,
) -> None:
    """Find what a design needs to know by training networks: which stages are critical, how wide layers should be.

    All is judged by the held-out tenth of the training set. Interrupted, or stopped by --max-seconds, the same command
    goes on where it stopped.
    """
    from reluctant.experiment import Machine, open_model
    from reluctant.recipe import nested, resolve
    from reluctant.studies import run_search

    own = [setting for setting in settings or [] if "." not in setting.partition("=")[0]]
    rest = [setting for setting in settings or [] if setting not in own]
    kind = SEARCHES[name]().changed(nested(own))
    machine = Machine(data, download, device)
    chosen = {"task": task, "model": model, "seed": seed}
    given = None
    if model is not None and Path(model).is_dir():
        opened = open_model(model, task, machine)
        given, chosen = opened.dense, {"task": opened.origin.task, "model": opened.origin.model, "seed": seed}
    with shown(json, max_seconds) as progress:
        found = run_search(
            kind, resolve(recipe, chosen, rest, usual=kind.usual), out, machine, given=given, progress=progress
        )
    show(found, f"{kind.tell(found)}\n{out}: all of it", json)
