"""SNIP's score is the slope of the batch's loss in the mask."""

import torch
import torch.nn.functional as F

from reluctant.blend import BlendedReLU
from reluctant.mask import grouped
from reluctant.masked import attach
from reluctant.methods.snip import SNIP
from reluctant.sites import find_sites
from reluctant.surrogates import Affine


def slope(tiny, activation, images, labels, m):
    """dL/dm at the site of ``tiny``, by automatic differentiation of a mask of ones."""
    y = BlendedReLU.apply(tiny[:2](images), m, *activation.terms())
    return torch.autograd.grad(F.cross_entropy(tiny[3:](y), labels), m)[0]


def test_the_score_is_the_slope_in_a_mask_of_ones(tiny, few_digits, make_job):
    tiny.eval()
    images, labels = few_digits.train.inputs(slice(64)), few_digits.train.labels[:64]
    sites = find_sites(tiny, few_digits.example)
    for masked in (attach(tiny, sites), attach(tiny, sites, Affine())):
        job = make_job(masked, few_digits, 0.5)
        (score,) = SNIP(images=64, batch=32).scores(masked, job).values()
        expected = slope(tiny, masked.masked()[0], images, labels, torch.ones(4, 8, 8, requires_grad=True))
        torch.testing.assert_close(score, expected.abs(), atol=1e-6, rtol=1e-3)


def test_a_group_has_one_entry_of_the_mask(tiny, few_digits, make_job):
    tiny.eval()
    images, labels = few_digits.train.inputs(slice(64)), few_digits.train.labels[:64]
    masked = attach(tiny, find_sites(tiny, few_digits.example))
    for granularity in ("channel", "spatial"):
        m = grouped(torch.ones(4, 8, 8), granularity).requires_grad_()
        expected = slope(tiny, masked.masked()[0], images, labels, m)
        method = SNIP(images=64, batch=64, granularity=granularity)
        (score,) = method.scores(masked, make_job(masked, few_digits, 0.5)).values()
        torch.testing.assert_close(score * (256 // m.numel()), expected.abs(), atol=1e-6, rtol=1e-3)
        mask = method.search(masked, make_job(masked, few_digits, 0.5))
        assert mask.kept == 128
