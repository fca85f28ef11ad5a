"""CIFAR batches: read as published, refused when damaged, and never run."""

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from layouts import dump, pixels, write_cifar10, write_cifar100

from reluctant.data.cifar import cifar10, cifar100
from reluctant.errors import DataError


def refused(data: Path) -> str:
    with pytest.raises(DataError) as caught:
        cifar10(data, download=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_cifar10_is_read_in_order(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    data = cifar10(tmp_path, download=False)
    rows = torch.from_numpy(pixels(90, 3072)).reshape(90, 3, 32, 32)
    assert torch.equal(data.images, rows[:60])
    assert torch.equal(data.test_images, rows[60:])
    assert data.labels.tolist() == [label % 10 for label in range(60)]
    assert data.classes[3] == "name 3"
    assert data.name == "cifar10"


def test_cifar10_takes_the_batches_that_are_there(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path)
    (folder / "data_batch_1").rename(folder / "data_batch_5")
    (folder / "data_batch_2").unlink()
    assert len(cifar10(tmp_path, download=False).labels) == 30
    (folder / "data_batch_5").unlink()
    assert f"{folder / 'data_batch_1'} is not there" in refused(tmp_path)


def test_cifar100_is_read_with_its_fine_labels(tmp_path: Path) -> None:
    write_cifar100(tmp_path)
    data = cifar100(tmp_path, download=False)
    assert data.images.shape == (200, 3, 32, 32)
    assert data.test_labels.tolist() == list(range(100))
    assert data.classes[99] == "fine 99"


def test_a_missing_file_says_where_it_should_be_and_how_to_get_it(tmp_path: Path) -> None:
    message = refused(tmp_path)
    assert str(tmp_path / "cifar-10-batches-py" / "batches.meta") in message
    for way_out in ("--data", "RELUCTANT_DATA", "--download"):
        assert way_out in message
    with pytest.raises(DataError, match=r"cifar100: .*cifar-100-python/meta is not there"):
        cifar100(tmp_path, download=False)


def text(value: str) -> bytes:
    return b"U" + bytes([len(value)]) + value.encode()


def python2_batch(images: np.ndarray, labels: list[int]) -> bytes:
    """What Python 2 wrote into the official files: strings where Python 3 writes bytes, at protocol 2."""
    rows, columns = images.shape
    shape = b"(" + b"K\x01" + b"K" + bytes([rows]) + b"M" + struct.pack("<H", columns) + b"t"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text("b") + b"tR"
    dtype = b"cnumpy\ndtype\n(" + text("u1") + b"K\x00K\x01tR(K\x03" + text("|") + b"NNNJ" + b"\xff" * 4
    dtype += b"J" + b"\xff" * 4 + b"K\x00tb"
    raw = b"T" + struct.pack("<I", images.size) + images.tobytes()
    state = b"(K\x01" + shape[1:].replace(b"K\x01", b"(", 1) + dtype + b"\x89" + raw + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text("data") + array + state + text("labels") + numbers + b"u."


def test_the_pickles_of_python_2_are_read(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path)
    images = pixels(30, 3072)
    raw = python2_batch(images, [label % 10 for label in range(30)])
    assert np.array_equal(pickle.loads(raw, encoding="bytes")[b"data"], images)
    (folder / "test_batch").write_bytes(raw)
    data = cifar10(tmp_path, download=False)
    assert np.array_equal(data.test_images.numpy().reshape(30, 3072), images)


class Harm:
    """Asks to make a folder when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.place),)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path)
    dump(folder / "data_batch_1", {b"data": Harm(tmp_path / "harm"), b"labels": [0]})
    message = refused(tmp_path)
    assert "it asks for posix.mkdir" in message
    assert str(folder / "data_batch_1") in message
    assert not (tmp_path / "harm").exists()
    pickle.loads((folder / "data_batch_1").read_bytes())
    assert (tmp_path / "harm").exists()  # so the refusal above was what kept it away


@pytest.mark.parametrize(
    "raw",
    [
        b"cbuiltins\neval\n(U\x011tR.",
        b"cnumpy.f2py\nrun_main\n.",
        b"cnumpy\nload\n(U\x01xtR.",
        b"ccopyreg\n_reconstructor\n.",
        b"c_codecs\ndecode\n(U\x01xtR.",
        b"c_codecs\nencode\n(X\x01\x00\x00\x00xX\x03\x00\x00\x00hextR.",
        b"Pname\n.",
    ],
)
def test_nothing_but_data_is_read(raw: bytes, tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path)
    (folder / "test_batch").write_bytes(raw)
    assert f"{folder / 'test_batch'} is damaged or no CIFAR file" in refused(tmp_path)


def batch(**changes: object) -> dict[bytes, object]:
    return {b"data": pixels(4, 3072), b"labels": [0, 1, 2, 9]} | {k.encode(): v for k, v in changes.items()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (batch(labels=[0, 1, 2, 10]), "a label is 10, 0 to 9 are expected"),
        (batch(labels=[0, 1, -1, 3]), "a label is -1"),
        (batch(labels=[0, 1, 2]), "4 images, 3 labels"),
        (batch(labels=["a"] * 4), "labels is not a list of whole numbers"),
        (batch(labels=[True] * 4), "labels is not a list of whole numbers"),
        (batch(data=pixels(4, 3071)), "rows of 3,072 bytes"),
        (batch(data=pixels(3072)), "rows of 3,072 bytes"),
        (batch(data=np.zeros((4, 3072))), "its array is not one of bytes"),
        (batch(data=np.asfortranarray(pixels(4, 3072))), "its array is not one of bytes, row by row"),
        (batch(data=[1, 2]), "rows of 3,072 bytes"),
        ({b"data": pixels(4, 3072)}, "labels is not a list"),
        ([1], "it holds a list, a dict is expected"),
    ],
)
def test_a_batch_of_another_content_is_refused(content: object, message: str, tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path)
    dump(folder / "data_batch_2", content)
    assert message in refused(tmp_path)
    assert str(folder / "data_batch_2") in refused(tmp_path)


def test_a_batch_cut_short_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path)
    whole = (folder / "test_batch").read_bytes()
    for size in (0, 1, 5, 40, len(whole) // 2, len(whole) - 1):
        (folder / "test_batch").write_bytes(whole[:size])
        assert str(folder / "test_batch") in refused(tmp_path)


def test_wrong_names_are_refused(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path)
    for names in ([b"a"] * 9, ["a"] * 10, None):
        dump(folder / "batches.meta", {b"label_names": names})
        assert "label_names is not a list of 10 names" in refused(tmp_path)
