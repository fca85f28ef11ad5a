"""What records say of networks that somebody may want to train. The records are of experiments that never happened."""

import pytest

from reluctant.report.evidence import find_evidence


def made(*records):
    """What is said of the one network on digits, by budget."""
    return {evidence.budget.text: evidence for evidence in find_evidence("digits", records).get("resnet8", [])}


def test_seeds_of_one_setting_are_together_and_of_a_rerun_the_newest_counts(linearized):
    old, new = (
        linearized(seed=1, test=test, created=f"2026-01-{day}T00:00:00+00:00", checkpoint=f"{day}")
        for test, day in ((0.2, "02"), (0.8, "03"))
    )
    other = linearized(seed=0, test=0.7, created="2026-01-01T00:00:00+00:00")
    found = made(new, other, old)["25%"].to_json()
    assert found["seeds"] == [0, 1]
    assert found["test"] == pytest.approx(0.75)
    assert found["spread"] == pytest.approx(0.1 / 2**0.5)
    assert found["val"] == pytest.approx(0.97)
    assert found["records"] == [other.name, new.name]
    assert (found["n_test"], found["epochs"], found["method"]) == (50, 12, "snl")
    assert made(other)["25%"].to_json()["spread"] is None


def test_settings_are_apart(linearized):
    rows = find_evidence(
        "digits", [linearized(), linearized(method="ebb"), linearized(kept=(2, 1), recipe={"epochs": 9})]
    )
    assert sorted(evidence.method for evidence in rows["resnet8"]) == ["ebb", "snl", "snl"]


def test_a_search_and_its_evaluation_are_one_network(linearized):
    both = made(linearized("linearize", created="2026-01-01T00:00:00+00:00"), linearized())
    assert both["25%"].tests == [0.96]
    assert len(both["25%"].networks) == 1


def test_a_dense_network_keeps_all(dense):
    found = made(dense())
    assert found["100%"].method is None
    assert found["100%"].epochs == 30


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "failed"},
        {"task": "cifar10"},
        {"track": "polynomial"},
        {"budget": None},
        {"accuracy": {"val": None, "test": 0.9, "n_test": 50}},
    ],
)
def test_what_does_not_count(linearized, changes):
    assert made(linearized(**changes)) == {}


def test_a_network_that_was_not_evaluated_is_known_by_its_held_out_accuracy(linearized):
    found = made(linearized("linearize"))["25%"].to_json()
    assert (found["val"], found["test"], found["n_test"]) == (0.97, None, None)
