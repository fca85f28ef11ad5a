"""``reluctant``: the command line."""

import json
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NoReturn

import typer

from reluctant.errors import ReluctantError

app = typer.Typer(
    name="reluctant",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def settings(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log what happens inside, to standard error.")
    ] = False,
    threads: Annotated[int, typer.Option("--threads", help="CPU threads to compute with; 0 for all.", min=0)] = 0,
) -> None:
    """Make a trained CNN cheap enough for **private inference**, and then run it.

    A client's image and a server's weights stay secret from each other under cryptography, and every ReLU costs a
    secure comparison. A network and a budget go in; a network that keeps only the ReLUs it can afford comes out, its
    accuracy, and the private inference itself, run between two processes and checked.

    All of it, on a small real task, in two to three minutes:

    - `reluctant demo`

    On a task and a network of your own:

    - `reluctant sites resnet20 --task cifar10`
    - `reluctant train resnet20 --task cifar10 --out runs/teacher`
    - `reluctant linearize runs/teacher --method snl --budget 10% --out runs/snl-10`
    - `reluctant evaluate runs/snl-10`
    - `reluctant run runs/snl-10 --engine cheetah --images 4`
    - `reluctant report runs --out report.html`

    Each command prints one line to act on, or with --json its record. Bad input ends with one line and exit code 2.
    """
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(name)s: %(message)s")
    if threads:
        import torch

        torch.set_num_threads(threads)


def show(value: Any, line: str, as_json: bool) -> None:
    """Print ``value`` as JSON or ``line`` for a person, on standard output."""
    print(json.dumps(value, indent=2) if as_json else line)


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Return the rows of ``table`` as lines whose columns stand below each other."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table)
    return "\n".join(line.rstrip() for line in lines)


def known(value: Any, form: Callable[[Any], str]) -> str:
    """Return ``value`` in its form, or a dash for what nobody knows."""
    return "-" if value is None else form(value)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code: 0, 2 for bad input, 130 if interrupted."""
    from reluctant.cli import (  # noqa: F401
        advise,
        calibrate,
        circa,
        cost,
        demo,
        design,
        evaluate,
        linearize,
        methods,
        report,
        run,
        search,
        sites,
        sweep,
        train,
    )

    try:
        app(args=arguments)
    except ReluctantError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)
