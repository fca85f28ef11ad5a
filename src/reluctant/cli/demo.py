"""``reluctant demo``: all of it, on a small real task."""

from pathlib import Path
from typing import Annotated

import typer

from reluctant.cli.main import app, show
from reluctant.cli.options import Json
from reluctant.cli.progress import ProgressView


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for everything that is made.")] = Path("runs/demo"),
    images: Annotated[
        int, typer.Option("--images", help="Test images sent through each private inference.", min=1)
    ] = 16,
    json: Json = False,
) -> None:
    """Train, linearize to 10 % with Ebb, SNL and AutoReP, run private inference between two processes, and report.

    Real scans of handwritten digits (8x8, from scikit-learn), no download, two to three minutes on two cores.
    """
    from reluctant.demo import run_demo

    with ProgressView(quiet=json) as progress:
        done = run_demo(out, images=images, progress=progress)
    show(done.cards, done.summary, json)
