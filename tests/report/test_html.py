"""The page: whole, self-contained, honest about what is missing, and deaf to what names try."""

import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from conftest import SHAPES, cost, keep

from reluctant.errors import UsageError
from reluctant.linearization import linearize
from reluctant.methods.random import Random
from reluctant.records import Record, describe_kept
from reluctant.report import Report
from reluctant.report.html import glue
from reluctant.secure import secure_run
from reluctant.training import evaluate

Make = Callable[..., Record]
HOSTILE = '<script>alert("x")</script>&amp;\'${7919*7919}{{7919*7919}}$\\frac'


class Elements(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).replace("\u00a0", " ").split())

    def attributes(self, name: str) -> Iterator[str]:
        return (value for _, attrs in self.tags for key, value in attrs.items() if key == name and value)


@pytest.fixture
def everything(dense: Make, linearized: Make) -> list[Record]:
    """Records of a whole demo."""
    square = {"method": "autorep", "track": "polynomial", "surrogate": "quadratic"}
    run = linearized("run", surrogate=378, method="autorep", track="polynomial")
    return [
        dense("train"),
        dense(),
        dense("run"),
        linearized("linearize", note="A short recipe for a CPU."),
        linearized(),
        linearized("run"),
        linearized(**(square | {"surrogate": 0})),
        run,
    ]


def page(records: list[Record]) -> Elements:
    return Elements(Report(records).html())


def test_the_page_says_what_was_done_with_its_numbers(everything: list[Record]) -> None:
    text = page(everything).text
    for expected in (
        "resnet8 on digits",
        "The dense network computes 12 ReLUs for an image and answers 98.0 % of 50 test images right.",
        "With snl at 25%, 3 ReLUs are left (25.0 %) and 96.0 % of the answers are right.",
        "under cheetah (semi-honest; loopback; cpu, 2 threads) one image takes 2.2 kB and 1.0 s with the dense network",
        "1.3 kB and 1.0 s with snl at 25%",
        "48 of 50",
        "75.0 % of the ReLUs are gone, and with them 75.0 % of the bytes of comparisons.",
        "Comparisons made: 12 = 3 kept × 4 images.",
        "Neither party learns more than the public part.",
        "architecture, masks",
        "plain TCP, loopback",
        "cheetah · semi-honest · loopback · batch 1 · cpu, 2 threads · Z80",
        "A short recipe for a CPU.",
        "abc1234",
    ):
        assert expected in text


def test_the_dear_surrogate_is_named_only_where_it_is_dear(everything: list[Record]) -> None:
    text = page(everything).text
    assert text.count("dearer") == 1
    assert "makes autorep at 25% dearer" in text


def test_nothing_is_fetched_and_nothing_runs(everything: list[Record]) -> None:
    html = Report(everything).html()
    found = Elements(html)
    assert "://" not in html
    assert "@import" not in html
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in found.tags}
    addresses = [address for name in ("src", "href", "xlink:href") for address in found.attributes(name)]
    assert addresses
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in addresses)
    assert re.findall(r"url\((?!#)", html) == []


def test_identifiers_in_the_page_are_unique_and_references_meet_them(everything: list[Record]) -> None:
    html = Report(everything).html()
    found = Elements(html)
    names = list(found.attributes("id"))
    assert len(names) == len(set(names))
    used = {reference[1:] for reference in found.attributes("xlink:href")} | set(re.findall(r"url\(#([^)]+)\)", html))
    assert used | set(found.attributes("aria-labelledby")) <= set(names)


def test_figures_take_their_colours_from_the_page(everything: list[Record]) -> None:
    svg = re.findall(r"<svg.*?</svg>", Report(everything).html(), flags=re.DOTALL)
    assert len(svg) == 2
    for figure in svg:
        assert "var(--accent)" in figure
        assert not re.search(r"#0[1-9]0[1-9]0[1-9]\b", figure)


def test_names_are_text_and_never_markup(linearized: Make) -> None:
    mask = describe_kept(dict(zip((HOSTILE, "fc"), keep(3, 0).values(), strict=True)), "00")
    changes = {"model": HOSTILE, "task": HOSTILE, "budget": HOSTILE, "mask": mask, "command": HOSTILE, "note": HOSTILE}
    rows = cost((3, 0), 4)
    rows["by_site"][0]["name"] = HOSTILE
    run = linearized("run", method=HOSTILE, setting={"linearized": rows, "statement": HOSTILE}, **changes)
    html = Report([linearized(method=HOSTILE, **changes), run]).html()
    found = Elements(html)
    assert "script" not in {tag for tag, _ in found.tags}
    assert not [name for _, attrs in found.tags for name in attrs if name.startswith("on")]
    assert HOSTILE in "".join(found.texts)
    assert str(7919 * 7919) not in found.text


