"""What every method promises, whatever it does inside."""

import json
import math
import re
from dataclasses import fields

import pytest
import torch

from reluctant.errors import UnknownName, UsageError
from reluctant.linearization import linearize
from reluctant.masked import MaskedModel, attach
from reluctant.methods import METHODS
from reluctant.methods.base import MaskMethod, Method
from reluctant.sites import find_sites
from reluctant.surrogates import Quadratic
from reluctant.task import Job
from reluctant.training import evaluate

#: Settings that make a search take a second.
QUICK = {
    "ebb": {"search_epochs": 2, "images": 128},
    "snl": {"max_epochs": 2, "gate_lr": 0.1, "batch": 128},
    "autorep": {"search_epochs": 2, "lr": 0.05, "batch": 128},
    "descent": {"start": {"name": "random"}, "steps": 3, "draws": 4, "images": 128, "finetune_epochs": 0.5},
    "taylor": {"images": 128},
    "senet": {"search_epochs": 2, "sensitivity_epochs": 1},
    "streamlinet": {"search_epochs": 2, "images": 128},
    "relupruner": {"search_epochs": 2, "every": 1},
    "snip": {"images": 64},
    "drep": {"images": 128},
}

pytestmark = pytest.mark.parametrize("name", METHODS.names())


def quick(name) -> Method:
    return METHODS[name].from_json(QUICK.get(name, {}))


@pytest.fixture(scope="module")
def linearized(few_digits, trained, fabric):
    """Each method's result at 10 %, made once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = linearize(trained, quick(name), "10%", few_digits, fabric=fabric, seed=3)
        return made[name]

    return get


def test_the_limit_is_respected_and_used_up(name, linearized):
    small = linearized(name)
    assert isinstance(small, MaskedModel)
    assert small.mask.kept == small.sites.total // 10


def test_the_same_seed_finds_the_same_mask(name, linearized, few_digits, trained, fabric):
    again = linearize(trained, quick(name), "10%", few_digits, fabric=fabric, seed=3)
    assert again.mask == linearized(name).mask


def test_the_given_network_is_untouched(name, few_digits, trained, fabric):
    before = {key: value.clone() for key, value in trained.state_dict().items()}
    linearize(trained, quick(name), 50, few_digits, fabric=fabric)
    assert all(torch.equal(value, before[key]) for key, value in trained.state_dict().items())
    assert all(parameter.grad is None for parameter in trained.parameters())


def test_a_full_mask_gives_identical_outputs(name, few_digits, trained):
    masked = attach(trained, find_sites(trained, few_digits.example), METHODS[name]().surrogate)
    images = few_digits.val.inputs(slice(8))
    assert torch.equal(masked.eval()(images), trained.eval()(images))


def test_gates_are_gone_and_the_result_runs(name, linearized, few_digits):
    small = linearized(name)
    assert len(small.masked()) == len(small.sites)
    assert 0 <= evaluate(small, few_digits, "val").accuracy <= 1


def test_settings_round_trip_through_json(name):
    method = quick(name)
    assert METHODS[name].from_json(json.loads(json.dumps(method.to_json()))) == method
    assert hash(method) == hash(quick(name))


def test_unknown_settings_are_refused_with_the_nearest(name):
    with pytest.raises(UnknownName, match=r"unknown setting of method .* 'surrogat'; did you mean 'surrogate'"):
        METHODS[name].from_json({"surrogat": "identity"})
    with pytest.raises(UnknownName, match="unknown surrogate 'identitty'; did you mean 'identity'"):
        METHODS[name].from_json({"surrogate": "identitty"})
    numbers = [key for key, value in METHODS[name]().to_json().items() if isinstance(value, int)]
    for key in numbers:
        with pytest.raises(UsageError, match=f"{name}.{key} is 'many', expected a int"):
            METHODS[name].from_json({key: "many"})


def test_settings_that_no_search_can_run_with_are_refused(name, few_digits, trained, make_job):
    cls = METHODS[name]
    masked = attach(trained, find_sites(trained, few_digits.example))
    job = make_job(masked, few_digits, 0.1)
    numbers = {f.name: f.default for f in fields(cls) if type(f.default) in (int, float)}
    assert set(cls.may_be_negative) <= set(numbers)
    for key, default in numbers.items():
        values = [] if key in cls.may_be_negative else [-1]
        values += [] if key in (*cls.may_be_zero, *cls.may_be_negative) else [0]
        values += [] if isinstance(default, int) else [math.inf, math.nan]
        for value in [*values, math.inf, math.nan, "inf", True]:
            with pytest.raises(UsageError, match=f"^{name}.{key} is .*expected a"):
                cls.from_json({key: value})
        for value in values:
            with pytest.raises(UsageError, match=f"^{name}.{key} is .*expected a"):
                cls(**{key: value}).run(masked, job)
        if key in cls.may_be_zero:
            assert cls.from_json({key: "0"}).to_json()[key] == type(default)(0)


def test_a_surrogates_settings_come_as_text_off_the_command_line(name):
    named = METHODS[name].from_json({"surrogate": {"name": "quadratic", "scale": "0.2"}})
    assert named.surrogate == Quadratic(scale=0.2)
    default = METHODS[name]().surrogate
    if isinstance(default, Quadratic):
        assert METHODS[name].from_json({"surrogate": {"scale": "0.2"}}).surrogate == Quadratic(scale=0.2)
    else:
        with pytest.raises(UsageError, match="scale"):
            METHODS[name].from_json({"surrogate": {"scale": "0.2"}})


def test_a_job_has_no_test_split(name, few_digits, trained, make_job):
    class Peeking(MaskMethod):
        name = "peeking"

        def search(self, model, job):
            return job.test

    masked = attach(trained, find_sites(trained, few_digits.example))
    with pytest.raises(AttributeError, match="test"):
        Peeking().run(masked, make_job(masked, few_digits, 0.1))
    assert not [field for field in Job.__dataclass_fields__ if "test" in field or "task" in field]


def test_the_test_split_is_not_read(name, without_test, trained, fabric):
    assert linearize(trained, quick(name), "10%", without_test, fabric=fabric).mask.kept


def test_the_header_is_complete(name):
    header = METHODS[name].header()
    assert re.match(r".+\.\n\nPaper: +\S", header)
    assert re.search(r"^Deviates: +\S", header, re.MULTILINE)
    assert re.search(r"^Symbols: +\S", header, re.MULTILINE)
