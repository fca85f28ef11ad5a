"""The page of results: a Markdown table of records, for `results/README.md`; and which recipes have a record."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reluctant.errors import UsageError
from reluctant.models import ModelSpec
from reluctant.recipe import Recipe, read_toml
from reluctant.recording import public_name
from reluctant.records import Record
from reluctant.report.networks import Network, networks
from reluctant.report.sentences import percent
from reluctant.units import format_bytes, format_seconds

_COLUMNS = (
    "model", "network", "surrogate", "ReLUs kept", "of", "test accuracy", "n", "dense", "seed", "epochs", "training",
    "trained on", "private inference, an image", "record",
)  # fmt: skip
_NUMBERS = ("ReLUs kept", "of", "test accuracy", "n", "dense", "seed", "epochs", "training")
_TRACKS = {
    "free": "Free: a dropped ReLU costs nothing in an engine (identity, bias, constant)",
    "affine": "Affine: a dropped ReLU costs a multiplication by a private slope",
    "polynomial": "Polynomial: a dropped ReLU costs a square",
}


def results_page(records: Iterable[Record]) -> str:
    """Return the Markdown page of ``records``: a table for each task and track, fewest ReLUs first, then the notes."""
    found = networks(records)
    lines = [
        "# Results",
        "",
        "Generated from the records in this folder; do not edit. Accuracies are of `n` images of the test split.",
        "Tracks are never ranked together: a dropped ReLU is not equally cheap in each.",
    ]
    for task in dict.fromkeys(network.head.task for network in found):
        here = [network for network in found if network.head.task == task]
        dense = [network for network in here if network.is_dense]
        lines += ["", f"## {cell(task)}"]
        lines += _table("Dense networks", dense) if dense else []
        for track, title in _TRACKS.items():
            rows = [network for network in here if not network.is_dense and network.head.track == track]
            lines += _table(title, sorted(rows, key=lambda n: n.head.relus["kept"])) if rows else []
    return "\n".join(lines) + "\n"


def _table(title: str, rows: list[Network]) -> list[str]:
    notes = {
        f"* {cell(network.head.model)}, {cell(network.label)}: {cell(record.note)}"
        for network in rows
        for record in network.records
        if record.note
    }
    return [
        "",
        f"### {title}",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        f"|{'|'.join('---:' if column in _NUMBERS else '---' for column in _COLUMNS)}|",
        *(f"| {' | '.join(_row(network))} |" for network in rows),
        *(["", *sorted(notes)] if notes else []),
    ]


def _row(network: Network) -> list[str]:
    head, test = network.head, network.evaluation
    made = next((record for record in network.records if record.epochs is not None), None)
    return [
        cell(head.model),
        cell(network.label),
        cell(head.surrogate or "–"),
        f"{head.relus['kept']:,}",
        f"{head.relus['total']:,}",
        "–" if network.accuracy is None else percent(network.accuracy),
        f"{test.accuracy['n_test']:,}" if test else "–",
        "–" if network.dense_accuracy is None else percent(network.dense_accuracy),
        str(head.seed),
        str(made.epochs) if made else "–",
        format_seconds(made.seconds) if made else "–",
        cell(made.device) if made else "–",
        cell(_inference(network)),
        ", ".join(f"[{record.kind}]({cell(record.name)}.record.json)" for record in network.records),
    ]


def _inference(network: Network) -> str:
    cost, run = network.cost, network.run
    if cost is None or run is None or run.secure is None:
        return "not run"
    images = max(1, cost["images"])
    figures = f"{format_bytes(cost['bytes'] / images)}, {format_seconds(cost['seconds'] / images)}"
    return f"{figures} ({run.secure['engine']}, {run.secure['network']}, {run.device})"


def cell(text: str) -> str:
    """Return ``text`` as it stands, on one line, whatever Markdown would make of it."""
    for sign in "\\`*_{}[]<>|#":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def read_recipes(folder: Path) -> dict[str, Recipe]:
    """Return the recipes anywhere below ``folder``, by their path from it, in the order of their paths.

    A file that names no task or model is for those of the ``dense.toml`` beside it.

    Raises:
        UsageError: a file that is no recipe; it is named.
    """
    found = {}
    for path in sorted(folder.rglob("*.toml")):
        beside = path.with_name("dense.toml")
        base = read_toml(beside) if beside.is_file() else {}
        names = {key: base[key] for key in ("task", "model") if key in base}
        name = path.relative_to(folder).as_posix()
        try:
            found[name] = Recipe.from_json(names | read_toml(path))
        except UsageError as error:
            raise UsageError(f"recipe {name}: {error}") from error
    return found


def was_run(recipe: Recipe, record: Record) -> bool:
    """Return whether ``record`` is of ``recipe`` with whatever seed: the same network, method and settings.

    A setting that is younger than the record counts as having had its default.
    """
    ran, method = record.recipe, recipe.method.name if recipe.method else None
    model = public_name(str(ModelSpec.parse(recipe.model)))
    if not isinstance(ran, dict) or record.status != "complete" or (record.model, record.method) != (model, method):
        return False
    names = {"task": recipe.task, "model": recipe.model, "budget": recipe.budget, "method": method}
    default, asked, had = (settings_of(r) for r in (Recipe.from_json(names).to_json(), recipe.to_json(), ran))
    other = "training." if method else "finetune."  # is of no consequence
    return all(
        had.get(key, default.get(key)) == value
        for key, value in asked.items()
        if key != "model" and not key.startswith(other)
    )


def settings_of(value: Mapping[str, Any], under: str = "") -> dict[str, Any]:
    """Return the leaves of a recipe by their dotted names, without what makes no other experiment."""
    leaves: dict[str, Any] = {}
    for key, item in value.items():
        name = under + key
        if isinstance(item, Mapping):
            leaves |= settings_of(item, f"{name}.")
        elif name not in ("seed", "note"):
            leaves[name] = item
    return leaves
