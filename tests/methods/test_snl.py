"""SNL's own properties: how fast a gate can fall, when the penalty grows, what counts as kept, the projection."""

import copy
import json
import logging
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reluctant.blend import BlendedReLU
from reluctant.distillation import distillation
from reluctant.masked import attach
from reluctant.methods.snl import SNL, SoftGate
from reluctant.sites import find_sites


def test_without_a_task_gradient_no_gate_is_dropped_before_step_990():
    """Adam moves a gate by its rate a step, so 1 falls to the threshold 0.01 after about (1 - 0.01) / 0.001 steps."""
    alpha = nn.Parameter(torch.ones(50))
    optimizer = torch.optim.Adam([alpha], lr=SNL().gate_lr)
    for step in range(1, 1011):
        optimizer.zero_grad()
        (SNL().penalty * alpha.abs().sum()).backward()
        optimizer.step()
        if step <= 985:
            assert SNL().kept({"a": alpha}) == 50
    assert SNL().kept({"a": alpha}) == 0


def test_the_penalty_grows_only_after_patience_and_only_without_a_new_low():
    snl = SNL()
    assert snl.next_penalty(1.0, epoch=4, kept=100, low=100) == 1.0
    assert snl.next_penalty(1.0, epoch=5, kept=99, low=100) == 1.0
    assert snl.next_penalty(1.0, epoch=5, kept=100, low=100) == pytest.approx(1.1)
    assert snl.next_penalty(1.0, epoch=9, kept=120, low=100) == pytest.approx(1.1)


def test_a_negative_gate_is_a_dropped_relu():
    assert SNL().kept({"a": torch.tensor([-3.0, 0.01, 0.011, 1.0])}) == 2


def test_a_soft_gate_is_a_leaky_relu():
    model = nn.Sequential(nn.ReLU())
    masked = attach(model, find_sites(model, torch.zeros(1, 4)))
    gate = SoftGate(masked.masked()[0])
    nn.init.constant_(gate.alpha, 0.7)
    z = torch.randn(6, 4)
    torch.testing.assert_close(gate(z), nn.functional.leaky_relu(z, 0.3))
    torch.testing.assert_close(gate(z), BlendedReLU.apply(z, gate.alpha, None, None, None))


def test_it_stops_at_the_first_epoch_within_budget(trained, few_digits, make_job):
    masked = attach(trained, find_sites(trained, few_digits.example))
    epochs = []

    def watch(stage, done, total, **metrics):
        epochs.append(done)

    job = replace(make_job(masked, few_digits, 0.3), progress=watch)
    mask = SNL(gate_lr=0.2, penalty=1.0, max_epochs=50, batch=64).search(masked, job)
    assert mask.kept == int(0.3 * masked.sites.total)
    assert max(epochs) < 4 * 10


def test_a_budget_it_cannot_reach_is_projected_and_said(trained, few_digits, make_job, caplog):
    masked = attach(trained, find_sites(trained, few_digits.example))
    job = make_job(masked, few_digits, 0.1)
    with caplog.at_level(logging.WARNING):
        mask = SNL(max_epochs=1, batch=128).search(masked, job)
    assert mask.kept == int(0.1 * masked.sites.total)
    assert f"{masked.sites.total - mask.kept} more gates were above 0.01" in caplog.text


def by_hand(network, job, snl):
    """The search with nothing around it; returns the trained network, its gates, and what was noted of each epoch."""
    network, alpha = copy.deepcopy(network).train(), nn.Parameter(torch.ones(4, 8, 8))
    groups = [{"params": network.parameters(), "lr": snl.lr}, {"params": [alpha], "lr": snl.gate_lr}]
    optimizer, penalty, low, noted = torch.optim.Adam(groups), snl.penalty, alpha.numel(), []
    for epoch in range(snl.max_epochs):
        for images, labels, _ in job.train.epoch(snl.batch, epoch, job.augmentation, seed=job.seed):
            z = network[:2](images)
            output = network[3:](alpha * z.relu() + (1 - alpha) * z)
            with torch.no_grad():
                scores = job.teacher(images)
            loss = F.cross_entropy(output, labels) + snl.distil * distillation(output, scores, snl.temperature)
            optimizer.zero_grad()
            (loss + penalty * alpha.abs().sum()).backward()
            optimizer.step()
        kept = int((alpha > snl.threshold).sum())
        noted.append((kept, penalty))
        if epoch >= snl.patience and kept >= low:
            penalty *= snl.growth
        low = min(low, kept)
    return network, alpha.detach(), noted


def test_the_search_is_the_one_by_hand(tiny, trained, few_digits, make_job, tmp_path):
    masked = attach(tiny, find_sites(tiny, few_digits.example))
    job = replace(make_job(masked, few_digits, 0.05), teacher=trained, directory=tmp_path)
    snl = SNL(gate_lr=0.1, penalty=0.0003, growth=1.5, patience=0, threshold=0.95, max_epochs=4, batch=64)
    network, alpha, noted = by_hand(tiny, job, snl)
    kept, penalties = zip(*noted, strict=True)
    assert 256 > kept[0] < kept[1] > kept[2]
    assert penalties == pytest.approx([0.0003, 0.0003, 0.00045, 0.00045])

    (keep,) = snl.search(masked, job).values()
    assert alpha[keep].min() > alpha[~keep].max() - 1e-4
    for name, value in masked.model.state_dict().items():
        torch.testing.assert_close(value, network.state_dict()[name], atol=1e-4, rtol=1e-4)
    lines = [json.loads(line) for line in (tmp_path / "search.metrics.jsonl").read_text().splitlines()]
    assert [(line["kept"], line["penalty"]) for line in lines] == noted


def test_reweighting_presses_small_gates_harder_and_leaves_whole_ones():
    alpha = torch.tensor([1.0, 0.1, -0.5], requires_grad=True)
    SNL(reweight=0.1).size(alpha).backward()
    torch.testing.assert_close(alpha.grad, torch.tensor([1.0, 1.1 / 0.2, -1.1 / 0.6]))
    assert float(SNL().size(alpha.detach())) == pytest.approx(1.6)


def test_a_gate_a_channel_keeps_channels_whole(trained, few_digits, fabric):
    from reluctant.linearization import linearize

    small = linearize(trained, SNL(granularity="channel", max_epochs=2, gate_lr=0.1), "30%", few_digits, fabric=fabric)
    for keep in small.mask.values():
        assert torch.equal(keep.flatten(1).any(1), keep.flatten(1).all(1))
    assert 0.28 < small.mask.kept / small.mask.total <= 0.3
