"""``reluctant cost``: what one inference consists of, and what it would send."""

from typing import Annotated

import typer

from reluctant.cli.main import app, show
from reluctant.cli.options import Data, Json, TaskName

Model = Annotated[str, typer.Argument(help="Zoo name, checkpoint folder or file, or path.py:function.")]
Engine = Annotated[str, typer.Option("--engine", help="Whose bytes and messages to predict.")]


@app.command()
def cost(
    model: Model, task: TaskName = None, engine: Engine = "cheetah", data: Data = None, json: Json = False
) -> None:
    """Count what one private inference would compute, and predict the bytes and messages that it would send.

    The prediction is priced by a table that was measured; nothing is run. Seconds are measured with `reluctant run`.
    """
    from reluctant.experiment import Machine, count_cost, open_model
    from reluctant.units import format_bytes

    counted = count_cost(open_model(model, task, Machine(data=data)), engine)
    relus, macs, predicted = counted["relus"], counted["macs"]["total"], counted["predicted"]
    if predicted is None:
        sent = "no prediction of bytes, for no secure program computes this network"
    else:
        sent = f"{format_bytes(predicted['bytes'])} in {predicted['messages']:,} messages under {engine}, as predicted"
    show(
        counted,
        f"{relus['kept']:,} comparisons for ReLUs ({relus['total']:,} ReLUs before) at {relus['sites_kept']} of "
        f"{relus['sites']} sites, {counted['surrogates']['squares']:,} squares, {counted['surrogates']['slopes']:,} "
        f"private slopes, {macs / 1e6:,.1f} M multiply-adds, {counted['parameters']:,} parameters; {sent}",
        json,
    )
