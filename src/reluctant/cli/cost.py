"""``reluctant cost``: what one inference consists of."""

from typing import Annotated

import typer

from reluctant.cli.main import app, show
from reluctant.cli.options import Data, Json, TaskName

Model = Annotated[str, typer.Argument(help="Zoo name, checkpoint folder or file, or path.py:function.")]


@app.command()
def cost(model: Model, task: TaskName = None, data: Data = None, json: Json = False) -> None:
    """Count what one private inference would compute: comparisons, squares, slopes, multiply-adds.

    Counts only: bytes and seconds are measured with `reluctant run`.
    """
    from reluctant.experiment import Machine, count_cost, open_model

    counted = count_cost(open_model(model, task, Machine(data=data)))
    relus, macs = counted["relus"], counted["macs"]["total"]
    show(
        counted,
        f"{relus['kept']:,} comparisons for ReLUs ({relus['total']:,} ReLUs before) at {relus['sites_kept']} of "
        f"{relus['sites']} sites, {counted['surrogates']['squares']:,} squares, {counted['surrogates']['slopes']:,} "
        f"private slopes, {macs / 1e6:,.1f} M multiply-adds, {counted['parameters']:,} parameters",
        json,
    )
