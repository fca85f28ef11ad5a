"""Accuracy against ReLUs kept: which results no other one beats.

Results are ranked only within a task, a track and a number of test images. A network whose dropped ReLUs are squares is
never ranked beside one whose dropped ReLUs are free, and several seeds of one setting are one point, at their mean: the
best seed of many is no result.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from reluctant.records import Track
from reluctant.report.networks import Network, plain_label


@dataclass(frozen=True)
class Point:
    """One setting: the networks of all its seeds, their mean accuracy, and the most ReLUs any of them keeps."""

    networks: tuple[Network, ...]
    relus: int
    accuracy: float
    n_test: int
    best: bool = False

    @property
    def name(self) -> str:
        """What a figure calls it: all but the seed."""
        return plain_label(self.networks[0].head)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy that ``n_test`` images can tell (Wilson 1927)."""
        z, n, p = 1.96, self.n_test, self.accuracy
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Front:
    """All results that may be ranked together, fewest ReLUs first; those on the front have ``best`` set.

    ``dense`` are the networks they were made from: they are drawn, and not ranked.
    """

    task: str
    track: Track
    n_test: int
    points: tuple[Point, ...]
    dense: tuple[Point, ...]


def undominated(results: Sequence[tuple[int, float]]) -> list[bool]:
    """Return, for each (ReLUs, accuracy), whether no other has at most its ReLUs and at least its accuracy.

    Equal results do not beat each other.

    Example:
        >>> undominated([(100, 0.9), (200, 0.8), (200, 0.95)])
        [True, False, True]
    """
    return [
        not any(r <= relus and a >= accuracy and (r, a) != (relus, accuracy) for r, a in results)
        for relus, accuracy in results
    ]


def fronts(networks: Sequence[Network]) -> tuple[Front, ...]:
    """Return a front for each task, track and number of test images, of the networks that were evaluated."""
    settings: dict[tuple[object, ...], list[Network]] = defaultdict(list)
    for network in networks:
        if network.evaluation and not network.is_dense:
            head, test = network.head, network.evaluation
            key = (head.task, head.track, test.accuracy["n_test"], head.model, head.design, head.method, head.budget)
            settings[(*key, head.surrogate, test.epochs)].append(network)
    ranked: dict[tuple[str, Track, int], list[Point]] = defaultdict(list)
    for group in settings.values():
        point = _point(group)
        ranked[(group[0].head.task, group[0].head.track, point.n_test)].append(point)
    return tuple(_front(task, track, n, ranked[(task, track, n)]) for task, track, n in sorted(ranked))


def _point(group: Sequence[Network]) -> Point:
    tests = [network.evaluation.accuracy for network in group if network.evaluation]
    accuracy = sum(test["test"] or 0.0 for test in tests) / len(tests)
    return Point(tuple(group), max(n.head.relus["kept"] for n in group), accuracy, tests[0]["n_test"] or 0)


def _front(task: str, track: Track, n_test: int, points: list[Point]) -> Front:
    points.sort(key=lambda point: (point.relus, -point.accuracy))
    flags = undominated([(point.relus, point.accuracy) for point in points])
    ranked = tuple(
        Point(p.networks, p.relus, p.accuracy, p.n_test, best) for p, best in zip(points, flags, strict=True)
    )
    origins = {id(n.dense): n.dense for point in points for n in point.networks if n.dense and n.dense.evaluation}
    return Front(task, track, n_test, ranked, tuple(_point([origin]) for origin in origins.values()))
