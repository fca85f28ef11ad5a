"""DReP's score: how far the average output of a neuron moves without its ReLU."""

import torch
from torch import nn

from reluctant.masked import attach
from reluctant.methods.drep import DReP
from reluctant.sites import find_sites
from reluctant.surrogates import Constant


def test_of_the_identity_it_is_the_average_output_with_the_relu_less_that_without(tiny, few_digits, make_job):
    masked = attach(tiny, find_sites(tiny, few_digits.example))
    (score,) = DReP(images=100, batch=50).scores(masked, make_job(masked, few_digits, 0.5)).values()
    with torch.no_grad():
        z = tiny.eval()[:2](few_digits.train.inputs(slice(100)))
    torch.testing.assert_close(score, (z.relu().mean(0) - z.mean(0)) / z.relu().mean())


def test_a_site_that_is_scaled_keeps_its_scores(tiny, few_digits, make_job):
    scaled = nn.Sequential(nn.Sequential(tiny[0], tiny[1]), *tiny[2:])
    masked = attach(scaled, find_sites(scaled, few_digits.example))
    job = make_job(masked, few_digits, 0.5)
    (before,) = DReP(images=64).scores(masked, job).values()
    nn.init.constant_(masked.model[0][1].weight, 7.0)
    (after,) = DReP(images=64).scores(masked, job).values()
    torch.testing.assert_close(before, after)


def test_a_relu_that_its_surrogate_equals_goes_first(tiny, few_digits, make_job):
    """A channel that is never positive is the constant zero, and nothing at all to an identity."""
    nn.init.constant_(tiny[1].bias, 0.0)
    tiny[1].bias.data[2] = -100.0
    sites = find_sites(tiny, few_digits.example)
    constant, identity = attach(tiny, sites, Constant()), attach(tiny, sites)
    job = make_job(identity, few_digits, 0.75)
    (keep,) = DReP(images=64).search(constant, job).values()
    assert keep.sum((1, 2)).tolist() == [64, 64, 0, 64]
    (keep,) = DReP(images=64).search(identity, job).values()
    assert int(keep[2].sum()) == 64
