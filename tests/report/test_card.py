"""The cost card: every published key, each from the record it belongs to."""

import json
from collections.abc import Callable

import pytest
from conftest import cost, secure

from reluctant.records import Record
from reluctant.report import Report

Make = Callable[..., Record]
COST = {
    "images", "argmax_equal_twin", "max_abs_error_twin", "comparisons", "bytes", "messages", "seconds", "setup_bytes",
    "setup_seconds", "by_site",
}  # fmt: skip
SITE = {"name", "kept", "comparisons", "comparison_bytes", "surrogate_bytes", "messages", "seconds"}


def test_a_card_has_every_published_key(dense: Make, linearized: Make) -> None:
    twin = linearized(accuracy={"val": None, "test": None, "n_test": None, "twin": 0.94, "n_twin": 50})
    records = [dense(), dense("run"), linearized("linearize"), linearized(), twin, linearized("run")]
    (card,) = json.loads(json.dumps(Report(records).card()))
    assert {"task", "model", "method", "relus", "accuracy", "secure"} <= set(card)
    assert card["relus"] == {"total": 12, "kept": 3, "sites": 2, "sites_kept": 1}
    assert card["accuracy"] == {"dense": 0.98, "linearized": 0.96, "twin": 0.94, "n_test": 50, "n_twin": 50}
    assert {"engine", "adversary", "dealer", "processes", "dense", "linearized"} <= set(card["secure"])
    for part in ("dense", "linearized"):
        assert set(card["secure"][part]) == COST
        assert all(set(row) == SITE for row in card["secure"][part]["by_site"])
    assert card["secure"]["dense"]["comparisons"] == 12 * 4
    assert card["secure"]["linearized"]["comparisons"] == 3 * 4


def test_a_card_holds_what_was_predicted(linearized: Make) -> None:
    predicted = {
        "engine": "cheetah", "bytes": 2_000_000, "messages": 90, "comparison_bytes": 2, "surrogate_bytes": 0,
        "linear_bytes": 1, "pooling_bytes": 0, "seconds": {"lan": 1.0, "wan": 3.6}, "setup_bytes": 7,
        "setup_seconds": {"lan": 2.0, "wan": 4.0}, "memory": 9,
    }  # fmt: skip
    old = {key: value for key, value in predicted.items() if key not in ("seconds", "setup_seconds", "memory")}
    (card,) = Report([linearized(predicted=predicted)]).card()
    assert card["predicted"] == predicted | {"dollars": pytest.approx({"lan": 0.2744, "wan": 0.52}, abs=1e-3)}
    assert "What it would cost" in Report([linearized(predicted=predicted)]).html()
    (card,) = Report([linearized(predicted=old)]).card()
    assert card["predicted"] == old | {"dollars": {}}
    assert "What it would cost" not in Report([linearized(predicted=old)]).html()


def test_a_card_and_the_page_say_whether_the_fixed_point_was_proven(linearized: Make) -> None:
    found = {
        "certified": False, "margin_bits": 14.2, "operation": "fc", "input_range": [-2.2, 2.8], "images": 32,
        "statement": "fixed point: not certified: measured margin of 14.2 bits over 32 images",
    }  # fmt: skip
    told = secure(linearized=cost((3, 0), 4, fixed_point=found))
    report = Report([linearized("run", secure=told)])
    assert report.card()[0]["secure"]["linearized"]["fixed_point"] == found
    assert found["statement"] in report.html()


def test_one_card_a_method_and_none_for_the_dense_network(dense: Make, linearized: Make) -> None:
    records = [dense(), linearized(), linearized(method="autorep", track="polynomial")]
    assert sorted(card["method"] for card in Report(records).card()) == ["autorep", "snl"]


def test_what_was_not_done_is_null(linearized: Make) -> None:
    (card,) = Report([linearized("linearize")]).card()
    assert card["accuracy"]["linearized"] is None
    assert card["accuracy"]["dense"] is None
    assert card["secure"] is None
    (card,) = Report([linearized("run")]).card()
    assert card["secure"]["dense"] is None
    assert card["secure"]["linearized"]["images"] == 4
