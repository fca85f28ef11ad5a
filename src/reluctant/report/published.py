"""Published results as data, and the page that shows them beside our own records, never mixed with them.

A published point is what its authors reported. It is no record: nothing of it was run here, and most of the checkpoints
behind these points were chosen on the test set.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Literal

from reluctant.recipe import Recipe
from reluctant.records import Record, Track
from reluctant.report.front import fronts
from reluctant.report.networks import Network, networks
from reluctant.report.plot import Panel, Series, panels_figure
from reluctant.report.results import cell, setting_of, table, was_run
from reluctant.units import format_seconds

Selection = Literal["test set", "held-out", "unknown"]

#: ReLUs of an image in each network of the points; ``None`` where a searched network keeps all it has.
BACKBONES: Mapping[str, int | None] = {
    "ResNet-18": 491_520,  # no ReLU after the stem, as in SNL's code
    "ResNet-18 with stem ReLU": 557_056,
    "ResNet-18, half width": 245_760,
    "ResNet-18, half resolution": 122_880,
    "ResNet-18, half width and resolution": 61_440,
    "WRN-22-8": 1_359_872,  # no ReLU after the last block, as in SNL's code
    "WRN-22-8 with last ReLU": 1_392_640,
    "Sphynx": None,
}

#: What we call a published network that we have: by a name of the zoo, or by that of a design that is made of it.
OURS: Mapping[str, tuple[str, ...]] = {
    "ResNet-18": ("resnet18:stem_relu=false",),
    "ResNet-18 with stem ReLU": ("resnet18",),
    "ResNet-18, half width and resolution": (
        "deepreduce:width=32,stem_stride=2,cull=none",
        "deepreduce-cifar100-12k",
    ),
}

_MAIN = "ResNet-18"

#: The networks that may be drawn together, by the title of their panel; those of no panel are drawn in the last one.
PANELS: Mapping[str, tuple[str, ...]] = {
    _MAIN: ("ResNet-18", "ResNet-18 with stem ReLU"),
    "half width and resolution": ("ResNet-18, half width and resolution",),
}
_OTHER = "other networks, or in doubt"


@dataclass(frozen=True)
class PublishedPoint:
    """One accuracy at one number of ReLUs, as its authors or a named other source report it.

    Args:
        model: a key of :data:`BACKBONES`.
        relus: kept, an image.
        accuracy: on the test set, a share of 1.
        track: what a dropped ReLU becomes; ``None`` where the network was searched and drops none.
        source: paper and place, and what is second hand or inferred about it.
        selection: the images on which the checkpoint was chosen.
        sure: whether the network is known; if not, ``model`` is the likelier one.
    """

    method: str
    task: str
    model: str
    relus: int
    accuracy: float
    track: Track | None
    source: str
    selection: Selection = "unknown"
    sure: bool = True

    @property
    def total(self) -> int:
        """ReLUs of an image before any was dropped."""
        return BACKBONES[self.model] or self.relus


_FORK = "github.com/ajevnisek/selective_network_linearization"
_FIGURE = f"figure 3 of SNL as transcribed in the plotting scripts of {_FORK}"
_TABLE = "second hand: the tables of ReLUPruner (AAAI 2026)"
_SNL = f"SNL (ICML 2022, arXiv:2202.02340), second hand: {_FIGURE}"
_SNL_NARROW = f"{_SNL}; that the network is ResNet-18 up to 100K ReLUs is inferred"
_SNL_50K = f"{_SNL_NARROW}; 49.4K ReLUs there, 49.9K as repeated in the tables of ReLUPruner (AAAI 2026)"
_SNL_WIDE = f"{_SNL}; the network is uncertain: probably WRN-22-8, a later table says ResNet-18"
_RERUN = f"SNL's released code as run by others, not in the paper: logs in {_FORK}; the counts are those reached"
_HELD_OUT = (
    f'SNL as run by others, not in the paper: a list labelled "with val" in the plotting scripts of {_FORK}; that the '
    "network is the same and the checkpoint was chosen on held-out images is our reading of the label"
)
_REDUCE = (
    f"DeepReDuce (ICML 2021, arXiv:2103.01396), second hand: {_FIGURE}; counts and networks are those of the released "
    "definitions, paired with the accuracies by their number of ReLUs"
)
_SPHYNX = f"Sphynx (arXiv:2106.11755), second hand: {_FIGURE}; counts computed from the released networks"
_SPHYNX_230K = f"Sphynx (arXiv:2106.11755), second hand: {_FIGURE}; no network of this size was released"
_SENET = (
    f"SENet (ICLR 2023, arXiv:2301.09254), {_TABLE}; that the network has a stem ReLU is read from its authors' code"
)
_SENET_150K = f"SENet (ICLR 2023, arXiv:2301.09254), {_TABLE}; the network is uncertain: ResNet-18 or WRN-22-8"
_PRUNER = "ReLUPruner (AAAI 2026), its tables; that the student has no stem ReLU is read from its code"
_PRUNER_50K = (
    f"{_PRUNER}; 5.9 points above the 24.9K of the same method; an ablation of it is 76.13 or 79.13 in the text"
)
_PRUNER_WIDE = "ReLUPruner (AAAI 2026), its tables; that the network keeps its last ReLU is read from its code"
_AUTOREP = (
    "AutoReP (ICCV 2023, arXiv:2308.10134), abstract; that the network is ResNet-18 is read from the released script, "
    "which accepts up to 2,000 ReLUs more than the budget"
)
_LINES = f"AutoReP, {_TABLE}; that this is its first-order variant is inferred: its authors' notes have 67.75 and 73.86"
_LINES_WIDE = f"AutoReP, {_TABLE}; that this is its first-order variant is inferred"
_NOTES = "AutoReP, notes of its authors in github.com/HarveyP123/AutoReP on first-order runs; not in the paper"
_BCD = (
    f"Scripts of the group of BCD (arXiv:2511.11781) in {_FORK}, written before that paper; they are not its method as "
    "published, whose tables were not at hand"
)


def _points(
    method: str,
    model: str,
    track: Track | None,
    source: str,
    results: Mapping[int, float],
    selection: Selection = "unknown",
    sure: bool = True,
) -> tuple[PublishedPoint, ...]:
    """Return the points of CIFAR-100 that ``results`` (ReLUs -> accuracy in percent, as printed) holds."""
    return tuple(
        PublishedPoint(method, "cifar100", model, relus, round(accuracy / 100, 4), track, source, selection, sure)
        for relus, accuracy in results.items()
    )


_SNL_RESULTS = {
    12_900: 66.53, 14_900: 67.17, 25_000: 70.05, 29_800: 70.18, 40_000: 72.35, 60_000: 74.85, 69_800: 75.29,
    79_100: 75.72, 99_900: 75.94,
}  # fmt: skip
_SNL_HELD_OUT = {5_998: 57.13, 8_987: 62.28, 12_961: 65.51, 14_865: 66.00, 24_936: 68.53, 29_909: 69.12}
_SPHYNX_RESULTS = {25_600: 66.13, 30_720: 67.37, 40_960: 68.23, 51_200: 69.57, 71_680: 71.06, 102_400: 72.90}

PUBLISHED: tuple[PublishedPoint, ...] = (
    *_points("SNL", "ResNet-18", "free", _SNL_NARROW, _SNL_RESULTS, "test set"),
    *_points("SNL", "ResNet-18", "free", _SNL_50K, {49_900: 73.75}, "test set"),
    *_points(
        "SNL", "WRN-22-8", "free", _SNL_WIDE, {120_000: 76.35, 150_000: 77.35, 180_000: 77.65, 248_400: 77.70},
        "test set", sure=False,
    ),
    *_points(
        "SNL, rerun", "ResNet-18", "free", _RERUN, {5_859: 57.65, 8_967: 62.79, 12_784: 66.02, 14_621: 67.16},
        "test set",
    ),
    *_points("SNL, rerun with val", "ResNet-18", "free", _HELD_OUT, _SNL_HELD_OUT, "held-out"),
    *_points("DeepReDuce", "ResNet-18, half width and resolution", "free", _REDUCE, {12_288: 64.97}),
    *_points("DeepReDuce", "ResNet-18, half resolution", "free", _REDUCE, {28_672: 68.68}),
    *_points("DeepReDuce", "ResNet-18, half width", "free", _REDUCE, {49_152: 69.50, 57_344: 72.68}),
    *_points("DeepReDuce", "ResNet-18", "free", _REDUCE, {114_688: 74.72, 196_608: 75.51, 229_376: 76.22}),
    *_points("SENet", "ResNet-18 with stem ReLU", "free", _SENET, {24_600: 70.59, 49_600: 75.28}),
    *_points("SENet", "ResNet-18 with stem ReLU", "free", _SENET_150K, {150_000: 78.32}, sure=False),
    *_points("ReLUPruner", "ResNet-18", "free", _PRUNER, {12_900: 68.28, 24_900: 71.98}),
    *_points("ReLUPruner", "ResNet-18", "free", _PRUNER_50K, {50_000: 77.90}),
    *_points(
        "ReLUPruner", "WRN-22-8 with last ReLU", "free", _PRUNER_WIDE, {150_000: 78.61, 180_000: 79.54, 200_000: 79.63}
    ),
    *_points("BCD, precursor", "ResNet-18", "free", _BCD, {15_800: 67.94}),
    *_points("AutoReP, first order", "ResNet-18", "affine", _LINES, {12_900: 67.73, 50_000: 74.28}, "test set"),
    *_points("AutoReP, first order", "ResNet-18", "affine", _NOTES, {15_000: 68.40, 25_000: 71.10}, "test set"),
    *_points(
        "AutoReP, first order", "WRN-22-8", "affine", _LINES_WIDE, {120_000: 76.32, 150_000: 77.38, 180_000: 77.49},
        "test set",
    ),
    *_points("AutoReP", "ResNet-18", "polynomial", _AUTOREP, {12_900: 74.92}, "test set"),
    *_points("Sphynx", "Sphynx", None, _SPHYNX, _SPHYNX_RESULTS, "test set"),
    *_points("Sphynx", "Sphynx", None, _SPHYNX_230K, {230_000: 74.93}, "test set"),
)  # fmt: skip


def cifar100_figure(records: Iterable[Record], published: Sequence[PublishedPoint] = PUBLISHED) -> str:
    """Return an SVG of the published points, hollow; our own of the same networks, if there are any, are filled.

    Nothing joins the two, and no other network of ours is drawn.
    """
    found = [network for network in networks(records) if network.head.task == "cifar100" and network.evaluation]
    panels = []
    for title, models in PANELS.items():
        own = {name for model in models for name in OURS[model]}
        of_theirs = _series(point for point in published if _panel(point) == title)
        panels.append(Panel(title, (*of_theirs, *_own_series([n for n in found if n.head.model in own]))))
    panels.append(Panel(_OTHER, _series(point for point in published if _panel(point) == _OTHER)))
    return panels_figure(panels, "ReLUs kept, an image", "test accuracy, %", "cifar100")


def _panel(point: PublishedPoint) -> str:
    return next((title for title, models in PANELS.items() if point.sure and point.model in models), _OTHER)


def _own_series(found: Sequence[Network]) -> tuple[Series, ...]:
    methods: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for front in fronts(found):
        for point in front.points:
            head = point.networks[0].head
            methods[f"ours: {head.method}, {head.surrogate}"].append((point.relus, point.accuracy))
    as_built: dict[tuple[object, ...], list[Network]] = defaultdict(list)
    for network in found:
        if network.is_dense and network.evaluation:
            test = network.evaluation
            as_built[network.head.model, test.accuracy["n_test"], test.epochs].append(network)
    for group in as_built.values():
        accuracies = [network.evaluation.accuracy["test"] or 0.0 for network in group if network.evaluation]
        methods["ours: as built"].append((group[0].head.relus["kept"], mean(accuracies)))
    return tuple(Series(name, tuple(points), filled=True) for name, points in methods.items())


def _series(points: Iterable[PublishedPoint]) -> tuple[Series, ...]:
    methods: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for point in points:
        cost = "" if point.track in ("free", None) else f" ({point.track})"
        methods[f"{point.method}{cost}"].append((point.relus, point.accuracy))
    return tuple(Series(method, tuple(sorted(results))) for method, results in methods.items())


_HEAD = """# CIFAR-100