def test_without_a_run_the_page_says_so_and_gives_no_cost(dense: Make, linearized: Make) -> None:
    text = page([dense(), linearized()]).text
    assert "Nothing here was run as private inference" in text
    assert "No private inference was run" in text
    assert "Cost by site" not in text
    assert "Messages" not in text


def test_one_network_of_two_not_run_is_told_apart(dense: Make, linearized: Make) -> None:
    text = page([dense(), linearized("run"), linearized(), linearized(method="random")]).text
    assert "random at 25%: not run as private inference" in text


def test_without_an_evaluation_there_is_no_front_and_no_accuracy(linearized: Make) -> None:
    text = page([linearized("run")]).text
    assert "it was not evaluated on the test split" in text
    assert "The front" not in text


def test_a_simulation_is_never_called_private(linearized: Make) -> None:
    text = page([linearized("run", setting={"engine": "twin", "private": False, "processes": 1})]).text
    assert "twin only simulates private inference of snl at 25%. " in text
    assert "NO: a simulation" in text
    assert "twin · NOT PRIVATE · loopback" in text
    assert "As private inference" not in text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"argmax_equal_twin": 3}, "gave the answer of its fixed-point twin on 3 of 4 images"),
        ({"comparisons": 48}, "made 48 comparisons; the ReLUs it keeps, times its images, are 12"),
    ],
)
def test_what_does_not_fit_is_said_at_the_top(linearized: Make, changes: dict[str, int], sentence: str) -> None:
    assert "Disagrees" not in page([linearized("run")]).text
    found = page([linearized("run", setting={"linearized": cost((3, 0), 4, **changes)})])
    assert sentence in found.text
    assert "Disagrees" in found.text


def test_a_failed_record_is_named_and_gives_no_number(dense: Make, linearized: Make) -> None:
    text = page([dense(), linearized(status="failed", test=0.111)]).text
    assert "nothing here is taken from it" in text
    assert "With snl" not in text


def test_messages_are_those_of_a_batch(linearized: Make) -> None:
    found = page([linearized("run", setting={"batch": 4})])
    assert "batch 4" in found.text
    assert " 120 " in found.text  # 30 messages x 4 images in one batch


def test_the_picture_has_a_map_for_sites_with_pixels_alone(linearized: Make) -> None:
    found = page([linearized(kept=(3, 2))])
    assert len([tag for tag, _ in found.tags if tag == "img"]) == 1
    assert [text for text in found.texts if text in SHAPES] == list(SHAPES)
    assert "2 of 4" in found.text


def test_a_sweep_names_its_range_and_keeps_the_page_short(dense: Make, linearized: Make) -> None:
    records = [linearized(kept=(k, 0), budget=f"{k}", seed=s) for k in range(1, 5) for s in range(3)]
    text = page([dense(), *records]).text
    assert "12 networks were made from it, with 1 to 4 ReLUs left." in text
    assert "8 more" in text


def test_two_models_have_a_table_each(dense: Make, linearized: Make) -> None:
    found = page([dense(), linearized(), dense(model="vgg16"), linearized(model="vgg16")])
    assert "4 networks on digits" in found.text
    assert found.texts.count("vgg16 on digits") == 1


def test_evaluations_and_runs_are_reported_as_they_are(tmp_path: Path, trained, few_digits, fabric) -> None:
    small = linearize(trained, Random(), "10%", few_digits, fabric=fabric)
    run = secure_run(small, few_digits.images(2), engine="twin")
    report = Report([evaluate(trained, few_digits), evaluate(small, few_digits), run])
    path = report.save(tmp_path / "new" / "report.html")
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    (card,) = report.card()
    assert (card["task"], card["method"], card["relus"]["kept"]) == ("digits", "random", 230)
    assert card["secure"]["linearized"]["comparisons"] == 460
    assert card["accuracy"]["dense"] == evaluate(trained, few_digits).accuracy


def test_an_evaluation_of_no_network_is_refused(few_digits) -> None:
    with pytest.raises(UsageError, match="something that is no network"):
        Report([evaluate(lambda images: torch.zeros(len(images), 10), few_digits)])


def test_a_report_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one record"):
        Report([])


def test_units_stay_with_their_numbers() -> None:
    assert (
        glue("98.1 % of 3 images in 2 min 05 s, 3 kB") == "98.1\u00a0% of 3 images in 2\u00a0min 05\u00a0s, 3\u00a0kB"
    )
