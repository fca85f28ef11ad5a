"""The fixed-point twin against torch, and what it counts."""

import numpy as np
import pytest
import torch
from small import masked_small
from torch import nn

from reluctant.engines.steps import steps
from reluctant.engines.twin import Twin
from reluctant.errors import ShapeError, UsageError
from reluctant.program.lower import lower
from reluctant.program.ops import Program
from reluctant.surrogates import Affine, Constant, Identity, Quadratic, Reciprocal, Shift


def run_both(masked, images, **settings):
    program = lower(masked)
    with torch.no_grad():
        expected = masked(torch.from_numpy(images)).numpy()
    return Twin().run(program, images, **settings), expected, program


@pytest.mark.parametrize(
    "surrogate", [Identity(), Shift(), Constant(), Reciprocal(), Affine(), Quadratic()], ids=lambda s: s.name
)
@pytest.mark.parametrize("kept", [(1.0, 1.0), (0.1, 0.3), (0.0, 0.2), (0.0, 0.0)])
def test_twin_is_torch_to_fixed_point(small_images, surrogate, kept):
    run, expected, program = run_both(masked_small(kept, surrogate), small_images)
    assert run.outputs.shape == expected.shape
    assert np.abs(run.outputs - expected).max() < 2e-3
    assert (run.outputs.argmax(1) == expected.argmax(1)).all()
    assert run.comparisons == program.kept * len(small_images)
    assert run.pool_comparisons == 0


@pytest.mark.parametrize("batch", [1, 3, 4, 9])
def test_batches_do_not_change_the_answer(small_program, small_images, batch):
    run = Twin().run(small_program, small_images, batch=batch)
    assert np.abs(run.outputs - Twin().run(small_program, small_images).outputs).max() < 1e-4
    assert run.images == 4
    assert run.batch == {1: 1, 3: 2, 4: 4, 9: 4}[batch]
    assert run.comparisons == 4 * small_program.kept


def test_comparisons_of_each_site_are_counted_from_what_ran(small_program, small_images):
    run = Twin().run(small_program, small_images)
    assert [(site.name, site.kept, site.comparisons) for site in run.by_site] == [
        (site.name, site.kept, 4 * site.kept) for site in small_program.sites
    ]


def test_site_with_nothing_kept_compares_nothing(small_images):
    program = lower(masked_small((0.0, 0.5)))
    assert [step.part for step in steps(program)].count("comparison") == 1
    run = Twin().run(program, small_images)
    assert [site.comparisons for site in run.by_site] == [0, 4 * 128]


class Pooled(nn.Module):
    def __init__(self, kernel, stride, padding):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(kernel, stride, padding)

    def forward(self, x):
        return self.pool(torch.relu(self.conv(x)) - 1.0).flatten(1)


@pytest.mark.parametrize(
    ("window", "comparisons"),
    [
        ((2, 2, 0), 4 * (8 * 4 + 4 * 4)),
        ((3, 2, 1), 4 * (2 * 8 * 4 + 2 * 4 * 4)),
        ((3, 1, 0), 4 * (2 * 8 * 6 + 2 * 6 * 6)),
    ],
)
def test_max_pool_is_exact_and_counted_apart(small_images, window, comparisons):
    run, expected, program = run_both(masked_small((1.0,), model=Pooled(*window)), small_images)
    assert np.abs(run.outputs - expected).max() < 2e-3
    assert run.comparisons == 4 * program.kept
    assert run.pool_comparisons == 4 * comparisons


class Grouped(nn.Module):
    def __init__(self, groups):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.conv = nn.Conv2d(8, 16, 3, stride=2, padding=2, dilation=2, groups=groups)
        self.pool = nn.AvgPool2d(2, 1, padding=1)

    def forward(self, x):
        return self.pool(torch.relu(self.conv(torch.relu(self.stem(x))))).flatten(1)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_groups_strides_dilation_and_padded_means(small_images, groups):
    run, expected, _ = run_both(masked_small((1.0, 0.5), model=Grouped(groups)), small_images)
    assert np.abs(run.outputs - expected).max() < 2e-3


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        x = torch.relu(self.conv(x))
        return {"scores": x.mean((2, 3)), "map": x * 2}


def test_two_outputs(small_images):
    masked = masked_small((0.5,), model=TwoOutputs())
    run = Twin().run(lower(masked), small_images)
    with torch.no_grad():
        expected = masked(torch.from_numpy(small_images))
    assert np.abs(run.outputs - expected["scores"].numpy()).max() < 2e-3
    (more,) = run.more_outputs
    assert np.abs(more - expected["map"].numpy()).max() < 2e-3


def test_what_cannot_run_is_refused(small_program, small_images):
    with pytest.raises(ShapeError, match=r"images have the shape \(4, 8, 8, 3\), the program takes .* \(3, 8, 8\)"):
        Twin().run(small_program, small_images.transpose(0, 2, 3, 1))
    with pytest.raises(ShapeError, match="not finite"):
        Twin().run(small_program, np.full_like(small_images, np.nan))
    with pytest.raises(ShapeError):
        Twin().run(small_program, small_images[:0])
    with pytest.raises(UsageError, match="batch is 0"):
        Twin().run(small_program, small_images, batch=0)
    with pytest.raises(UsageError, match="no arrays"):
        Twin().run(Program.from_public(small_program.public()), small_images)


def test_spu_missing_is_said(small_program, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'pip install "reluctant\[secure\]"'):
        Twin().check(small_program)


def test_python_without_spu_is_said(small_program, monkeypatch):
    monkeypatch.setattr("sys.version_info", type("V", (tuple,), {"major": 3, "minor": 12})((3, 12)))
    with pytest.raises(UsageError, match=r"no build for Python 3\.12"):
        Twin().check(small_program)
