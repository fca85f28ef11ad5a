"""Fashion-MNIST's IDX files."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from layouts import idx, pixels, write_fashion

from reluctant.data.idx import fashion_mnist
from reluctant.errors import DataError


def refused(data: Path) -> str:
    with pytest.raises(DataError) as caught:
        fashion_mnist(data, download=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_gzipped_and_plain_files_are_read(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    data = fashion_mnist(tmp_path, download=False)
    assert torch.equal(data.images, torch.from_numpy(pixels(30, 28, 28))[:, None])
    assert data.labels.tolist() == [label % 10 for label in range(30)]
    assert data.test_images.shape == (20, 1, 28, 28)
    assert data.labels.dtype == torch.int64
    assert data.classes[9] == "Ankle boot"


def test_a_missing_file_says_where_it_should_be(tmp_path: Path) -> None:
    folder = write_fashion(tmp_path)
    (folder / "t10k-labels-idx1-ubyte").unlink()
    message = refused(tmp_path)
    assert f"{folder / 't10k-labels-idx1-ubyte.gz'} is not there" in message
    assert "--download" in message


GOOD = idx(pixels(20, 28, 28))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\0\0\x08\x02" + GOOD[4:], "begins with 00000802"),
        (b"\0\0\x0d\x03" + GOOD[4:], "begins with 00000d03"),
        (idx(pixels(20, 27, 28)), "is no IDX file"),
        (GOOD[:10], "is no IDX file"),
        (b"", "is no IDX file"),
        (GOOD[:-1], "20 items need 15,680 bytes, it has 15,679"),
        (GOOD + b"\0", "20 items need 15,680 bytes, it has more"),
        (idx(pixels(19, 28, 28)), "has 19 images"),
        (b"\0\0\x08\x03\xff\xff\xff\xff" + GOOD[8:], "it claims 4,294,967,295 items"),
    ],
)
def test_damaged_images_are_refused(raw: bytes, message: str, tmp_path: Path) -> None:
    path = write_fashion(tmp_path) / "t10k-images-idx3-ubyte"
    path.write_bytes(raw)
    assert message in refused(tmp_path)
    assert str(path) in refused(tmp_path)


def test_a_label_out_of_range_is_refused(tmp_path: Path) -> None:
    path = write_fashion(tmp_path) / "t10k-labels-idx1-ubyte"
    path.write_bytes(idx(np.full(20, 10, np.uint8)))
    assert f"{path} is damaged: a label is 10, 0 to 9 are expected" in refused(tmp_path)


def test_damaged_gzip_is_refused(tmp_path: Path) -> None:
    path = write_fashion(tmp_path) / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for raw in (whole[: len(whole) // 2], whole[:-4], bytes(flipped), b"not gzip at all, but long enough", b"\x1f\x8b"):
        path.write_bytes(raw)
        assert str(path) in refused(tmp_path)
    path.write_bytes(gzip.compress(b""))
    assert "is no IDX file" in refused(tmp_path)
