"""What every price source promises, whatever it knows."""

import importlib
import json

import pytest
from engines.small import masked_small

from reluctant.costs import ENGINES, PROTOCOLS
from reluctant.costs.model import UNKNOWN, Cost, CostModel, Phase, total
from reluctant.costs.networks import NETWORKS
from reluctant.program.lower import lower
from reluctant.surrogates import Quadratic

protocols = pytest.mark.parametrize("name", PROTOCOLS)


@pytest.fixture(scope="module")
def program():
    return lower(masked_small((1.0, 0.25)))


@protocols
def test_a_prediction_is_json_with_the_same_keys_and_no_number_that_is_none(name, program):
    found = CostModel.load(name).predict(program, network=NETWORKS["wan"]).to_json()
    assert found.keys() == CostModel.load("cheetah").predict(program).to_json().keys()
    json.dumps(found, allow_nan=False)
    assert found["engine"] == name
    assert found["source"]


@protocols
def test_offline_and_online_are_all_there_is(name, program):
    found = CostModel.load(name).predict(program, network=NETWORKS["lan"])
    if name in ENGINES:
        assert found.offline == found.setup
        assert found.online == Phase(found.bytes, found.messages, found.seconds)
    elif found.bytes is not None:
        assert found.bytes == pytest.approx(found.offline.bytes + found.online.bytes, abs=1)
        assert found.seconds == pytest.approx(found.offline.seconds + found.online.seconds)


@protocols
def test_a_relu_costs_bytes_and_a_site_round_trips(name, program):
    full, part = CostModel.load(name).predict(program).by_site
    assert (full.kept, part.kept) == (256, 64)
    assert full.comparison_bytes > part.comparison_bytes > 0
    assert full.round_trips == part.round_trips > 0
    empty = CostModel.load(name).predict(lower(masked_small((0.0, 0.0)))).by_site
    assert [(site.comparison_bytes, site.round_trips) for site in empty] == [(0, 0.0)] * 2


@protocols
def test_images_that_travel_together_share_round_trips_but_no_bytes_of_relus(name, program):
    one, together, apart = (
        CostModel.load(name).predict(program, *sizes).by_site[0] for sizes in ((1,), (3, 3), (3, 1))
    )
    assert together.comparison_bytes == pytest.approx(3 * one.comparison_bytes, rel=0.01)
    assert (together.round_trips, apart.round_trips) == (one.round_trips, 3 * one.round_trips)


@protocols
def test_squares_are_priced_or_known_to_be_unknown(name):
    plain, squared = (
        CostModel.load(name).predict(lower(masked_small((0.5, 0.5), surrogate))) for surrogate in (None, Quadratic())
    )
    if name == "cryptflow2":
        assert squared.surrogate_bytes is None
    else:
        assert squared.bytes > plain.bytes


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if name not in ENGINES])
def test_a_profile_names_its_paper_and_its_numbers(name):
    kind = PROTOCOLS[name]
    header = importlib.import_module(kind.__module__).__doc__
    assert all(f"\n{key}" in header for key in ("Paper:", "Numbers:", "Ours:"))
    assert kind.provenance == "analytic profile"
    assert kind.omitted


def test_what_is_not_known_makes_a_sum_unknown():
    assert Phase.of(total((Cost(5, 1, 0.5), Cost(7, UNKNOWN, 0.5))), NETWORKS["loopback"]) == Phase(12, None, 1.0)
