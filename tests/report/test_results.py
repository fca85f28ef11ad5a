"""The page of results."""

from collections.abc import Callable

from reluctant.records import Record
from reluctant.report import results_page

Make = Callable[..., Record]


def rows(page: str) -> list[list[str]]:
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_a_row_says_accuracy_n_dense_seed_and_time(dense: Make, linearized: Make) -> None:
    page = results_page([dense(), linearized("linearize", note="A short CPU recipe."), linearized(), linearized("run")])
    row = next(row for row in rows(page) if row[1] == "snl at 25%")
    assert row[:11] == [
        "resnet8",
        "snl at 25%",
        "identity",
        "3",
        "12",
        "96.0 %",
        "50",
        "98.0 %",
        "0",
        "12",
        "1 min 30 s",
    ]
    assert row[12] == "1.3 kB, 1.0 s (cheetah, loopback, cpu, 2 threads)"
    assert "snl at 25%: A short CPU recipe." in page


def test_tracks_stand_in_tables_of_their_own(linearized: Make) -> None:
    page = results_page([linearized(), linearized(method="autorep", track="polynomial", test=0.99)])
    free, square = page.index("### Free"), page.index("### Polynomial")
    assert free < page.index("| snl at") < square < page.index("| autorep at")
    assert "### Affine" not in page


def test_every_record_is_linked_by_its_file(linearized: Make) -> None:
    record = linearized()
    assert record.name.replace("_", "\\_") + ".record.json" in results_page([record])


def test_names_cannot_break_the_table(linearized: Make) -> None:
    page = results_page([linearized(model="a|b\n<b>*")])
    row = next(line for line in page.splitlines() if "a\\|b" in line)
    assert "\\<b\\>\\*" in row


def test_what_was_not_done_is_not_made_up(linearized: Make) -> None:
    row = rows(results_page([linearized("linearize")]))[1]
    assert row[5:8] == ["–", "–", "–"]
    assert row[12] == "not run"
