"""The front, by hand; and what may not be ranked together."""

from collections.abc import Callable

import pytest

from reluctant.records import Record
from reluctant.report import fronts, networks, undominated

Make = Callable[..., Record]


@pytest.mark.parametrize(
    ("results", "best"),
    [
        ([(100, 0.9)], [True]),
        ([(100, 0.9), (200, 0.9)], [True, False]),
        ([(100, 0.8), (200, 0.9), (150, 0.7), (300, 0.85), (50, 0.1)], [True, True, False, False, True]),
        ([(100, 0.9), (100, 0.8)], [True, False]),
        ([(100, 0.9), (100, 0.9)], [True, True]),
        ([], []),
    ],
)
def test_undominated(results: list[tuple[int, float]], best: list[bool]) -> None:
    assert undominated(results) == best


def test_points_are_ranked_by_relus_and_the_beaten_are_marked(dense: Make, linearized: Make) -> None:
    records = [
        dense(),
        linearized(kept=(6, 0), budget="50%", test=0.94),
        linearized(kept=(3, 0), test=0.96),
        linearized(kept=(1, 0), budget="10%", test=0.90),
    ]
    (front,) = fronts(networks(records))
    assert [(p.relus, p.accuracy, p.best) for p in front.points] == [(1, 0.9, True), (3, 0.96, True), (6, 0.94, False)]
    assert [point.accuracy for point in front.dense] == [0.98]


def test_tracks_are_never_in_one_ranking(linearized: Make) -> None:
    free = linearized(test=0.90)
    square = linearized(method="autorep", test=0.96, track="polynomial")
    found = fronts(networks([free, square]))
    assert [(front.track, len(front.points)) for front in found] == [("free", 1), ("polynomial", 1)]
    assert all(point.best for front in found for point in front.points)


@pytest.mark.parametrize("other", [{"task": "cifar10"}, {"n": 40}])
def test_other_tasks_and_other_test_images_are_not_ranked_together(linearized: Make, other: dict[str, object]) -> None:
    assert len(fronts(networks([linearized(test=0.9), linearized(method="random", test=0.96, **other)]))) == 2


def test_seeds_are_one_point_at_their_mean(linearized: Make) -> None:
    lucky = [linearized(seed=seed, test=test) for seed, test in enumerate((0.90, 0.90, 0.99))]
    steady = linearized(method="random", test=0.94)
    (front,) = fronts(networks([*lucky, steady]))
    mean = next(point for point in front.points if point.name == "snl at 25%")
    assert mean.accuracy == pytest.approx(0.93)
    assert not mean.best


def test_networks_that_were_not_evaluated_are_not_on_it(linearized: Make) -> None:
    assert fronts(networks([linearized("linearize"), linearized("run")])) == ()


def test_the_interval_is_wilsons(linearized: Make) -> None:
    (front,) = fronts(networks([linearized(test=0.9, n=100)]))
    low, high = front.points[0].interval
    assert (round(low, 4), round(high, 4)) == (0.8256, 0.9448)  # Brown, Cai, DasGupta 2001, by their formula 4
