"""Which layers make use of their channels, and widths that follow it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from reluctant.candidates import Pricing, describe
from reluctant.designs.adjusted import Adjusted
from reluctant.errors import Paused, UnknownName, UsageError
from reluctant.experiment import Machine
from reluctant.masked import attach
from reluctant.models import ModelSpec
from reluctant.progress import TimeLimit, silent
from reluctant.recipe import Recipe, resolve
from reluctant.searches.adjustment import MAX_DROPOUT, Adjustment, channel_dropout, dropout_schedule, mean_loss, rates
from reluctant.searches.base import Study
from reluctant.searches.metering import MIN_WIDTH, TOLERANCE, Meter, match_resource, with_widths
from reluctant.sites import evaluating, find_sites
from reluctant.studies import run_search
from reluctant.task import stream
from reluctant.training import Training

SMALL = "adjusted:width=8,blocks=1-1-1"
SHORT = Recipe(task="digits", model=SMALL, training=Training(epochs=2, batch=256, lr=0.05))
QUICK = Adjustment(rounds=2, repeats=2, update_num=2, eta=0.3, dropout=0.2)
RESNET20 = Adjusted()


@pytest.fixture
def study(without_test, fabric, tmp_path):
    """Its task has no test split to look at."""
    short = Training(epochs=1, batch=64, lr=0.05)
    return Study(without_test, SMALL, short, short, 0, fabric, tmp_path, silent)


def meter(task, resource):
    return Meter.of(resource, task, "cheetah", "lan")


def test_the_update_by_hand():
    """Steps are parts of the first widths; each further rank and each further round takes a smaller or no step."""
    search = Adjustment(update_num=2, update_decay=0.5, eta=0.5, eta_decay=0.1)
    initial, widths = (16, 16, 32, 32), (16, 10, 40, 30)
    utilisation = (0.3, 0.1, 0.4, 0.2)
    assert search.update_widths(widths, initial, utilisation, 0) == (
        round(16 + 0.4 * 16),
        MIN_WIDTH,
        56,
        round(30 - 0.4 * 32),
    )
    assert search.update_widths(widths, initial, utilisation, 1) == search.update_widths(
        widths, initial, utilisation, 0
    )  # 1.5: 2
    assert search.update_widths(widths, initial, utilisation, 2) == (16, MIN_WIDTH, 56, 30)
    assert search.update_widths(widths, initial, utilisation, 4) == widths
    assert search.update_widths(widths, initial, utilisation, 9) == widths


def test_a_layer_does_not_get_wider_and_narrower():
    after = Adjustment(eta_decay=0.0).update_widths((16,) * 6, (16,) * 6, (1, 2, 3, 4, 5, 6), 0)
    assert after == (14, 14, 14, 18, 18, 18)


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=20), st.floats(0.01, 0.5))
@settings(max_examples=100, deadline=None)
def test_all_layers_lose_as_much(weights, p0):
    assume(sum(weights) > 1e-3)
    found = rates(weights, p0)
    lost = p0 * sum(weights) / len(weights)
    for rate, weight in zip(found, weights, strict=True):
        assert 0 <= rate <= MAX_DROPOUT < 1
        assert rate * weight == pytest.approx(lost) if rate < MAX_DROPOUT else rate * weight <= lost * (1 + 1e-9)


def test_dropout_grows_from_layer_to_layer():
    assert dropout_schedule(0.05, 5) == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05])


@given(st.lists(st.integers(4, 30), min_size=6, max_size=6).map(tuple))
@settings(max_examples=3, deadline=None)
def test_multiply_adds_of_a_layer_are_what_a_channel_more_costs(digits, widths):
    """Exactly, since they are a product of two widths; but where two layers that are added up are equally wide."""
    design, measure = Adjusted(width=16, blocks=(1, 1, 1), widths=widths), meter(digits, "macs")
    weights = measure.weights(design)
    for layer, width in enumerate(widths):
        if layer % 2 and width == design.streams[layer // 2]:
            continue
        wider = with_widths(design, (*widths[:layer], width + 1, *widths[layer + 1 :]))
        assert weights[layer] == width * (measure.price(wider) - measure.price(design))


def test_relus_of_a_layer_are_those_of_its_channels(digits):
    assert meter(digits, "relus").weights(Adjusted(width=8, blocks=(1, 1))) == [512, 512, 256, 256]


@pytest.mark.parametrize("resource", ["bytes", "seconds"])
def test_bytes_and_seconds_are_predicted(digits, resource):
    design, measure = Adjusted(width=16, blocks=(1,)), meter(digits, resource)
    predicted = Pricing.load("cheetah", "lan").predict(design.spec, 10, digits.input_shape)
    assert measure.takes(design) == {
        "relus": 2048,
        "macs": measure.takes(design)["macs"],
        resource: getattr(predicted, resource),
    }
    ends = [measure.of_widths(design, (width, 16)) for width in (12, 20)]
    assert measure.weights(design)[0] == pytest.approx(16 * (ends[1] - ends[0]) / 8)
    assert min(measure.weights(design)) > 0


@given(st.lists(st.floats(0.6, 1.4), min_size=18, max_size=18))
@settings(max_examples=100, deadline=None)
def test_the_resource_stays_within_one_percent(factors):
    def relus(widths):
        return float(sum(with_widths(RESNET20, widths).relus(32).values()))

    widths = [max(MIN_WIDTH, round(c * factor)) for c, factor in zip(RESNET20.layers, factors, strict=True)]
    found = match_resource(widths, relus, 172032.0)
    assert abs(relus(found) - 172032) / relus(found) <= TOLERANCE
    assert min(found) >= MIN_WIDTH
    ratios = [after / before for after, before in zip(found, widths, strict=True) if before > 20]
    assert max(ratios, default=1) - min(ratios, default=1) < 0.1


def test_multiply_adds_stay_within_one_percent(digits):
    measure = Meter.of("macs", digits, "cheetah", "lan")
    wanted = measure.price(RESNET20)
    found = match_resource(
        Adjusted.released()["cifar100-resnet20"].layers, lambda w: measure.of_widths(RESNET20, w), wanted
    )
    assert abs(measure.of_widths(RESNET20, found) - wanted) / wanted <= 1.01 * TOLERANCE


def test_where_whole_channels_are_too_coarse_the_nearest_below_is_taken():
    def price(widths):
        return 100.0 * sum(widths)

    assert match_resource((8, 8, 8), price, 2450.0) == (8, 8, 8)  # 2 % below; one channel more is 2 % above
    assert match_resource((10, 10, 10), price, 2450.0) == (8, 8, 8)
    assert match_resource((4, 4, 4), price, 2490.0) == (9, 8, 8)  # half a percent above
    with pytest.raises(UsageError, match="with 4 channels each they take more"):
        match_resource((4, 4, 4), price, 600.0)


def test_channels_are_dropped_and_nothing_of_it_is_left():
    layer, x = nn.Identity(), torch.ones(400, 50, 2, 2)
    with evaluating(layer), channel_dropout([layer], [0.2], stream(1)):
        dropped = layer(x)
    assert torch.equal(dropped, dropped[:, :, :1, :1].expand_as(dropped))
    assert dropped.unique().tolist() == [0.0, pytest.approx(1.25)]
    kept = (dropped[:, :, 0, 0] > 0).float()
    assert float(kept.mean()) == pytest.approx(0.8, abs=0.01)
    assert float(kept.mean(0).std()) < 0.04  # by image and by channel, not whole ones
    assert float(kept.mean(1).std()) < 0.08
    assert layer(x) is x
    with pytest.raises(KeyboardInterrupt), channel_dropout([layer], [0.2], stream(1)):
        raise KeyboardInterrupt
    assert layer(x) is x


def test_dropout_adds_no_sites(digits):
    network = ModelSpec.parse(SMALL).build(10, 1)
    with channel_dropout(network.adjusted, [0.5] * 6, stream(0)):
        sites = find_sites(network, digits.example)
        state = set(network.state_dict())
    assert list(sites) == list(find_sites(network, digits.example))
    assert state == set(network.state_dict())
    assert not any(module._forward_hooks for module in network.modules())
    assert len(attach(network, sites).sites) == 6


def test_a_layer_that_adds_nothing_has_no_utilisation(study):
    network = study.build(SMALL)
    for norm in network.layer2[0].bn2.parameters():
        nn.init.zeros_(norm)
    found = Adjustment(repeats=2)._utilisation(study, "a", network.eval(), [0.3] * 6)
    assert found[3] == found[2] == 0
    assert all(abs(found[layer]) > 0 for layer in (0, 1, 4, 5))
    by_hand = []
    for repeat in range(2):
        with channel_dropout([network.layer1[0].relu1], [0.3], stream(0, 0, repeat, 3)):
            by_hand.append(mean_loss(network, study.task.val))
    assert found[0] == pytest.approx(sum(by_hand) / 2 - mean_loss(network, study.task.val))


@pytest.mark.parametrize("resource", ["macs", "relus", "bytes", "seconds"])
def test_a_search_for_each_resource_reads_no_test_image(study, resource):
    study = replace(study, model="adjusted:blocks=1" if resource in ("bytes", "seconds") else "adjusted:blocks=1-1")
    found = replace(QUICK, resource=resource, rounds=1, repeats=1).run(study)
    first, second = found["networks"]
    assert first["model"] == study.model
    assert first["widths"] in ([16, 16], [16, 16, 32, 32])
    assert second["widths"] != first["widths"]
    wanted = first[resource]
    assert -0.03 <= (second[resource] - wanted) / second[resource] <= TOLERANCE  # few channels, so below is coarse
    assert found["model"] == found["networks"][found["best"]]["model"]
    assert max(row["val"] for row in found["networks"]) == found["networks"][found["best"]]["val"]
    built = describe(second["model"], 10, study.task.input_shape)
    assert (sum(built.relus.values()), sum(built.macs.values())) == (second["relus"], second["macs"])
    told = replace(QUICK, resource=resource).tell({**found, "task": "digits"})
    assert f"next: reluctant train {found['model']} --task digits" in told
    assert [line.split()[0] for line in told.splitlines() if line.endswith("best")] == [str(found["best"])]


def test_in_slices_it_finds_what_it_finds_in_one_go(tmp_path):
    """Each slice ends after five steps of training, or before the next measurement."""

    def slice_of_five():
        limit, steps = TimeLimit(1e6), iter(range(1000))

        def count(*_, **__):
            if next(steps) == 4:
                limit.seconds = 0.0

        limit.progress = count
        return limit

    whole = run_search(QUICK, SHORT, tmp_path / "whole", Machine(device="cpu"))
    assert len(whole["networks"]) == 3
    pauses = []
    while True:
        try:
            found = run_search(QUICK, SHORT, tmp_path / "sliced", Machine(device="cpu"), progress=slice_of_five())
        except Paused as pause:
            pauses.append(str(pause))
        else:
            break
    assert found == whole
    assert [pause.partition(" at ")[2].partition(",")[0] for pause in pauses] == [
        place for number in range(3) for place in ("train 5 of 10", f"round-{number}/val 0 of 1")
    ]
    for number in range(3):
        one, other = (torch.load(tmp_path / name / f"round-{number}" / "trained.state") for name in ("whole", "sliced"))
        assert all(torch.equal(one["weights"][key], other["weights"][key]) for key in one["weights"])


def test_it_is_trained_as_published_unless_one_says_otherwise():
    chosen = {"task": "digits", "model": SMALL}
    usual = resolve(None, chosen, [], usual=Adjustment.usual).training
    assert (usual.epochs, usual.lr, usual.weight_decay, usual.warmup, usual.batch) == (200, 0.15, 3e-4, 0.0, 128)
    short = resolve(None, chosen, ["training.epochs=3"], usual=Adjustment.usual).training
    assert short == replace(usual, epochs=3)


def test_what_cannot_be_adjusted_is_refused(study):
    with pytest.raises(UsageError, match="resnet8 has no width for every layer: start from adjusted"):
        QUICK.check(replace(study, model="resnet8"))
    with pytest.raises(UsageError, match="not from trained weights: give adjusted"):
        QUICK.check(replace(study, given=study.build(SMALL)))
    with pytest.raises(UsageError, match="expected macs, relus, bytes, seconds"):
        Adjustment(resource="flops")
    with pytest.raises(UsageError, match=r"p0 is 1.0, expected a share of channels under 1"):
        Adjustment(p0=1.0)
    with pytest.raises(UnknownName):
        replace(QUICK, resource="bytes", engine="cheeta").check(study)
    with pytest.raises(UsageError, match=r"no bytes are predicted under cryptflow2.*take resource=macs"):
        replace(QUICK, resource="bytes", engine="cryptflow2").check(study)
    with pytest.raises(UsageError, match="has a layer of 2 channels, and none may have under 4"):
        QUICK.check(replace(study, model="adjusted:width=2,blocks=1-1-1"))
