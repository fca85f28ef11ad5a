"""Small real things that many tests share. Shapes in annotations are checked while tests run."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

from jaxtyping import install_import_hook

import reluctant.annotations  # before the hook: it looks at every value of hundreds of records  # noqa: F401

#: What takes or returns tensors with their shapes; all other types are checked by mypy.
SOURCE = Path(__file__).parents[1] / "src"
SHAPED = [
    ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for path in SOURCE.rglob("*.py")
    if "from jaxtyping import" in path.read_text()
]
hook = install_import_hook(SHAPED, "typechecker.check")

import pytest
import torch

from reluctant.data import load_task
from reluctant.masked import MaskedModel
from reluctant.models import load_model
from reluctant.prices import Prices
from reluctant.task import Job, Split, Task
from reluctant.training import Training, fit, make_fabric

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits() -> Task:
    """The real task that needs no download."""
    return load_task("digits")


@pytest.fixture(scope="session")
def few_digits(digits: Task) -> Task:
    """Its first 256 training images: an epoch of two steps."""
    part = Split(digits.train.images[:256], digits.train.labels[:256], digits.train.mean, digits.train.std)
    return Task(digits.name, digits.classes, part, digits.val, digits.test, digits.augmentation)


@pytest.fixture(scope="session")
def fabric():
    return make_fabric(device="cpu", precision="32-true")


@pytest.fixture(scope="session")
def trained(digits: Task, fabric) -> torch.nn.Module:
    """A small residual network trained on digits for a few seconds."""
    torch.manual_seed(0)
    model = load_model("resnet8:width=8", task=digits)
    return fit(model, digits, Training(epochs=4, batch=64), fabric=fabric)


@pytest.fixture
def tiny() -> torch.nn.Sequential:
    """An untrained network small enough to be run by hand; its only site is its third module, of 4 x 8 x 8 ReLUs."""
    torch.manual_seed(0)
    stem = [torch.nn.Conv2d(1, 4, 3, padding=1, bias=False), torch.nn.BatchNorm2d(4)]
    return torch.nn.Sequential(*stem, torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(256, 10))


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test runs in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def make_job(fabric):
    """Makes the job of keeping a share of a masked model's ReLUs."""

    def make(masked: MaskedModel, task: Task, share: float, seed: int = 0) -> Job:
        return Job(
            train=task.train,
            val=task.val,
            augmentation=task.augmentation,
            limit=float(int(share * masked.sites.total)),
            prices=Prices.count(masked.sites),
            teacher=masked.model,
            fabric=fabric,
            seed=seed,
        )

    return make


@pytest.fixture
def without_test(few_digits: Task) -> Task:
    """The few digits, whose test split nobody may read: doing so fails the test."""

    class Blind(Task):
        @property
        def test(self) -> Split:
            raise AssertionError("the test split was read")

        @test.setter
        def test(self, value: Split) -> None: ...

    blind = object.__new__(Blind)
    blind.__dict__.update({key: value for key, value in vars(few_digits).items() if key != "test"})
    return blind
