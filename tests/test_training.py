"""The loop, the fit, the evaluation: interrupted or not, the result is the same, and the test split is left alone."""

import copy
import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reluctant.distillation import distillation, logits
from reluctant.errors import CheckpointError, UsageError
from reluctant.linearization import linearize
from reluctant.methods import METHODS
from reluctant.models import load_model
from reluctant.training import (
    Evaluation,
    Training,
    evaluate,
    finetune,
    fit,
    make_fabric,
    parameter_groups,
    rate,
    reestimate_batch_norm,
)

SHORT = Training(epochs=3, batch=64, lr=0.05)


class Killed(BaseException):
    """Nobody catches it, as nobody catches kill -9."""


def killed_at(step):
    seen = []

    def progress(stage, done, total, **metrics):
        seen.append(done)
        if len(seen) == step:
            raise Killed

    return progress


def same_weights(one, two):
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def fresh(few_digits):
    torch.manual_seed(1)
    return load_model("resnet8:width=4", task=few_digits)


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("step", [1, 5, 8, 11])
def test_killed_and_resumed_is_as_if_nothing_had_been(fresh, few_digits, fabric, tmp_path, step, ema):
    training = replace(SHORT, ema=ema)
    whole = fit(fresh, few_digits, training, fabric=fabric, seed=5)
    with pytest.raises(Killed):
        fit(fresh, few_digits, training, fabric=fabric, seed=5, directory=tmp_path, progress=killed_at(step))
    resumed = fit(fresh, few_digits, training, fabric=fabric, seed=5, directory=tmp_path)
    assert same_weights(whole, resumed)
    lines = [json.loads(line) for line in (tmp_path / "train.metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]


@pytest.mark.parametrize(
    "method",
    [
        METHODS["snl"](max_epochs=3, gate_lr=0.02, batch=64),
        METHODS["autorep"](search_epochs=3, batch=64),
        METHODS["relupruner"](search_epochs=3, batch=64, every=2),
    ],
)
def test_a_search_killed_in_mid_epoch_and_resumed_finds_the_same(
    fresh, few_digits, fabric, tmp_path, method, monkeypatch
):
    hasty = SimpleNamespace(monotonic=itertools.count(step=100.0).__next__)
    monkeypatch.setattr("reluctant.loop.time", hasty)  # so that a minute is over at every step, and the state is saved
    whole = linearize(fresh, method, "20%", few_digits, fabric=fabric)
    with pytest.raises(Killed):
        linearize(fresh, method, "20%", few_digits, fabric=fabric, directory=tmp_path, progress=killed_at(7))
    resumed = linearize(fresh, method, "20%", few_digits, fabric=fabric, directory=tmp_path)
    assert resumed.mask == whole.mask
    assert same_weights(whole, resumed)


def by_hand(model, task, training, teacher):
    """The epoch that `fit` takes, with nothing around it; returns the weights that are kept, in floating point."""
    model = copy.deepcopy(model).train()
    conv, norm, head = model[0], model[1], model[4]
    groups = [
        {"params": [conv.weight, head.weight], "weight_decay": training.weight_decay},
        {"params": [norm.weight, norm.bias, head.bias]},
    ]
    optimizer = torch.optim.SGD(groups, momentum=training.momentum, nesterov=True)
    average, steps = {}, task.train.steps(training.batch)
    batches = task.train.epoch(training.batch, 0, task.augmentation)
    for index, (images, labels, _) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = training.lr * rate(index / steps, training.warmup)
        output = model(images)
        loss = F.cross_entropy(output, labels, label_smoothing=training.label_smoothing)
        with torch.no_grad():
            scores = teacher(images)
        optimizer.zero_grad()
        (loss + training.distil * distillation(output, scores, training.temperature)).backward()
        if training.clip:
            length = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
            for p in model.parameters():
                p.grad *= min(1.0, training.clip / float(length))
        optimizer.step()
        now = {name: t.clone() for name, t in model.state_dict().items() if t.is_floating_point()}
        average = {name: training.ema * average.get(name, t) + (1 - training.ema) * t for name, t in now.items()}
    return average


@pytest.mark.parametrize(
    "settings",
    [{}, {"ema": 0.5}, {"clip": 0.1}, {"label_smoothing": 0.3}, {"distil": 0.3}, {"weight_decay": 0.1}],
    ids=str,
)
def test_an_epoch_is_the_one_by_hand(tiny, trained, few_digits, fabric, settings):
    training = replace(Training(epochs=1, batch=32, lr=0.05, warmup=0.25), **settings)
    fitted = fit(tiny, few_digits, training, teacher=trained, fabric=fabric).state_dict()
    for name, value in by_hand(tiny, few_digits, training, trained).items():
        torch.testing.assert_close(fitted[name], value, atol=1e-5, rtol=1e-5)


def test_a_state_of_other_settings_or_damaged_is_not_continued(fresh, few_digits, fabric, tmp_path):
    with pytest.raises(Killed):
        fit(fresh, few_digits, SHORT, fabric=fabric, directory=tmp_path, progress=killed_at(6))
    with pytest.raises(CheckpointError, match="of a run with other settings"):
        fit(fresh, few_digits, replace(SHORT, lr=0.1), fabric=fabric, directory=tmp_path)
    state = tmp_path / "train.state"
    state.write_bytes(state.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"train\.state is damaged; delete it"):
        fit(fresh, few_digits, SHORT, fabric=fabric, directory=tmp_path)


def test_the_given_model_is_not_trained_but_the_copy_learns(fresh, few_digits, fabric):
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    trained = fit(fresh, few_digits, replace(SHORT, epochs=12), fabric=fabric)
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())
    assert evaluate(trained, few_digits, "val").accuracy > 0.2 > evaluate(fresh, few_digits, "val").accuracy


def test_the_best_epoch_on_the_validation_split_is_kept(fresh, few_digits, fabric, tmp_path):
    trained = fit(fresh, few_digits, replace(SHORT, epochs=6, lr=0.5), fabric=fabric, directory=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "train.metrics.jsonl").read_text().splitlines()]
    assert evaluate(trained, few_digits, "val").accuracy == pytest.approx(max(line["val"] for line in lines))


