"""What is seen of a network's sites, and the attention maps made of it."""

import pytest
import torch

from reluctant.features import attention, attention_gap, stage_ends, watching
from reluctant.masked import attach
from reluctant.sites import find_sites
from reluctant.training import Training, fit


def test_the_outputs_of_sites_are_seen(trained, few_digits):
    masked = attach(trained, find_sites(trained, few_digits.example)).eval()
    with watching(masked, ["relu", "layer2.0.relu2"]) as seen:
        masked(few_digits.val.inputs(slice(4)))
    assert {name: tuple(value.shape[1:]) for name, value in seen.items()} == {
        name: masked.sites[name].shape for name in ("relu", "layer2.0.relu2")
    }
    assert float(seen["relu"].detach().min()) == 0
    seen.clear()
    masked(few_digits.val.inputs(slice(4)))
    assert not seen


def test_the_ends_of_stages_are_the_last_sites_of_each_size(trained, few_digits):
    sites = find_sites(trained, few_digits.example)
    assert stage_ends(sites) == ["layer1.0.relu2", "layer2.0.relu2", "layer3.0.relu2"]


def test_attention_does_not_see_scale_and_is_nothing_for_equals():
    maps = torch.rand(3, 5, 4, 4)
    assert torch.allclose(attention(maps).norm(dim=1), torch.ones(3))
    assert float(attention_gap({"a": maps}, {"a": maps})) == 0
    assert float(attention_gap({"a": 7 * maps}, {"a": maps})) == pytest.approx(0, abs=1e-9)
    assert float(attention_gap({"a": torch.rand(3, 5, 4, 4)}, {"a": maps})) > 1e-4


def test_attention_teaches(trained, few_digits, fabric):
    """The gap that a finetune leaves is smaller where the finetune minds it."""
    from reluctant.linearization import linearize
    from reluctant.methods.random import Random

    small = linearize(trained, Random(), "10%", few_digits, fabric=fabric)
    images, ends = few_digits.train.inputs(slice(128)), stage_ends(small.sites)
    dense = attach(trained, small.sites).eval()
    gaps = []
    for weight in (0.0, 1000.0):
        tuned = fit(small, few_digits, Training(epochs=20, lr=0.02, attention=weight), teacher=trained, fabric=fabric)
        with torch.no_grad(), watching(tuned.eval(), ends) as one, watching(dense, ends) as two:
            tuned(images), dense(images)
        gaps.append(float(attention_gap(one, two)))
    assert gaps[1] < 0.8 * gaps[0]
