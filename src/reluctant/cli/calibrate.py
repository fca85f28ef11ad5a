"""``reluctant calibrate``: measure what a unit of secure work costs on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from reluctant.cli.main import app, show
from reluctant.cli.options import Json
from reluctant.cli.progress import ProgressView
from reluctant.costs import ENGINES


@app.command()
def calibrate(
    out: Annotated[Path, typer.Option("--out", help="File for the table of prices.", show_default=False)],
    engine: Annotated[str, typer.Option("--engine", help=", ".join(ENGINES) + ".")] = "cheetah",
    json: Json = False,
) -> None:
    """Measure the bytes, messages, seconds and round trips of every secure operation on this machine; write a table.

    Takes some seven minutes; leave the machine alone in that time. `--prices` of other commands takes the table in
    place of the one that comes with this package.
    """
    from reluctant.calibration import calibrate as measured
    from reluctant.calibration import residuals
    from reluctant.files import write_json

    out.parent.mkdir(parents=True, exist_ok=True)
    with ProgressView(quiet=json) as progress:
        table = measured(engine, progress)
    write_json(out, table)
    found = residuals(table)
    bytes_, seconds = max(abs(row[1] - 1) for row in found), sorted(abs(row[2] - 1) for row in found)
    show(
        table,
        f"{out}: {len(table['prices'])} prices from {len(found)} measured programs; it has their bytes within "
        f"{100 * bytes_:.2g} %, their seconds within {100 * seconds[len(seconds) // 2]:.0f} % (median), "
        f"{100 * seconds[-1]:.0f} % (worst); next: reluctant cost MODEL --prices {out}",
        json,
    )
