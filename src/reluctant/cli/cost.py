"""``reluctant cost``: what one inference consists of, and what it would send, take and be paid for."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from reluctant.cli.main import aligned, app, known, show
from reluctant.cli.options import Data, Json, PriceTable, TaskName, Without, rewrites
from reluctant.costs import PROTOCOLS
from reluctant.costs.money import INFERENCES, Tariff
from reluctant.units import format_bytes, format_seconds

Model = Annotated[
    str, typer.Argument(help="Name of the zoo or of a design, checkpoint folder or file, or path.py:function.")
]


@app.command()
def cost(
    model: Model,
    task: TaskName = None,
    engine: Annotated[
        str,
        typer.Option("--engine", help=f"{', '.join(PROTOCOLS)}; all for a table of these. Only cheetah is measured."),
    ] = "cheetah",
    network: Annotated[str, typer.Option("--network", help="loopback, lan, wan, mobile, 400mbps/20ms.")] = "loopback",
    prices: PriceTable = None,
    per_gb: Annotated[
        float, typer.Option("--dollars-per-gb", help="What a gigabyte costs that a party sends.", min=0)
    ] = Tariff.dollars_per_gb,
    per_hour: Annotated[
        float, typer.Option("--dollars-per-hour", help="What the machine of a party costs.", min=0)
    ] = Tariff.dollars_per_hour,
    without: Without = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Count what one private inference would compute; predict its bytes, messages, seconds, memory and dollars.

    Nothing is run. The prediction is for one image, both directions together. For cheetah it is priced by a table that
    was measured, after the set-up (`offline`), which is done once for many images. The other protocols cannot be run
    here: an analytic profile of each prices what is published of it, and says where that is from. They prepare each
    image before it comes (`offline`), and that is part of its bytes and seconds; what a profile does not know is -.
    With --json the levels under CKKS are told, too.
    """
    from reluctant.costing import compare_costs, count_cost
    from reluctant.experiment import Machine, open_model

    opened = open_model(model, task, Machine(data=data))
    rest = (network, prices, Tariff(per_gb, per_hour), rewrites(without))
    if engine == "all":
        compared = compare_costs(opened, *rest)
        show(compared, _table(compared), json)
        return
    counted = count_cost(opened, engine, *rest)
    relus, macs = counted["relus"], counted["macs"]["total"]
    show(
        counted,
        f"{relus['compared']:,} comparisons for ReLUs ({relus['total']:,} ReLUs before) "
        f"at {relus['sites_compared']} of {relus['sites']} sites, "
        f"{counted['surrogates']['squares']:,} squares, {counted['surrogates']['slopes']:,} "
        f"private slopes, {macs / 1e6:,.1f} M multiply-adds, {counted['parameters']:,} parameters; {_costs(counted)}",
        json,
    )


def _costs(counted: dict[str, Any]) -> str:
    if "bytes" not in counted:
        return "no prediction of bytes, for no secure program computes this network"
    online, offline = (
        f"{known(part['bytes'], format_bytes)} in {known(part['messages'], '{:,}'.format)} messages and "
        f"{known(part['seconds'], format_seconds)}"
        for part in (counted["online"], counted["offline"])
    )
    measured = counted["provenance"] == "measured"
    before = f"a set-up of {offline}" if measured else f"preparing the image with {offline}"
    line = (
        f"{online} under {counted['engine']} over {counted['network']}, after {before}, with "
        f"{known(counted['memory'], format_bytes)} of memory a party, {known(counted['dollars'], '{:.2f}'.format)} "
        f"dollars for {INFERENCES:,}; "
    )
    if measured:
        return f"{line}all as predicted{_levels(counted['ckks_levels'])}"
    return (
        f"{line}of both, {known(counted['comparison_bytes'], format_bytes)} in {_relu_trips(counted)} round trips are "
        f"for ReLUs; this is an analytic profile, not measured here, from {counted['source']}; it leaves out "
        f"{', '.join(counted['omitted'])}{_levels(counted['ckks_levels'])}"
    )


def _levels(found: Mapping[str, Any]) -> str:
    """Return what a polynomial network would need under fully homomorphic encryption."""
    if found["relu_levels"]:
        return ""
    fits = "more than SEAL's rings hold" if found["ring"] is None else f"a ring of degree {found['ring']:,}"
    return f"; under CKKS {found['levels']:,} levels, {fits}"


def _table(compared: Mapping[str, dict[str, Any]]) -> str:
    """Return a line a protocol: what an image costs before it comes and then, and its ReLUs' part of both."""
    rows = [
        (
            name,
            *(known(found[part]["bytes"], format_bytes) for part in ("offline", "online")),
            known(found["comparison_bytes"], format_bytes),
            _relu_trips(found),
            *(known(found[part]["seconds"], format_seconds) for part in ("offline", "online")),
            found["provenance"] + (", offline once for many images" if found["offline"] == found["setup"] else ""),
        )
        for name, found in compared.items()
    ]
    head = ("protocol", "offline", "online", "for ReLUs", "in round trips", "offline", "online", "prices")
    return aligned([head, *rows])


def _relu_trips(found: Mapping[str, Any]) -> str:
    """Return the round trips of all activation steps."""
    trips = [site["round_trips"] for site in found["by_site"]]
    return "-" if None in trips else f"{sum(trips):,.0f}"
