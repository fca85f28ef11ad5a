"""CrypTFlow2's comparisons against counts made by hand from its code."""

import pytest
from engines.small import masked_small

from reluctant.budget import Budget
from reluctant.costs.cryptflow2 import CrypTFlow2
from reluctant.costs.pricing import price_list
from reluctant.errors import BudgetError
from reluctant.program.lower import lower


@pytest.mark.parametrize(("bits", "bytes_", "rounds"), [(32, 530, 5), (37, 587, 6), (41, 660, 6), (64, 1097, 6)])
def test_bytes_and_rounds_of_a_comparison(bits, bytes_, rounds):
    profile = CrypTFlow2(bits=bits)
    assert profile.relu_bits / 8 == pytest.approx(bytes_, abs=0.51)
    assert profile.rounds == rounds
    assert profile.relu_bits < 128 * bits + 18 * bits  # the paper's bound


def test_37_bits_by_hand():
    leaves = 9 * 288 - 16
    triples = (9 - 1 - 4) * 272 + 4 * 288 // 2
    assert CrypTFlow2().relu_bits == leaves + triples + 4 * 12 + 2 * (128 + 2 * 37)


def test_what_it_does_not_know_is_none():
    found = CrypTFlow2().predict(lower(masked_small((1.0, 0.5))))
    assert found.comparison_bytes == round(384 * CrypTFlow2().relu_bits / 8)
    assert (found.bytes, found.seconds, found.linear_bytes, found.memory) == (None,) * 4
    assert [site.round_trips for site in found.by_site] == [6, 6]


@pytest.mark.parametrize("budget", ["1MB@cryptflow2", "1s@cryptflow2/wan", "1MB@cryptflow2:online"])
def test_no_budget_can_be_kept(budget):
    with pytest.raises(BudgetError, match="can be kept under cryptflow2: not known are layers and truncations"):
        price_list(masked_small(), Budget.parse(budget))
