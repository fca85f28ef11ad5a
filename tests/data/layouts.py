"""Small files in the published layouts."""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def dump(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def write_cifar10(data: Path) -> Path:
    """Write two batches and a test batch, 3 images a class each; batch by batch, images are the rows of ``pixels``."""
    folder = data / "cifar-10-batches-py"
    images = pixels(90, 3072)
    for index, name in enumerate(("data_batch_1", "data_batch_2", "test_batch")):
        rows = images[30 * index : 30 * index + 30]
        dump(folder / name, {b"data": rows, b"labels": [label % 10 for label in range(30)]})
    dump(folder / "batches.meta", {b"label_names": [f"name {label}".encode() for label in range(10)]})
    return folder


def write_cifar100(data: Path) -> Path:
    """Write 2 training images and a test image a class."""
    folder = data / "cifar-100-python"
    for name, count in (("train", 200), ("test", 100)):
        fine = [label % 100 for label in range(count)]
        coarse = [label % 20 for label in fine]
        dump(folder / name, {b"data": pixels(count, 3072), b"fine_labels": fine, b"coarse_labels": coarse})
    dump(folder / "meta", {b"fine_label_names": [f"fine {label}".encode() for label in range(100)]})
    return folder


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def write_fashion(data: Path) -> Path:
    """Write 30 training images, gzipped, and 20 test images, plain."""
    folder = data / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count in (("train", 30), ("t10k", 20)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, values in (("images-idx3", pixels(count, 28, 28)), ("labels-idx1", labels)):
            raw = idx(values)
            if part == "train":
                (folder / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(raw))
            else:
                (folder / f"{part}-{name}-ubyte").write_bytes(raw)
    return folder


def picture(path: Path, shade: int, size: tuple[int, int] = (64, 64), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = shade if mode in ("L", "P", "I;16") else (shade, 10, 20) + (0,) * (mode == "RGBA")
    Image.new(mode, size, colour).save(path)


def write_tiny(data: Path) -> Path:
    """Write 25 classes, 2 training images and a val image each, of a shade of red that is 10 times the class number."""
    root = data / "tiny-imagenet-25"
    ids = [f"n{label:08}" for label in range(25)]
    for label, wnid in enumerate(ids):
        for index in range(2):
            picture(root / "train" / wnid / "images" / f"{wnid}_{index}.JPEG", 10 * label)
        picture(root / "val" / "images" / f"val_{label}.JPEG", 10 * label)
    lines = [f"val_{label}.JPEG\t{wnid}\t0\t0\t63\t63" for label, wnid in enumerate(ids)]
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (root / "wnids.txt").write_text("\n".join(reversed(ids)) + "\n")
    (root / "words.txt").write_text("".join(f"{wnid}\tname {wnid}, also called so\n" for wnid in ids[1:]))
    return root
