"""Which records speak of one network."""

from collections.abc import Callable

from reluctant.records import Record
from reluctant.report import networks

Make = Callable[..., Record]


def test_search_evaluation_and_run_are_one_network(linearized: Make) -> None:
    (found,) = networks([linearized("linearize"), linearized("evaluate"), linearized("run")])
    assert found.label == "snl at 25%"
    assert found.accuracy == 0.96
    assert found.cost is not None
    assert found.cost["comparisons"] == 12


def test_the_dense_network_comes_first_and_is_the_origin_of_the_others(dense: Make, linearized: Make) -> None:
    first, second = networks([linearized(), dense()])
    assert first.is_dense
    assert second.dense is first
    assert second.dense_accuracy == 0.98


def test_the_accuracy_of_the_teacher_itself_goes_before_that_of_a_dense_record(dense: Make, linearized: Make) -> None:
    accuracy = {"val": None, "test": 0.96, "n_test": 50, "teacher": 0.985}
    assert networks([dense(), linearized(accuracy=accuracy)])[1].dense_accuracy == 0.985


def test_of_several_dense_networks_the_teacher_is_the_one_that_the_record_names(dense: Make, linearized: Make) -> None:
    teachers = [dense(test=test, checkpoint=name * 64) for name, test in (("a", 0.8), ("b", 0.9))]
    found = {n.head.budget: n for n in networks([*teachers, linearized(teacher="b" * 64), linearized(budget="7%")])}
    assert found[linearized().budget].dense_accuracy == 0.9
    assert found["7%"].dense is None
    assert networks([teachers[0], linearized(teacher="c" * 64)])[1].dense is None


def test_a_run_without_a_rewrite_is_compared_with_its_like_and_comes_after_a_whole_one(
    dense: Make, linearized: Make
) -> None:
    whole = linearized("run", created="2026-01-01T00:00:00+00:00")
    narrow = linearized("run", created="2026-01-02T00:00:00+00:00", setting={"without": ["squares"]})
    assert networks([dense("run"), narrow])[1].dense_cost is None
    run = networks([whole, narrow])[0].run
    assert run is not None
    assert run.secure is not None
    assert "without" not in run.secure


def test_other_masks_seeds_and_models_are_other_networks(dense: Make, linearized: Make) -> None:
    records = [dense(), linearized(), linearized(kept=(2, 1)), linearized(seed=1), linearized(model="resnet20")]
    found = networks(records)
    assert len(found) == 5
    assert [n.dense is None for n in found if n.head.model == "resnet20"] == [True]


def test_labels_tell_seeds_apart_only_where_there_are_several(linearized: Make) -> None:
    assert [n.label for n in networks([linearized(), linearized(seed=1)])] == [
        "snl at 25%, seed 0",
        "snl at 25%, seed 1",
    ]
    twice = networks([linearized(checkpoint="a"), linearized(checkpoint="b", test=0.9)])
    assert len({n.label for n in twice}) == 2


def test_two_finetunings_of_one_mask_do_not_mix(linearized: Make) -> None:
    search = linearized("linearize")
    good, bad = linearized(checkpoint="good", test=0.97), linearized(checkpoint="bad", test=0.5)
    run = linearized("run", checkpoint="bad")
    found = networks([search, good, bad, run])
    assert sorted((n.accuracy, n.cost is not None) for n in found) == [(0.5, True), (0.97, False)]


def test_the_newest_evaluation_counts(linearized: Make) -> None:
    old = linearized(test=0.9, created="2026-01-01T00:00:00+00:00")
    new = linearized(test=0.95, created="2026-01-02T00:00:00+00:00")
    assert networks([new, old])[0].accuracy == 0.95


def test_failed_records_are_left_out(linearized: Make) -> None:
    assert networks([linearized(status="failed")]) == ()


def test_a_dense_run_counts_only_in_the_same_setting(dense: Make, linearized: Make) -> None:
    small = linearized("run")
    assert networks([dense("run"), small])[1].dense_cost is not None
    lan = linearized("run", setting={"network": "lan"})
    assert networks([dense("run"), lan])[1].dense_cost is None


def test_a_simulation_does_not_replace_a_private_run(linearized: Make) -> None:
    real = linearized("run", created="2026-01-01T00:00:00+00:00")
    twin = linearized("run", created="2026-01-02T00:00:00+00:00", setting={"engine": "twin", "private": False})
    run = networks([real, twin])[0].run
    assert run is not None
    assert run.secure is not None
    assert run.secure["engine"] == "cheetah"


def test_a_training_belongs_to_the_network_that_came_of_it(linearized: Make) -> None:
    """Two recipes may find one mask, as random ones do, and tune it for longer or shorter."""
    records = [
        linearized(kind, checkpoint=name, epochs=epochs)
        for name, epochs in (("short", 6), ("long", 18))
        for kind in ("linearize", "evaluate")
    ]
    found = networks(records)
    assert [{record.epochs for record in network.records} for network in found] == [{6}, {18}]
    assert [len(network.records) for network in found] == [2, 2]