def test_finetune_keeps_the_mask_and_uses_its_teacher(trained, few_digits, fabric):
    small = linearize(trained, METHODS["autorep"](search_epochs=1, lr=0.05), "10%", few_digits, fabric=fabric)
    tuned = finetune(small, few_digits, SHORT, teacher=trained, fabric=fabric)
    assert tuned.mask == small.mask
    assert not same_weights(tuned, small)
    constants = [a.c2 for a in tuned.masked()], [a.c2 for a in small.masked()]
    assert any(not torch.equal(one, two) for one, two in zip(*constants, strict=True))
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert not same_weights(finetune(small, few_digits, SHORT, teacher=other, fabric=fabric), tuned)


def test_evaluation_counts_and_leaves_the_mode(trained, digits):
    trained.train()
    found = evaluate(trained, digits, "val")
    assert trained.training
    trained.eval()
    with torch.no_grad():
        right = (trained(digits.val.inputs(slice(None))).argmax(1) == digits.val.labels).sum()
    assert found == Evaluation("digits", "val", int(right), len(digits.val), (1, 8, 8))
    assert evaluate(lambda images: trained(images), digits, "val") == found
    with pytest.raises(UsageError, match="unknown split 'train'; expected val or test"):
        evaluate(trained, digits, "train")


def test_training_never_reads_the_test_split(fresh, without_test, fabric):
    assert fit(fresh, without_test, replace(SHORT, epochs=1), fabric=fabric)


def test_distillation_is_the_scaled_divergence():
    student, teacher = torch.randn(4, 7), torch.randn(4, 7)
    p, q = torch.softmax(teacher / 4, 1), torch.softmax(student / 4, 1)
    torch.testing.assert_close(distillation(student, teacher, 4.0), 16 * (p * (p / q).log()).sum(1).mean())
    assert float(distillation(teacher, teacher, 4.0)) == pytest.approx(0, abs=1e-5)


