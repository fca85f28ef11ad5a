"""``reluctant search`` and ``reluctant searches``: what designs are found with, by training."""

from pathlib import Path
from textwrap import wrap
from typing import Annotated

import typer

from reluctant.cli.main import app, show
from reluctant.cli.options import Data, Device, Download, Json, MaxSeconds, PriceTable, RecipeFile, Seed, TaskName
from reluctant.cli.progress import shown
from reluctant.searches import SEARCHES

INDENT = " " * 14


@app.command()
def searches(json: Json = False) -> None:
    """List the searches for a design: their papers, and their settings with the defaults."""
    rows = [{"paper": search.citation(), **search().to_json()} for search in SEARCHES.values()]
    lines = []
    for row in rows:
        settings = [f"{key}={value}" for key, value in row.items() if key not in ("name", "paper")]
        told = wrap(", ".join(settings), 110, initial_indent=INDENT, subsequent_indent=INDENT)
        lines += [f"{row['name']:<14}{row['paper']}", *told]
    show(rows, "\n".join(lines), json)


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
    prices: PriceTable = None,
    data: Data = None,
    download: Download = False,
    device: Device = "auto",
    max_seconds: MaxSeconds = None,
    json: Json = False,
) -> None:
    """Find a design by training: which stages are critical, how wide layers should be, what cells are made of.

    Nothing is judged by the test split: stages and widths are by the held-out tenth of the training set, cells and
    their places by one half of the rest. Interrupted, or stopped by --max-seconds, the same command goes on where it
    stopped.
    """
    from reluctant.experiment import Machine, open_model
    from reluctant.recipe import nested, resolve
    from reluctant.studies import run_search

    own = [setting for setting in settings or [] if "." not in setting.partition("=")[0]]
    rest = [setting for setting in settings or [] if setting not in own]
    kind = SEARCHES[name]().changed(nested(own))
    machine = Machine(data, download, device, prices)
    chosen = {"task": task, "model": model, "seed": seed}
    given = Path(model) if model is not None and Path(model).is_dir() else None
    if given is not None:
        origin = open_model(str(given), task).origin
        chosen |= {"task": origin.task, "model": origin.model}
    with shown(json, max_seconds) as progress:
        found = run_search(
            kind, resolve(recipe, chosen, rest, usual=kind.usual), out, machine, given=given, progress=progress
        )
    show(found, f"{kind.tell(found)}\n{out}: all of it", json)
