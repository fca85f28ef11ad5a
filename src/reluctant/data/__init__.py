"""Data sets by name, read from the layouts in which they are published.

A reader is a function ``(data, *, download) -> Dataset``: ``data`` is the folder that holds all data sets (for
``folder``: the images themselves), and ``download`` fetches what is not there.
"""

import os
from pathlib import Path

from reluctant.data.download import VARIABLE
from reluctant.errors import UsageError
from reluctant.registry import Registry
from reluctant.task import Dataset, Task

__all__ = ["TASKS", "load_task", "task_shape"]

TASKS = Registry(
    "task",
    {
        "digits": "reluctant.data.digits:digits",
        "cifar10": "reluctant.data.cifar:cifar10",
        "cifar100": "reluctant.data.cifar:cifar100",
        "fashion-mnist": "reluctant.data.idx:fashion_mnist",
        "tiny-imagenet": "reluctant.data.folders:tiny_imagenet",
        "tiny-imagenet-25": "reluctant.data.folders:tiny_imagenet_25",
        "folder": "reluctant.data.folders:folder",
    },
)

# Classes and input shape of the data sets that are always the same.
SHAPES = {
    "digits": (10, (1, 8, 8)),
    "cifar10": (10, (3, 32, 32)),
    "cifar100": (100, (3, 32, 32)),
    "fashion-mnist": (10, (1, 28, 28)),
    "tiny-imagenet": (200, (3, 64, 64)),
    "tiny-imagenet-25": (25, (3, 64, 64)),
}


def task_shape(name: str, *, data: str | Path | None = None) -> tuple[int, tuple[int, int, int]]:
    """Return the number of classes and the input shape ``(C, H, W)`` of a task.

    Published data sets need not be there for it (``tiny-imagenet`` is the whole one here); others are loaded.

    Raises:
        UnknownName: no such task.
        DataError: a folder of images that is missing or damaged.

    Example:
        >>> task_shape("cifar100")
        (100, (3, 32, 32))
    """
    if name in SHAPES:
        return SHAPES[name]
    task = load_task(name, data=data)
    return len(task.classes), task.input_shape


def load_task(name: str, *, data: str | Path | None = None, download: bool = False, seed: int = 0) -> Task:
    """Return the data set called ``name`` in three splits; the published test set, or what stands for it, is ``test``.

    Args:
        name: a name of the table, or ``folder:/path/to/images`` (with ``@96`` behind it: read them at 96x96 pixels).
        data: the folder that holds the data sets; else the environment's RELUCTANT_DATA, else ``data`` here.
        download: fetch what is missing from its official address, and check it.
        seed: which tenth of each class's training images is held out as ``val``.

    Raises:
        UnknownName: no such task.
        DataError: files that are missing or damaged; the message has the path.

    Example:
        >>> load_task("digits").input_shape
        (1, 8, 8)
    """
    row, _, place = name.partition(":")
    reader = TASKS[row]
    if row == "folder":
        if not place and data is None:
            raise UsageError("task 'folder' needs the folder of the images, as in folder:/path/to/images")
        root = Path(place or str(data))
    elif place:
        raise UsageError(f"task {row!r} takes no path after a colon, got {place!r}; name its folder with --data")
    else:
        root = Path(data or os.environ.get(VARIABLE) or "data")
    dataset = reader(root.expanduser(), download=download)
    assert isinstance(dataset, Dataset)
    return Task.from_dataset(dataset, seed=seed)
