"""Bounds that hold: no value of any image in the range lies outside, in reals or in fixed point."""

import math

import numpy as np
import pytest
import torch
from drawn import draw_program
from hypothesis import given, settings
from hypothesis import strategies as st
from interpret import interpret

from reluctant.engines.twin import Twin
from reluctant.errors import UsageError
from reluctant.program.operations import OPS, Linear
from reluctant.program.ops import Program
from reluctant.program.ranges import bounds, seen

BOX = (-1.5, 2.0)


def images_of(seed, count=8):
    """Images in the box, half of them at its corners."""
    rng = np.random.default_rng(seed)
    inside = rng.uniform(*BOX, size=(count, 2, 6, 6))
    inside[::2] = rng.choice(BOX, size=inside[::2].shape)
    return torch.from_numpy(inside.astype(np.float32))


def outside(program, values, fraction_bits, box=BOX):
    """Return by how much the outputs ``values`` of ``program`` leave their bounds at most."""
    held = {name: interval for name, interval, _ in bounds(program, box, fraction_bits)}
    excess = []
    for name, value in zip(program.outputs, values, strict=True):
        value = torch.as_tensor(value).double()
        excess.append(torch.maximum(held[name].low - value, value - held[name].high).max())
    return max(excess)


def test_drawn_programs_have_every_operation():
    assert {op.kind for seed in range(60) for op in draw_program(seed).ops} == set(OPS)


@given(st.integers(0, 2**32), st.sampled_from([4, 8, 18]))
@settings(max_examples=60, deadline=None)
def test_no_real_value_leaves_its_bounds(seed, fraction_bits):
    program = draw_program(seed)
    assert outside(program, interpret(program, images_of(seed)), fraction_bits) <= 1e-9


@pytest.mark.parametrize("box", [BOX, (0.3, 0.3)], ids=["box", "point"])
@pytest.mark.parametrize("seed", range(5))
def test_no_value_of_the_twin_leaves_its_bounds(seed, box):
    """With 8 fraction bits a truncation is off by 1/256; where the box is a point, bounds are that slack alone."""
    program, bits = draw_program(seed, length=3), 8
    images = images_of(seed, 16).clamp(*box).numpy()
    run = Twin(fraction_bits=bits).run(program, images)
    values = [run.outputs, *run.more_outputs]
    assert max(float(np.abs(v).max()) for v in values) < 2 ** (62 - 2 * bits)
    assert outside(program, values, bits, box) <= 1e-3
    if box[0] == box[1]:
        exact = interpret(program, torch.from_numpy(images))
        assert max(np.abs(v - e.numpy()).max() for v, e in zip(values, exact, strict=True)) > 1e-3


@given(st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_values_seen_are_those_of_the_program(seed):
    program, images = draw_program(seed), images_of(seed)
    found = {name: interval for name, interval, _ in seen(program, images.double(), 18)}
    for name, value in zip(program.outputs, interpret(program, images), strict=True):
        assert torch.equal(found[name].low, found[name].high)
        assert torch.allclose(found[name].low, value, rtol=1e-9, atol=1e-9)


@given(st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_no_image_reaches_further_than_the_bounds(seed):
    program = draw_program(seed)
    proven = [reach.bits for _, _, reach in bounds(program, BOX, 18)]
    measured = [reach.bits for _, _, reach in seen(program, images_of(seed).double(), 18)]
    assert all(one <= most for one, most in zip(measured, proven, strict=True))


def linear(weight):
    arrays = {"w": np.asarray(weight, np.float32)}
    op = Linear(output="y", inputs=("input",), weight="w")
    return Program((op,), (arrays["w"].shape[1],), ("y",), {"w": arrays["w"].shape}, (), arrays)


def test_corner_of_the_box_reaches_the_bound_of_one_linear_layer():
    weight = np.random.default_rng(0).normal(size=(3, 20)).astype(np.float32)
    program = linear(weight)
    (_, _, _), (_, interval, reach) = bounds(program, BOX, 18)
    corner = torch.from_numpy(np.where(weight[1] > 0, BOX[1], BOX[0]))[None]
    assert float(corner @ torch.from_numpy(weight[1]).double()) == pytest.approx(float(interval.high[0, 1]), rel=1e-4)
    corners = torch.from_numpy(np.concatenate([np.where(weight > 0, *BOX[::-1]), np.where(weight > 0, *BOX)]))
    (_, _, _), (_, _, measured) = seen(program, corners, 18)
    assert measured.bits == pytest.approx(reach.bits, abs=1e-3)
    assert measured.bits <= reach.bits


def test_a_product_stands_with_twice_the_fraction_before_it_is_truncated():
    (_, _, of_image), (_, interval, reach) = bounds(linear([[2.0] * 4]), (0.0, 1.0), 18)
    assert float(interval.high) == pytest.approx(8, abs=1e-3)
    assert reach.bits == pytest.approx(math.log2(8) + 36, abs=1e-3)
    assert reach.margin == pytest.approx(62 - 39, abs=1e-3)
    assert of_image.bits == pytest.approx(18, abs=1e-3)


def test_client_knows_no_bounds():
    with pytest.raises(UsageError, match="no arrays"):
        list(bounds(Program.from_public(linear([[1.0]]).public()), BOX, 18))
