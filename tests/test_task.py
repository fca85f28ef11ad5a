"""Splits and augmentation: disjoint, balanced, a function of the seed alone."""

import pytest
import torch

from reluctant.errors import DataError, ShapeError
from reluctant.task import Augmentation, Dataset, Split, Task, stream


def dataset(counts=(30, 50)):
    labels = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    images = torch.arange(len(labels), dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 4, 4).clone()
    return Dataset("made", images, labels, images[:5], labels[:5], ("a", "b"), (0.5,) * 3, (0.25,) * 3)


def test_validation_is_carved_from_training_by_class_and_seed():
    task = Task.from_dataset(dataset())
    train, val = (set(split.images[:, 0, 0, 0].tolist()) for split in (task.train, task.val))
    assert not train & val
    assert train | val == set(range(80))
    assert task.val.labels.bincount().tolist() == [3, 5]
    again, other = Task.from_dataset(dataset()), Task.from_dataset(dataset(), seed=1)
    assert torch.equal(again.val.images, task.val.images)
    assert not torch.equal(other.val.images, task.val.images)


def test_a_class_of_one_image_is_refused():
    with pytest.raises(DataError, match="class 'b' has 1 training images"):
        Task.from_dataset(dataset((30, 1)))


def test_inputs_are_normalised():
    split = dataset()
    inputs = Split(split.images, split.labels, (0.5,) * 3, (0.25,) * 3).inputs(slice(10, 11))
    torch.testing.assert_close(inputs, torch.full((1, 3, 4, 4), (10 / 255 - 0.5) / 0.25))


def test_an_epoch_sees_each_image_once_in_an_order_of_its_own():
    split = Task.from_dataset(dataset()).train
    epochs = [torch.cat([x[:, 0, 0, 0] for x, _, _ in split.epoch(24, e, Augmentation())]) for e in (0, 0, 1)]
    assert torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], epochs[2])
    assert len(epochs[0].unique()) == len(epochs[0]) == 72


def test_an_epoch_goes_on_where_it_stopped_and_shares_its_batches():
    split, augmentation = Task.from_dataset(dataset()).train, Augmentation(crop_padding=1, flip=True, cutout=2)
    whole = [b.images for b in split.epoch(24, 1, augmentation, seed=3)]
    rest = [b.images for b in split.epoch(24, 1, augmentation, seed=3, start=1)]
    assert all(torch.equal(one, two) for one, two in zip(whole[1:], rest, strict=True))
    shares = [next(iter(split.epoch(24, 1, augmentation, seed=3, rank=r, ranks=2))).images for r in (0, 1)]
    assert torch.equal(torch.stack(shares, 1).flatten(0, 1), whole[0])


def augmented(augmentation, images, seed):
    return augmentation(images, augmentation.draw(len(images), stream(seed)))


def test_views_come_in_turn_and_an_image_looks_the_same_whenever_its_view_returns():
    split, augmentation = Task.from_dataset(dataset()).train, Augmentation(crop_padding=1, flip=True, views=2)

    def seen(epoch):
        batches = list(split.epoch(24, epoch, augmentation, seed=3))
        images, ids = torch.cat([b.images for b in batches]), torch.cat([b.ids for b in batches])
        assert torch.equal(torch.cat([b.labels for b in batches]), split.labels[ids])
        return images, ids

    whole = [torch.cat(list(split.view(10, number, augmentation, seed=3))) for number in (0, 1)]
    assert not torch.equal(whole[0], whole[1])
    orders = []
    for epoch in range(4):
        images, ids = seen(epoch)
        assert torch.equal(images, whole[epoch % 2][ids])
        orders.append(tuple(ids.tolist()))
    assert len(set(orders)) == 4
    assert torch.equal(torch.cat(list(split.view(10, 1, augmentation, seed=3, start=30))), whole[1][30:])


def test_flip_and_crop_are_flips_and_crops():
    images = torch.randint(1, 255, (200, 1, 5, 6), dtype=torch.uint8)
    flipped = augmented(Augmentation(flip=True), images, 0)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert ((flipped == images).flatten(1).all(1) | mirrored).all()
    assert 60 < mirrored.sum() < 140
    cropped = augmented(Augmentation(crop_padding=1), images, 0)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    windows = [padded[:, :, y : y + 5, x : x + 6] for y in range(3) for x in range(3)]
    hits = torch.stack([(cropped == window).flatten(1).all(1) for window in windows])
    assert hits.any(0).all()
    assert (hits.sum(1) > 5).all()


def test_cutout_cuts_a_square_that_may_stick_out():
    images = torch.full((300, 2, 8, 8), 7, dtype=torch.uint8)
    cut = augmented(Augmentation(cutout=4), images, 1)
    holes = (cut == 0).all(1)
    assert torch.equal(cut[:, 0] == 0, holes)
    sizes = holes.flatten(1).sum(1)
    assert sizes.max() == 16
    assert 0 < sizes.min() < 16


def test_client_images_come_without_labels_and_within_bounds(digits):
    assert torch.equal(digits.images(3), digits.test.inputs(slice(3)))
    with pytest.raises(ShapeError, match="0 images asked for, digits has 1 to 359"):
        digits.images(0)
