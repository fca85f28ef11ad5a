"""Where the ring ends: what the certificate takes for its bound, measured with the engines themselves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small import masked_small

from reluctant.engines.cheetah import Cheetah
from reluctant.engines.twin import Twin
from reluctant.errors import UsageError
from reluctant.program.operations import Linear
from reluctant.program.ops import Program
from reluctant.program.ranges import LARGEST_BITS
from reluctant.secure import secure_run

SHARES = (0.97, -0.97, 1.9, -1.9)


def products():
    """A program whose products stand at ``SHARES`` of the largest number, before they are truncated."""
    weight = np.asarray([[share * 2.0 ** (LARGEST_BITS - 36 - 12)] for share in SHARES], np.float32)
    op = Linear(output="y", inputs=("input",), weight="w")
    return Program((op,), (1,), ("y",), {"w": weight.shape}, (), {"w": weight})


def wrong(engine):
    images = np.full((64, 1), 2.0**12, np.float32)
    found = engine.run(products(), images, batch=64).outputs
    expected = np.asarray(SHARES) * 2.0 ** (LARGEST_BITS - 36)
    return (np.abs(found - expected) > 1e-3 * np.abs(expected)).sum(0)


@pytest.mark.secure
def test_cheetah_is_right_below_the_bound_and_wrong_above_it():
    below, above = np.split(wrong(Cheetah()), 2)
    assert (below == 0).all()
    assert (above > 10).all()  # of 64, by chance about half


def test_twin_does_not_see_what_overflows_under_cheetah():
    assert (wrong(Twin()) == 0).all()


def test_run_that_would_overflow_is_refused_before_it_starts():
    masked, images = masked_small((0.5, 0.5)), torch.randn(2, 3, 8, 8)
    secure_run(masked, images, engine="twin")
    with pytest.raises(UsageError, match="overflow the fixed point: conv2d 'convolution' reaches"):
        secure_run(masked, 2.0**27 * images, engine="twin")
    with pytest.raises(UsageError, match="with 31 fraction bits"):
        secure_run(masked, images, engine=Twin(fraction_bits=31))


def test_run_says_what_was_proven():
    masked, images = masked_small((0.5, 0.5)), torch.randn(2, 3, 8, 8).clamp(-2, 2)
    run = secure_run(masked, images, engine="twin", input_range=(-2.0, 3.0))
    assert run.certificate.certified
    assert run.certificate.input_range == (-2.0, 3.0)
    with pytest.raises(UsageError, match=r"values outside of \[-2, 1\]"):
        secure_run(masked, images, engine="twin", input_range=(-2.0, 1.0))


def test_image_at_the_edges_of_the_range_passes(small_program):
    box = (-1.9894736, 2.126488447189331)
    images = np.full((1, 3, 8, 8), box[1], np.float32)
    images[0, 0] = box[0]
    assert len(Twin().run(replace(small_program, input_range=box), images).outputs) == 1
