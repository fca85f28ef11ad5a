"""What every design promises, whatever it builds."""

import json
import re
from dataclasses import fields

import pytest
import torch

from reluctant.checkpoints import Origin, load_checkpoint, save_checkpoint
from reluctant.costs.counting import count
from reluctant.designs import DESIGNS
from reluctant.designs.base import Design, part_of
from reluctant.engines.base import Engine
from reluctant.errors import ShapeError, UnknownName, UsageError
from reluctant.mask import Mask
from reluctant.masked import attach
from reluctant.models import ModelSpec, load_model
from reluctant.program.lower import lower
from reluctant.sites import find_sites
from reluctant.training import Training, evaluate, fit

pytestmark = pytest.mark.parametrize("name", DESIGNS.names())

#: Settings of a network that is small, and shows what the design is about.
SMALL = {
    "hybrenet": {"width": 8, "blocks": (1, 1, 1), "multipliers": (6, 3), "thin": True},
    "deepreduce": {"width": 8, "blocks": (1, 1, 1), "thin": True},
    "sphynx": {  # every operation, at both strides
        "width": 8,
        "cells": 3,
        "reductions": (0, 1),
        "normal_cell": "0a3.1c3-0d5.2s-0c5.1d3-3a3.4s",
        "reduction_cell": "0a3.1s-0d3.1d5-1c3.3a3-0c5.2s",
    },
    "cryptonas": {"width": 8},
    "adjusted": {"width": 8, "base": 8, "blocks": (1, 1, 1), "widths": (4, 10, 6, 5, 9, 14)},
}


def small(name) -> Design:
    return DESIGNS[name]().changed(SMALL[name])


@pytest.fixture
def network(name, digits):
    torch.manual_seed(0)
    return small(name).build(digits)


def test_it_answers_with_a_score_a_class(name, network, digits):
    images = digits.val.inputs(slice(3))
    assert network(images).shape == (3, len(digits.classes))
    assert network.eval()(images).isfinite().all()


@pytest.mark.parametrize("side", [8, 16, 32])
def test_it_has_the_relus_that_its_arithmetic_says(name, side):
    for design in (DESIGNS[name](), small(name)):
        with torch.device("meta"):
            model, example = design.network(7, 3), torch.zeros(1, 3, side, side)
        parts: dict[str, int] = {}
        for site, relus in count(model, find_sites(model, example), example).relus.items():
            parts[part_of(site)] = parts.get(part_of(site), 0) + relus
        assert parts == design.relus(side)


def test_settings_round_trip_through_json(name):
    for design in (DESIGNS[name](), small(name), *DESIGNS[name].released().values()):
        assert DESIGNS[name].from_json(json.loads(json.dumps(design.to_json()))) == design
        assert hash(design) == hash(design.changed({}))


def test_its_string_names_it_wherever_a_model_is_named(name, digits):
    for design in (DESIGNS[name](), small(name)):
        spec = ModelSpec.parse(design.spec)
        assert spec.design == design
        assert str(spec) == design.spec
    torch.manual_seed(3)
    named = load_model(small(name).spec, task=digits)
    torch.manual_seed(3)
    built = small(name).build(digits)
    assert all(torch.equal(a, b) for a, b in zip(named.state_dict().values(), built.state_dict().values(), strict=True))


def test_released_networks_are_names_too(name):
    for inner, design in DESIGNS[name].released().items():
        assert ModelSpec.parse(f"{name}-{inner}").design == design
        wider = ModelSpec.parse(f"{name}-{inner}:width=6")
        assert wider.design == design.changed({"width": 6})
        assert ModelSpec.parse(str(wider)).design == wider.design
    with pytest.raises(UnknownName, match=f"unknown model '{name}-cifar9'"):
        ModelSpec.parse(f"{name}-cifar9")


def test_it_trains_on_digits(name, network, few_digits, fabric):
    before = {key: p.detach().clone() for key, p in network.named_parameters()}
    trained = fit(network, few_digits, Training(epochs=1, batch=64, lr=0.05), fabric=fabric)
    still = [key for key, p in trained.named_parameters() if torch.equal(p, before[key])]
    assert still == []
    assert 0 <= evaluate(trained, few_digits, "val").accuracy <= 1


