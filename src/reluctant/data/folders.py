"""Folders of image files: Tiny-ImageNet as published, and anybody's ``train/<class>/*``."""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, UInt8
from numpy.typing import NDArray

from reluctant.data.download import Source, fetch_folder, missing
from reluctant.data.split import held_out_fifth
from reluctant.errors import DataError
from reluctant.task import Augmentation, Dataset

TINY_IMAGENET = Source("https://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de")
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
DEFAULT_SIZE = 64

# What was found in a folder: a file for each image, and the number of its class.
Files = tuple[list[Path], list[int]]


def tiny_imagenet(data: Path, *, download: bool) -> Dataset:
    """Return Tiny-ImageNet from ``data/tiny-imagenet-200``: ``uint8 [N, 3, 64, 64]``, 200 classes in order of ids.

    Where only ``data/tiny-imagenet-25`` is there, that part of it, by its own name. The labelled ``val`` images are the
    test split; those in ``test`` have no labels and are not read.

    Raises:
        DataError: a file that is missing, damaged or of another content, or too little memory.
    """
    whole = data / "tiny-imagenet-200"
    if download and not whole.exists():
        fetch_folder(TINY_IMAGENET, whole)
    if not whole.exists() and (data / "tiny-imagenet-25").exists():
        return tiny_imagenet_25(data, download=False)
    return _tiny("tiny-imagenet", whole)


def tiny_imagenet_25(data: Path, *, download: bool) -> Dataset:
    """Return 25 of the classes from ``data/tiny-imagenet-25``, a sample in the same layout.

    Raises:
        DataError: as :func:`tiny_imagenet` does.
    """
    return _tiny("tiny-imagenet-25", data / "tiny-imagenet-25")


