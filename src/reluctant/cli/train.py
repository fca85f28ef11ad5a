"""``reluctant train``: a dense network."""

from typing import Annotated

import typer

from reluctant.cli.main import app, show
from reluctant.cli.options import (
    Data,
    Device,
    Download,
    Json,
    MaxSeconds,
    Out,
    RecipeFile,
    Seed,
    Settings,
    Small,
    TaskName,
)
from reluctant.cli.progress import shown


@app.command()
def train(
    out: Out,
    model: Annotated[
        str | None, typer.Argument(help="Name of the zoo or of a design, or path.py:function.", show_default=False)
    ] = None,
    task: TaskName = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Short for --set training.epochs=N.")] = None,
    recipe: RecipeFile = None,
    settings: Settings = None,
    seed: Seed = None,
    data: Data = None,
    download: Download = False,
    device: Device = "auto",
    small: Small = False,
    max_seconds: MaxSeconds = None,
    json: Json = False,
) -> None:
    """Train a network on a task, select it on a held-out tenth of the training set, and save it.

    Interrupted, or stopped by --max-seconds, the same command goes on where it stopped.
    """
    from reluctant.experiment import Machine, train
    from reluctant.recipe import resolve

    chosen = {"task": task, "model": model, "seed": seed, "small": small or None, "training": {"epochs": epochs}}
    with shown(json, max_seconds) as progress:
        record = train(resolve(recipe, chosen, settings), out, Machine(data, download, device), progress=progress)
    val = 100 * (record.accuracy["val"] or 0)
    show(
        record.to_json(),
        f"{out}: {record.model} on {record.task}, {val:.2f} % on held-out images; next: "
        f"reluctant linearize {out} --method snl --budget 10% --out ...",
        json,
    )
