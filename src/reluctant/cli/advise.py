"""``reluctant advise``: what to train under a budget."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reluctant.cli.main import aligned, app, known, show
from reluctant.cli.options import Data, Json, PriceTable, TaskName
from reluctant.cli.progress import ProgressView
from reluctant.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from reluctant.advice import Advice, Row

UNTRIED = 10


@app.command()
def advise(
    budget: Annotated[
        str,
        typer.Option(
            "--budget", help="What one image may cost after set-up: 10s@cheetah/wan, 30MB@cheetah.", show_default=False
        ),
    ],
    task: TaskName = None,
    records: Annotated[
        list[Path] | None,
        typer.Option(
            "--records", help="Records, or folders that hold some at any depth; may be repeated.", show_default=False
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="A network to look at; may be repeated. Else all of the zoo and the designs that can be of any width, "
            "at a quarter, half, all and twice of their own, as far as the budget reaches, and those recorded.",
            show_default=False,
        ),
    ] = None,
    densities: Annotated[
        str | None, typer.Option("--densities", help="Shares of the ReLUs to price; 100%,25%,10%,5%,2% if not given.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Print every row, those outside the budget, too.")] = False,
    prices: PriceTable = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Say what to train under a budget: networks and shares of their ReLUs by predicted cost, and by recorded accuracy.

    A share is spread alike over all sites, so that no site is emptied: the dearest way to keep so many. The row
    `budget` spends the budget as linearize would if all sites were worth the same, and empties sites where that pays.
    Recorded networks are priced with the masks they have, and ranked by their accuracy on held-out images; the test
    accuracy beside it is for information. Nothing is known of the others: the order of those is a rule of thumb.
    """
    from reluctant.advice import DENSITIES
    from reluctant.advice import advise as advise_on
    from reluctant.data import task_shape
    from reluctant.records import load_records

    name = task or "digits"
    with ProgressView(quiet=json) as progress:
        found = advise_on(
            name,
            *task_shape(name, data=data),
            budget,
            models=models or (),
            densities=DENSITIES if densities is None else densities.split(","),
            records=load_records(records) if records else (),
            table=prices,
            progress=progress,
        )
    following = _next(found)
    best = found.rows[0].evidence
    names = [] if best is None else best.to_json()["records"]
    source = [f"1 is recorded, with its settings, in {', '.join(names)}"] if names else []
    lines = [*_lines(found, every), *source, f"next: {following}"]
    show(found.to_json() | {"next": following}, "\n".join(lines), json)


def _lines(found: "Advice", every: bool) -> list[str]:
    """Return three tables: recorded, not recorded, outside the budget."""
    inside = [row for row in found.rows if row.inside]
    recorded = [row for row in inside if row.evidence]
    untried = [row for row in inside if not row.evidence]
    outside = [row for row in found.rows if not row.inside]
    shown = untried if every else _most_of_each(untried)[:UNTRIED]
    lines = []
    if recorded:
        lines += [
            f"Recorded, within {found.budget.text}, by accuracy on held-out images (val):",
            *_table(found, recorded),
        ]
    if shown:
        lines += [
            "",
            f"Not recorded, within {found.budget.text}. How accurate is not known; by a rule of thumb, first those",
        ]
        lines += ["that keep ReLUs at more than half of their sites, of these the one with most multiply-adds:"]
        lines += _table(found, shown, len(recorded) + 1)
    if every:
        if outside:
            lines += ["", "Over the budget, the cheapest first:", *_table(found, outside, len(inside) + 1)]
        left_out = [f"left out: {name}: {reason}" for name, reason in found.refused.items()]
        lines += ["", *left_out] if left_out else []
    else:
        hidden = len(untried) - len(shown)
        lines += [
            "",
            f"--all shows {hidden} more within the budget, {len(outside)} over it, {len(found.refused)} left out",
        ]
    return lines[not lines[0] :]


def _most_of_each(rows: Sequence["Row"]) -> list["Row"]:
    """Return the first row of each network: the others keep fewer of its ReLUs, or empty more of its sites."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.plan.model, row)
    return list(first.values())


def _table(found: "Advice", rows: Sequence["Row"], start: int = 1) -> list[str]:
    known_here = any(row.evidence for row in rows)
    last = ("val", "test", "seeds", "epochs", "method") if known_here else ("multiply-adds",)
    head = ("", "network", "keep", "ReLUs", "sites", f"over {found.unit.network.name}", "bytes", "messages", *last)
    cells = [(str(n), *_cost_cells(found, row), *_other_cells(row, known_here)) for n, row in enumerate(rows, start)]
    return aligned([head, *cells]).splitlines()


def _cost_cells(found: "Advice", row: "Row") -> tuple[str, ...]:
    plan, cost = row.plan, row.plan.predicted
    keep = "budget" if plan.budget.quantity == found.budget.quantity else plan.budget.text
    sites = f"{plan.sites_kept}/{len(plan.kept)}"
    figures = (known(cost.seconds, format_seconds), known(cost.bytes, format_bytes), known(cost.messages, str))
    return plan.model, keep, f"{plan.relus:,}", sites, *figures


def _other_cells(row: "Row", known_here: bool) -> tuple[str, ...]:
    if not known_here:
        return (f"{row.plan.macs / 1e6:,.2f} M",)
    if row.evidence is None:
        return ("",) * 5
    told = row.evidence.to_json()
    spread = "" if told["spread"] is None else f" ± {100 * told['spread']:.1f}"
    test = known(told["test"], lambda test: f"{100 * test:.1f}{spread} %")
    return (
        f"{100 * told['val']:.1f} %",
        test,
        str(len(told["seeds"])),
        known(told["epochs"], str),
        told["method"] or "dense",
    )


def _next(found: "Advice") -> str:
    """Return the commands that carry out the first row."""
    row = found.rows[0]
    train = f"reluctant train {shlex.quote(row.plan.model)} --task {shlex.quote(found.task)} --out runs/teacher"
    if row.plan.relus == row.plan.total:
        return train
    method = f" --method {row.evidence.method}" if row.evidence else ""
    return f"{train} && reluctant linearize runs/teacher{method} --budget {row.plan.budget.text} --out runs/small"