def folder(data: Path, *, download: bool) -> Dataset:
    """Return the images in ``data/train/<class>/``, tested on ``data/test/<class>/`` or else ``data/val/<class>/``.

    Without either, a fifth of each class is the test split, always the same one. Without ``train``, the folders in
    ``data`` itself are the classes. Images become RGB squares, ``uint8 [N, 3, S, S]``: the short side is scaled to S,
    the middle cut out. S is the first image's short side but at most 64; ``data`` with ``@96`` behind it says 96.

    Raises:
        DataError: no images, one that cannot be read, a class with too few, or too little memory.
    """
    match = None if data.is_dir() else re.fullmatch(r"(.+)@([1-9]\d{0,4})", str(data))
    root = Path(match[1]) if match else data
    if not root.is_dir():
        raise DataError(f"{root} is not there; a folder with train/<class>/ and images in it is expected")
    tests = [root / part for part in ("test", "val") if (root / part).is_dir()]
    train = root if not tests and not (root / "train").is_dir() else root / "train"
    classes = tuple(sorted(path.name for path in train.glob("[!.]*") if path.is_dir()))
    if len(classes) < 2:
        raise DataError(f"{train} has {len(classes)} folders; at least 2 are expected, one a class")
    paths, labels = _labelled(train, classes)
    size = int(match[2]) if match else min(DEFAULT_SIZE, *_dimensions(paths[0]))
    if tests:
        test_paths, test_labels = _labelled(tests[0], classes)
    else:
        held = held_out_fifth(str(root), np.array(labels), classes)
        test_paths, test_labels = _where((paths, labels), held)
        paths, labels = _where((paths, labels), ~held)
    images, test_images = _decoded(str(root), [paths, test_paths], size)
    mean, std = _statistics(images)
    return Dataset(
        name=f"folder:{root.resolve()}@{size}",
        images=torch.from_numpy(images),
        labels=torch.tensor(labels),
        test_images=torch.from_numpy(test_images),
        test_labels=torch.tensor(test_labels),
        classes=classes,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        augmentation=Augmentation(crop_padding=size // 8, flip=True),  # an eighth of the side, as on CIFAR
    )


def _tiny(name: str, root: Path) -> Dataset:
    ids = sorted(_lines(root / "wnids.txt", name))
    number = {wnid: label for label, wnid in enumerate(ids)}
    words = dict(line.partition("\t")[::2] for line in _lines(root / "words.txt", name))
    train = _labelled(root / "train", tuple(ids))
    annotations = root / "val" / "val_annotations.txt"
    test: Files = ([], [])
    for line in _lines(annotations, name):
        file, wnid, *_ = [*line.split("\t"), ""]
        if wnid not in number:
            raise DataError(f"{annotations} is damaged: {file!r} has the class {wnid!r}, which wnids.txt has not")
        test[0].append(root / "val" / "images" / file)
        test[1].append(number[wnid])
    images, test_images = _decoded(name, [train[0], test[0]], 64)
    return Dataset(
        name=name,
        images=torch.from_numpy(images),
        labels=torch.tensor(train[1]),
        test_images=torch.from_numpy(test_images),
        test_labels=torch.tensor(test[1]),
        classes=tuple(words.get(wnid, wnid).partition(",")[0] for wnid in ids),
        mean=(0.480, 0.448, 0.398),  # of the 200 classes, as used with SNL and AutoReP
        std=(0.277, 0.269, 0.282),
        augmentation=Augmentation(crop_padding=4, flip=True),  # the same two papers' code
    )


def _lines(path: Path, task: str) -> list[str]:
    if not path.is_file():
        raise missing(path, task)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if not lines:
        raise DataError(f"{path} is damaged: it is empty")
    return lines


def _labelled(root: Path, classes: Sequence[str]) -> Files:
    """Return the images under ``root/<class>`` for each class, in order of class and path."""
    strange = sorted(path.name for path in root.glob("[!.]*") if path.is_dir() and path.name not in classes)
    if strange:
        raise DataError(f"{root} has a folder {strange[0]!r}, which is none of the {len(classes)} classes")
    files: Files = ([], [])
    for label, name in enumerate(classes):
        paths = sorted(path for path in (root / name).rglob("*") if path.suffix.lower() in SUFFIXES)
        if not paths:
            raise DataError(f"{root / name} holds no images ({', '.join(sorted(SUFFIXES))})")
        files[0].extend(paths)
        files[1].extend([label] * len(paths))
    return files


def _where(files: Files, chosen: Bool[NDArray[Any], "N"]) -> Files:
    pairs = [pair for pair, taken in zip(zip(*files, strict=True), chosen, strict=True) if taken]
    return [path for path, _ in pairs], [label for _, label in pairs]


def _dimensions(path: Path) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.size
    except Exception as error:  # a damaged image can fail in any way
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read as an image: {' '.join(str(error).split()) or type(error).__name__}")


def _decoded(name: str, groups: Sequence[Sequence[Path]], size: int) -> list[UInt8[NDArray[Any], "N 3 S S"]]:
    """Return an array for each group of files, decoded by several threads (Pillow lets go of the lock)."""
    # The training images are there twice for a moment, when val is carved from them.
    needed = 3 * size * size * (len(groups[0]) + sum(map(len, groups)))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory / 2:
        raise DataError(
            f"{name}: {sum(map(len, groups)):,} images of {size}x{size} need {needed / 2**30:.1f} GiB, more than half "
            f"of this machine's {memory / 2**30:.1f}; use fewer or smaller ones"
        )
    arrays = [np.empty((len(paths), 3, size, size), np.uint8) for paths in groups]
    jobs = [
        (path, array[index]) for paths, array in zip(groups, arrays, strict=True) for index, path in enumerate(paths)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(_decode, *zip(*jobs, strict=True)):
            pass
    return arrays


def _decode(path: Path, into: UInt8[NDArray[Any], "3 S S"]) -> None:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"its pixels have more than 8 bits (mode {image.mode}); convert it first")
            opaque = image.convert("RGBA") if "transparency" in image.info else image  # Pillow asks for this detour
            size = (into.shape[1], into.shape[2])
            square = ImageOps.fit(opaque.convert("RGB"), size, Image.Resampling.BILINEAR)
            into[:] = np.asarray(square).transpose(2, 0, 1)
    except Exception as error:  # a damaged image can fail in any way
        raise _unreadable(path, error) from error


def _statistics(
    images: UInt8[NDArray[Any], "N C H W"],
) -> tuple[Float64[NDArray[Any], "C"], Float64[NDArray[Any], "C"]]:
    """Return mean and deviation of each channel, scaled to [0, 1], to four digits."""
    counts = np.zeros((images.shape[1], 256), np.int64)
    for start in range(0, len(images), 256):
        for channel, count in enumerate(counts):
            count += np.bincount(images[start : start + 256, channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    mean = counts @ values / counts.sum(1)
    variance = counts @ values**2 / counts.sum(1) - mean**2
    return mean.round(4), np.sqrt(variance.clip(min=1 / 255**2)).round(4)
