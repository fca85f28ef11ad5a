"""A loop by itself: broken off anywhere, it goes on with the next step and ends as if it had not been."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reluctant.errors import Paused, UsageError
from reluctant.loop import Loop, Pace
from reluctant.progress import TimeLimit, silent
from reluctant.task import trains_channels_last


@pytest.fixture
def walk(few_digits, fabric):
    """Takes the eight steps of a loop that saves after each, or breaks off before step ``until``."""

    def take(directory=None, until=None, stop=None, progress=silent):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))
        split = {"train": few_digits.train, "augmentation": few_digits.augmentation}
        loop = Loop(
            "walk", **split, epochs=2, batch=64, fabric=fabric, directory=directory, save_seconds=0, progress=progress
        )
        network, optimizer = loop.setup(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
        taken = []
        for step in loop:
            if len(taken) == until:
                break
            loss = F.cross_entropy(network(step.images), step.labels)
            loop.take(loss, optimizer)
            loop.note(loss=float(loss.detach()))
            taken.append(step)
            if len(taken) == stop:
                loop.stop()
        return model, loop.history, taken

    return take


@pytest.mark.parametrize("until", [3, 4, 6])
def test_broken_off_it_goes_on_with_the_next_step(walk, tmp_path, until):
    model, history, steps = walk()
    places = [(epoch, index, epoch / 2 + index / 8, index == 3) for epoch in (0, 1) for index in range(4)]
    assert [(s.epoch, s.index, s.done, s.last) for s in steps] == places

    walk(tmp_path, until=until)
    resumed, history_there, rest = walk(tmp_path)
    assert [(s.epoch, s.index, s.done, s.last) for s in rest] == places[until:]
    assert all(torch.equal(one.images, two.images) for one, two in zip(rest, steps[until:], strict=True))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in resumed.state_dict().items())
    assert [line["loss"] for line in history_there] == [line["loss"] for line in history]
    assert [json.loads(line) for line in (tmp_path / "walk.metrics.jsonl").read_text().splitlines()] == history_there


@pytest.mark.parametrize("stop", [2, 8])
def test_stopped_or_ended_it_has_nothing_left(walk, tmp_path, stop):
    model, history, steps = walk(tmp_path, stop=stop)
    assert len(steps) == stop
    again, history_there, rest = walk(tmp_path)
    assert rest == []
    assert history_there == history
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


class Clock:
    """A time limit whose seconds are steps: it ends after ``steps`` of them."""

    def __new__(cls, steps):
        limit = TimeLimit(1e6)
        taken = itertools.count(1)

        def count(*_, **__):
            if next(taken) == steps:
                limit.seconds = 0.0

        limit.progress = count
        return limit


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_in_slices_it_is_bit_for_bit_what_it_is_in_one_go(walk, tmp_path, steps):
    model, history, _ = walk()
    pauses = []
    for _ in range(20):
        try:
            sliced, history_there, _ = walk(tmp_path, progress=Clock(steps))
        except Paused as pause:
            pauses.append((pause.done, pause.total))
        else:
            break
    assert pauses == [(done, 8) for done in range(steps, 8, steps)]
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in sliced.state_dict().items())
    assert [line["loss"] for line in history_there] == [line["loss"] for line in history]


def test_a_slice_too_short_for_a_step_says_so(walk, tmp_path):
    with pytest.raises(UsageError, match=r"leave no time for the next step of walk \(0 of 8 done\).*give more"):
        walk(tmp_path, progress=TimeLimit(0.5))


def test_a_pause_says_what_is_left(walk, tmp_path):
    with pytest.raises(Paused, match="stopped in time at walk 3 of 8, everything saved") as caught:
        walk(tmp_path, progress=Clock(3))
    assert caught.value.seconds_left > 0


def test_the_time_a_step_needs():
    """An epoch's last step is followed by the validation: until that was seen once, a fifth of an epoch is kept."""
    pace = Pace(step=2.0, save=4.0)
    assert pace.needed(last=False, steps=100) == 1.25 * 6
    assert pace.needed(last=True, steps=100) == 1.25 * (2 * 21 + 4)
    pace.took(True, 10.0)
    assert pace.needed(last=True, steps=100) == 1.25 * 14
    assert Pace().needed(last=True, steps=100) == 1.25 * 22  # a second a step, as long as none was seen


def test_a_slow_step_is_forgotten_and_what_was_aside_does_not_count():
    pace = Pace()
    pace.aside = 30.0
    pace.took(False, 30.5)
    assert pace.step == 0.5
    pace.took(False, 20.0)
    for _ in range(60):
        pace.took(False, 0.1)
    assert pace.step < 0.2


def test_a_batch_that_processes_cannot_share_is_refused(few_digits):
    two = SimpleNamespace(world_size=2, global_rank=0, device="cpu")
    with pytest.raises(UsageError, match="a batch of 65 images cannot be shared evenly by 2 processes"):
        Loop("walk", train=few_digits.train, augmentation=few_digits.augmentation, epochs=1, batch=65, fabric=two)


def test_batches_of_another_split_are_those_of_the_step_wherever_it_went_on(walk, few_digits, fabric):
    _, _, steps = walk()
    split = few_digits.val  # of fewer steps: they come round again
    loop = Loop("walk", train=few_digits.train, augmentation=few_digits.augmentation, epochs=2, batch=64, fabric=fabric)
    batches = [loop.beside(step, split) for step in steps]
    assert all(torch.equal(split.labels[batch.ids], batch.labels) for batch in batches)
    assert len({int(place) for batch in batches[:2] for place in batch.ids}) == 128
    assert torch.equal(batches[2].ids, batches[0].ids)
    assert not torch.equal(batches[4].ids, batches[0].ids)
    assert torch.equal(loop.beside(steps[5], split).images, batches[5].images)


@pytest.mark.parametrize("width", [4, 16])
def test_images_lie_so_that_few_channels_are_trained_rightly(few_digits, fabric, width):
    """oneDNN's issue 6035: on channels-last images such a network would crash, or learn from wrong gradients."""
    model = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 8, 1, 2), nn.Flatten(), nn.LazyLinear(10))
    model(few_digits.train.inputs(slice(2)))
    assert trains_channels_last(model) == (width == 16)
    loop = Loop("walk", train=few_digits.train, augmentation=few_digits.augmentation, epochs=1, batch=64, fabric=fabric)
    network, optimizer = loop.setup(model, torch.optim.SGD(model.parameters(), 0.1))
    for step in loop:
        assert (step.images.stride()[1] == 1) == (width == 16)
        loop.take(F.cross_entropy(network(step.images), step.labels), optimizer)
