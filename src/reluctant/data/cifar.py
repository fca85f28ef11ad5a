"""CIFAR-10 and CIFAR-100 in their "python version": pickles, read without running any of them.

Source: Krizhevsky. Learning Multiple Layers of Features from Tiny Images. University of Toronto, 2009.
"""

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray

from reluctant.data.download import Source, fetch_folder, missing
from reluctant.errors import DataError
from reluctant.task import Augmentation, Dataset

SITE = "https://www.cs.toronto.edu/~kriz"
CIFAR10 = Source(f"{SITE}/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a")
CIFAR100 = Source(f"{SITE}/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85")
AUGMENTATION = Augmentation(crop_padding=4, flip=True)  # He et al. 2016, section 4.2, and nearly everyone since


def cifar10(data: Path, *, download: bool) -> Dataset:
    """Return CIFAR-10 from ``data/cifar-10-batches-py``: ``uint8 [N, 3, 32, 32]``, 10 classes.

    Training images are those of all ``data_batch_*`` files that are there, at least one of the official five.

    Raises:
        DataError: a file that is missing, damaged or of another content.
    """
    folder = data / "cifar-10-batches-py"
    if download and not folder.exists():
        fetch_folder(CIFAR10, folder)
    classes = _names(folder / "batches.meta", b"label_names", 10)
    paths = sorted(folder.glob("data_batch_[1-5]"))
    if not paths:
        raise missing(folder / "data_batch_1", "cifar10")
    images, labels = zip(*(_batch(path, b"labels", 10) for path in paths), strict=True)
    test_images, test_labels = _batch(folder / "test_batch", b"labels", 10)
    return Dataset(
        name="cifar10",
        images=torch.from_numpy(np.concatenate(images)),
        labels=torch.from_numpy(np.concatenate(labels)),
        test_images=torch.from_numpy(test_images),
        test_labels=torch.from_numpy(test_labels),
        classes=classes,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),  # of all pixels; the common (0.2023, ...) is a mean of one deviation an image
        augmentation=AUGMENTATION,
    )


def cifar100(data: Path, *, download: bool) -> Dataset:
    """Return CIFAR-100 from ``data/cifar-100-python``: ``uint8 [N, 3, 32, 32]``, the 100 fine classes.

    Raises:
        DataError: a file that is missing, damaged or of another content.
    """
    folder = data / "cifar-100-python"
    if download and not folder.exists():
        fetch_folder(CIFAR100, folder)
    classes = _names(folder / "meta", b"fine_label_names", 100)
    images, labels = _batch(folder / "train", b"fine_labels", 100)
    test_images, test_labels = _batch(folder / "test", b"fine_labels", 100)
    return Dataset(
        name="cifar100",
        images=torch.from_numpy(images),
        labels=torch.from_numpy(labels),
        test_images=torch.from_numpy(test_images),
        test_labels=torch.from_numpy(test_labels),
        classes=classes,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        augmentation=AUGMENTATION,
    )


class _Dtype:
    """Stands for ``numpy.dtype`` while a pickle is read: remembers which one was meant."""

    def __init__(self, code: bytes | str, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Byte order and field names say nothing about bytes."""


class _Array:
    """Stands for ``numpy.ndarray`` while a pickle is read: takes bytes and a shape, and nothing else.

    NumPy's own ``__setstate__`` trusts what it is given; a made-up dtype can make it read memory that is not its own.
    """

    values: UInt8[NDArray[Any], "..."]

    def __init__(self, *_: object) -> None:
        self.values = np.zeros(0, np.uint8)

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Dtype, bool, bytes]) -> None:
        _, shape, dtype, column_major, raw = state
        if dtype.code not in (b"u1", "u1") or column_major or len(raw) != math.prod(shape):
            raise pickle.UnpicklingError("its array is not one of bytes, row by row")
        self.values = np.frombuffer(raw, np.uint8).reshape(shape)


def _latin1(text: str, encoding: str) -> bytes:
    """Stand for ``_codecs.encode``, with which newer pickles of protocol 2 write bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"its bytes are encoded as {encoding!r}")
    return text.encode("latin1")


ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle.Unpickler):
    """Builds lists, dicts, numbers, strings, bytes and arrays of bytes; whatever else a pickle asks for is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file has; nothing of it was run")
        return ALLOWED[module, name]


def _unpickle(path: Path) -> dict[bytes, Any]:
    if not path.is_file():
        raise missing(path, "cifar100" if path.parent.name == "cifar-100-python" else "cifar10")
    try:
        with path.open("rb") as file:
            content = _Unpickler(file, encoding="bytes").load()
    except Exception as error:  # a damaged pickle can fail in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is damaged or no CIFAR file: {reason}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is no CIFAR file: it holds a {type(content).__name__}, a dict is expected")
    return content


def _names(path: Path, key: bytes, count: int) -> tuple[str, ...]:
    names = _unpickle(path).get(key)
    if not isinstance(names, list) or len(names) != count or not all(isinstance(name, bytes) for name in names):
        raise DataError(f"{path} is damaged: {key.decode()} is not a list of {count} names")
    return tuple(name.decode("utf-8", "replace") for name in names)


def _batch(path: Path, key: bytes, classes: int) -> tuple[UInt8[NDArray[Any], "N 3 32 32"], Int64[NDArray[Any], "N"]]:
    content = _unpickle(path)
    data, labels = content.get(b"data"), content.get(key)
    if not isinstance(data, _Array) or data.values.ndim != 2 or data.values.shape[1] != 3072:
        raise DataError(f"{path} is damaged: data is not an array of rows of 3,072 bytes")
    images = data.values
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{path} is damaged: {key.decode()} is not a list of whole numbers")
    if len(labels) != len(images) or not labels:
        raise DataError(f"{path} is damaged: {len(images):,} images, {len(labels):,} labels")
    wrong = [label for label in labels if not 0 <= label < classes]
    if wrong:
        raise DataError(f"{path} is damaged: a label is {wrong[0]}, 0 to {classes - 1} are expected")
    return images.reshape(-1, 3, 32, 32).copy(), np.array(labels, np.int64)
