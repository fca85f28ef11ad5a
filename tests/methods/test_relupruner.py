"""ReLUPruner's own properties: the score by its definition, the layers' weights, the schedule, the whole search."""

import copy
import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reluctant.distillation import distillation
from reluctant.errors import UsageError
from reluctant.masked import attach
from reluctant.methods.relupruner import Ranked, ReLUPruner, weigh
from reluctant.sites import find_sites


@pytest.fixture
def gate_of():
    """Makes the gate of a site of four ReLUs, in training, with the given settings of the method."""
    model = nn.Sequential(nn.ReLU())
    masked = attach(model, find_sites(model, torch.zeros(1, 4)))

    def make(**settings):
        return Ranked(masked.masked()[0], ReLUPruner(**settings)).train()

    return make


def batches(count):
    """Inputs ``[8, 4]`` and targets of so many batches; the first ReLU never sees anything below zero."""
    generator = torch.Generator().manual_seed(7)
    for _ in range(count):
        z = torch.randn(8, 4, generator=generator)
        z[:, 0] = z[:, 0].abs() + 0.1
        yield z.requires_grad_(), torch.randn(8, 4, generator=generator)


@pytest.mark.parametrize("form", ["paper", "released"])
def test_the_score_is_its_definition(gate_of, form):
    gate = gate_of(second_order=form, momentum=0.8)
    gate.keep[1] = 0.0  # a dropped ReLU has a score, too
    gate.weight.fill_(0.6)
    score, curvature, negative = torch.zeros(4), torch.zeros(4), []
    for z, target in batches(13):
        y = gate(z)
        ((y - target) ** 2).sum(1).mean().backward()
        g = 2 * (y.detach() - target) / (1 if form == "paper" else len(z))
        z = z.detach()
        d = z.relu() - z
        negative = [*negative, (z < 0).float().mean(0)][-10:]
        nu = sum(negative) / len(negative)
        curvature = 0.99 * curvature + 0.01 * (g**2).mean(0)
        second = nu * (d**2).mean(0) if form == "paper" else (z**2).mean(0)
        new = 0.6 * (nu * (g * d).abs().mean(0) + second * curvature / 2)
        score = 0.8 * score + 0.2 * new
    torch.testing.assert_close(gate.score, score)
    assert float(gate.score[1]) > 0
    assert (float(gate.score[0]) == 0) == (form == "paper")  # never negative: the surrogate would do as well


def test_in_evaluation_nothing_is_added(gate_of):
    gate = gate_of().eval()
    for z, _ in batches(2):
        gate(z).sum().backward()
    assert float(gate.score.abs().sum()) == int(gate.seen) == 0


def test_layers_weigh_by_their_gradients_and_their_place(gate_of):
    gates = [gate_of() for _ in range(3)]
    weigh(gates, 0.2)
    assert [float(gate.weight) for gate in gates] == [1.0, 1.0, 1.0]  # nothing is known of them
    for gate, norm, square in zip(gates, (1.0, 3.0, 2.0), (0.04, 0.04, 0.09), strict=True):
        gate.steepness.copy_(torch.tensor([norm, square]))
    weigh(gates, 0.2)
    sizes = [1.0 * 0.2, 3.0 * 0.2 * 1.1, 2.0 * 0.3 * 1.2]
    expected = [(size - sizes[0]) / (sizes[2] - sizes[0]) + 0.1 for size in sizes]
    assert [float(gate.weight) for gate in gates] == pytest.approx(expected)