Generated by `python docs/generate.py` from `reluctant.report.published`, the records in `results/` and the recipes in
`recipes/cifar100/`; do not edit.

## Published points

Numbers as others published them. **Nothing in this section was run by this project.** Before any of it is compared
with anything:

* **Most of these checkpoints were chosen on the test set**: those of SNL, AutoReP and Sphynx by their released code,
  and SENet's authors do it in later code of theirs. Of the others it is not known. Only the reruns labelled "with val"
  seem to be chosen on held-out images. Ours always are, so ours carry no such advantage.
* Each point is one run, without a spread over seeds. Less than half a point between two of them says little.
* **free**: a dropped ReLU becomes the identity. **affine**: a line with a trained slope. **polynomial**: a parabola,
  so a secure square for each dropped ReLU. Fewer ReLUs are not equally cheap in each, and no ranking holds across them.
  Sphynx (–) is a searched network that drops none.
* A `?` stands at a network that is not certain. `chosen on` says on which images the checkpoint was chosen.
* Shares are of the ReLUs of one image in the whole network: {backbones}.

![Published accuracy on CIFAR-100 against ReLUs kept; the same points as in the tables below](images/cifar100.svg)

Hollow markers are published points. Filled ones, if there are any, are records of this project, of the same networks:
linearized by a method, or trained as built. Its other networks are in tables of their own and in no plot with these.
"""


def cifar100_page(
    records: Iterable[Record], recipes: Mapping[str, Recipe], published: Sequence[PublishedPoint] = PUBLISHED
) -> str:
    """Return the Markdown page of CIFAR-100: published points, our records, and what was not run.

    Args:
        records: of any tasks; those of CIFAR-100 are shown.
        recipes: by file, as :func:`reluctant.report.results.read_recipes` returns them.
    """
    records = [record for record in records if record.task == "cifar100"]
    sources = list(dict.fromkeys(point.source for point in published))
    totals = "; ".join(f"{total:,} in {name}" for name, total in BACKBONES.items() if total)
    lines = [*_HEAD.format(backbones=totals).splitlines(), ""]
    for title, rows in (
        ("ResNet-18", [point for point in published if _panel(point) == _MAIN]),
        ("Other networks, or a network in doubt", [point for point in published if _panel(point) != _MAIN]),
    ):
        lines += [f"### {title}", "", *_published_table(rows, sources), ""]
    lines += ["### Sources", "", *(f"{i}. {cell(source)}." for i, source in enumerate(sources, 1)), ""]
    lines += ["## Records of this project", "", *_own_section(records, recipes, published), ""]
    lines += ["## Not run", "", *_not_run(records, recipes)]
    return "\n".join(lines) + "\n"


def _published_table(points: Sequence[PublishedPoint], sources: Sequence[str]) -> list[str]:
    order = list(dict.fromkeys(point.method for point in points))
    columns = {
        "method": "---", "network": "---", "track": "---", "ReLUs kept": "---:", "share": "---:", "accuracy": "---:",
        "chosen on": "---", "source": "---:",
    }  # fmt: skip
    rows = [
        (
            cell(point.method),
            cell(point.model) + ("" if point.sure else " ?"),
            point.track or "–",
            f"{point.relus:,}",
            _share(point.relus, point.total),
            f"{100 * point.accuracy:.2f} %",
            point.selection,
            str(sources.index(point.source) + 1),
        )
        for point in sorted(points, key=lambda point: (order.index(point.method), point.relus))
    ]
    return table(columns, rows)


def _own_section(
    records: Sequence[Record], recipes: Mapping[str, Recipe], published: Sequence[PublishedPoint]
) -> list[str]:
    found = networks(records)
    if not found:
        return ["None: no record in `results/` is of CIFAR-100."]
    lines = [
        "Accuracies are in percent. Where there are several seeds, they and the time are means, with the lowest and",
        "the highest accuracy in brackets; one seed that was run twice counts as one. `val` is the accuracy on the",
        "held-out training images on which the checkpoint was chosen, `test` the one reading of the test split",
        "afterwards. Tables of different networks are not to be compared.",
    ]
    for model in dict.fromkeys(network.head.model for network in found):
        settings: dict[str, list[Network]] = defaultdict(list)
        for network in found:
            if network.head.model == model:
                settings[setting_of(network.head)].append(network)
        rows = [_own_row(group, recipes) for group in settings.values()]
        total = next(network.head.relus["total"] for group in settings.values() for network in group)
        lines += ["", f"### {cell(model)}: {total:,} ReLUs", "", *table(_OWN_COLUMNS, rows)]
        notes = sorted(
            {record.note for group in settings.values() for n in group for record in n.records if record.note}
        )
        lines += ["", *(f"* {cell(note)}" for note in notes)] if notes else []
        lines += _published_of(model, published)
    return lines


def _published_of(model: str, published: Sequence[PublishedPoint]) -> list[str]:
    """Return what others published of a network that is made of the same one as our ``model``."""
    found = [point for point in published if point.sure and model in OURS.get(point.model, ())]
    if not found or _panel(found[0]) == _MAIN:
        return []  # too many to say in a line; their table is the first
    told = ", ".join(f"{p.method} {100 * p.accuracy:.2f} % with {p.relus:,} ReLUs" for p in found)
    return ["", f"Published of {found[0].model}, not run by this project: {cell(told)}."]


_OWN_COLUMNS = {
    "method": "---", "surrogate": "---", "track": "---", "ReLUs kept": "---:", "share": "---:", "seeds": "---:",
    "val": "---:", "test": "---:", "test images": "---:", "recipe": "---", "device": "---", "time": "---:",
    "checkpoint chosen by": "---", "records": "---",
}  # fmt: skip


def _own_row(group: Sequence[Network], recipes: Mapping[str, Recipe]) -> tuple[str, ...]:
    head = group[0].head
    made = [record for n in group for record in n.records if record.kind in ("train", "linearize")]
    tests = [network.evaluation for network in group if network.evaluation]
    kept = max(network.head.relus["kept"] for network in group)
    files = [name for name, recipe in recipes.items() if any(was_run(recipe, r) for n in group for r in n.records)]
    return (
        cell(head.method or "dense"),
        cell(head.surrogate or "–"),
        "–" if group[0].is_dense else head.track,
        f"{kept:,}",
        _share(kept, head.relus["total"]),
        str(len({network.head.seed for network in group})),
        _spread([val for n in group if (val := n.head.accuracy["val"]) is not None]),
        _spread([test.accuracy["test"] or 0.0 for test in tests]),
        ", ".join(sorted({f"{test.accuracy['n_test']:,}" for test in tests})) or "–",
        ", ".join(f"`{name}`" for name in files) or "no file",
        cell(", ".join(sorted({record.device for record in made}))) or "–",
        format_seconds(mean(record.seconds for record in made)) if made else "–",
        cell("; ".join(sorted({n.head.selection or "not noted" for n in group}))),
        ", ".join(
            f"[{record.digest[:8]}](../results/{record.name}.record.json)" for n in group for record in n.records
        ),
    )


def _share(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f} %"


def _spread(shares: Sequence[float]) -> str:
    if not shares:
        return "–"
    low, middle, high = (f"{100 * share:.2f}" for share in (min(shares), mean(shares), max(shares)))
    return middle if len(shares) == 1 else f"{middle} ({low}–{high})"


def _not_run(records: Sequence[Record], recipes: Mapping[str, Recipe]) -> list[str]:
    waiting = [name for name, recipe in recipes.items() if not any(was_run(recipe, record) for record in records)]
    if not recipes:
        return ["There is no recipe in `recipes/cifar100/`."]
    if not waiting:
        return ["Every recipe in `recipes/cifar100/` has a record."]
    return ["Recipes in `recipes/cifar100/` without a record in `results/`:", "", *(f"* `{name}`" for name in waiting)]
