"""Scoring by branches: bit for bit the scores of whole passes; a race finds what counting everything finds."""

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import LINEARIZABLE

from reluctant.mask import Mask
from reluctant.masked import attach
from reluctant.models import ModelSpec
from reluctant.scoring import Branching, Race, Scorer, changed
from reluctant.sites import find_sites
from reluctant.surrogates import Identity, Quadratic, Reciprocal
from reluctant.task import Split, stream

ZOO = {cls.__name__: (cls, 8) for cls in LINEARIZABLE}
NETWORKS = ZOO | {
    name: (lambda name=name: ModelSpec.parse(name).build(5, 3), 16) for name in ("resnet8:width=4", "wrn-10-1")
}


def masked_network(build, size, surrogate=None):
    torch.manual_seed(0)
    images = torch.randn(6, 3, size, size)
    masked = attach(network := build(), find_sites(network, images[:1]), surrogate).eval()
    if masked.constants():
        masked.start_surrogates(images)
    generator = stream(3)
    masked.set_mask(Mask({n: torch.rand(s.shape, generator=generator) < 0.6 for n, s in masked.sites.items()}))
    return masked, images


def changes_of(masked):
    """Nothing; a change at each site, twice; one at all sites, one at the first and the last."""
    generator = stream(4)

    def at(*names):
        return {n: masked.mask[n] & (torch.rand(masked.sites[n].shape, generator=generator) < 0.5) for n in names}

    names = list(masked.sites)
    return [at(names[-1]), {}, *(at(name) for name in [*names, *names]), at(*names), at(names[0], names[-1])]


def whole(masked, images, change):
    with torch.no_grad(), changed(masked, change):
        output = masked(images)
    return output if isinstance(output, torch.Tensor) else output[0]


@pytest.mark.parametrize("surrogate", [Identity(), Reciprocal(), Quadratic()])
@pytest.mark.parametrize("name", NETWORKS)
def test_branches_are_bit_for_bit_the_whole_passes(name, surrogate, fabric):
    masked, images = masked_network(*NETWORKS[name], surrogate)
    branching = Branching(masked, torch.zeros_like(images), fabric)
    changes = changes_of(masked)
    before = images.clone()
    scores = branching.walk(images, changes)
    assert torch.equal(images, before)
    for found, change in zip(scores, changes, strict=True):
        assert torch.equal(found, whole(masked, images, change))
    assert len({tuple(found.flatten().tolist()) for found in scores}) > 2


def test_in_training_precision_too():
    from reluctant.training import make_fabric

    fabric = make_fabric(device="cpu", precision="bf16-mixed")
    masked, images = masked_network(*NETWORKS["resnet8:width=4"])
    with fabric.autocast():
        expected = [whole(masked, images, change).float() for change in changes_of(masked)]
    found = Branching(masked, images, fabric).walk(images, changes_of(masked))
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


def test_a_walk_sees_weights_statistics_and_masks_as_they_are_when_it_is_made(fabric):
    masked, images = masked_network(*NETWORKS["resnet8:width=4"])
    branching = Branching(masked, images, fabric)
    optimizer = torch.optim.SGD(masked.parameters(), 0.1)
    masked.train()(images).square().sum().backward()
    optimizer.step()
    masked.eval().load_state_dict(copy.deepcopy(masked.state_dict()))
    masked.set_mask(Mask({name: keep & (torch.rand(keep.shape) < 0.5) for name, keep in masked.mask.items()}))
    for found, change in zip(branching.walk(images, changes_of(masked)), changes_of(masked), strict=True):
        assert torch.equal(found, whole(masked, images, change))


def test_the_part_before_a_site_is_computed_once(fabric):
    masked, images = masked_network(*NETWORKS["resnet8:width=4"])
    branching = Branching(masked, images, fabric)
    computed = []
    value = branching._value
    branching._value = lambda node, *rest: (computed.append(node), value(node, *rest))[1]
    last = list(masked.sites)[-1]
    branching.walk(images, [{last: masked.mask[last]}] * 10)
    convolutions = [node for node in computed if "convolution" in str(node.target)]
    assert len(convolutions) == sum("convolution" in str(node.target) for node in branching.nodes)


@pytest.fixture
def scorers(trained, digits, fabric):
    """A scorer by branches and one by whole passes, of one masked network on 150 digits in batches of 20."""
    masked = attach(trained, find_sites(trained, digits.example)).eval()
    masked.set_mask(Mask({n: torch.rand(s.shape, generator=stream(0)) < 0.9 for n, s in masked.sites.items()}))
    images = Split(digits.train.images[:150], digits.train.labels[:150], digits.train.mean, digits.train.std)
    both = [Scorer(masked, images, fabric, batch=20, branching=branching) for branching in (True, False)]
    assert both[0].rank() == both[1].rank()
    assert torch.equal(both[0].order, both[1].order)
    return both


def candidates(masked, count, share):
    generator = stream(9)
    return [
        {n: masked.mask[n] & (torch.rand(s.shape, generator=generator) < share) for n, s in [site]}
        for site in list(masked.sites.items()) * count
    ]


@pytest.mark.parametrize("share", [0.99, 0.9, 0.3])
def test_a_race_finds_what_counting_everything_finds(scorers, share):
    branching, whole_passes = scorers
    changes = candidates(branching.model, 2, share)
    counts = whole_passes.right(changes)
    assert branching.right(changes) == counts
    best = max(range(len(counts)), key=lambda number: (counts[number], -number))
    race = Race(branching, changes)
    assert race.best() == best
    assert race.right[best] == counts[best]
    for enough in (min(counts), (min(counts) + max(counts)) // 2, max(counts), max(counts) + 1):
        race = Race(branching, changes)
        first = next((number for number, count in enumerate(counts) if count >= enough), None)
        assert race.first(enough) == first
        if first is None:
            assert race.best() == best  # from where they are
            assert race.right[best] == counts[best]
        assert race.finish(len(changes) - 1) == counts[-1]


def test_a_race_leaves_out_most_of_the_work(scorers):
    branching, _ = scorers
    race = Race(branching, candidates(branching.model, 2, 0.9))
    race.best()
    assert sum(race.done) < 0.6 * branching.chunks * len(race.done)


def test_images_come_by_their_margin(scorers):
    branching, _ = scorers
    images, labels = branching.images.inputs(branching.order), branching.images.labels[branching.order]
    scores = whole(branching.model, images, {})
    own = F.one_hot(labels, scores.shape[1]).bool()
    margins = scores[own] - scores.masked_fill(own, -torch.inf).amax(1)
    assert (margins.diff() > -1e-4).all()
    assert (margins[: len(branching) - branching.known] < 0).all()
    assert (margins[len(branching) - branching.known :] > 0).all()


class Peeking(nn.Module):
    """Its pass, though not which ReLUs fire, depends on the values in a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 3), nn.Linear(3, 10)

    def forward(self, x):
        x = F.relu(self.conv(x))
        if x.mean() > 0.5:
            x = x * 2
        return self.head(x.mean((2, 3)))


def test_a_network_that_cannot_be_traced_is_scored_by_whole_passes_and_said(few_digits, fabric, caplog):
    network = Peeking()
    masked = attach(network, find_sites(network, few_digits.example))
    found = Scorer(masked, few_digits.train, fabric)
    with caplog.at_level(logging.WARNING):
        counts = found.right(candidates(masked, 2, 0.5))
    assert "scored by whole passes: the network cannot be traced" in caplog.text
    assert counts == Scorer(masked, few_digits.train, fabric, branching=False).right(candidates(masked, 2, 0.5))
