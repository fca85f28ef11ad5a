"""``reluctant linearize``: fit a trained network's ReLUs into a budget."""

from pathlib import Path
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
    PriceTable,
    RecipeFile,
    Seed,
    Settings,
    Small,
)
from reluctant.cli.progress import shown
from reluctant.methods import METHODS, USUAL
from reluctant.units import format_quantity


@app.command()
def linearize(
    teacher: Annotated[Path, typer.Argument(help="Folder of the dense network, from `reluctant train`.")],
    out: Out,
    method: Annotated[
        str | None, typer.Option("--method", help=f"{', '.join(METHODS)}; {USUAL} if not given.", show_default=False)
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            help="ReLUs to keep (50k, 12900; 0 for none), a share of them (10%), or what one image may cost after "
            "set-up: 30MB@cheetah, 2s@cheetah/wan; 9GB@delphi and 2s@circa/lan with the preparation of the image, "
            "2s@delphi:online/lan without.",
            show_default=False,
        ),
    ] = None,
    measure: Annotated[
        int | None,
        typer.Option(
            "--measure",
            help="Then run so many test images privately, by the engine and over the imitated link that the budget "
            "names, and say whether it was kept.",
            min=1,
            show_default=False,
        ),
    ] = None,
    prices: PriceTable = None,
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
    """Search which ReLUs to keep, within the budget exactly, then finetune with the dense network as teacher.

    Defaults are each paper's main setting; --set method.KEY=VALUE and --set finetune.KEY=VALUE change one. Interrupted,
    or stopped by --max-seconds, the same command goes on where it stopped.
    """
    from reluctant.checkpoints import load_origin
    from reluctant.experiment import Machine, linearize_checkpoint
    from reluctant.inference import check_measurable, measure_budget
    from reluctant.recipe import resolve

    origin = load_origin(teacher)
    chosen = {"method": {"name": method}, "budget": budget, "seed": seed, "small": small or None}
    fixed = {"task": origin.task, "model": origin.model}
    resolved = resolve(recipe, chosen, settings, usual={"method": USUAL}, fixed=fixed)
    if measure is not None:
        check_measurable(resolved.budget)
    machine = Machine(data, download, device, prices)
    with shown(json, max_seconds) as progress:
        record = linearize_checkpoint(teacher, resolved, out, machine, progress=progress)
        kept = None if measure is None else measure_budget(out, machine, images=measure, progress=progress)
    relus, val = record.relus, 100 * (record.accuracy["val"] or 0)
    line = (
        f"{out}: {relus['kept']:,} of {relus['total']:,} ReLUs at {relus['sites_kept']} of {relus['sites']} sites, "
        f"{val:.2f} % on held-out images"
    )
    if kept is not None:
        measured, budgeted = (format_quantity(value, kept.unit) for value in (kept.measured, kept.budget))
        line += f"; {measured} an image as measured, the budget of {budgeted} is {'kept' if kept.holds else 'EXCEEDED'}"
    show(record.to_json(), f"{line}; next: reluctant evaluate {out}", json)
