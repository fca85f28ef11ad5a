"""Fashion-MNIST in its IDX files, gzipped or plain.

Source: Xiao, Rasul, Vollgraf. Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms. 2017,
arXiv:1708.07747. The layout of an IDX file: two zero bytes, the type (8: bytes), the number of dimensions, each
dimension as a big-endian 32-bit number, the values.
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray

from reluctant.data.download import Source, fetch, missing
from reluctant.errors import DataError
from reluctant.task import Augmentation, Dataset

SITE = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion"
SOURCES = {
    "train-images-idx3-ubyte": Source(f"{SITE}/train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
    "train-labels-idx1-ubyte": Source(f"{SITE}/train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
    "t10k-images-idx3-ubyte": Source(f"{SITE}/t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
    "t10k-labels-idx1-ubyte": Source(f"{SITE}/t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
}
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"
)  # fmt: skip


def fashion_mnist(data: Path, *, download: bool) -> Dataset:
    """Return Fashion-MNIST from ``data/FashionMNIST/raw``: ``uint8 [N, 1, 28, 28]``, 10 classes.

    Raises:
        DataError: a file that is missing, damaged or of another content.
    """
    folder = data / "FashionMNIST" / "raw"
    for name, source in SOURCES.items():
        if download and not any(path.exists() for path in _places(folder, name)):
            fetch(source, folder / f"{name}.gz")
    images, labels = _pair(folder, "train")
    test_images, test_labels = _pair(folder, "t10k")
    return Dataset(
        name="fashion-mnist",
        images=images,
        labels=labels,
        test_images=test_images,
        test_labels=test_labels,
        classes=CLASSES,
        mean=(0.2860,),
        std=(0.3530,),
        # Crops and flips are what the data set's own table of results lists as usual; clothes fill the image to within
        # a few pixels, hence half of CIFAR's shift.
        augmentation=Augmentation(crop_padding=2, flip=True),
    )


def _places(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.gz", folder / name


def _pair(folder: Path, part: str) -> tuple[UInt8[torch.Tensor, "N 1 28 28"], Int64[torch.Tensor, "N"]]:
    image_path, images = _read(folder, f"{part}-images-idx3-ubyte", (28, 28))
    label_path, labels = _read(folder, f"{part}-labels-idx1-ubyte", ())
    if len(images) != len(labels) or not len(labels):
        raise DataError(f"{image_path} has {len(images):,} images, {label_path} has {len(labels):,} labels")
    if labels.max() >= len(CLASSES):
        raise DataError(f"{label_path} is damaged: a label is {labels.max()}, 0 to {len(CLASSES) - 1} are expected")
    return torch.from_numpy(images[:, None]), torch.from_numpy(labels.astype(np.int64))


def _read(folder: Path, name: str, item: tuple[int, ...]) -> tuple[Path, UInt8[NDArray[Any], "N *item"]]:
    """Return the file that was found and its values, each of shape ``item``."""
    path = next((path for path in _places(folder, name) if path.is_file()), None)
    if path is None:
        raise missing(folder / f"{name}.gz", "fashion-mnist")
    magic, size = bytes([0, 0, 8, 1 + len(item)]), 4 * (2 + len(item))
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(size)
            count, *shape = np.frombuffer(head[4:], ">u4").tolist() if len(head) == size else (0,)
            if head[:4] != magic or tuple(shape) != item:
                raise DataError(
                    f"{path} is no IDX file of {name}: it begins with {head.hex()}, {magic.hex()} is expected"
                )
            if count > 1_000_000:
                raise DataError(f"{path} is damaged: it claims {count:,} items")
            expected = count * math.prod(item)
            values = np.frombuffer(file.read(expected + 1), np.uint8)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if len(values) != expected:
        less = "more" if len(values) > expected else f"{len(values):,}"
        raise DataError(f"{path} is damaged: {count:,} items need {expected:,} bytes, it has {less}")
    return path, values.reshape(count, *item).copy()
