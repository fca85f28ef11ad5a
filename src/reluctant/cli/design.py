"""``reluctant design`` and ``reluctant designs``: networks redesigned for private inference."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reluctant.cli.main import app, known, show
from reluctant.cli.options import Data, Json, PriceTable, TaskName
from reluctant.cli.progress import ProgressView
from reluctant.costs import PROTOCOLS
from reluctant.designs import DESIGNS
from reluctant.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from reluctant.candidates import Candidate


@app.command()
def designs(json: Json = False) -> None:
    """List the designs: the paper, and the released networks that can be named wherever a model is."""
    rows = [
        {"name": name, "paper": design.citation(), "released": [f"{name}-{inner}" for inner in design.released()]}
        for name, design in DESIGNS.items()
    ]
    lines = (f"{row['name']:<12}{row['paper']}\n{'':<12}{', '.join(row['released'])}" for row in rows)
    show(rows, "\n".join(lines), json)


@app.command()
def design(
    name: Annotated[str, typer.Argument(help=f"{', '.join(DESIGNS)}.")],
    task: TaskName = None,
    blocks: Annotated[
        str | None, typer.Option("--blocks", help="Blocks of each stage: 2,2,2,2.", show_default=False)
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(
            "--order", help="Stages, most critical first: 3,2,4,1, as for ResNet-18 on CIFAR-100.", show_default=False
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            help="What an image may take: 350k ReLUs, 500MMAC, 40MB@cheetah, 20s@cheetah/wan. Decides the width.",
            show_default=False,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="One setting of the design, as in thin=true; may be repeated.", show_default=False),
    ] = None,
    pick: Annotated[int, typer.Option("--pick", help="Which candidate to take, counted from 1.", min=1)] = 1,
    engine: Annotated[str, typer.Option("--engine", help=f"{', '.join(PROTOCOLS)}.")] = "cheetah",
    network: Annotated[str, typer.Option("--network", help="loopback, lan, wan, mobile, 400mbps/20ms.")] = "loopback",
    prices: PriceTable = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="File for a recipe with the network taken, for train.", show_default=False),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="SVG file: its ReLUs and MACs by stage beside ResNet-18's.", show_default=False),
    ] = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """List the networks that a design offers under a target, with what an image would cost, and take one.

    The price is of one image with all ReLUs kept, after set-up; linearize the network to pay for fewer. The model it
    names goes wherever a network is named: train, sites, cost, linearize, run.
    """
    from reluctant.candidates import Pricing, Target, describe, find_candidates
    from reluctant.data import task_shape
    from reluctant.errors import UsageError
    from reluctant.files import write_atomically
    from reluctant.recipe import nested
    from reluctant.report.plot import stages_figure
    from reluctant.units import as_type_of

    kind = DESIGNS[name]
    given: dict[str, Any] = nested(settings or []) | ({} if blocks is None else {"blocks": blocks})
    ranked = None if order is None else as_type_of((3, 2, 4, 1), order, "--order")
    classes, shape = task_shape(task or "digits", data=data)
    limit = None if target is None else Target.parse(target, prices)
    with ProgressView(quiet=json) as progress:
        found = find_candidates(
            kind.candidates(ranked, given), classes, shape, limit, Pricing.load(engine, network, prices), progress
        )
    if pick > len(found.candidates):
        raise UsageError(f"--pick {pick}: there are {len(found.candidates)} candidates")
    taken, name = found.candidates[pick - 1], task or "digits"
    if out is not None:
        write_atomically(out, f'task = "{name}"\nmodel = "{taken.spec}"\n'.encode())
    if plot is not None:
        beside = [("ResNet-18", describe("resnet18", classes, shape)), (taken.spec, taken)]
        figure = stages_figure([(label, row.relus, row.macs) for label, row in beside], taken.spec)
        write_atomically(plot, figure.encode())
    lines = [_line(number, row, taken is row) for number, row in enumerate(found.candidates, start=1)]
    lines += [f"left out: {reason}" for reason in found.refused.values()]
    way = f"--recipe {out}" if out else f"{taken.spec} --task {name}"
    show(
        {"task": name, "target": target, "taken": taken.spec, **found.to_json()},
        "\n".join([*lines, f"{taken.spec}; next: reluctant train {way} --out ..."]),
        json,
    )


def _line(number: int, row: "Candidate", taken: bool) -> str:
    relus, macs = sum(row.relus.values()), sum(row.macs.values()) / 1e6
    shares = " / ".join(f"{100 * share:.1f}" for share in row.shares.values())
    line = (
        f"{'*' if taken else ' '}{number:>2}  {row.spec}\n     {relus:,} ReLUs ({shares} % of them by stage), "
        f"{macs:,.1f} M multiply-adds, {row.parameters / 1e6:,.2f} M parameters"
    )
    if row.prediction is None:
        return line
    cost = row.prediction
    return (
        f"{line}\n     {known(cost.bytes, format_bytes)} and {known(cost.seconds, format_seconds)} an image "
        f"under {cost.engine} over {cost.network}, as predicted"
    )
