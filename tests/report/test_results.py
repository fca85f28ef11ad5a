"""The page of results."""

from collections.abc import Callable

from reluctant.recipe import Recipe
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


def test_seeds_are_one_row_with_mean_and_deviation_and_every_record_of_theirs(dense: Make, linearized: Make) -> None:
    shares = (0.7, 0.8, 0.9)
    records = [linearized(seed=seed, test=share, checkpoint=f"c{seed}") for seed, share in enumerate(shares)]
    teachers = [dense(seed=seed, test=0.95, checkpoint=f"d{seed}") for seed in range(3)]
    page = results_page(records + teachers)
    (row,) = [row for row in rows(page) if row[1] == "snl at 25%"]
    assert row[5:9] == ["80.0 ± 10.0 %", "50", "95.0 ± 0.0 %", "0, 1, 2"]
    for seed, record in enumerate(records):
        assert f"seed {seed}: [evaluate]({record.name}.record.json)" in row[13].replace("\\_", "_")
    assert len([row for row in rows(page) if row[1] == "dense"]) == 1


def test_of_two_runs_with_one_seed_the_newest_counts_and_both_are_linked(linearized: Make) -> None:
    old = linearized(test=0.5, kept=(5, 0), checkpoint="a", created="2026-01-01T00:00:00+00:00")
    new = linearized(test=0.9, kept=(3, 0), checkpoint="b", created="2026-01-02T00:00:00+00:00")
    _, row = rows(results_page([new, old]))
    assert (row[3], row[5]) == ("3", "90.0 %")
    assert all(record.name in row[13] for record in (old, new))


def test_other_settings_are_another_row(linearized: Make) -> None:
    """A setting that a record is too old to have had its default."""
    old = {"task": "digits", "model": "resnet8", "method": {"name": "snl"}, "budget": "25%", "finetune": {"epochs": 2}}
    new = Recipe.from_json(old | {"seed": 1}).to_json()
    records = [linearized(recipe=old, checkpoint="a"), linearized(recipe=new, seed=1, checkpoint="b")]
    assert [row[8] for row in rows(results_page(records))[1:]] == ["0, 1"]
    records[1] = linearized(recipe=new | {"finetune": new["finetune"] | {"epochs": 3}}, seed=1, checkpoint="b")
    assert [row[8] for row in rows(results_page(records))[1:]] == ["0", "1"]


def test_a_note_of_many_rows_is_said_once(linearized: Make) -> None:
    records = [linearized(seed=seed, note="A short recipe.", checkpoint=f"c{seed}") for seed in range(3)]
    records.append(linearized(method="taylor", note="A short recipe."))
    lines = [line for line in results_page(records).splitlines() if "A short recipe." in line]
    assert lines == ["* resnet8, snl at 25%; resnet8, taylor at 25%: A short recipe."]


def test_failures_are_listed_with_their_reason_and_give_no_number(linearized: Make) -> None:
    failed = linearized("linearize", method="taylor", status="failed", mask=None, note="loss is nan")
    page = results_page([failed, linearized()])
    line = f"* digits, resnet8, taylor at 25%, seed 0: loss is nan ([linearize]({failed.name}.record.json))"
    assert line in page.replace("\\_", "_").splitlines()
    assert not any(row[1].startswith("taylor") for row in rows(page))
    assert "complete in a later run" in results_page([failed, linearized(method="taylor")])
    assert "## Failed" not in results_page([linearized()])


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
