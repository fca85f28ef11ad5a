"""``reluctant sweep``: every experiment of a folder of recipes that is not there yet."""

from pathlib import Path
from typing import Annotated

import typer

from reluctant.cli.main import app, show
from reluctant.cli.options import Data, Device, Download, Json, MaxSeconds
from reluctant.cli.progress import shown
from reluctant.errors import UsageError


@app.command()
def sweep(
    recipes: Annotated[list[Path], typer.Argument(help="Recipe files, or folders of them, in the order to run.")],
    out: Annotated[Path, typer.Option("--out", help="Folder; each point gets one of its own in it.")],
    budgets: Annotated[
        str | None,
        typer.Option("--budgets", help="In place of the recipes' own: 2%,5%,10%.", show_default=False),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Seeds of each point, each with its own teacher.", min=1)] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            help="Spread the points over a Ray cluster: its address, or local; --out and --data are shared folders.",
            show_default=False,
        ),
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Train those points again that failed before.")] = False,
    data: Data = None,
    download: Download = False,
    device: Device = "auto",
    max_seconds: MaxSeconds = None,
    json: Json = False,
) -> None:
    """Train teachers, linearize them by every recipe, read the test split once for each: whatever is missing of it.

    A recipe's teacher is the dense.toml beside it. Interrupted, or stopped by --max-seconds, the same command goes on;
    started on several machines with one shared --out, the commands share the work. A point that fails leaves a record
    of that, and is left alone from then on, unless --retry is given.
    """
    from reluctant.experiment import Machine
    from reluctant.sweep import find_points
    from reluctant.sweep import sweep as run

    chosen = [budget.strip() for budget in budgets.split(",")] if budgets else []
    points = find_points(recipes, budgets=chosen, seeds=seeds)
    machine = Machine(data, download, device)
    with shown(json, max_seconds) as progress:
        if ray is None:
            swept = run(points, out, machine, retry=retry, progress=progress)
        else:
            from reluctant.cluster import sweep_on_ray

            swept = sweep_on_ray(points, out, machine, address=ray, retry=retry, progress=progress)
    lines = [
        f"{name}: {record.relus['kept']:,} ReLUs, {100 * float(str(record.accuracy['test'])):.2f} % of "
        f"{record.accuracy['n_test']:,} test images"
        for name, record in swept.records.items()
    ]
    lines += [f"{name}: another process is at it" for name in swept.elsewhere]
    lines.append(f"{len(swept.records)} of {len(points)} points are there; next: reluctant report {out}")
    records = {name: record.to_json() for name, record in swept.records.items()}
    show({"records": records, "failed": swept.failed, "elsewhere": swept.elsewhere}, "\n".join(lines), json)
    if swept.failed:
        name, reason = next(iter(swept.failed.items()))
        raise UsageError(f"{len(swept.failed)} of {len(points)} points failed, first {name}: {reason}")
