"""The loop, the fit, the evaluation: interrupted or not, the result is the same, and the test split is left alone."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from reluctant.errors import CheckpointError, UsageError
from reluctant.linearization import linearize
from reluctant.methods import METHODS
from reluctant.models import load_model
from reluctant.task import Task
from reluctant.training import (
    Evaluation,
    Training,
    distillation,
    evaluate,
    finetune,
    fit,
    frozen,
    logits,
    make_fabric,
    parameter_groups,
    rate,
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
    "method", [METHODS["snl"](max_epochs=3, gate_lr=0.02, batch=64), METHODS["autorep"](search_epochs=3, batch=64)]
)
def test_a_search_killed_and_resumed_finds_the_same(trained, few_digits, fabric, tmp_path, method):
    whole = linearize(trained, method, "20%", few_digits, fabric=fabric)
    with pytest.raises(Killed):
        linearize(trained, method, "20%", few_digits, fabric=fabric, directory=tmp_path, progress=killed_at(7))
    resumed = linearize(trained, method, "20%", few_digits, fabric=fabric, directory=tmp_path)
    assert resumed.mask == whole.mask
    assert same_weights(whole, resumed)


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
    assert found == Evaluation("digits", "val", int(right), len(digits.val))
    assert evaluate(lambda images: trained(images), digits, "val") == found
    with pytest.raises(UsageError, match="unknown split 'train'; expected val or test"):
        evaluate(trained, digits, "train")


def test_training_never_reads_the_test_split(fresh, few_digits, fabric):
    class Blind(Task):
        @property
        def test(self):
            raise AssertionError("the test split was read")

        @test.setter
        def test(self, value):
            pass

    blind = object.__new__(Blind)
    blind.__dict__.update({key: value for key, value in vars(few_digits).items() if key != "test"})
    assert fit(fresh, blind, replace(SHORT, epochs=1), fabric=fabric)


def test_distillation_is_the_scaled_divergence():
    student, teacher = torch.randn(4, 7), torch.randn(4, 7)
    p, q = torch.softmax(teacher / 4, 1), torch.softmax(student / 4, 1)
    torch.testing.assert_close(distillation(student, teacher, 4.0), 16 * (p * (p / q).log()).sum(1).mean())
    assert float(distillation(teacher, teacher, 4.0)) == pytest.approx(0, abs=1e-5)


def test_a_teacher_has_no_gradients_and_is_a_copy(trained, few_digits, fabric):
    scores = frozen(trained, fabric)
    images = few_digits.val.inputs(slice(4)).requires_grad_()
    assert not scores(images).requires_grad
    assert any(p.requires_grad for p in trained.parameters())


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
