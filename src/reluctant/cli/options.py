"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the record as JSON on standard output, and nothing else.")]
Data = Annotated[
    Path | None,
    typer.Option("--data", help="Folder with the data sets; else $RELUCTANT_DATA, else ./data.", show_default=False),
]
Download = Annotated[bool, typer.Option("--download", help="Fetch data that is missing, and check it.")]
Device = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda; cuda:2 for two of them, cpu:2 for two processes.")
]
Out = Annotated[Path, typer.Option("--out", help="Folder for checkpoint, record and metrics.", show_default=False)]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of weights, order and masks; 0 if not given.")]
MaxSeconds = Annotated[
    float | None,
    typer.Option(
        "--max-seconds",
        help="Stop before so many seconds, everything saved; the same command then goes on.",
        min=1,
        show_default=False,
    ),
]
Small = Annotated[
    bool,
    typer.Option("--small", help="Keep the weights in bf16, in files of at most 15 MiB; measured as they are kept."),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option("--recipe", help="TOML file with the settings that differ from the defaults.", show_default=False),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="One setting, as in finetune.epochs=10; may be repeated.", show_default=False),
]
PriceTable = Annotated[
    Path | None,
    typer.Option(
        "--prices",
        help="Table of what secure work costs, from `reluctant calibrate`; else the one that comes along.",
        show_default=False,
    ),
]
Without = Annotated[
    str | None,
    typer.Option(
        "--without",
        help="Program rewrites to leave out, commas between: merge, channels, factors, squares, collapse, carry.",
        show_default=False,
    ),
]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="digits, cifar10, cifar100, fashion-mnist, tiny-imagenet, tiny-imagenet-25, folder:/path/to/images.",
    ),
]


def rewrites(without: str | None) -> tuple[str, ...]:
    """Return the names that ``--without`` lists."""
    return tuple(name.strip() for name in without.split(",")) if without else ()
