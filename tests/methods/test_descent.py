"""Descent: what blocks are, which candidate is dropped, where it starts, and that it survives an interruption."""

import copy
import itertools
import json
import logging
from dataclasses import replace

import pytest
import torch

from reluctant.errors import Paused, UsageError
from reluctant.experiment import Machine, clear_states, linearize_checkpoint, train
from reluctant.linearization import linearize
from reluctant.loop import Loop, read_state
from reluctant.mask import Mask
from reluctant.masked import attach
from reluctant.methods import METHODS
from reluctant.methods.descent import Descent, Pool, harms, screened
from reluctant.methods.random import Random
from reluctant.methods.snl import SNL
from reluctant.prices import Prices, SitePrice
from reluctant.progress import TimeLimit
from reluctant.recipe import Recipe
from reluctant.scoring import Scorer, changed
from reluctant.sites import find_sites
from reluctant.surrogates import Affine
from reluctant.task import Split, stream
from reluctant.training import Training

QUICK = Descent(start=Random(), start_ratio=1.5, steps=4, draws=4, images=128, finetune_epochs=1.0, batch=64)


@pytest.fixture
def masked(trained, few_digits):
    model = attach(trained, find_sites(trained, few_digits.example)).eval()
    model.set_mask(Mask({name: torch.rand(site.shape) < 0.6 for name, site in model.sites.items()}))
    return model


@pytest.fixture
def pool(masked):
    return Pool(masked.mask, Prices.count(masked.sites))


