"""SENet: sensitivities, layer budgets, masks by difference."""

import copy

import pytest
import torch
from torch import nn

from reluctant.errors import UsageError
from reluctant.linearization import linearize
from reluctant.loop import Counters
from reluctant.masked import attach
from reluctant.methods.senet import (
    PUBLISHED,
    Compared,
    SENet,
    feeding,
    layers_of,
    moved,
    published_for,
    sensitivity,
    start_anew,
)
from reluctant.models import load_model
from reluctant.prices import Prices, SitePrice
from reluctant.sites import find_sites
from reluctant.task import stream

QUICK = {"search_epochs": 2, "sensitivity_epochs": 1, "batch": 64}


@pytest.fixture
def masked(trained, few_digits):
    return attach(trained, find_sites(trained, few_digits.example))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("resnet18:width=8", "resnet18"),
        ("resnet18:width=16,stem_relu=false", "resnet18"),
        ("resnet34:width=8", "resnet34"),
        ("wrn-22-8", "wrn22"),
        ("resnet20", None),
        ("resnet32", None),
    ],
)
def test_published_sensitivities_are_taken_for_the_networks_they_are_of(spec, expected, few_digits):
    sites = find_sites(load_model(spec, task=few_digits), torch.zeros(1, 1, 32, 32))
    assert published_for(sites) == expected
    if expected:
        counts = sum(map(len, PUBLISHED[expected]))
        assert counts - len(sites) == ("stem_relu=false" in spec)


def test_a_network_without_a_stem_drops_the_first(few_digits, make_job):
    network = load_model("resnet18:width=8,stem_relu=false", task=few_digits)
    masked = attach(network, find_sites(network, few_digits.example))
    etas = SENet().sensitivities(masked, make_job(masked, few_digits, 0.1))
    assert list(etas.values()) == [eta for stage in PUBLISHED["resnet18"] for eta in stage][1:]


def test_budgets_are_in_proportion_to_sensitivity_and_not_to_size(masked, few_digits, make_job):
    job = make_job(masked, few_digits, 0.02)
    counts = SENet(sensitivity="1,1,1,1,1,1,2").counts(masked, job)
    assert sum(counts.values()) == job.limit
    assert max(counts.values()) <= 2 * min(counts.values()) + 2
    assert list(counts.values()).index(max(counts.values())) == 6


def test_given_sensitivities_that_do_not_fit_are_refused(masked, few_digits, make_job):
    job = make_job(masked, few_digits, 0.1)
    for text, layers in (("0.1,0.2", 2), ("resnet18", 17)):
        with pytest.raises(UsageError, match=f"is of {layers} layers, the network has 7 ReLU sites; give"):
            SENet(sensitivity=text).counts(masked, job)
    for text in ("0,0,0", "resnet19", "1,-1", "1,nan", ""):
        with pytest.raises(UsageError, match=f"senet.sensitivity is '{text}', expected auto, measured, resnet18"):
            SENet(sensitivity=text)


def test_what_feeds_a_site_is_what_ran_since_the_site_before(masked, few_digits):
    fed_by = feeding(masked, few_digits.train.inputs(slice(2)))
    assert fed_by["relu"] == ["conv1"]
    assert fed_by["layer1.0.relu1"] == ["layer1.0.conv1"]
    assert fed_by["layer1.0.relu2"] == ["layer1.0.conv2"]
    assert fed_by["layer2.0.relu2"] == ["layer2.0.conv2", "layer2.0.downsample.0"]
    assert not any("fc" in names for names in fed_by.values())


def test_sites_with_no_layer_between_share_one_and_one_before_all_has_none():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 2, 3), nn.Linear(2, 10)

        def forward(self, x):
            x = self.conv(x.relu()).relu()
            return self.fc((x - 1).relu().mean((2, 3)))

    masked = attach(Odd(), find_sites(Odd(), torch.zeros(1, 1, 8, 8)))
    assert list(feeding(masked, torch.zeros(2, 1, 8, 8)).values()) == [[], ["conv"], ["conv"]]
    assert 0 < sensitivity([]) < 0.01


def test_moving_weights_keeps_their_number_and_brings_the_steepest_back():
    weights = {"a": nn.Parameter(torch.arange(1.0, 9.0)), "b": nn.Parameter(torch.arange(1.0, 9.0))}
    kept = Counters(a=torch.tensor([True] * 4 + [False] * 4), b=torch.tensor([True] * 4 + [False] * 4))
    momenta = {"a": torch.ones(8), "b": 1e-6 * torch.ones(8)}
    momenta["a"][6] = 5.0
    after = moved(weights, momenta, kept, 0.5)
    assert sum(int(mask.sum()) for mask in after.values()) == 8
    assert after["a"][6]
    assert after["a"][2:4].all()  # the larger half of each layer stays
    assert after["b"].tolist() == [False, False, True, True] + [False] * 4
    assert int(after["a"].sum()) == 6
    same = moved(weights, momenta, kept, 0.0)
    assert all(torch.equal(same[name], kept[name]) for name in kept)


