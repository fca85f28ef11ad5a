"""The 1,797 scans of handwritten digits that come with scikit-learn: real data, 8x8, nothing to download."""

from pathlib import Path

import numpy as np
import torch

from reluctant.data.split import held_out_fifth
from reluctant.errors import UsageError
from reluctant.task import Augmentation, Dataset


def digits(data: Path, *, download: bool) -> Dataset:
    """Return the digits: ``uint8 [N, 1, 8, 8]``, 0 (paper) to 255 (ink), 10 classes.

    There is no official split; a fifth of each class is the test split, always the same one. No flip: a mirrored digit
    is another sign.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError("task 'digits' needs scikit-learn; run: pip install \"reluctant[digits]\"") from error
    scans = load_digits()
    images = torch.from_numpy(np.rint(scans.images[:, None] * (255 / 16)).astype(np.uint8))
    labels = torch.from_numpy(scans.target.astype(np.int64))
    classes = tuple(str(name) for name in scans.target_names)
    test = torch.from_numpy(held_out_fifth("digits", labels.numpy(), classes))
    return Dataset(
        name="digits",
        images=images[~test],
        labels=labels[~test],
        test_images=images[test],
        test_labels=labels[test],
        classes=classes,
        mean=(0.3053,),  # of all 1,797
        std=(0.3760,),
        augmentation=Augmentation(crop_padding=1),  # an eighth of the side, as on CIFAR
    )
