"""The verb on networks as people write them."""

import pytest
import torch
from torch import nn

from reluctant.errors import SiteError, UsageError
from reluctant.linearization import linearize
from reluctant.methods import METHODS
from reluctant.secure import secure_run
from reluctant.surrogates import Hermite
from reluctant.training import Training, evaluate, finetune, fit

QUICK = {
    "snl": METHODS["snl"](max_epochs=2, gate_lr=0.1),
    "autorep": METHODS["autorep"](search_epochs=2, lr=0.05),
    "taylor": METHODS["taylor"](images=128),
    "random": METHODS["random"](),
}
ONE = Training(epochs=1, batch=64)


def mlp(*first):
    return nn.Sequential(*first, nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))


class Wrapped(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.net, self.function = mlp(), function

    def forward(self, x):
        return self.function(self.net, x)


@pytest.mark.parametrize("name", QUICK)
def test_the_seed_decides_even_with_dropout(name, few_digits, fabric):
    torch.manual_seed(0)
    model = mlp()
    masks = [linearize(model, QUICK[name], "50%", few_digits, fabric=fabric, seed=3).mask for _ in range(2)]
    assert masks[0] == masks[1]


@pytest.mark.parametrize("name", QUICK)
def test_a_network_that_overwrites_its_input(name, few_digits, fabric):
    model = fit(mlp(nn.ReLU(inplace=True)), few_digits, ONE, fabric=fabric)
    small = linearize(model, QUICK[name], "50%", few_digits, fabric=fabric)
    small = finetune(small, few_digits, ONE, teacher=model, fabric=fabric)
    assert small.mask.kept == 48
    run = secure_run(small, few_digits.images(4), engine="twin")
    assert run.max_abs_error_float < 1e-2


@pytest.mark.parametrize(
    ("function", "error", "reason"),
    [
        (lambda net, x: net(x)[:, :3], UsageError, r"output of shape \(2, 3\) for 2 images, expected \(2, 10\)"),
        (lambda net, x: None, UsageError, "no class scores"),
        (lambda net, x: net(x)[:, :, None, None], UsageError, r"shape \(2, 10, 1, 1\)"),
        (lambda net, x: net[1:](x.view(1, -1)), UsageError, "for a batch of 2 images"),
    ],
)
def test_networks_that_give_no_class_scores_are_refused_before_any_work(function, error, reason, few_digits, fabric):
    with pytest.raises(error, match=reason):
        fit(Wrapped(function), few_digits, ONE, fabric=fabric)


def test_state_that_is_no_tensor_is_refused_before_any_work(few_digits, fabric):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"free": "text"}

        def set_extra_state(self, state):
            pass

    with pytest.raises(UsageError, match=r"holds 2\._extra_state, which is no tensor"):
        fit(nn.Sequential(nn.Flatten(), nn.ReLU(), Extra(64, 10)), few_digits, ONE, fabric=fabric)


def test_a_linearized_network_is_not_linearized_again(trained, few_digits, fabric):
    small = linearize(trained, QUICK["random"], "50%", few_digits, fabric=fabric)
    with pytest.raises(SiteError, match="linearized already"):
        linearize(small, QUICK["random"], "10%", few_digits, fabric=fabric)


def test_modes_are_left_as_they_were(few_digits, fabric):
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)).train()
    model[1].eval()
    small = linearize(model, QUICK["taylor"], "50%", few_digits, fabric=fabric).train()
    small.model[1].eval()
    evaluate(model, few_digits, "val")
    evaluate(small, few_digits, "val")
    secure_run(small, few_digits.images(1), engine="twin")
    for network in (model, small.model):
        assert [network.training, network[1].training, network[3].training] == [True, False, True]


@pytest.mark.parametrize("name", METHODS)
def test_budget_zero_drops_every_relu_and_searches_nothing(name, trained, few_digits, fabric, monkeypatch):
    method = METHODS[name](surrogate=Hermite())
    monkeypatch.setattr(type(method), "run", lambda *_: pytest.fail("a search began"))
    small = linearize(trained, method, "0", few_digits, fabric=fabric)
    assert small.mask.kept == 0
    assert all((activation.c1 != 1).any() for activation in small.masked())  # fitted, not as they were made
