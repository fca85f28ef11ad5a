"""``reluctant run``: private inference between two parties."""

from pathlib import Path
from typing import Annotated

import typer

from reluctant.cli.main import app, show
from reluctant.cli.options import Data, Download, Json
from reluctant.cli.progress import ProgressView
from reluctant.engines import ENGINES
from reluctant.units import format_bytes, format_seconds


@app.command()
def run(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of the network.")],
    engine: Annotated[str, typer.Option("--engine", help=", ".join(ENGINES.names()) + ".")] = "cheetah",
    images: Annotated[int, typer.Option("--images", help="How many test images to send.", min=1)] = 1,
    batch: Annotated[int | None, typer.Option("--batch", help="Images that travel together.", min=1)] = None,
    data: Data = None,
    download: Download = False,
    json: Json = False,
) -> None:
    """Run private inference for real, between two processes on this machine, and check the answers.

    The server process holds the weights, the client process the images; the client alone learns the class scores. Masks
    and architecture are public. The answers are compared with the fixed-point twin and with plain torch.
    """
    from reluctant.experiment import Machine, network_cost, run_checkpoint

    with ProgressView(quiet=json) as progress:
        _, done = run_checkpoint(
            checkpoint, Machine(data, download), engine=engine, images=images, batch=batch, progress=progress
        )
    measured, chosen = done.run, done.engine
    show(
        network_cost(done),
        f"{checkpoint}: classes {done.answers}; {done.argmax_equal_twin} of {images} as the twin, "
        f"{done.argmax_equal_float} as plain torch; {measured.comparisons:,} comparisons, "
        f"{format_bytes(measured.bytes)} in {measured.messages:,} messages, {format_seconds(measured.seconds)} after "
        f"{format_seconds(measured.setup_seconds)} of set-up ({chosen.name}, {chosen.security.adversary}, loopback)",
        json,
    )
