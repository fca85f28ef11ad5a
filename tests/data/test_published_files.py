"""The published files themselves, where somebody has them."""

import os
from pathlib import Path

import pytest

from reluctant.data import load_task, task_shape

pytestmark = pytest.mark.skipif(
    "RELUCTANT_DATA" not in os.environ, reason="RELUCTANT_DATA names no folder with published files"
)


def present(name: str) -> None:
    path = Path(os.environ.get("RELUCTANT_DATA", "")) / name
    if not path.exists():
        pytest.skip(f"{path} is not there")


@pytest.mark.parametrize(
    ("name", "folder", "shape", "test", "names"),
    [
        ("cifar10", "cifar-10-batches-py", (3, 32, 32), 10_000, {0: "airplane", 9: "truck"}),
        ("cifar100", "cifar-100-python", (3, 32, 32), 10_000, {0: "apple", 99: "worm"}),
        ("fashion-mnist", "FashionMNIST", (1, 28, 28), 10_000, {0: "T-shirt/top", 9: "Ankle boot"}),
        ("tiny-imagenet", "tiny-imagenet-200", (3, 64, 64), 10_000, {0: "goldfish"}),
        ("tiny-imagenet-25", "tiny-imagenet-25", (3, 64, 64), 1_250, {0: "goldfish"}),
    ],
)
def test_the_published_files_are_what_they_are_said_to_be(
    name: str, folder: str, shape: tuple[int, int, int], test: int, names: dict[int, str]
) -> None:
    present(folder)
    task = load_task(name)
    assert task.input_shape == shape
    assert (len(task.classes), task.input_shape) == task_shape(task.name)
    assert len(task.test) == test
    assert task.test.labels.bincount().tolist() == [test // len(task.classes)] * len(task.classes)
    assert {label: task.classes[label] for label in names} == names
    pixels = task.train.images[:10_000].double() / 255
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(task.train.mean, abs=0.015)
    assert pixels.std((0, 2, 3)).tolist() == pytest.approx(task.train.std, abs=0.015)


@pytest.mark.parametrize(
    ("name", "folder", "count"),
    [("cifar100", "cifar-100-python", 50_000), ("fashion-mnist", "FashionMNIST", 60_000)],
)
def test_the_training_sets_are_whole(name: str, folder: str, count: int) -> None:
    present(folder)
    task = load_task(name)
    assert len(task.train) + len(task.val) == count
    assert len(task.val) == count // 10


def test_cifar10_has_whole_batches() -> None:
    present("cifar-10-batches-py")
    task = load_task("cifar10")
    assert (len(task.train) + len(task.val)) % 10_000 == 0
