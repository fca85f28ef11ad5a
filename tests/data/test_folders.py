"""Folders of image files."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from layouts import picture, write_tiny
from PIL import Image

from reluctant.data import folders
from reluctant.data.folders import folder, tiny_imagenet, tiny_imagenet_25
from reluctant.errors import DataError
from reluctant.task import Dataset


def reds(images: torch.Tensor) -> list[int]:
    return images[:, 0].float().mean((1, 2)).round().int().tolist()


def refused(data: Path) -> str:
    with pytest.raises(DataError) as caught:
        folder(data, download=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(root: Path, *, suffix: str = "png", size: tuple[int, int] = (20, 16), count: int = 3) -> Path:
    """Write classes ``cat`` (red 50) and ``dog`` (red 150), ``count`` images each."""
    for name, shade in (("cat", 50), ("dog", 150)):
        for index in range(count):
            picture(root / name / f"{index}.{suffix}", shade, size)
    return root


def test_tiny_imagenet_is_read_by_ids_in_order(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    data = tiny_imagenet(tmp_path, download=False)
    assert data.name == "tiny-imagenet-25"
    assert data.images.shape == (50, 3, 64, 64)
    assert data.labels.tolist() == [label for label in range(25) for _ in range(2)]
    assert max(abs(red - 10 * label) for red, label in zip(reds(data.images), data.labels, strict=True)) <= 2
    assert max(abs(r - 10 * label) for r, label in zip(reds(data.test_images), data.test_labels, strict=True)) <= 2
    assert data.classes[:2] == ("n00000000", "name n00000001")


def test_the_whole_tiny_imagenet_comes_first(tmp_path: Path) -> None:
    (tmp_path / "tiny-imagenet-200").mkdir()
    write_tiny(tmp_path)
    with pytest.raises(DataError, match=r"tiny-imagenet: .*tiny-imagenet-200/wnids.txt is not there"):
        tiny_imagenet(tmp_path, download=False)
    write_tiny(tmp_path / "elsewhere").rename(tmp_path / "tiny-imagenet-200" / "x")
    (tmp_path / "tiny-imagenet-200" / "x").rename(tmp_path / "whole")
    (tmp_path / "tiny-imagenet-200").rmdir()
    (tmp_path / "whole").rename(tmp_path / "tiny-imagenet-200")
    assert tiny_imagenet(tmp_path, download=False).name == "tiny-imagenet"
    assert tiny_imagenet_25(tmp_path, download=False).name == "tiny-imagenet-25"


def test_a_missing_tiny_imagenet_says_where_it_should_be(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tiny-imagenet-200/wnids.txt is not there.*--data.*--download"):
        tiny_imagenet(tmp_path, download=False)


@pytest.mark.parametrize(
    ("path", "raw", "message"),
    [
        ("val/val_annotations.txt", b"val_0.JPEG\tn99\t0\t0\t1\t1\n", "has the class 'n99', which wnids.txt has not"),
        ("val/val_annotations.txt", b"val_0.JPEG\n", "has the class ''"),
        ("val/val_annotations.txt", b"absent.JPEG\tn00000001\n", "absent.JPEG cannot be read as an image"),
        ("val/val_annotations.txt", b"\xff\xfe", "is damaged"),
        ("wnids.txt", b"", "it is empty"),
        ("wnids.txt", b"n00000000\n", "has a folder 'n00000001', which is none of the 1 classes"),
        ("train/n00000003/images/n00000003_0.JPEG", b"", "n00000003_0.JPEG cannot be read as an image"),
    ],
)
def test_damaged_tiny_imagenet_is_refused(path: str, raw: bytes, message: str, tmp_path: Path) -> None:
    (write_tiny(tmp_path) / path).write_bytes(raw)
    with pytest.raises(DataError, match=r"^[^\n]+$") as caught:
        tiny_imagenet(tmp_path, download=False)
    assert message in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "JPG", "jpeg", "webp", "bmp"])
def test_images_of_any_kind_are_read(suffix: str, tmp_path: Path) -> None:
    write(tmp_path / "train", suffix=suffix)
    data = folder(tmp_path, download=False)
    assert data.images.shape == (4, 3, 16, 16)
    assert all(abs(red - (50, 150)[label]) <= 2 for red, label in zip(reds(data.images), data.labels, strict=True))


@pytest.mark.parametrize("part", ["test", "val"])
def test_the_test_images_stand_beside_train(part: str, tmp_path: Path) -> None:
    write(tmp_path / "train")
    write(tmp_path / part, count=1)
    data = folder(tmp_path, download=False)
    assert (len(data.labels), data.test_labels.tolist()) == (6, [0, 1])
    assert data.classes == ("cat", "dog")


def test_test_is_taken_before_val(tmp_path: Path) -> None:
    write(tmp_path / "train")
    write(tmp_path / "test", count=1)
    write(tmp_path / "val", count=2)
    assert len(folder(tmp_path, download=False).test_labels) == 2


def test_without_a_test_folder_a_fifth_is_held_out(tmp_path: Path) -> None:
    write(tmp_path / "train", count=10)
    first, again = folder(tmp_path, download=False), folder(tmp_path, download=False)
    assert torch.bincount(first.test_labels).tolist() == [2, 2]
    assert torch.bincount(first.labels).tolist() == [8, 8]
    assert torch.equal(first.test_images, again.test_images)


def test_folders_may_be_the_classes_themselves(tmp_path: Path) -> None:
    write(tmp_path)
    assert folder(tmp_path, download=False).classes == ("cat", "dog")


def striped(width: int, height: int) -> Image.Image:
    """Green in the middle square, red on both sides of it."""
    image = Image.new("RGB", (width, height), (255, 0, 0))
    side = min(width, height)
    image.paste((0, 255, 0), ((width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2))
    return image


@pytest.mark.parametrize("size", [(300, 100), (100, 300)])
def test_the_middle_square_is_cut_out(size: tuple[int, int], tmp_path: Path) -> None:
    write(tmp_path / "train", count=3)
    write(tmp_path / "test", count=1)
    striped(*size).save(tmp_path / "test" / "cat" / "0.png")
    image = folder(tmp_path, download=False).test_images[0]
    assert image.shape == (3, 16, 16)
    assert image[1].float().mean() > 250
    assert image[0].float().mean() < 5


def test_an_image_of_the_right_size_is_not_touched(tmp_path: Path) -> None:
    write(tmp_path / "train", size=(16, 16))
    write(tmp_path / "test", count=1)
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "test" / "cat" / "0.png")
    image = folder(tmp_path, download=False).test_images[0]
    assert np.array_equal(image.numpy(), noise.transpose(2, 0, 1))


def test_grey_palette_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    write(tmp_path / "train", count=3)
    for index, mode in enumerate(("L", "P", "RGBA")):
        picture(tmp_path / "test" / "cat" / f"{index}.png", 50, (16, 16), mode)
    picture(tmp_path / "test" / "dog" / "0.png", 50, (16, 16))
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([50, 60, 70] * 256)
    palette.save(tmp_path / "test" / "dog" / "1.png", transparency=bytes([0] * 256))
    data = folder(tmp_path, download=False)
    assert data.test_images[0, :, 0, 0].tolist() == [50, 50, 50]
    assert data.test_images[2, :, 0, 0].tolist() == [50, 10, 20]
    assert data.test_images[4, :, 0, 0].tolist() == [50, 60, 70]


@pytest.mark.parametrize(("size", "side"), [((20, 16), 16), ((64, 64), 64), ((100, 90), 64)])
def test_the_side_is_that_of_the_first_image_but_64_at_most(size: tuple[int, int], side: int, tmp_path: Path) -> None:
    write(tmp_path / "train", size=size)
    assert folder(tmp_path, download=False).images.shape[2:] == (side, side)


def test_the_side_can_be_said_and_is_in_the_name(tmp_path: Path) -> None:
    write(tmp_path / "train")
    data = folder(Path(f"{tmp_path}@24"), download=False)
    assert data.images.shape[2:] == (24, 24)
    assert data.name == f"folder:{tmp_path.resolve()}@24"
    assert folder(tmp_path, download=False).name == f"folder:{tmp_path.resolve()}@16"


def test_a_folder_whose_own_name_ends_like_a_side_is_read(tmp_path: Path) -> None:
    write(tmp_path / "pets@24" / "train")
    data = folder(tmp_path / "pets@24", download=False)
    assert data.images.shape[2:] == (16, 16)
    assert folder(Path(data.name.removeprefix("folder:")), download=False).images.shape[2:] == (16, 16)


def test_mean_and_deviation_are_those_of_the_training_pixels(tmp_path: Path) -> None:
    write(tmp_path / "train")
    write(tmp_path / "test", count=1)
    picture(tmp_path / "test" / "cat" / "0.png", 255)
    data: Dataset = folder(tmp_path, download=False)
    pixels = data.images.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-4)
    assert data.std[0] == pytest.approx(pixels[:, 0].std(correction=0).item(), abs=1e-4)
    assert data.std[1] == pytest.approx(1 / 255, abs=1e-4)  # a channel that never changes must not divide by zero


def test_what_cannot_be_a_data_set_is_refused(tmp_path: Path) -> None:
    assert f"{tmp_path / 'absent'} is not there" in refused(tmp_path / "absent")
    assert "has 0 folders; at least 2 are expected" in refused(tmp_path)
    write(tmp_path / "test")
    assert f"{tmp_path / 'train'} has 0 folders" in refused(tmp_path)
    write(tmp_path / "train")
    (tmp_path / "test" / "bird").mkdir()
    assert "has a folder 'bird', which is none of the 2 classes" in refused(tmp_path)
    (tmp_path / "test" / "bird").rmdir()
    (tmp_path / "train" / "emu").mkdir()
    assert f"{tmp_path / 'train' / 'emu'} holds no images" in refused(tmp_path)


def test_a_class_too_small_for_three_splits_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train", count=2)
    assert "class 'cat' has 2 images" in refused(tmp_path)


@pytest.mark.parametrize("raw", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
@pytest.mark.parametrize("victim", ["train/cat/0.png", "train/dog/2.png"])
def test_an_image_that_does_not_open_is_named(raw: bytes, victim: str, tmp_path: Path) -> None:
    write(tmp_path / "train")
    (tmp_path / victim).write_bytes(raw)
    assert f"{tmp_path / victim} cannot be read as an image" in refused(tmp_path)


def test_an_image_cut_short_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train")
    path = tmp_path / "train" / "dog" / "1.png"
    Image.effect_noise((64, 64), 90).save(path)
    path.write_bytes(path.read_bytes()[:600])
    assert f"{path} cannot be read as an image" in refused(tmp_path)


def test_an_image_of_more_than_8_bits_is_refused_not_clipped(tmp_path: Path) -> None:
    write(tmp_path / "train")
    picture(tmp_path / "train" / "dog" / "1.png", 300, (16, 16), "I;16")
    assert "more than 8 bits" in refused(tmp_path)


def test_more_than_half_of_the_memory_is_refused_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "train")
    needed = 3 * 16 * 16 * (4 + 6)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 2, "SC_PHYS_PAGES": needed}.__getitem__)
    assert len(folder(tmp_path, download=False).labels) == 4
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 2, "SC_PHYS_PAGES": needed - 1}.__getitem__)
    monkeypatch.setattr(folders, "_decode", lambda *_: pytest.fail("an image was decoded"))
    assert "6 images of 16x16 need 0.0 GiB, more than half of this machine's" in refused(tmp_path)