def test_a_measured_sensitivity_is_one_minus_a_density(masked, few_digits, make_job):
    method = SENet(**QUICK)
    job = make_job(masked, few_digits, 0.1)
    before = copy.deepcopy(masked.state_dict())
    etas = method.sensitivities(masked, job)
    assert list(etas) == list(masked.sites)
    assert all(0 < eta < 1 for eta in etas.values())
    assert etas == method.sensitivities(masked, job)
    assert all(torch.equal(value, before[name]) for name, value in masked.state_dict().items())
    weights = layers_of(masked.model)
    fed_by = feeding(masked, few_digits.train.inputs(slice(2)))
    sizes = {site: sum(weights[name].numel() for name in names) for site, names in fed_by.items()}
    density = sum((1 - etas[site]) * sizes[site] for site in etas) / sum(sizes.values())
    assert density == pytest.approx(method.density, abs=0.03)  # of all but the classifier


def test_starting_anew_is_by_the_seed_alone(trained):
    one, other, third = (copy.deepcopy(trained) for _ in range(3))
    before = torch.get_rng_state()
    start_anew(one, 3)
    torch.rand(5)
    start_anew(other, 3)
    start_anew(third, 4)
    assert torch.equal(one.conv1.weight, other.conv1.weight)
    assert not torch.equal(one.conv1.weight, third.conv1.weight)
    assert not torch.equal(one.conv1.weight, trained.conv1.weight)
    assert torch.equal(one.bn1.running_mean, torch.zeros(8))
    torch.set_rng_state(before)


def test_the_first_mask_is_shared_by_channels_and_as_dense_as_the_budget():
    first = SENet().first(2000, (8, 40, 50), stream(1))
    assert torch.equal(first, first[:1].expand(first.shape))
    assert float(first.mean()) == pytest.approx(2000 / 16000, abs=0.04)
    whole = SENet(granularity="channel").first(2000, (64, 10, 10), stream(1))
    assert torch.equal(whole, whole[:, :1, :1].expand(whole.shape))


def test_the_mask_is_the_top_of_the_differences_of_the_last_epoch(masked, few_digits, make_job):
    method = SENet(sensitivity="1,1,1,1,1,1,1", search_epochs=1, batch=128)
    job = make_job(masked, few_digits, 0.1)
    counts = method.counts(masked, job)
    with masked.gates(Compared) as gates:
        method._train(masked, gates, counts, job)
        for name, gate in gates.items():
            assert int(gate.keep.sum()) == counts[name]
            least = gate.difference[gate.keep > 0].min()
            assert least >= gate.difference[gate.keep == 0].max()
            assert gate.difference.min() >= 0
            assert gate.difference.max() > 0


def test_prices_hold_and_channels_are_kept_whole(masked, few_digits, make_job):
    job = make_job(masked, few_digits, 0.3)
    prices = Prices({name: SitePrice(1.0 + place, 5.0) for place, name in enumerate(masked.sites)}, "bytes", 3.0)
    object.__setattr__(job, "prices", prices)
    for granularity in ("pixel", "channel"):
        method = SENet(sensitivity="1,1,1,1,1,1,1", granularity=granularity, search_epochs=1)
        mask = method.search(copy.deepcopy(masked), job)
        assert 0.7 * job.limit < prices.cost(mask.by_site()) <= job.limit
        if granularity == "channel":
            assert all(
                keep.flatten(1).float().mean(1).unique().tolist() in ([0], [1], [0, 1]) for keep in mask.values()
            )


def test_a_random_start_leaves_the_teachers_weights(trained, few_digits, fabric):
    by_start = {
        start: linearize(
            trained,
            SENet(sensitivity="1,1,1,1,1,1,1", search_epochs=1, lr=1e-6, start=start),
            "10%",
            few_digits,
            fabric=fabric,
        )
        for start in ("teacher", "random")
    }
    near = {start: (small.model.conv1.weight - trained.conv1.weight).abs().max() for start, small in by_start.items()}
    assert near["teacher"] < 1e-3 < near["random"]
    with pytest.raises(UsageError, match=r"senet\.start is 'other', expected 'teacher' or 'random'"):
        SENet(start="other")


@pytest.mark.parametrize(("stage", "after"), [("sensitivity", 3), ("search", 1), ("search", 3)])
def test_killed_in_either_stage_it_ends_as_if_it_had_not_been(stage, after, trained, few_digits, fabric, tmp_path):
    method = SENet(search_epochs=3, sensitivity_epochs=3, momentum=0.5)

    def killed(at, done, total, **metrics):
        if at == stage and done > after:
            raise KeyboardInterrupt

    whole = linearize(trained, method, "10%", few_digits, fabric=fabric)
    with pytest.raises(KeyboardInterrupt):
        linearize(trained, method, "10%", few_digits, fabric=fabric, directory=tmp_path, progress=killed)
    assert (tmp_path / f"{stage}.state").exists() == (after > 1)
    again = linearize(trained, method, "10%", few_digits, fabric=fabric, directory=tmp_path)
    assert again.mask == whole.mask
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in again.state_dict().items())
