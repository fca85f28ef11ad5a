"""The page of results: Markdown tables of records, for `results/README.md`; and which recipes have a record."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from reluctant.errors import UsageError
from reluctant.models import ModelSpec
from reluctant.recipe import Recipe, read_toml
from reluctant.recording import public_name
from reluctant.records import SUFFIX, Record, Track
from reluctant.report.networks import Network, engine_of, networks, plain_label
from reluctant.report.sentences import percent
from reluctant.units import format_bytes, format_seconds

_COLUMNS = {
    "model": "---", "network": "---", "surrogate": "---", "ReLUs kept": "---:", "of": "---:", "test accuracy": "---:",
    "n": "---:", "dense": "---:", "seeds": "---:", "epochs": "---:", "training": "---:", "trained on": "---",
    "private inference, an image": "---", "records": "---",
}  # fmt: skip
TRACKS: Mapping[Track, str] = {
    "free": "Free: a dropped ReLU costs nothing in an engine (identity, bias, constant)",
    "affine": "Affine: a dropped ReLU costs a multiplication by a private slope",
    "polynomial": "Polynomial: a dropped ReLU costs a square",
}


def results_page(records: Iterable[Record]) -> str:
    """Return the Markdown page of ``records``: a table for each task and track, fewest ReLUs first, then the notes.

    A row is a setting, with the mean over its seeds; each of its records is linked. What failed is listed at the end.
    """
    records = list(records)
    groups = by_setting(networks(records))
    lines = [
        "# Results",
        "",
        "Generated from the records in this folder; do not edit. Accuracies are of `n` images of the test split; where",
        "a setting was run with several seeds, they are mean ± sample standard deviation over the seeds, epochs and",
        "time are means. Of several runs with one seed the newest counts, and all are linked. A record holds the",
        "command that makes it again. `dense` is the network that it was made from, – where that is not known: older",
        "records do not name it, and there may be several of one seed.",
        "Tracks are never ranked together: a dropped ReLU is not equally cheap in each.",
    ]
    for task in dict.fromkeys(group[0].head.task for group in groups):
        here = [group for group in groups if group[0].head.task == task]
        dense = [group for group in here if group[0].is_dense]
        lines += ["", f"## {cell(task)}"]
        lines += _section("Dense networks", dense) if dense else []
        for track, title in TRACKS.items():
            rows = [group for group in here if not group[0].is_dense and group[0].head.track == track]
            lines += _section(title, sorted(rows, key=lambda group: group[-1].head.relus["kept"])) if rows else []
    return "\n".join([*lines, *_failed_section(records)]) + "\n"


def by_setting(found: Iterable[Network]) -> list[list[Network]]:
    """Return the networks, oldest first, those together that differ in nothing but their seed and what came of it."""
    groups: dict[tuple[str, int | None], list[Network]] = defaultdict(list)
    for network in found:
        n = network.evaluation.accuracy["n_test"] if network.evaluation else None
        groups[setting_of(network.head), n].append(network)
    return [
        sorted(group, key=lambda network: datetime.fromisoformat(network.head.created)) for group in groups.values()
    ]


def _section(title: str, groups: Sequence[Sequence[Network]]) -> list[str]:
    about: dict[str, list[str]] = defaultdict(list)
    for group in groups:
        for note in dict.fromkeys(record.note for network in group for record in network.records if record.note):
            about[note].append(f"{group[0].head.model}, {plain_label(group[0].head)}")
    notes = [f"* {cell('; '.join(dict.fromkeys(names)))}: {cell(note)}" for note, names in about.items()]
    return ["", f"### {title}", "", *table(_COLUMNS, map(_row, groups)), *(["", *sorted(notes)] if notes else [])]


def table(columns: Mapping[str, str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; ``columns`` maps headings to alignments (``---``, ``---:``)."""
    return [
        f"| {' | '.join(columns)} |",
        f"|{'|'.join(columns.values())}|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _row(runs: Sequence[Network]) -> list[str]:
    """Return the row of a setting; ``runs`` are oldest first, and of several with one seed the last one counts."""
    group = list({network.head.seed: network for network in runs}.values())
    head, tests = group[0].head, [network.evaluation for network in group if network.evaluation]
    made = [record for network in group if (record := made_by(network))]
    teachers = [network.dense_accuracy for network in group]
    return [
        cell(head.model),
        cell(plain_label(head)),
        cell(head.surrogate or "–"),
        f"{_kept(group):,}",
        f"{head.relus['total']:,}",
        _shares([network.accuracy for network in group]),
        f"{tests[0].accuracy['n_test']:,}" if tests else "–",
        "–" if None in teachers else _shares(teachers),
        ", ".join(str(seed) for seed in sorted({network.head.seed for network in group})),
        f"{mean(record.epochs or 0 for record in made):g}" if made else "–",
        format_seconds(mean(record.seconds for record in made)) if made else "–",
        cell(", ".join(sorted({record.device for record in made}))) or "–",
        cell(next((told for network in group if (told := _inference(network))), "not run")),
        links(runs),
    ]


def _kept(group: Sequence[Network]) -> int:
    return max(network.head.relus["kept"] for network in group)


def made_by(network: Network) -> Record | None:
    """Return the record of the training that made ``network``."""
    return next((record for record in network.records if record.epochs is not None), None)


def _shares(values: Iterable[float | None]) -> str:
    """Return shares of 1 as their mean and spread, in percent."""
    shares = [value for value in values if value is not None]
    if len(shares) < 2:
        return percent(shares[0]) if shares else "–"
    return f"{100 * mean(shares):.1f} ± {100 * stdev(shares):.1f} %"


def links(group: Sequence[Network], folder: str = "") -> str:
    """Return links to the records of the networks, those of several seed by seed."""
    lines = []
    for network in sorted(group, key=lambda network: network.head.seed):
        seed = f"seed {network.head.seed}: " if len(group) > 1 else ""
        lines.append(seed + ", ".join(link(record, folder) for record in network.records))
    return "; ".join(lines)


def link(record: Record, folder: str = "") -> str:
    """Return a link to the file of ``record`` in ``folder``."""
    return f"[{record.kind}]({folder}{cell(record.name)}{SUFFIX})"


def _inference(network: Network) -> str | None:
    cost, run = network.cost, network.run
    if cost is None or run is None or run.secure is None:
        return None
    images = max(1, cost["images"])
    figures = f"{format_bytes(cost['bytes'] / images)}, {format_seconds(cost['seconds'] / images)}"
    engine = engine_of(run.secure) + ("" if run.secure["private"] else ", NOT PRIVATE")
    return f"{figures} ({engine}, {run.secure['network']}, {run.device})"


def _failed_section(records: Sequence[Record]) -> list[str]:
    failures = [record for record in records if record.status == "failed"]
    done = {(setting_of(record), record.seed) for record in records if record.status == "complete"}
    lines = []
    for record in failures:
        since = ", complete in a later run" if (setting_of(record), record.seed) in done else ""
        name = cell(f"{record.task}, {record.model}, {plain_label(record)}, seed {record.seed}")
        lines.append(f"* {name}{since}: {cell(record.note or 'no reason noted')} ({link(record)})")
    return ["", "## Failed", "", "Nothing in the tables is taken from these.", "", *lines] if lines else []


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
    """Return whether ``record`` is complete and of ``recipe``, see :func:`is_of`."""
    return record.status == "complete" and is_of(recipe, record)


def is_of(recipe: Recipe, record: Record) -> bool:
    """Return whether ``record`` is of ``recipe`` with whatever seed: the same network, method and settings.

    A setting that is younger than the record counts as having had its default.
    """
    ran, method = record.recipe, recipe.method.name if recipe.method else None
    model = public_name(str(ModelSpec.parse(recipe.model)))
    if not isinstance(ran, dict) or (record.model, record.method, record.budget) != (model, method, recipe.budget):
        return False
    names = {"task": recipe.task, "model": recipe.model, "budget": recipe.budget, "method": method}
    default, asked, had = (settings_of(r) for r in (Recipe.from_json(names).to_json(), recipe.to_json(), ran))
    other = "training." if method else "finetune."  # is of no consequence
    return all(
        had.get(key, default.get(key)) == value
        for key, value in asked.items()
        if key != "model" and not key.startswith(other)
    )


def setting_of(record: Record) -> str:
    """Return what all seeds of one setting have in common, as text; settings younger than ``record`` at defaults."""
    recipe: Any = record.recipe
    if isinstance(recipe, dict):
        try:
            recipe = settings_of(Recipe.from_json(recipe).to_json())
        except UsageError:  # of a version that had other settings
            recipe = settings_of(recipe)
    about = (record.task, record.model, record.design, record.method, record.budget, record.surrogate, recipe)
    return json.dumps(about, sort_keys=True)


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
