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
    accuracy = record.accuracy
    line = f"{checkpoint}: {_percent(accuracy['test'])} of {accuracy['n_test']:,} test images"
    if twin:
        line = (
            f"{checkpoint}: {_percent(accuracy.get('twin'))} of {accuracy.get('n_twin'):,} test images in fixed point, "
            f"{_percent(accuracy['test'])} in floats"
        )
    show(record.to_json(), line, json)


def _percent(share: float | None) -> str:
    return "not measured" if share is None else f"{100 * share:.2f} %"