@pytest.mark.parametrize("spread", ["uniform", "site"])
def test_a_block_has_exactly_the_size_asked_for_and_holds_kept_relus_only(masked, pool, spread):
    for size in (1, 37, masked.mask.kept // 2, masked.mask.kept):
        block = pool.draw(size, spread, stream(size))
        after = Mask({**masked.mask, **pool.without(block)})
        assert after.kept == masked.mask.kept - size
        assert (after - masked.mask).kept == 0


def test_a_site_block_lies_in_one_site_and_goes_on_only_where_that_is_empty(masked, pool):
    counts = masked.mask.by_site()
    for number in range(20):
        assert len(pool.without(pool.draw(5, "site", stream(number)))) == 1
    change = pool.without(pool.draw(max(counts.values()) + 1, "site", stream(0)))
    assert len(change) > 1
    assert sum(keep.any() for keep in change.values()) <= 1


def test_sites_are_drawn_in_proportion_to_what_they_hold(masked, pool):
    drawn = [next(iter(pool.without(pool.draw(1, "site", stream(number))))) for number in range(400)]
    for name, count in masked.mask.by_site().items():
        assert drawn.count(name) / 400 == pytest.approx(count / masked.mask.kept, abs=0.09)


def test_under_other_prices_a_block_costs_what_is_asked_for_and_one_relu_less_does_not(masked):
    prices = Prices({name: SitePrice(1.0 + k, 50.0) for k, name in enumerate(masked.sites)}, "bytes")
    pool = Pool(masked.mask, prices)
    block = pool.draw(100.0, "uniform", stream(0))
    assert float(pool.price[block].sum()) >= 100 > float(pool.price[block[:-1]].sum())


@pytest.mark.parametrize("blocks", ["uniform", "site"])
def test_it_meets_the_budget_from_above_and_never_returns_a_relu(masked, few_digits, make_job, blocks, tmp_path):
    job = replace(make_job(masked, few_digits, 0.2), directory=tmp_path)
    seen = []

    class Watched(type(masked)):
        def set_mask(self, mask):
            seen.append(copy.deepcopy(mask))
            return super().set_mask(mask)

    watched = copy.deepcopy(masked)
    watched.__class__ = Watched
    mask = replace(QUICK, steps=7, blocks=blocks, finetune_epochs=0.25).search(watched, job)
    assert mask.kept == job.limit
    kept = [mask.kept for mask in seen]
    assert kept[0] == int(1.5 * job.limit)
    assert len(kept) == 1 + 7
    assert kept == sorted(kept, reverse=True)
    assert all((later - earlier).kept == 0 for earlier, later in itertools.pairwise(seen))
    lines = [json.loads(line) for line in (tmp_path / "search.metrics.jsonl").read_text().splitlines()]
    assert [line["kept"] for line in lines] == kept[1:]
    assert lines[-1]["epoch"] == 7 / few_digits.train.steps(64)


def chosen_by_hand(model, method, job):
    """The first block that ``method`` ought to drop: every candidate run whole, one after another."""
    images = torch.randperm(len(job.train), generator=stream(job.seed, len(job.train)))[: method.images]
    inputs, labels = job.train.inputs(images), job.train.labels[images]
    pool, generator = Pool(model.mask, job.prices), stream(job.seed, 1, 3)
    size = (model.mask.kept - job.limit) / method.steps
    changes = [pool.without(pool.draw(size, method.blocks, generator)) for _ in range(method.draws)]

    def right(change):
        with torch.no_grad(), changed(model, change):
            return int((model(inputs).argmax(1) == labels).sum())

    losses = [100 * (right({}) - right(change)) / len(labels) for change in changes]
    tolerable = [number for number, loss in enumerate(losses) if loss < method.tolerance]
    best = min(range(len(losses)), key=lambda number: (losses[number], number))
    number = tolerable[0] if tolerable and method.accept == "first" else best
    return Mask({**model.mask, **changes[number]}), losses, number


@pytest.mark.parametrize("accept", ["first", "best"])
@pytest.mark.parametrize("tolerance", [0.0, 3.0, 100.0])
def test_the_block_dropped_is_the_first_tolerable_or_the_best(masked, few_digits, make_job, accept, tolerance):
    few = Split(few_digits.train.images, few_digits.train.labels, few_digits.train.mean, few_digits.train.std)
    job = replace(make_job(masked, few_digits, 0.3), train=few)
    # A rate of next to nothing: the mask alone changes.
    method = replace(QUICK, steps=1, draws=12, images=200, accept=accept, tolerance=tolerance, lr=1e-12)
    by_hand = copy.deepcopy(masked)
    method._begin(by_hand, job)
    expected, losses, number = chosen_by_hand(by_hand.eval(), method, job)
    assert max(losses) > min(losses)
    assert method.search(copy.deepcopy(masked), job) == expected, (losses, number)


@pytest.mark.parametrize("finetune", ["always", "failure"])
def test_it_is_finetuned_always_or_only_after_what_was_not_tolerable(masked, few_digits, make_job, finetune, tmp_path):
    for tolerance, failed in ((100.0, 0), (0.0, 4)):
        folder = tmp_path / f"{tolerance}"
        job = replace(make_job(masked, few_digits, 0.2), directory=folder)
        method = replace(QUICK, finetune=finetune, tolerance=tolerance, finetune_epochs=0.5, draws=1)
        method.search(copy.deepcopy(masked), job)
        last = json.loads((folder / "search.metrics.jsonl").read_text().splitlines()[-1])
        if finetune == "always":
            assert last["epoch"] == 2.0
        elif not failed:
            assert last["epoch"] == 0.0
        else:
            assert last["epoch"] > 0.0


def test_the_reference_is_fresh_or_the_last_candidates(masked, few_digits, make_job, caplog):
    job = make_job(masked, few_digits, 0.05)
    caplog.set_level(logging.INFO, "reluctant.methods.descent")
    losses = {}
    for reference in ("fresh", "stale"):
        caplog.clear()
        method = replace(QUICK, reference=reference, steps=3, lr=0.05, accept="best", draws=1)
        method.search(copy.deepcopy(masked), job)
        losses[reference] = [
            (int(line.split()[4]), int(line.split()[6])) for line in caplog.messages if "costs" in line
        ]
    assert losses["fresh"][0] == losses["stale"][0]
    (loss, before), (_, after) = losses["stale"][:2]
    assert after == before - loss  # with one draw, the candidate dropped is the one scored last
    assert losses["fresh"][1][1] != after


def test_a_screen_picks_the_blocks_of_least_gradient_times_gap(masked, few_digits, pool, fabric):
    scorer = Scorer(masked, few_digits.train, fabric, batch=32)
    found = harms(scorer)
    blocks = [pool.draw(40, "uniform", stream(number)) for number in range(20)]
    harm = [
        sum(float(found[name][masked.mask[name] & ~keep].sum()) for name, keep in pool.without(block).items())
        for block in blocks
    ]
    best = screened(blocks, 3, pool, found)
    assert min(harm) < 0 < max(harm)
    assert [harm.index(h) for h in sorted(harm)[:3]] == [next(k for k, b in enumerate(blocks) if b is c) for c in best]
    assert all(parameter.grad is None for parameter in masked.parameters())


def test_harms_are_those_of_gradient_times_gap(tiny, few_digits, fabric):
    model = attach(tiny, find_sites(tiny, few_digits.example)).eval()
    scorer = Scorer(model, few_digits.train, fabric, batch=16)
    images, labels = few_digits.train.inputs(slice(None)), few_digits.train.labels
    z = tiny.eval()[:2](images).detach()
    y = z.relu().requires_grad_()
    torch.nn.functional.cross_entropy(tiny[3:](y), labels, reduction="sum").backward()
    expected = (y.grad * (z - y)).sum(0).detach()
    torch.testing.assert_close(next(iter(harms(scorer).values())), expected, atol=1e-4, rtol=1e-4)


class Stop(Exception):
    pass


@pytest.mark.parametrize("at", [("start: search", 3), ("search", 1), ("search", 6), ("search", 8)])
def test_interrupted_it_ends_as_if_it_had_not_been(trained, few_digits, fabric, tmp_path, at):
    method = replace(QUICK, start=SNL(max_epochs=2, gate_lr=0.1, batch=64), steps=3, lr=0.05, finetune_epochs=0.75)
    whole = linearize(trained, method, "10%", few_digits, fabric=fabric, directory=tmp_path / "whole")

    def stop(stage, done, total, **metrics):
        if (stage, done) == at:
            raise Stop

    with pytest.raises(Stop):
        linearize(trained, method, "10%", few_digits, fabric=fabric, directory=tmp_path / "cut", progress=stop)
    seen = []

    def watch(stage, done, total, **metrics):
        seen.append((stage, done))

    again = linearize(trained, method, "10%", few_digits, fabric=fabric, directory=tmp_path / "cut", progress=watch)
    assert again.mask == whole.mask
    for name, value in again.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name
    assert any(stage == "start: search" for stage, _ in seen) == (at[0] == "start: search")
    clear_states(tmp_path / "cut")
    assert not list((tmp_path / "cut").rglob("*.state"))


def test_in_slices_it_is_what_it_is_in_one_go(masked, few_digits, make_job, tmp_path):
    method = replace(QUICK, finetune_epochs=0.5, lr=0.05)
    job = replace(make_job(masked, few_digits, 0.2), directory=tmp_path / "whole")
    whole = method.search(uncut := copy.deepcopy(masked), job)
    pauses = []
    for _ in range(20):
        limit, steps = TimeLimit(1e6), itertools.count()

        def tell(stage, done, total, limit=limit, steps=steps, **metrics):
            limit.seconds = 1e6 if next(steps) < 2 else 0.0

        limit.progress = tell
        try:
            sliced = copy.deepcopy(masked)
            found = method.search(sliced, replace(job, directory=tmp_path / "sliced", progress=limit))
        except Paused as pause:
            pauses.append(pause.done)
        else:
            break
    assert pauses == [3, 6]
    assert found == whole
    assert all(torch.equal(value, uncut.state_dict()[name]) for name, value in sliced.state_dict().items())


def test_a_loop_pauses_before_what_there_is_no_time_for(few_digits, fabric, tmp_path):
    limit = TimeLimit(60.0, worked=True)
    data = {"train": few_digits.train, "augmentation": few_digits.augmentation}
    loop = Loop("search", **data, epochs=1, batch=64, fabric=fabric, directory=tmp_path, progress=limit)
    loop.setup(torch.nn.Linear(2, 2))
    steps = iter(loop)
    for needed in (5.0, 5.0):
        loop.pause_before(next(steps), needed)
    with pytest.raises(Paused):
        loop.pause_before(next(steps), 100.0)
    state = read_state(tmp_path / "search.state")
    assert (state["epoch"], state["index"]) == (0, 2)  # the step before which it paused is the next


def test_the_starts_epochs_are_in_the_record(tmp_path):
    dense = Recipe(task="digits", model="resnet8:width=4", training=Training(epochs=1))
    train(dense, tmp_path / "dense", Machine(device="cpu"))
    method = Descent(
        start=SNL(max_epochs=2, gate_lr=0.1), start_ratio=1.5, steps=3, draws=2, images=64, finetune_epochs=0.4
    )
    recipe = replace(dense, method=method, budget="20%", finetune=Training(epochs=1))
    record = linearize_checkpoint(tmp_path / "dense", recipe, tmp_path / "small", Machine(device="cpu"))
    assert record.epochs == 5  # SNL 2, blocks 3 times 0.4, finetune 1: rounded up
    assert method.epochs == 4
    assert not list((tmp_path / "small").rglob("*.state"))


def test_without_room_for_a_start_it_begins_with_all_relus(trained, few_digits, fabric, caplog):
    caplog.set_level(logging.INFO, "reluctant.methods.descent")
    small = linearize(trained, QUICK, "80%", few_digits, fabric=fabric)
    assert small.mask.kept == int(0.8 * small.sites.total)
    assert "starts from all ReLUs" in caplog.text


def test_the_start_has_the_surrogate_of_the_descent_and_survives_json():
    method = Descent(start=SNL(max_epochs=3), surrogate=Affine())
    assert method.start == SNL(max_epochs=3, surrogate=Affine())
    written = json.loads(json.dumps(method.to_json()))
    assert written["start"]["name"] == "snl"
    assert Descent.from_json(written) == method
    assert Descent.from_json({"start": "taylor"}).start == METHODS["taylor"]()
    assert Descent.from_json({"start": {"max_epochs": "3"}}).start == SNL(max_epochs=3)
    nested = Descent(start=Descent(start=Random()))
    assert Descent.from_json(nested.to_json()) == nested
    assert Descent(start=SNL(max_epochs=3), steps=4, finetune_epochs=0.1).epochs == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start_ratio": 0.9}, "start_ratio is 0.9: a descent starts above its budget"),
        ({"accept": "worst"}, "descent.accept is 'worst', expected 'first' or 'best'"),
        ({"blocks": "layer"}, "descent.blocks is 'layer', expected 'uniform' or 'site'"),
        ({"finetune": "never"}, "descent.finetune is 'never', expected 'always' or 'failure'"),
        ({"reference": "old"}, "descent.reference is 'old', expected 'fresh' or 'stale'"),
        ({"momentum": 1.0}, "descent.momentum is 1.0"),
        ({"start": 3}, "method is 3, expected a name"),
    ],
)
def test_settings_without_sense_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        Descent.from_json(settings)
