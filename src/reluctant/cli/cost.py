"""``reluctant cost``: what one inference consists of, and what it would send, take and be paid for."""

from typing import Annotated, Any

import typer

from reluctant.cli.main import app, show
from reluctant.cli.options import Data, Json, PriceTable, TaskName
from reluctant.costs import ENGINES
from reluctant.costs.money import INFERENCES, Tariff
from reluctant.units import format_bytes, format_seconds

Model = Annotated[
    str, typer.Argument(help="Name of the zoo or of a design, checkpoint folder or file, or path.py:function.")
]


@app.command()
def cost(
    model: Model,
    task: TaskName = None,
    engine: Annotated[str, typer.Option("--engine", help=f"{', '.join(ENGINES)}.")] = "cheetah",
    network: Annotated[str, typer.Option("--network", help="loopback, lan, wan, mobile, 400mbps/20ms.")] = "loopback",
    prices: PriceTable = None,
    per_gb: Annotated[
        float, typer.Option("--dollars-per-gb", help="What a gigabyte costs that a party sends.", min=0)
    ] = Tariff.dollars_per_gb,
    per_hour: Annotated[
        float, typer.Option("--dollars-per-hour", help="What the machine of a party costs.", min=0)
    ] = Tariff.dollars_per_hour,
    without: Annotated[
        str | None,
        typer.Option(
            "--without", help="Rewrites to leave out, to see their gain: merge,carry,collapse.", show_default=False
        ),
    ] = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Count what one private inference would compute; predict its bytes, messages, seconds, memory and dollars.

    The prediction is priced by a table that was measured; nothing is run. It is for one image, both directions
    together, after the set-up (`offline`), which is done once for many.
    """
    from reluctant.experiment import Machine, count_cost, open_model

    opened = open_model(model, task, Machine(data=data))
    counted = count_cost(
        opened, engine, network, prices, Tariff(per_gb, per_hour), without.split(",") if without else ()
    )
    relus, macs = counted["relus"], counted["macs"]["total"]
    show(
        counted,
        f"{relus['kept']:,} comparisons for ReLUs ({relus['total']:,} ReLUs before) at {relus['sites_kept']} of "
        f"{relus['sites']} sites, {counted['surrogates']['squares']:,} squares, {counted['surrogates']['slopes']:,} "
        f"private slopes, {macs / 1e6:,.1f} M multiply-adds, {counted['parameters']:,} parameters; {_costs(counted)}",
        json,
    )


def _costs(counted: dict[str, Any]) -> str:
    if "bytes" not in counted:
        return "no prediction of bytes, for no secure program computes this network"
    online, setup = (
        f"{format_bytes(part['bytes'])} in {part['messages']:,} messages and {format_seconds(part['seconds'])}"
        for part in (counted["online"], counted["offline"])
    )
    return (
        f"{online} under {counted['engine']} over {counted['network']}, after a set-up of {setup}, with "
        f"{format_bytes(counted['memory'])} of memory a party, {counted['dollars']:.2f} dollars for {INFERENCES:,}; "
        "all as predicted"
    )
