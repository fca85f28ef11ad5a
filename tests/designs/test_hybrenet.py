"""ReLU-equalization against solutions found by hand, and what no network can be built of."""

from itertools import pairwise, product

import pytest
import torch

from reluctant.designs.hybrenet import ORDER, HybReNet, ReusedReLU, equalize, relus_a_stage
from reluctant.errors import UsageError
from reluctant.masked import attach
from reluctant.program.lower import lower
from reluctant.secure import twin_outputs
from reluctant.sites import find_sites

R34 = (
    "4,3,6 4,4,5 4,5,4 4,6,3 4,9,2 5,3,5 5,4,4 5,5,3 5,7,2 6,3,4 6,4,3 6,6,2 7,5,2 8,3,3 9,4,2 11,3,2"
)  # fmt: skip
DEEP_THIRD = (
    "5,2,7 5,3,5 5,5,3 5,7,2 6,2,6 6,3,4 6,4,3 6,6,2 7,2,5 7,5,2 8,3,3 9,2,4 9,4,2 11,2,3 11,3,2 17,2,2"
)  # fmt: skip


def read(text):
    return tuple(tuple(map(int, word.split(","))) for word in text.split())


@pytest.mark.parametrize(
    ("blocks", "order", "solutions"),
    [
        ((2, 2, 2, 2), ORDER, "5,5,3 5,7,2 6,6,2 7,5,2"),
        ((3, 4, 6, 3), ORDER, R34),
        ((3, 3, 9, 3), ORDER, DEEP_THIRD),
        ((2, 2, 6, 2), ORDER, DEEP_THIRD),
        ((3, 3, 3), (2, 3, 1), "6,3 9,2"),
        ((5, 5, 5), (2, 3, 1), "6,3 9,2"),
        ((3, 3, 3), (3, 2, 1), "5,5"),
        ((2, 2, 2, 2), (3, 4, 2, 1), "5,6,3 5,9,2"),
    ],
)
def test_the_least_solutions(blocks, order, solutions):
    assert equalize(blocks, order) == read(solutions)


def test_multipliers_of_one_add_eight_more_for_resnet18():
    more = set(equalize((2, 2, 2, 2), ORDER, least=1)) - set(equalize((2, 2, 2, 2), ORDER))
    assert more == set(read("5,13,1 6,11,1 7,10,1 8,9,1 9,8,1 10,7,1 11,6,1 13,5,1"))


@pytest.mark.parametrize(
    ("blocks", "order"),
    [
        ((1, 2, 3, 1), ORDER),
        ((1, 2, 3, 1), (3, 4, 2, 1)),
        ((3, 2, 1, 1), (1, 2, 3, 4)),
        ((2, 2, 2, 2), (4, 3, 2, 1)),
        ((2, 2, 2, 2), (2, 4, 1, 3)),
        ((2, 3, 2, 2), (2, 1, 4, 3)),
    ],
)
@pytest.mark.parametrize("bottleneck", [False, True])
def test_solutions_are_those_of_trying_all_small_ones(blocks, order, bottleneck):
    most = 12

    def follows(multipliers):
        relus = HybReNet(
            blocks=blocks, multipliers=multipliers, stem_relu=False, block="bottleneck" if bottleneck else "basic"
        ).relus(64)
        ranked = [relus[f"stage {stage}"] for stage in order]
        return all(a > b for a, b in pairwise(ranked))

    feasible = [m for m in product(range(2, most + 1), repeat=3) if follows(m)]
    least = {
        m for m in feasible if not any(o != m and all(a <= b for a, b in zip(o, m, strict=True)) for o in feasible)
    }
    assert least
    assert {m for m in equalize(blocks, order, bottleneck=bottleneck) if max(m) <= most} == least


def test_thirteen_networks_up_to_8_follow_the_order_of_resnet18():
    units = relus_a_stage((2, 2, 2, 2), bottleneck=False)

    def follows(a, b, c):
        first, second, third, fourth = (n * w for n, w in zip(units, (1, a, a * b, a * b * c), strict=True))
        return third > second > fourth > first

    assert sum(follows(*m) for m in product(range(2, 9), repeat=3)) == 13


def test_the_stems_relus_do_not_count_into_stage_1():
    relus = HybReNet(multipliers=(5, 5, 3)).relus(32)
    assert relus["stem"] + relus["stage 1"] == relus["stage 2"] > relus["stage 4"]  # the order would break
    assert relus["stage 3"] > relus["stage 2"] > relus["stage 4"] > relus["stage 1"]


def test_stages_that_grow_alike_never_follow_the_order():
    for factor in range(2, 12):
        relus = HybReNet(multipliers=(factor,) * 3).relus(32)
        assert not relus["stage 3"] > relus["stage 2"] > relus["stage 4"] > relus["stage 1"]


