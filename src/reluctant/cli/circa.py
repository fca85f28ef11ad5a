"""``reluctant circa``: what Circa's faulty signs would cost a network, and what they would save."""

from pathlib import Path
from typing import Annotated

import typer

from reluctant.cli.main import app, show
from reluctant.cli.options import Data, Download, Json
from reluctant.cli.progress import ProgressView


@app.command()
def circa(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of the network.")],
    mode: Annotated[
        str, typer.Option("--mode", help="poszero: small positive numbers may become 0; negpass: small negative pass.")
    ] = "poszero",
    points: Annotated[
        float, typer.Option("--points", help="Percentage points of accuracy that truncation may cost.", min=0)
    ] = 0.5,
    fraction_bits: Annotated[
        int, typer.Option("--fraction-bits", help="Of the fixed point where the sign is taken.", min=0)
    ] = 16,
    data: Data = None,
    download: Download = False,
    json: Json = False,
) -> None:
    """Simulate Circa's stochastic ReLU: for each site the most bits that its sign test may leave out.

    A simulation in the clear, not an engine: nothing is run between parties. Accuracies are of the held-out split, the
    gates those of garbled circuits by a count.
    """
    from reluctant.circa import Circa
    from reluctant.experiment import Machine
    from reluctant.inference import truncate_checkpoint

    settings = Circa(mode=mode, fraction_bits=fraction_bits)
    with ProgressView(quiet=json) as progress:
        found = truncate_checkpoint(checkpoint, Machine(data, download), settings, points=points, progress=progress)
    width = max((len(row.name) for row in found.sites), default=0)
    lines = [
        f"{row.name:<{width}}  {row.kept:>9,} kept  {row.truncation:>2} of {settings.bits - 1} bits left out  "
        f"{100 * row.fault_share:6.2f} % of signs wrong  {100 * row.alone:.2f} % alone"
        for row in found.sites
    ]
    line = (
        f"{checkpoint}: {100 * found.accuracy:.2f} % of {found.n:,} held-out images with faults at all sites, "
        f"{100 * found.exact:.2f} % without; {found.gates:,} AND gates an image by count, {found.gates_before:,} with "
        f"whole ReLUs in circuits ({settings.mode}, simulated in the clear)"
    )
    show(found.to_json(), "\n".join([*lines, line]), json)
