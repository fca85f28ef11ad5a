"""What a network is trained for: data in three splits, and the part of it that a method may see.

Images stay ``uint8`` on the device for the whole run; they become normalised floats a batch at a time. The validation
split is carved from the published training set by a seed, so nothing is ever chosen on the test split.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from reluctant.errors import DataError, ShapeError
from reluctant.prices import Prices
from reluctant.progress import Progress, silent

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def stream(*key: int) -> torch.Generator:
    """Return a CPU generator that is a function of ``key`` alone (seed, epoch, step, ...)."""
    state = np.random.SeedSequence(key).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


@dataclass(frozen=True, eq=False)
class Draw:
    """What chance decided about some images.

    Args:
        shift: of the crop's corner, in pixels.
        mirrored: left and right change places.
        centre: of the cutout, as shares of height and width.
    """

    shift: Int64[Tensor, "B 2"]
    mirrored: Bool[Tensor, "B"]
    centre: Float[Tensor, "B 2"]

    def at(self, index: Int64[Tensor, "b"] | slice) -> "Draw":
        """Return the draw of the images at ``index``."""
        return Draw(self.shift[index], self.mirrored[index], self.centre[index])


@dataclass(frozen=True)
class Augmentation:
    """Random crop, flip and cutout on a batch of images, drawn for each image on its own.

    Args:
        crop_padding: pixels of zero padding before a crop back to the old size.
        flip: mirror left and right with probability one half.
        cutout: side of a square set to zero, in pixels; 0 for none.
        views: how many different draws a training makes; its epochs take them in turn, and a teacher sees each once
            (:class:`reluctant.distillation.Teacher`). 0 draws anew in every epoch.
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0
    views: int = 0

    def view(self, epoch: int) -> int:
        """Return the number of the view that ``epoch`` sees."""
        return epoch % self.views if self.views else epoch

    def draw(self, count: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Draw:
        """Return the random choices for ``count`` images, on ``device``; ``generator`` is one of the CPU."""
        shift = torch.randint(0, 2 * self.crop_padding + 1, (count, 2), generator=generator)
        mirrored = (torch.rand(count, generator=generator) < 0.5) & self.flip
        centre = torch.rand(count, 2, generator=generator)
        return Draw(shift.to(device), mirrored.to(device), centre.to(device))

    def __call__(self, images: UInt8[Tensor, "B C H W"], draw: Draw) -> UInt8[Tensor, "B C H W"]:
        """Return augmented images of the same shape, on the device of both.

        Those that were cropped or mirrored lie in the channels-last format, in which convolutions are fastest.
        """
        count, _, height, width = images.shape
        device = images.device
        if self.crop_padding or self.flip:
            rows = torch.arange(height, device=device) + draw.shift[:, :1]
            columns = torch.arange(width, device=device) + draw.shift[:, 1:]
            columns = torch.where(draw.mirrored[:, None], columns.flip(1), columns)
            images = nn.functional.pad(images, (self.crop_padding,) * 4)
            picked = torch.arange(count, device=device)[:, None, None]
            images = images.permute(0, 2, 3, 1)[picked, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        if self.cutout:
            rows = self._cut(height, draw.centre[:, :1])
            columns = self._cut(width, draw.centre[:, 1:])
            images = images * ~(rows[:, :, None] & columns[:, None, :])[:, None]
        return images

    def _cut(self, size: int, centre: Float[Tensor, "B 1"]) -> Bool[Tensor, "B size"]:
        """Return which of ``size`` rows or columns the cutout takes; it may stick out."""
        line, middle = torch.arange(size, device=centre.device), centre * size
        return (line >= (middle - self.cutout / 2).round()) & (line < (middle + self.cutout / 2).round())


class Batch(NamedTuple):
    """Some images of a split, as a network reads them.

    Args:
        ids: their places in the split.
    """

    images: Float[Tensor, "B C H W"]
    labels: Int64[Tensor, "B"]
    ids: Int64[Tensor, "B"]


@dataclass(frozen=True, eq=False)
class Split:
    """Images with labels, kept as bytes; see :meth:`inputs` for what a network reads.

    Args:
        images: ``uint8 [N, C, H, W]``.
        labels: ``int64 [N]``.
        mean, std: per channel, of pixels scaled to [0, 1].
    """

    images: UInt8[Tensor, "N C H W"]
    labels: Int64[Tensor, "N"]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def normalised(self, images: UInt8[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Return ``(images / 255 - mean) / std``."""
        mean = torch.tensor(self.mean, device=images.device)[:, None, None] * 255
        std = torch.tensor(self.std, device=images.device)[:, None, None] * 255
        return (images - mean) / std

    def inputs(self, index: slice | Int64[Tensor, "B"]) -> Float[Tensor, "B C H W"]:
        """Return the normalised images at ``index``."""
        return self.normalised(self.images[index])

    def to(self, device: torch.device | str) -> "Split":
        """Return the same split on ``device``."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    @property
    def input_range(self) -> tuple[float, float]:
        """The least and the largest value that any image of bytes has when it is normalised."""
        edges = torch.tensor([0, 255], dtype=torch.uint8, device=self.images.device)
        ends = self.normalised(edges[:, None, None, None].expand(2, len(self.mean), 1, 1))
        return float(ends.min()), float(ends.max())

    def steps(self, size: int) -> int:
        """Return the number of training batches of ``size`` in an epoch (the rest is left for another epoch)."""
        return max(1, len(self) // size)

    def epoch(
        self,
        size: int,
        epoch: int,
        augmentation: Augmentation,
        *,
        seed: int = 0,
        start: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> Iterator[Batch]:
        """Yield the shuffled, augmented batches ``start ...`` of ``epoch``.

        Order and augmentation are functions of ``seed`` and ``epoch`` alone, so an interrupted epoch goes on where it
        stopped. With several ``ranks`` each gets its share of every batch.
        """
        order = torch.randperm(len(self), generator=stream(seed, epoch)).to(self.images.device)
        draw = self._draw(augmentation.view(epoch), augmentation, seed)
        for step in range(start, self.steps(size)):
            index = order[step * size : (step + 1) * size][rank::ranks]
            images = augmentation(self.images[index], draw.at(index))
            yield Batch(self.normalised(images), self.labels[index], index)

    def view(
        self, size: int, number: int, augmentation: Augmentation, *, seed: int = 0, start: int = 0
    ) -> Iterator[Float[Tensor, "B C H W"]]:
        """Yield all images from ``start`` on in their order, ``size`` at a time, augmented as in view ``number``."""
        draw = self._draw(number, augmentation, seed)
        for first in range(start, len(self), size):
            part = slice(first, first + size)
            yield self.normalised(augmentation(self.images[part], draw.at(part)))

    def _draw(self, view: int, augmentation: Augmentation, seed: int) -> Draw:
        return augmentation.draw(len(self), stream(seed, view, 1), self.images.device)

    def batches(self, size: int) -> Iterator[tuple[Float[Tensor, "B C H W"], Int64[Tensor, "B"]]]:
        """Yield all images in their order, as they are, ``size`` at a time."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield self.inputs(part), self.labels[part]


@dataclass(frozen=True, eq=False)
class Dataset:
    """What a reader returns: the published training and test sets, whole."""

    name: str
    images: UInt8[Tensor, "N C H W"]
    labels: Int64[Tensor, "N"]
    test_images: UInt8[Tensor, "M C H W"]
    test_labels: Int64[Tensor, "M"]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True, eq=False)
class Task:
    """A data set in three splits, and how it is augmented."""

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    augmentation: Augmentation

    @classmethod
    def from_dataset(cls, dataset: Dataset, *, val_fraction: float = 0.1, seed: int = 0) -> "Task":
        """Return the task of ``dataset`` with ``val_fraction`` of each class of its training set held out by ``seed``.

        Raises:
            DataError: a class has too few images for all splits to hold one.
        """
        generator = stream(seed, len(dataset.labels))
        held = torch.zeros(len(dataset.labels), dtype=torch.bool)
        for label in range(len(dataset.classes)):
            members = (dataset.labels == label).nonzero().flatten()
            count = max(1, round(val_fraction * len(members)))
            if len(members) <= count:
                raise DataError(
                    f"{dataset.name}: class {dataset.classes[label]!r} has {len(members)} training images; at least "
                    "2 are needed, one to train on and one to validate on"
                )
            held[members[torch.randperm(len(members), generator=generator)[:count]]] = True
        norm = {"mean": dataset.mean, "std": dataset.std}
        return cls(
            name=dataset.name,
            classes=dataset.classes,
            train=Split(dataset.images[~held], dataset.labels[~held], **norm),
            val=Split(dataset.images[held], dataset.labels[held], **norm),
            test=Split(dataset.test_images, dataset.test_labels, **norm),
            augmentation=dataset.augmentation,
        )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def example(self) -> Float[Tensor, "1 C H W"]:
        """A black image of the right shape, to trace a network with."""
        return torch.zeros(1, *self.input_shape)

    def images(self, count: int) -> Float[Tensor, "B C H W"]:
        """Return the first ``count`` test images, normalised and without their labels: what a client would send.

        Raises:
            ShapeError: there are fewer.
        """
        if not 1 <= count <= len(self.test):
            raise ShapeError(f"{count} images asked for, {self.name} has 1 to {len(self.test):,} in its test split")
        return self.test.inputs(slice(count))


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """All that a method may see. There is no test split in it.

    Args:
        train, val: the two splits a method may look at.
        limit: what the kept ReLUs may cost in all, in the unit of ``prices``.
        teacher: the network as it was given, frozen, for distillation.
        directory: where to keep the state of an interrupted search; ``None`` keeps none.
    """

    train: Split
    val: Split
    augmentation: Augmentation
    limit: float
    prices: Prices
    teacher: nn.Module
    fabric: "Fabric"
    seed: int = 0
    directory: Path | None = None
    progress: Progress = silent