def test_the_rate_warms_up_and_ends_at_zero():
    assert rate(0.0, 0.1) == 0
    assert rate(0.05, 0.1) == pytest.approx(0.5)
    assert rate(0.1, 0.1) == 1
    assert rate(0.55, 0.1) == pytest.approx(0.5)
    assert rate(0.9999, 0.1) < 1e-6


def test_weight_decay_spares_norms_biases_and_surrogates(trained, few_digits, fabric):
    small = linearize(trained, METHODS["autorep"](search_epochs=1), "10%", few_digits, fabric=fabric)
    decayed, rest = parameter_groups(small, 5e-4)
    assert all(p.dim() > 1 for p in decayed["params"])
    assert {id(c) for c in small.constants()} <= {id(p) for p in rest["params"]}
    assert len(decayed["params"]) + len(rest["params"]) == len(list(small.parameters()))


def test_logits_of_several_outputs():
    scores = torch.zeros(2, 3)
    assert logits((scores, None)) is scores
    assert logits({"scores": scores, "features": None}) is scores


def test_impossible_settings_are_refused():
    with pytest.raises(UsageError, match="epochs is 0, expected a value above zero"):
        Training(epochs=0)
    with pytest.raises(UsageError, match="ema is"):
        Training(ema=1.5)
    with pytest.raises(UsageError, match="unknown device 'tpu'"):
        make_fabric(device="tpu")


def test_statistics_of_batch_norm_are_those_of_the_data(tiny, few_digits, fabric):
    modes = [module.training for module in tiny.modules()]
    weights = [parameter.detach().clone() for parameter in tiny.parameters()]
    reestimate_batch_norm(tiny, few_digits.train, fabric, images=10_000)
    with torch.no_grad():
        seen = tiny[0](few_digits.train.inputs(slice(None)))
    torch.testing.assert_close(tiny[1].running_mean, seen.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tiny[1].running_var, seen.transpose(0, 1).flatten(1).var(1), atol=1e-5, rtol=1e-4)
    assert tiny[1].momentum == 0.1
    assert [module.training for module in tiny.modules()] == modes
    assert all(torch.equal(one, two) for one, two in zip(weights, tiny.parameters(), strict=True))


def test_over_several_batches_statistics_are_their_mean(tiny, few_digits, fabric):
    reestimate_batch_norm(tiny, few_digits.train, fabric, images=256, batch=64)
    with torch.no_grad():
        seen = tiny[0](few_digits.train.inputs(slice(None)))
    torch.testing.assert_close(tiny[1].running_mean, seen.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tiny[1].running_var, seen.transpose(0, 1).flatten(1).var(1), atol=0.0, rtol=0.05)


def test_statistics_forgotten_by_a_mask_come_back_without_training(trained, few_digits, fabric):
    """Of a network whose statistics are wrong, the re-estimated ones give the accuracy back."""
    spoiled = copy.deepcopy(trained)
    for module in spoiled.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
    before = evaluate(spoiled, few_digits, "val").accuracy
    reestimate_batch_norm(spoiled, few_digits.train, fabric)
    after = evaluate(spoiled, few_digits, "val").accuracy
    assert before < 0.6 < evaluate(trained, few_digits, "val").accuracy - 0.1 < after


def test_a_finetune_may_start_with_them(tiny, few_digits, fabric):
    """With a momentum of statistics near zero, what the training starts from is what it ends with."""
    tiny[1].momentum = 1e-9
    fitted = fit(tiny, few_digits, Training(epochs=1, batch=128, lr=1e-9, batch_norm_images=256), fabric=fabric)
    with torch.no_grad():
        seen = tiny[0](few_digits.train.inputs(slice(None)))
    torch.testing.assert_close(fitted[1].running_mean, seen.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tiny[1].running_mean, torch.zeros(4))
