"""The picture of a bench: accuracy against ReLUs kept and against predicted bytes, one line a method."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reluctant.records import Track

#: Line and marker of each track.
_STYLES = {"free": ("-", "o"), "affine": ("--", "s"), "polynomial": (":", "^")}
#: Dark enough on white to be a line, and apart from its neighbours for colour-blind readers, too.
_COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#44AA99", "#332288", "#999933",
    "#661100", "#117733", "#AA4499", "#6699CC", "#BB4430",
)  # fmt: skip
_FLOOR = "#777777"


@dataclass(frozen=True)
class Spot:
    """One method at one budget: means over seeds, and the standard deviation of the accuracy (0 for one seed).

    Args:
        accuracy, spread: shares of 1.
        bytes: predicted for an image, ``None`` where nothing was predicted.
    """

    relus: float
    accuracy: float
    spread: float
    bytes: float | None = None


@dataclass(frozen=True)
class Curve:
    """The spots of one method, fewest ReLUs first; the ``floor`` is the random mask."""

    name: str
    track: Track
    spots: tuple[Spot, ...]
    floor: bool = False


def curves_figure(curves: Sequence[Curve], dense: float | None, name: str) -> str:
    """Return an SVG file on white: left by ReLUs kept, right, where tracks may be compared, by predicted bytes.

    Line style and marker tell the track, colour (hollow markers where colours begin again) the method.

    Args:
        dense: accuracy of the dense networks, a dashed line.
        name: what the identifiers inside of the SVG are made from, so that equal pictures are equal files.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings = {"font.size": 10, "svg.fonttype": "path", "svg.hashsalt": name, "text.parse_math": False}
    with matplotlib.rc_context({**settings, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11.5, 5.6), layout="constrained", facecolor="white")
        FigureCanvasSVG(figure)
        left, right = figure.subplots(1, 2, sharey=True)
        shown: dict[str, Any] = {}
        for index, curve in enumerate(sorted(curves, key=lambda curve: list(_STYLES).index(curve.track))):
            marks = _marks(curve, index)
            priced = [(spot.bytes / 1e6, spot) for spot in curve.spots if spot.bytes is not None]
            for axes, spots in ((left, [(spot.relus, spot) for spot in curve.spots]), (right, priced)):
                if spots:
                    shown[f"{curve.name} ({curve.track})"] = _line(axes, spots, marks)
        _scale(left, "ReLUs kept, an image")
        _scale(right, "predicted CHEETAH traffic, MB an image")
        left.set_title("each track for itself", loc="left", fontsize=10.5)
        right.set_title("where the tracks meet", loc="left", fontsize=10.5)
        left.set_ylabel("test accuracy, %")
        if not right.has_data():
            right.text(0.5, 0.5, "no record holds a prediction", ha="center", color=_FLOOR, transform=right.transAxes)
        if dense is not None:
            for axes in (left, right):
                shown["dense"] = axes.axhline(100 * dense, color="#000000", linewidth=1, linestyle=(0, (6, 4)))
        figure.legend(shown.values(), shown.keys(), loc="outside right upper", frameon=False, fontsize=8.5)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _marks(curve: Curve, index: int) -> dict[str, Any]:
    line, marker = _STYLES[curve.track]
    colour = _FLOOR if curve.floor else _COLOURS[index % len(_COLOURS)]
    hollow = index // len(_COLOURS) % 2 == 1
    return {
        "linestyle": line,
        "marker": marker,
        "color": colour,
        "markerfacecolor": "white" if hollow else colour,
        "linewidth": 2.6 if curve.floor else 1.4,
    }


def _line(axes: Any, spots: Sequence[tuple[float, Spot]], marks: dict[str, Any]) -> Any:
    return axes.errorbar(
        [x for x, _ in spots],
        [100 * spot.accuracy for _, spot in spots],
        yerr=[100 * spot.spread for _, spot in spots],
        capsize=2,
        elinewidth=0.9,
        markersize=5,
        **marks,
    )


def _scale(axes: Any, label: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel(label)
