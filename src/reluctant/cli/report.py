"""``reluctant report``: one page from records."""

from pathlib import Path
from typing import Annotated

import typer

from reluctant.cli.main import app, show
from reluctant.cli.options import Json


@app.command()
def report(
    records: Annotated[list[Path], typer.Argument(help="Records, or folders that hold some at any depth.")],
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("report.html"),
    json: Json = False,
) -> None:
    """Write one self-contained HTML page from records: accuracy, cost, which ReLUs were kept, what is secure."""
    from reluctant.records import load_records
    from reluctant.report import Report

    made = Report(load_records(records))
    path = made.save(out)
    show(made.card(), f"{path}: open it in a browser", json)
