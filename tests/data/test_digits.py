"""The scans that come with scikit-learn, and the split that is the same for ever."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from reluctant.data.digits import digits
from reluctant.data.split import held_out_fifth
from reluctant.errors import DataError, UsageError

HERE = Path()


def test_the_digits_are_all_there() -> None:
    data = digits(HERE, download=False)
    assert data.images.shape == (1438, 1, 8, 8)
    assert data.test_images.shape == (359, 1, 8, 8)
    assert data.images.dtype == torch.uint8
    assert data.classes == tuple("0123456789")
    assert (int(data.images.min()), int(data.images.max())) == (0, 255)
    assert sorted(torch.bincount(data.test_labels).tolist()) == [35, 35, 36, 36, 36, 36, 36, 36, 36, 37]
    assert (data.augmentation.crop_padding, data.augmentation.flip) == (1, False)


def test_the_digits_are_normalised_by_their_own_mean_and_deviation() -> None:
    data = digits(HERE, download=False)
    ink = torch.cat([data.images, data.test_images]).double() / 255
    assert ink.mean().item() == pytest.approx(data.mean[0], abs=1e-3)
    assert ink.std().item() == pytest.approx(data.std[0], abs=1e-3)


def test_the_test_split_is_this_one_for_ever() -> None:
    data = digits(HERE, download=False)
    digest = hashlib.sha256(data.test_images.numpy().tobytes() + data.test_labels.numpy().astype("u1").tobytes())
    assert digest.hexdigest() == "b4d9559ae6fa18d2ccb45038932855df723c83fd96fdaad612292aad9eddf6db"


def test_the_digits_need_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UsageError, match=r'pip install "reluctant\[digits\]"'):
        digits(HERE, download=False)


def test_a_fifth_of_each_class_is_held_out() -> None:
    labels = np.array([0] * 10 + [1] * 3 + [2] * 50)
    held = held_out_fifth("x", labels, ("a", "b", "c"))
    assert np.bincount(labels[held]).tolist() == [2, 1, 10]
    assert np.array_equal(held, held_out_fifth("x", labels, ("a", "b", "c")))


def test_a_class_too_small_to_split_is_refused() -> None:
    with pytest.raises(DataError, match="class 'b' has 2 images; train, val and test need at least 3"):
        held_out_fifth("x", np.array([0, 0, 0, 1, 1]), ("a", "b"))
