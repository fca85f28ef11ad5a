"""Tasks by name."""

from pathlib import Path

import pytest
import torch
from layouts import picture, write_fashion

from reluctant.data import SHAPES, TASKS, load_task, task_shape
from reluctant.errors import DataError, UnknownName, UsageError


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test find real files by accident."""
    monkeypatch.delenv("RELUCTANT_DATA", raising=False)


def test_every_row_can_be_imported() -> None:
    assert TASKS.names()[0] == "digits"
    assert all(callable(reader) for reader in TASKS.values())


def test_a_task_has_three_splits() -> None:
    task = load_task("digits")
    assert (len(task.train) + len(task.val), len(task.test)) == (1438, 359)
    assert task.input_shape == (1, 8, 8)
    assert task.images(2).shape == (2, 1, 8, 8)


def test_the_seed_moves_val_and_never_test() -> None:
    first, second = load_task("digits", seed=0), load_task("digits", seed=1)
    assert not torch.equal(first.val.images, second.val.images)
    assert torch.equal(first.test.images, second.test.images)


def test_data_is_found_by_argument_then_variable_then_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r" data/FashionMNIST/raw/train-images-idx3-ubyte.gz is not there"):
        load_task("fashion-mnist")
    write_fashion(tmp_path / "data")
    assert load_task("fashion-mnist").input_shape == (1, 28, 28)
    monkeypatch.setenv("RELUCTANT_DATA", str(tmp_path / "named"))
    with pytest.raises(DataError, match=r"named/FashionMNIST"):
        load_task("fashion-mnist")
    assert load_task("fashion-mnist", data="data").input_shape == (1, 28, 28)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_task("fashion-mnist", data="~/data").input_shape == (1, 28, 28)


def test_a_folder_of_images_is_named_after_a_colon(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for index in range(5):
            picture(tmp_path / "train" / name / f"{index}.png", 50, (16, 16))
    task = load_task(f"folder:{tmp_path}")
    assert task.classes == ("cat", "dog")
    assert task.input_shape == (3, 16, 16)
    assert load_task("folder", data=tmp_path).name == task.name
    assert load_task(task.name).name == task.name
    assert load_task(f"folder:{tmp_path}@8").input_shape == (3, 8, 8)


def test_published_shapes_need_no_files() -> None:
    assert task_shape("cifar100") == (100, (3, 32, 32))
    task = load_task("digits")
    assert task_shape("digits") == (len(task.classes), task.input_shape)
    assert set(SHAPES) == set(TASKS) - {"folder"}


def test_the_shape_of_a_folder_is_read_from_it(tmp_path: Path) -> None:
    for index in range(9):
        picture(tmp_path / str(index % 3) / f"{index}.png", 50, (20, 12))
    assert task_shape(f"folder:{tmp_path}") == (3, (3, 12, 12))
    with pytest.raises(DataError, match="is not there"):
        task_shape(f"folder:{tmp_path / 'absent'}")


def test_wrong_names_are_refused() -> None:
    with pytest.raises(UnknownName, match="did you mean 'cifar10"):
        task_shape("cifar-10")
    with pytest.raises(UnknownName, match="did you mean 'cifar10"):
        load_task("cifar-10")
    with pytest.raises(UsageError, match="takes no path after a colon, got 'x'"):
        load_task("cifar10:x")
    with pytest.raises(UsageError, match="as in folder:/path/to/images"):
        load_task("folder")