def test_checkpoint_and_mask_round_trip(name, network, digits, tmp_path):
    masked = attach(network, find_sites(network, digits.example))
    scores = {site: torch.rand(found.shape) for site, found in masked.sites.items()}
    masked.set_mask(Mask({site: score > 0.5 for site, score in scores.items()}))
    save_checkpoint(tmp_path, masked, Origin(small(name).spec, "digits", 10, (1, 8, 8)))
    loaded = load_checkpoint(tmp_path)
    assert loaded.masked is not None
    assert loaded.masked.mask == masked.mask
    images = digits.val.inputs(slice(4))
    assert torch.equal(loaded.model(images), masked.eval()(images))


def lowered(network, digits):
    """The network after a few batches, so that its statistics are not the ones it began with, and its program."""
    network.train()
    for start in (0, 64):
        network(digits.train.inputs(slice(start, start + 64)))
    masked = attach(network, find_sites(network, digits.example)).eval()
    half = {site: torch.arange(found.relus).view(found.shape) % 2 == 0 for site, found in masked.sites.items()}
    masked.set_mask(Mask(half))
    return masked, lower(masked)


def test_it_lowers_to_a_program_of_the_relus_kept(name, network, digits):
    masked, program = lowered(network, digits)
    assert {site.name: site.kept for site in program.sites} == masked.mask.by_site()


@pytest.mark.secure
def test_the_twin_agrees_with_floats(name, network, digits):
    from reluctant.engines.twin import Twin

    masked, program = lowered(network, digits)
    images = digits.images(4)
    with torch.no_grad():
        floats = masked(images)
    engine: Engine = Twin()
    run = engine.run(program, images.numpy())
    assert torch.from_numpy(run.outputs).sub(floats).abs().max() < 0.02 * floats.abs().max() + 0.01
    assert run.comparisons == 4 * masked.mask.kept


def test_unknown_settings_and_wrong_values_are_refused(name):
    with pytest.raises(UnknownName, match=f"unknown setting of design {name} 'widht'; did you mean 'width'"):
        ModelSpec.parse(f"{name}:widht=3")
    for field in fields(DESIGNS[name]):
        if isinstance(field.default, int | tuple):
            with pytest.raises(UsageError, match=f"{name}.{field.name} is 'many', expected a "):
                ModelSpec.parse(f"{name}:{field.name}=many")
    for value in (0, -1):
        with pytest.raises(UsageError, match=f"{name}.width is {value}, expected a value above zero"):
            DESIGNS[name](width=value)


def test_images_too_small_for_the_strides_are_refused(name, digits):
    with pytest.raises(ShapeError, match=r"halves the map .*got 1"):
        DESIGNS[name]().check_side(1)
    deep = {"deepreduce": {"stem_stride": 2}, "hybrenet": {"blocks": (1,) * 5, "multipliers": (2,) * 4}}
    if name in deep:
        with pytest.raises(ShapeError, match="images need a side of 16 or more, got 8"):
            DESIGNS[name](**deep[name]).build(digits)
        with pytest.raises(ShapeError, match="got 8"):
            load_model(DESIGNS[name](**deep[name]).spec, task=digits)


def test_candidates_are_of_the_design_and_keep_what_is_given(name):
    found = DESIGNS[name].candidates(None, {"width": "6"})
    assert found
    assert all(type(design) is DESIGNS[name] and design.width == 6 for design in found)
    assert len(set(found)) == len(found)
    with pytest.raises(UnknownName):
        DESIGNS[name].candidates(None, {"widht": 6})


def test_the_header_is_complete(name):
    header = DESIGNS[name].header()
    assert re.match(r".+\.\n\nPaper: +\S", header)
    assert re.search(r"^Deviates: +\S", header, re.MULTILINE)
    assert re.search(r"^Symbols: +\S", header, re.MULTILINE)
    assert re.search(r"\d{4}, arXiv:\d{4}\.\d{5}$", DESIGNS[name].citation())
