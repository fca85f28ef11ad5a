"""``reluctant evaluate``: the one reading of the test split."""

from pathlib import Path
from typing import Annotated

import typer

from reluctant.cli.main import app, show
from reluctant.cli.options import Data, Download, Json, MaxSeconds
from reluctant.cli.progress import shown


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of the network.")],
    twin: Annotated[
        bool, typer.Option("--twin", help="Under the fixed point of a secure run (one process, no cryptography).")
    ] = False,
    data: Data = None,
    download: Download = False,
    max_seconds: MaxSeconds = None,
    json: Json = False,
) -> None:
    """Measure the accuracy on the test split, once; asked again, the record of that time is shown."""
    from reluctant.experiment import Machine, evaluate_checkpoint

    with shown(json, max_seconds) as progress:
        record = evaluate_checkpoint(checkpoint, Machine(data, download), twin=twin, progress=progress)
    key, count = ("twin", "n_twin") if twin else ("test", "n_test")
    share, n = record.accuracy.get(key), record.accuracy.get(count)
    show(record.to_json(), f"{checkpoint}: {100 * float(str(share)):.2f} % of {n:,} test images", json)