def test_the_budget_stands_falls_and_stands():
    pruner = ReLUPruner(warmup=0.1, fall=0.5)
    budgets = [pruner.budget(done / 1000, 1000.0, 50.0) for done in range(1001)]
    assert set(budgets[:101]) == {1000.0}
    assert all(one > two for one, two in pairwise(budgets[101:551]))
    assert set(budgets[550:]) == {50.0}
    assert budgets[325] == pytest.approx(50 + 950 * (1 + math.cos(math.pi * 0.5**1.5)) / 2)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"second_order": "both"}, "second_order is 'both', expected 'paper' or 'released'"),
        ({"warmup": 1.0}, "warmup is 1.0, expected a share of 1"),
        ({"fall": 1.1}, "fall is 1.1, expected a share of 1"),
        ({"momentum": 1.0}, "momentum is 1.0, expected a share of 1"),
    ],
)
def test_settings_without_sense_are_refused(settings, reason):
    with pytest.raises(UsageError, match=reason):
        ReLUPruner(**settings)


def by_hand(network, job, pruner):
    """The search of a network of one site with nothing around it; returns the network and the mask of each step."""
    network, keep = copy.deepcopy(network).train(), torch.ones(4, 8, 8)
    conv, norm, head = network[0], network[1], network[4]
    groups = [
        {"params": [conv.weight, head.weight], "weight_decay": pruner.weight_decay},
        {"params": [norm.weight, norm.bias, head.bias]},
    ]
    optimizer = torch.optim.SGD(groups, pruner.lr, momentum=0.9)
    score, curvature, negative, masks = torch.zeros(4, 8, 8), torch.zeros(4, 8, 8), [], []
    steps = job.train.steps(pruner.batch)

    def best(count):
        kept = torch.zeros(256)
        kept[score.flatten().argsort(descending=True, stable=True)[: int(count + 1e-9)]] = 1
        return kept.view(4, 8, 8)

    for epoch in range(pruner.search_epochs):
        batches = job.train.epoch(pruner.batch, epoch, job.augmentation, seed=job.seed)
        for index, (images, labels, _) in enumerate(batches):
            z = network[:2](images)
            y = torch.where(keep > 0, z.relu(), z)
            y.retain_grad()
            output = network[3:](y)
            with torch.no_grad():
                scores = job.teacher(images)
            learnt = distillation(output, scores, pruner.temperature)
            loss = pruner.labels * F.cross_entropy(output, labels) + pruner.distil * learnt
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            g, z = y.grad * len(z), z.detach()
            d = (-z).clamp(min=0)
            negative = [*negative, (z < 0).float().mean(0)][-10:]
            nu = torch.stack(negative).mean(0)
            curvature = 0.99 * curvature + 0.01 * (g**2).mean(0)
            new = nu * ((g * d).abs().mean(0) + (d**2).mean(0) * curvature / 2)
            score = pruner.momentum * score + (1 - pruner.momentum) * new
            done = (epoch * steps + index) / (pruner.search_epochs * steps)
            share = pruner.fallen(done)
            if 0 < share < 1 or (share == 1 and (epoch * steps + index + 1) % 2 == 0):
                keep = best(job.limit + (256 - job.limit) * (1 + math.cos(math.pi * share)) / 2)
            masks.append(keep.bool())
    return network, masks, best(job.limit).bool()


def test_the_search_is_the_one_by_hand_and_dropped_relus_may_return(tiny, trained, few_digits, make_job, tmp_path):
    masked = attach(tiny, find_sites(tiny, few_digits.example))
    job = replace(make_job(masked, few_digits, 0.1), teacher=trained, directory=tmp_path)
    pruner = ReLUPruner(search_epochs=5, batch=64, every=1, warmup=0.1, fall=0.7)
    network, masks, last = by_hand(tiny, job, pruner)
    assert any((two & ~one).any() for one, two in pairwise(masks))

    (keep,) = pruner.search(masked, job).values()
    assert int(keep.sum()) == 25
    assert int((keep != last).sum()) <= 2  # a tie in rounding
    for name, value in masked.model.state_dict().items():
        torch.testing.assert_close(value, network.state_dict()[name], atol=1e-3, rtol=1e-3)
    lines = [json.loads(line) for line in (tmp_path / "search.metrics.jsonl").read_text().splitlines()]
    assert [line["kept"] for line in lines] == [int(mask.sum()) for mask in masks[3::4]]
