"""AutoReP's own properties: hysteresis, the softplus gradient, the one-sided penalty, the refresh of coefficients."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reluctant.distillation import distillation
from reluctant.errors import UsageError
from reluctant.masked import attach
from reluctant.methods.autorep import AutoReP, HardGate, Indicator, hysteresis
from reluctant.sites import find_sites
from reluctant.surrogates import Quadratic, quadratic_fit


def gate(auxiliary, surrogate=None):
    model = nn.Sequential(nn.ReLU())
    masked = attach(model, find_sites(model, torch.zeros(1, *auxiliary.shape)), surrogate)
    return HardGate(masked.masked()[0], auxiliary, 0.003)


@pytest.mark.parametrize(
    ("kept", "w", "after"),
    [
        (True, 0.004, True),
        (True, 0.0, True),
        (True, -0.002, True),
        (True, -0.003, False),
        (True, -0.1, False),
        (False, -0.1, False),
        (False, 0.0, False),
        (False, 0.003, False),
        (False, 0.004, True),
    ],
)
def test_hysteresis_truth_table(kept, w, after):
    assert bool(hysteresis(torch.tensor([kept]), torch.tensor([w]), 0.003)) is after


def test_the_straight_through_factor_is_softplus():
    w = torch.tensor([-2.0, 0.0, 2.0], requires_grad=True)
    Indicator.apply(w, torch.tensor([True, False, True])).backward(torch.tensor([1.0, 10.0, -1.0]))
    torch.testing.assert_close(w.grad, torch.tensor([0.1269, 6.9315, -2.1269]), atol=1e-4, rtol=1e-4)


def test_the_gate_is_hard_forward_and_updates_only_in_training():
    g = gate(torch.tensor([0.5, -0.5, 0.001, -0.001]))
    z = torch.tensor([[-1.0, -1.0, -1.0, -1.0]])
    assert g.eval()(z).tolist() == [[0.0, 0.0, 0.0, 0.0]]
    assert g.train()(z).tolist() == [[0.0, -1.0, 0.0, 0.0]]
    assert g.kept.tolist() == [True, False, True, True]


def test_the_penalty_is_one_sided_and_its_gradient_is_the_share(trained, few_digits, make_job):
    masked = attach(trained, find_sites(trained, few_digits.example), Quadratic())
    method, total = AutoReP(), masked.sites.total
    with masked.gates(lambda a: HardGate(a, torch.zeros(a.site.shape), 0.003)) as gates:
        over = method.over_budget(gates, make_job(masked, few_digits, 0.25))
        assert float(over.detach()) == pytest.approx(1 - int(0.25 * total) / total)
        (method.penalty * over).backward()
        grad = gates["relu"].auxiliary.grad
        torch.testing.assert_close(grad, torch.full_like(grad, method.penalty / total * 0.6931), rtol=1e-3, atol=0)
        for g in gates.values():
            g.kept.fill_(False)
            g.auxiliary.grad = None
        under = method.over_budget(gates, make_job(masked, few_digits, 0.25))
        assert float(under.detach()) == 0
        under.backward()
        assert float(gates["relu"].auxiliary.grad.abs().max()) == 0


def test_running_statistics_approach_those_of_the_input():
    g = gate(torch.ones(3, 4, 4), Quadratic())
    for _ in range(100):
        g.train()(torch.randn(64, 3, 4, 4) * torch.tensor([1.0, 2.0, 3.0])[:, None, None] + 1)
    torch.testing.assert_close(g.mean, torch.ones(3), atol=0.2, rtol=0)
    torch.testing.assert_close(g.variance, torch.tensor([1.0, 4.0, 9.0]), atol=0, rtol=0.1)


def test_refreshed_coefficients_are_the_fit_or_what_the_released_code_does():
    g = gate(torch.ones(2, 3, 3), Quadratic())
    g.mean.copy_(torch.tensor([0.2, -1.0]))
    g.variance.copy_(torch.tensor([4.0, 0.1]))
    AutoReP(coefficients="exact").refresh(g)
    c0, c1, c2 = quadratic_fit(g.mean, g.variance.sqrt())
    for coefficient, fitted in zip(g.activation.coefficients(), (c0, c1, c2), strict=True):
        torch.testing.assert_close(coefficient.flatten(), fitted)
    AutoReP(coefficients="released").refresh(g)
    c0, c1, c2 = quadratic_fit(g.mean, torch.tensor([4.0, 0.5]))
    torch.testing.assert_close(g.activation.c0.flatten(), c0 / 5)
    torch.testing.assert_close(g.activation.c1.flatten(), c1)
    torch.testing.assert_close(g.activation.c2.flatten(), c2 / 10)
    with pytest.raises(UsageError, match="expected 'exact' or 'released'"):
        AutoReP(coefficients="paper")


def test_coefficients_are_refreshed_every_tenth_step_up_to_the_last(trained, few_digits, make_job, monkeypatch):
    masked = attach(trained, find_sites(trained, few_digits.example), Quadratic())
    refreshed = []
    monkeypatch.setattr(AutoReP, "refresh", lambda self, gate: refreshed.append(gate.activation.site.name))
    AutoReP(search_epochs=8, batch=64, refresh_until=20).search(masked, make_job(masked, few_digits, 0.5))
    assert refreshed.count("relu") == 2


def by_hand(network, activation, job, autorep):
    """The search before the first refresh, with nothing around it; returns what it trained and the count an epoch."""
    network = copy.deepcopy(network).train()
    w = nn.Parameter(torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(job.seed)))
    c0, c1, c2 = (nn.Parameter(c.detach().clone()) for c in (activation.c0, activation.c1, activation.c2))
    optimizer = torch.optim.Adam([{"params": [*network.parameters(), c0, c1, c2]}, {"params": [w]}])
    kept, counts, steps = torch.ones(4, 8, 8, dtype=torch.bool), [], job.train.steps(autorep.batch)
    for epoch in range(autorep.search_epochs):
        batches = job.train.epoch(autorep.batch, epoch, job.augmentation, seed=job.seed)
        for index, (images, labels, _) in enumerate(batches):
            done = (epoch + index / steps) / autorep.search_epochs
            share = autorep.lr_end + (1 - autorep.lr_end) * (1 + math.cos(math.pi * done)) / 2
            for group, lr in zip(optimizer.param_groups, (autorep.lr, autorep.mask_lr), strict=True):
                group["lr"] = share * lr
            kept = hysteresis(kept, w.detach(), autorep.threshold)
            m = kept + F.softplus(w.detach()) * (w - w.detach())
            z = network[:2](images)
            output = network[3:](m * z.relu() + (1 - m) * (c0 + c1 * z + autorep.surrogate.scale * c2 * z**2))
            with torch.no_grad():
                scores = job.teacher(images)
            loss = F.cross_entropy(output, labels) + autorep.distil * distillation(output, scores, autorep.temperature)
            optimizer.zero_grad()
            (loss + autorep.penalty * F.relu(m.sum() - job.limit) / m.numel()).backward()
            optimizer.step()
        counts.append(int(kept.sum()))
    return network, w.detach(), (c0, c1, c2), counts


def test_the_search_is_the_one_by_hand(tiny, trained, few_digits, make_job, tmp_path):
    autorep = AutoReP(search_epochs=2, batch=64, lr=0.01, mask_lr=0.05, lr_end=0.1)
    masked = attach(tiny, find_sites(tiny, few_digits.example), autorep.surrogate)
    (activation,) = masked.masked()
    job = replace(make_job(masked, few_digits, 0.9), teacher=trained, directory=tmp_path)
    network, w, coefficients, counts = by_hand(tiny, activation, job, autorep)
    assert 256 > counts[0] > counts[1]

    (keep,) = autorep.search(masked, job).values()
    assert w[keep].min() > w[~keep].max() - 1e-4
    for name, value in masked.model.state_dict().items():
        torch.testing.assert_close(value, network.state_dict()[name], atol=1e-4, rtol=1e-4)
    for value, expected in zip((activation.c0, activation.c1, activation.c2), coefficients, strict=True):
        torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-4)
    lines = [json.loads(line) for line in (tmp_path / "search.metrics.jsonl").read_text().splitlines()]
    assert [line["kept"] for line in lines] == counts


def test_adam_brings_the_count_to_the_budget_and_holds_it():
    """The penalty alone: the count falls by the uniform draw's share a step, and stays at the budget."""
    torch.manual_seed(0)
    w, kept = nn.Parameter(torch.rand(5000)), torch.ones(5000, dtype=torch.bool)
    optimizer = torch.optim.Adam([w], lr=1e-3)
    counts = []
    for _ in range(1300):
        kept = hysteresis(kept, w.detach(), 0.003)
        counts.append(int(kept.sum()))
        optimizer.zero_grad()
        (80 * F.relu(Indicator.apply(w, kept).mean() - 0.026)).backward()
        optimizer.step()
    assert counts[400] == pytest.approx(308_430 / 491_520 * 5000, rel=0.05)
    assert max(counts[1200:]) <= 0.03 * 5000
