"""A training that explodes ends with one line that says where, and what was saved before stays good."""

import copy
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reluctant.errors import DivergedError
from reluctant.experiment import Machine
from reluctant.loop import Loop, read_state
from reluctant.masked import attach
from reluctant.methods.relupruner import ReLUPruner
from reluctant.methods.snl import SNL
from reluctant.sites import find_sites
from reluctant.sweep import find_points, sweep
from reluctant.training import Training, fit


@pytest.fixture
def walk(few_digits, fabric):
    """Takes ten epochs of four steps, saving after each step; from step 6 on, counted from 0, the rate is absurd."""

    def take(model, directory=None, at_once=True, spoil=None):
        split = {"train": few_digits.train, "augmentation": few_digits.augmentation}
        loop = Loop("walk", **split, epochs=10, batch=64, fabric=fabric, directory=directory, save_seconds=0)
        assert loop._divergence.at_once
        loop._divergence.at_once = at_once
        network, optimizer = loop.setup(model, torch.optim.SGD(model.parameters(), 0.1))
        taken = []
        for step in loop:
            taken.append(step.epoch * 4 + step.index)
            optimizer.param_groups[0]["lr"] = 0.1 if taken[-1] < 6 else 1e30
            loss = F.cross_entropy(network.train()(step.images), step.labels)
            loop.take(loss, optimizer)
            if taken[-1] == spoil:
                next(model.parameters()).data.fill_(float("nan"))
        return taken

    return take


@pytest.fixture
def masked(trained, few_digits):
    return attach(trained, find_sites(trained, few_digits.example))


def finite(path):
    weights = read_state(path)["kept/model"].values()
    return all(bool(value.isfinite().all()) for value in weights if value.is_floating_point())


@pytest.mark.parametrize("at_once", [True, False])
def test_it_says_where_and_the_last_good_state_stays(walk, masked, tmp_path, at_once):
    """Step 6 explodes the weights, so the loss of step 7 is the first that is not finite."""
    with pytest.raises(DivergedError) as error:
        walk(masked, tmp_path, at_once)
    # Looked at only now and then, weights have had another step when the site is looked for.
    site = r"layer\S+" if at_once else r"\S+"
    assert re.fullmatch(
        rf"walk diverged at epoch 2, step 4: loss is (nan|inf|not finite), first at site {site}; "
        r"lower the learning rate or bound the gradient \(clip\)",
        str(error.value),
    )
    state = read_state(tmp_path / "walk.state")
    assert (state["epoch"], state["index"]) in [(1, 2), (1, 3)]
    assert finite(tmp_path / "walk.state")


def test_the_site_named_is_the_first_whose_input_is_not_finite(walk, masked):
    nn.init.constant_(masked.model.layer2[0].conv1.weight, 1e38)
    with pytest.raises(DivergedError, match=r"epoch 1, step 1: loss is nan, first at site layer2\.0\.relu1;"):
        walk(masked)


def test_a_network_without_masks_names_no_site(walk, trained):
    with pytest.raises(DivergedError, match=r"epoch 2, step 4: loss is (nan|inf); lower the learning rate"):
        walk(copy.deepcopy(trained))


@pytest.mark.parametrize("step", [1, 3, 5])
def test_weights_that_are_not_finite_are_never_saved(walk, trained, tmp_path, step):
    with pytest.raises(DivergedError, match=r"(loss is|weights are) (nan|not finite)"):
        walk(copy.deepcopy(trained), tmp_path, spoil=step)
    assert finite(tmp_path / "walk.state")


@pytest.mark.parametrize("method", [SNL(lr=1e30, max_epochs=2), ReLUPruner(lr=1e30, search_epochs=2)], ids=str)
def test_a_search_at_an_absurd_rate_ends_so(masked, few_digits, make_job, tmp_path, method):
    job = replace(make_job(masked, few_digits, 0.2), directory=tmp_path)
    with pytest.raises(
        DivergedError, match=r"^search diverged at epoch 1, step 2: loss is nan, first at site (relu|layer)"
    ):
        method.search(masked, job)
    assert len(masked.masked()) == len(masked.sites)
    assert not (tmp_path / "search.state").exists()


def test_a_training_that_goes_well_is_not_stopped(trained, few_digits, fabric):
    fitted = fit(trained, few_digits, Training(epochs=2, batch=128, lr=0.01), fabric=fabric)
    assert all(torch.isfinite(tensor).all() for tensor in fitted.state_dict().values())


def test_in_a_sweep_it_is_a_failed_point_and_the_others_go_on(tmp_path):
    recipes = {
        "dense": 'task = "digits"\nmodel = "resnet8:width=4"\ntraining = { epochs = 1, batch = 128 }\n',
        "random-10%": 'method = "random"\nbudget = "10%"\nfinetune = { epochs = 1, batch = 128 }\n',
        "random-20%": 'method = "random"\nbudget = "20%"\nfinetune = { epochs = 1, batch = 128, lr = 1e30 }\n',
    }
    for name, text in recipes.items():
        (tmp_path / f"{name}.toml").write_text(text)
    swept = sweep(find_points([tmp_path]), tmp_path / "out", Machine(device="cpu"))
    assert set(swept.records) == {"dense-s0", "random-10%-s0"}
    assert swept.failed["random-20%-s0"].startswith("finetune diverged at epoch 1, step 3: loss is nan, first at site ")