def test_thinning_keeps_every_other_relu_of_a_stage():
    whole, thin = HybReNet(stem_relu=False), HybReNet(stem_relu=False, thin=True)
    assert {part: 2 * relus for part, relus in thin.relus(32).items()} == whole.relus(32)
    network = thin.network(10, 3)
    names = [name for name, module in network.named_modules() if type(module).__name__ == "ReLU"]
    assert names == [f"layer{stage}.{block}.relu1" for stage in (1, 2, 3, 4) for block in (0, 1)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"multipliers": (5, 5)}, "multipliers has 2 numbers for 4 stages"),
        ({"multipliers": (5, 0, 3)}, "multipliers is 0, expected a value above zero"),
        ({"multipliers": (5, 0.5, 3)}, "expected a list of whole numbers such as 5-5-3"),
        ({"blocks": (2, 0, 2, 2)}, "blocks is 0, expected a value above zero"),
        ({"blocks": (), "multipliers": ()}, "blocks is empty"),
        ({"width": 0}, "width is 0"),
        ({"block": "botleneck"}, "expected one of basic, bottleneck"),
        ({"groups": 4}, "basic blocks have none"),
        ({"groups": 3, "block": "bottleneck"}, "the 16 channels of stage 1 do not divide into 3 groups"),
        ({"stem_relu": 1}, "expected a bool"),
    ],
)
def test_settings_of_no_network_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        HybReNet().changed(settings)


@pytest.mark.parametrize(
    ("blocks", "order", "message"),
    [
        ((2, 2, 2, 2), (3, 2, 3, 1), "order 3-2-3-1 names stage 3 twice"),
        ((2, 2, 2, 2), (3, 2, 1), "leaves out stage 4 of 4"),
        ((2, 2, 2, 2), (3, 2, 5, 1), "names stage 5, there are 1 to 4"),
        ((1, 1, 8, 1), (1, 3, 2, 4), "stage 1 cannot have more ReLUs than stage 3"),
        ((1, 1, 6, 1), (1, 2, 3, 4), "stage 2 > stage 3|stage 2 cannot have more ReLUs than stage 3"),
        ((2, 2, 6, 2), (2, 4, 1, 3), "no multipliers from 2 to 64 give stage 2 > stage 4 > stage 1 > stage 3"),
        ((1,) * 6, (1, 2, 3, 4, 5, 6), "two to five stages"),
    ],
)
def test_orders_that_nothing_satisfies_are_refused_with_the_constraint(blocks, order, message):
    with pytest.raises(UsageError, match=message):
        equalize(blocks, order)


def test_candidates_are_the_solutions_with_the_other_settings_kept():
    found = HybReNet.candidates((3, 2, 4, 1), {"thin": "true", "width": 8})
    assert [design.multipliers for design in found] == list(read("5,5,3 5,7,2 6,6,2 7,5,2"))
    assert all(design.thin and design.width == 8 for design in found)
    assert HybReNet.candidates(None, {"multipliers": "2,5,3"}) == (HybReNet(multipliers=(2, 5, 3)),)
    with pytest.raises(UsageError, match="3 stages have no usual order"):
        HybReNet.candidates(None, {"blocks": "3-3-3"})
    with pytest.raises(UsageError, match="leave one out"):
        HybReNet.candidates(ORDER, {"multipliers": "2,5,3"})


def test_reused_relus_are_those_of_one_group():
    design = HybReNet(width=4, blocks=(1, 1), multipliers=(3,), reuse=2)
    whole = HybReNet(width=4, blocks=(1, 1), multipliers=(3,))
    assert design.relus(8) == {part: relus // 2 for part, relus in whole.relus(8).items()}
    network = design.network(5, 3)
    sites = find_sites(network, torch.zeros(1, 3, 8, 8))
    assert sites.total == sum(design.relus(8).values())
    x = torch.tensor([-1.0, 2.0, -3.0, 4.0]).reshape(1, 4, 1, 1)
    assert ReusedReLU(2)(x).flatten().tolist() == [0.0, 2.0, -3.0, 6.0]
    with pytest.raises(UsageError, match="do not divide into the 4 groups that reuse ReLUs"):
        HybReNet(width=6, reuse=4)


def test_reused_relus_run_under_fixed_point():
    torch.manual_seed(0)
    network = HybReNet(width=4, blocks=(1, 1), multipliers=(2,), reuse=2).network(5, 1).eval()
    images = torch.randn(3, 1, 8, 8)
    program = lower(attach(network, find_sites(network, images)))
    made = torch.from_numpy(twin_outputs(program, images.numpy()))
    torch.testing.assert_close(made, network(images).detach(), rtol=0, atol=2e-3)
