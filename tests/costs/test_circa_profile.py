"""Circa's circuits by their gates, and the ratios that its abstract has."""

import pytest

from reluctant.costs.circa import Circa
from reluctant.costs.delphi import Delphi


@pytest.mark.parametrize(
    ("bits", "truncated", "gates"), [(32, 0, 64), (32, 12, 52), (32, 18, 46), (42, 0, 84), (42, 12, 72), (42, 18, 66)]
)
def test_gates(bits, truncated, gates):
    assert Circa(bits=bits, truncated=truncated).gates == gates


def test_a_relu():
    """48(2n-k) + 152 + 28n for circuit and labels; 48(n-k) for transfers, both ways; labels and what is opened."""
    circa = Circa()
    assert circa.circuit_bytes == 48 * 52 + 152 + 28 * 32 == 3544
    spent, triple = circa.relus(1), 3 * 524_393 / 8192
    assert spent.offline.bytes == pytest.approx(3544 + 48 * 20 + triple)
    assert spent.online.bytes == 28 * 20 + 8 + 8 + 9 + 8
    assert (spent.online.trips, spent.online.seconds) == (2, 7e-6)
    assert spent.offline.seconds == pytest.approx(38e-6 * 52 / 328, abs=3e-6)


def test_it_saves_what_its_abstract_says():
    delphi, circa = Delphi().relus(1), Circa().relus(1)
    assert (15_896 + 1_176) / Circa().circuit_bytes == pytest.approx(4.7, abs=0.15)
    assert delphi.online.seconds / circa.online.seconds == pytest.approx(3, abs=0.2)


def test_truncation_makes_everything_smaller():
    costs = [Circa(truncated=k).relus(100).total for k in (0, 8, 12, 18)]
    assert costs == sorted(costs, reverse=True)
    assert [cost.seconds for cost in costs] == sorted((cost.seconds for cost in costs), reverse=True)
