"""Pictures for a page that fetches nothing: SVG text and PNG data, in the colours of the page they stand in.

SVG figures are drawn in stand-in colours that are then replaced by CSS variables, so that one figure fits a light page,
a dark one and paper. Names are drawn as they are: neither as markup nor as formulas.
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reluctant.report.front import Front, Point

#: Stand-in colour -> CSS variable of the page.
_COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--line)",
    "#040404": "var(--accent)",
    "#050505": "var(--paper)",
}
_INK, _MUTED, _LINE, _ACCENT, _PAPER = _COLOURS

#: With more points than this, only those on the front are named; the table beneath names all.
_NAMED = 8

_STYLE = {
    "svg.fonttype": "none",
    "svg.image_inline": True,
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _LINE,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "ytick.left": False,
    "xtick.minor.visible": False,
    "figure.facecolor": "none",
}


def kept_map(density: Sequence[Sequence[int]], deepest: float) -> str:
    """Return a PNG, as a ``data:`` address, of how many ReLUs are kept at each pixel of a site.

    One pixel a pixel, of one hue; ``deepest`` kept ReLUs are opaque and none is transparent, so it shows on any ground.

    Args:
        density: ``[H][W]`` counts.
        deepest: the count to draw darkest.
    """
    from PIL import Image

    shades = [[min(255, round(255 * (0.1 + 0.9 * kept / deepest))) if kept else 0 for kept in row] for row in density]
    height, width = len(shades), len(shades[0])
    image = Image.new("RGBA", (width, height), (0x2F, 0x7A, 0xC9, 0))
    image.putalpha(Image.frombytes("L", (width, height), bytes(shade for row in shades for shade in row)))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def front_figure(front: Front, name: str) -> str:
    """Return an SVG of accuracy against ReLUs kept, on a logarithmic axis.

    Filled points are on the front, which the line joins; hollow ones are beaten by another; the dashed line is the
    dense network. Bars are the 95 % intervals that the number of test images allows.

    Args:
        name: unique in the page, for the identifiers inside of the SVG.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(4.4, 3.0), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for dense in front.dense:
            axes.axhline(100 * dense.accuracy, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        best = [point for point in front.points if point.best]
        axes.plot([p.relus for p in best], [100 * p.accuracy for p in best], color=_ACCENT, linewidth=1.4, zorder=2)
        for point in front.points:
            _draw(axes, point, dense=False, named=point.best or len(front.points) <= _NAMED)
        for point in front.dense:
            _draw(axes, point, dense=True, named=True)
        _set_axes(axes, front)
        axes.set_xlabel("ReLUs kept, an image")
        axes.set_title(f"test accuracy, % of {front.n_test:,}", loc="left", fontsize=9, color=_MUTED)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _for_page(file.getvalue(), name)


def _draw(axes: Any, point: Point, *, dense: bool, named: bool) -> None:
    low, high = (100 * end for end in point.interval)
    colour = _MUTED if dense else _ACCENT
    axes.plot([point.relus] * 2, [low, high], color=colour, linewidth=1, alpha=0.55, zorder=3)
    axes.plot(
        [point.relus],
        [100 * point.accuracy],
        marker="s" if dense else "o",
        markersize=6,
        markerfacecolor=colour if point.best else _PAPER,
        markeredgecolor=colour,
        markeredgewidth=1.4,
        zorder=4,
    )
    if not named:
        return
    label = point.name
    axes.annotate(
        label if len(label) <= 24 else f"{label[:23]}…",
        (point.relus, 100 * point.accuracy),
        xytext=(-6, 5) if dense else (7, -4),
        textcoords="offset points",
        horizontalalignment="right" if dense else "left",
        fontsize=8.5,
        color=_MUTED if dense else _INK,
        zorder=5,
    )


def _set_axes(axes: Any, front: Front) -> None:
    """A logarithmic axis of ReLUs, with a linear stretch at its start where a network has none left."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    points = (*front.points, *front.dense)
    relus = sorted(point.relus for point in points)
    fewest, right = next((count for count in relus if count), 1), relus[-1] * (1.4 if front.dense else 3.5)
    if relus[0] == 0:
        axes.set_xscale("symlog", linthresh=fewest, linscale=0.5)
        axes.set_xlim(-0.3 * fewest, max(right, 2))
    else:
        axes.set_xscale("log")
        axes.set_xlim(fewest / 1.6, right)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda relus, _: _short(relus)))
    ends = [100 * end for point in points for end in point.interval]
    span = max(1.0, max(ends) - min(ends))
    axes.set_ylim(max(0.0, min(ends) - 0.1 * span), min(100.4, max(ends) + 0.1 * span))


#: Colour (Okabe and Ito's set and a few more, which colour-blind readers tell apart) and marker of each hollow series.
_HOLLOW = (
    ("#000000", "o"), ("#777777", "o"), ("#56B4E9", "o"), ("#009E73", "s"), ("#D55E00", "^"), ("#0072B2", "D"),
    ("#CC79A7", "X"), ("#E69F00", "v"), ("#882255", "*"), ("#44AA99", "p"),
)  # fmt: skip
_FILLED = (("#000000", "P"), ("#D55E00", "s"), ("#0072B2", "D"), ("#009E73", "^"), ("#882255", "*"), ("#E69F00", "v"))


@dataclass(frozen=True)
class Series:
    """The (ReLUs, accuracy) of one method in one panel; ``filled`` if they are our own."""

    name: str
    points: tuple[tuple[int, float], ...]
    filled: bool = False


@dataclass(frozen=True)
class Panel:
    """What may be drawn on one pair of axes, because it may be compared."""

    title: str
    series: tuple[Series, ...]


def panels_figure(panels: Sequence[Panel], x: str, y: str, name: str) -> str:
    """Return an SVG file of panels with one scale of accuracy, on white: for pages that are not ours to colour.

    A series has the same marker in every panel. No line joins points: those of one method may be of several networks.

    Args:
        x, y: labels of the axes.
        name: what the identifiers inside of the SVG are made from, so that equal pictures are equal files.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    panels = [panel for panel in panels if panel.series]
    style = {key: value for key, value in _STYLE.items() if isinstance(value, bool) or key == "axes.grid.axis"}
    names = {
        filled: list(dict.fromkeys(s.name for panel in panels for s in panel.series if s.filled == filled))
        for filled in (False, True)
    }
    with matplotlib.rc_context({**style, "font.size": 10, "svg.fonttype": "path", "svg.hashsalt": name}):
        figure = Figure(figsize=(8.8, 5.4), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08), facecolor="white")
        FigureCanvasSVG(figure)
        shown: dict[str, Any] = {}
        for axes, panel in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
            for series in panel.series:
                marks = _FILLED if series.filled else _HOLLOW
                colour, marker = marks[names[series.filled].index(series.name) % len(marks)]
                relus, accuracies = zip(*series.points, strict=True)
                (shown[series.name],) = axes.plot(
                    relus,
                    [100 * accuracy for accuracy in accuracies],
                    linestyle="none",
                    marker=marker,
                    markersize=7.5,
                    markerfacecolor=colour if series.filled else "none",
                    markeredgecolor=colour,
                    markeredgewidth=1.5,
                    label=series.name,
                )
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda relus, _: _short(relus)))
            axes.margins(x=0.07, y=0.06)
            axes.grid(color="#dddddd", linewidth=0.7)
            axes.set_xlabel(x)
            axes.set_title(panel.title, loc="left", fontsize=10.5)
        figure.axes[0].set_ylabel(y)
        listed = names[False] + names[True]
        figure.legend(
            [shown[n] for n in listed], listed, loc="outside lower center", ncols=3, frameon=False, handletextpad=0.3
        )
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def stages_figure(rows: Sequence[tuple[str, Mapping[str, int], Mapping[str, int]]], name: str) -> str:
    """Return an SVG file of the ReLUs and of the multiply-adds that each part of some networks has, on white.

    Args:
        rows: of each network its name, and both counts by part.
        name: what the identifiers inside of the SVG are made from, so that equal pictures are equal files.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    parts = sorted({part for _, *counts in rows for count in counts for part in count}, key=_in_order)
    style = {key: value for key, value in _STYLE.items() if isinstance(value, bool) or key == "axes.grid.axis"}
    with matplotlib.rc_context({**style, "font.size": 10, "svg.fonttype": "path", "svg.hashsalt": name}):
        figure = Figure(figsize=(8.8, 3.6), layout="constrained", facecolor="white")
        FigureCanvasSVG(figure)
        titles = ("ReLUs, thousands an image", "multiply-adds, millions an image")
        for which, (axes, title) in enumerate(zip(figure.subplots(1, 2), titles, strict=True)):
            for place, (label, *counts) in enumerate(rows):
                left = [x + 0.8 * place / len(rows) for x in range(len(parts))]
                heights = [counts[which].get(part, 0) / (1e6 if which else 1e3) for part in parts]
                colour = _FILLED[2][0] if place else "#999999"
                axes.bar(left, heights, width=0.8 / len(rows), align="edge", color=colour, label=label)
            axes.set_xticks([x + 0.4 for x in range(len(parts))], parts)
            axes.grid(axis="y", color="#dddddd", linewidth=0.7)
            axes.set_title(title, loc="left", fontsize=10.5)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(rows), frameon=False)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _in_order(part: str) -> tuple[int, str]:
    """Sort the stem first and the head last."""
    return {"stem": 0, "head": 2}.get(part, 1), part


def _short(relus: float) -> str:
    return f"{relus:,.0f}" if relus < 1000 else f"{relus / 1000:g}k" if relus < 1e6 else f"{relus / 1e6:g}M"


def _for_page(svg: str, name: str) -> str:
    """Return an SVG that lives inside a page: its colours and font, identifiers of its own, no address of anything."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px[^;\"]*", r"font-size: \1px", svg)
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, variable)
    return re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', f' role="img" aria-labelledby="{name}-caption"', svg, count=1)
