"""Pictures: what they show, read back from their bytes."""

import base64
import io
import re
from collections.abc import Callable

import pytest
from PIL import Image

from reluctant.records import Record
from reluctant.report import fronts, networks
from reluctant.report.plot import front_figure, kept_map

Make = Callable[..., Record]


def alphas(address: str) -> list[list[int]]:
    image = Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,"))))
    width, height = image.size
    return [[image.getpixel((x, y))[3] for x in range(width)] for y in range(height)]


def test_a_map_is_as_dark_as_the_count_and_empty_at_zero() -> None:
    found = alphas(kept_map([[0, 1, 2], [4, 0, 3]], deepest=4))
    assert found[0][0] == found[1][1] == 0
    assert found[1][0] == 255
    assert 0 < found[0][1] < found[0][2] < found[1][2] < 255
    assert (len(found), len(found[0])) == (2, 3)


def figure(records: list[Record]) -> str:
    return front_figure(fronts(networks(records))[0], "f")


def test_the_front_names_its_points_and_the_dense_network(dense: Make, linearized: Make) -> None:
    svg = figure([dense(), linearized(), linearized(method="random", test=0.9)])
    texts = re.findall(r">([^<>\n]+)</text>", svg)
    assert {"snl at 25%", "random at 25%", "dense", "ReLUs kept, an image", "test accuracy, % of 50"} <= set(texts)


def test_a_beaten_point_is_hollow(linearized: Make) -> None:
    def filled(svg: str) -> int:
        return len(re.findall(r"<use [^>]*fill: var\(--accent\)", svg))

    assert filled(figure([linearized()])) == 1
    assert filled(figure([linearized(), linearized(method="random", test=0.9)])) == 1
    assert filled(figure([linearized(), linearized(method="random", kept=(1, 0), test=0.9)])) == 2


def test_the_same_front_is_the_same_picture(linearized: Make) -> None:
    assert figure([linearized()]) == figure([linearized()])


@pytest.mark.parametrize("test", [0.0, 1.0])
def test_extreme_accuracies_are_drawn(linearized: Make, test: float) -> None:
    assert "snl at 25%" in figure([linearized(test=test)])


def test_a_network_without_relus_is_drawn_on_the_logarithmic_axis(linearized: Make) -> None:
    assert "snl at 25%" in figure([linearized(kept=(0, 0)), linearized(method="random", test=0.99)])


def test_names_are_drawn_as_they_are(linearized: Make) -> None:
    svg = figure([linearized(method="$x$<b>$\\frac", budget=None)])
    assert "$x$&lt;b&gt;$\\frac" in svg
