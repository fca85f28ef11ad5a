"""What measured bytes say, and that nothing is said where they do not."""

from collections.abc import Callable

import pytest
from conftest import cost

from reluctant.records import Record
from reluctant.report import networks
from reluctant.report.findings import comparisons_expected, dearer_sentence, dearer_surrogates, parts, promise_held
from reluctant.report.sentences import byte_sentence, notices

Make = Callable[..., Record]


def test_bytes_of_one_image_in_three_parts(linearized: Make) -> None:
    (network,) = networks([linearized("run", surrogate=7)])
    assert network.cost is not None
    split = parts(network.cost)
    assert (split.comparisons, split.surrogates, split.rest) == (300, 7 * 9, 1000)
    assert split.total == network.cost["bytes"] / 4


def test_a_square_that_costs_more_is_called_dearer_with_both_prices(dense: Make, linearized: Make) -> None:
    small = linearized("run", method="autorep", surrogate=378, track="polynomial")
    text = dearer_sentence(networks([dense("run"), small])[1])
    assert text is not None
    assert "cheetah a square costs 378 bytes against 100 for the ReLU it replaces" in text
    assert "4.7 kB an image, more than the dense network (2.2 kB)" in text


def test_the_noun_is_that_of_the_track_and_the_surrogate(linearized: Make) -> None:
    small = linearized("run", surrogate=232, track="affine")
    text = dearer_sentence(networks([small])[0])
    assert text is not None
    assert "a trained slope costs 232 bytes against 100" in text
    assert "the identity surrogate makes snl at 25% dearer" in text


@pytest.mark.parametrize(("price", "said"), [(0, False), (50, False), (100, False), (101, True), (400, True)])
def test_the_sentence_stands_exactly_where_the_numbers_say_so(
    dense: Make, linearized: Make, price: int, said: bool
) -> None:
    network = networks([dense("run"), linearized("run", surrogate=price)])[1]
    assert (dearer_sentence(network) is not None) is said


def test_only_the_sites_where_it_is_so_are_counted(dense: Make, linearized: Make) -> None:
    mixed = cost((3, 0), 4)
    mixed["by_site"][1]["surrogate_bytes"] = 4 * 4 * 150
    network = networks([dense("run"), linearized("run", setting={"linearized": mixed})])[1]
    found = dearer_surrogates(network)
    assert found is not None
    assert (found.sites, found.surrogate_bytes, found.relu_bytes) == (("fc",), 150, 100)
    assert "at 1 of 2 sites" in (dearer_sentence(network) or "")


def test_the_price_of_a_relu_is_that_of_the_network_that_still_had_it(dense: Make, linearized: Make) -> None:
    few = cost((3, 0), 4, surrogate=150)
    few["by_site"][0]["comparison_bytes"] = 3 * 4 * 900  # the last ReLUs of a site carry its overhead
    network = networks([dense("run"), linearized("run", setting={"linearized": few})])[1]
    found = dearer_surrogates(network)
    assert found is not None
    assert (found.sites, found.relu_bytes) == (("conv", "fc"), 100)


def test_without_a_dense_run_the_price_of_the_relus_kept_is_used(linearized: Make) -> None:
    found = dearer_surrogates(networks([linearized("run", surrogate=378)])[0])
    assert found is not None
    assert (found.surrogate_bytes, found.relu_bytes) == (378, 100)


def test_nothing_is_said_without_a_run_or_without_any_price_of_a_relu(linearized: Make) -> None:
    assert dearer_sentence(networks([linearized()])[0]) is None
    assert dearer_sentence(networks([linearized("run", kept=(0, 0), surrogate=378)])[0]) is None


def test_what_the_cut_promised_and_what_it_gave(dense: Make, linearized: Make) -> None:
    network = networks([dense("run"), linearized("run")])[1]
    assert promise_held(network) == (pytest.approx(0.75), pytest.approx(0.75))
    assert comparisons_expected(network) == 12
    assert promise_held(networks([linearized("run")])[0]) is None


def test_relus_of_channels_that_were_pruned_away_are_not_missed(dense: Make, linearized: Make) -> None:
    """The mask keeps three at the site; the program has two of them, and makes as many comparisons."""
    records = [dense("run"), linearized("run", setting={"linearized": cost((2, 0), 4)})]
    network = networks(records)[1]
    assert network.head.relus["kept"] == 3
    assert comparisons_expected(network) == 8
    assert "Comparisons made: 8 = 2 kept × 4 images." in (byte_sentence(network) or "")
    assert "Disagrees" not in dict(notices(records, networks(records)))
