"""Predicted bytes against hand sums, against what was measured, and against a run that is made here."""

import json
from importlib import resources

import numpy as np
import pytest
import torch
from engines.small import masked_small
from torch import nn

from reluctant.costs.cheetah import Stocks, Work, held_at_most, streams, tiles
from reluctant.costs.model import CostModel
from reluctant.costs.networks import NETWORKS
from reluctant.costs.table import CostTable, cheaper_transfers
from reluctant.engines.cheetah import Cheetah
from reluctant.errors import UnknownName, UsageError
from reluctant.mask import Mask
from reluctant.program.lower import lower
from reluctant.surrogates import Affine, Constant, Identity, Quadratic, Shift

TABLE = json.loads((resources.files("reluctant.costs") / "tables" / "cheetah.json").read_text())
PRICES = {unit: price["bytes"] for unit, price in TABLE["prices"].items()}


@pytest.fixture(scope="module")
def model() -> CostTable:
    return CostTable.open("cheetah")


class Varied(nn.Module):
    """Pooling, groups, strides, a kernel larger than its map, and one that is padded on a map of a single pixel."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2)
        self.conv3 = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.conv4 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv5 = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.conv6 = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.pool(torch.relu(self.conv1(x)))
        x = torch.relu(self.conv4(self.conv3(torch.relu(self.conv2(x))).relu()))
        x = torch.relu(self.conv6(torch.relu(self.conv5(x))))
        return self.fc(x.flatten(1))


@pytest.mark.parametrize("row", TABLE["measured"], ids=lambda row: row["case"])
def test_table_fits_each_program_that_was_measured(model, row):
    cost = model.cost(Work(row["units"]))
    assert cost.bytes == pytest.approx(row["bytes"], rel=0.005)
    assert cost.messages == pytest.approx(row["messages"], abs=2)  # a message above a size goes in two


@pytest.mark.parametrize(
    ("dims", "sent", "returned", "packed"),
    [
        ((1024, 144, 16), 2, 2, True),
        ((64, 576, 64), 5, 1, True),
        ((4, 576, 64), 2, 1, True),
        ((64, 9, 16), 1, 2, False),
        ((1, 64, 10), 1, 1, False),
        ((64, 9, 10), 1, 1, False),
    ],
)
def test_ciphertexts_of_a_product(dims, sent, returned, packed):
    """As counted in runs of SPU 0.9.5, by their messages."""
    found = tiles(*dims)
    assert (found.sent, found.returned, found.packed) == (sent, returned, packed)


@pytest.mark.parametrize(
    ("dims", "unpacked", "rotations", "lone"),
    [
        ((1024, 144, 16), 256, 2 * 127, 0),  # two answers of 128 places, all taken: 64 + 32 + ... + 1 each
        ((64, 144, 16), 16, 8 + 4 + 2 + 1, 3 * 16),  # 16 of 128 places: three levels without pairs
        ((1, 512, 100), 7, 99, 64 + 32 + 16 + 8 + 4 + 2 + 1 - 99),  # a hundred coefficients, one by one
        ((1, 2048, 2048), 256, 255, 2 * 256),  # 256 of 1,024 places
        ((1, 64, 10), 0, 0, 0),
    ],
)
def test_rotations_that_pack_a_product(dims, unpacked, rotations, lone):
    found = tiles(*dims)
    assert (found.unpacked, found.rotations, found.lone) == (unpacked, rotations, lone)


def test_a_table_without_a_price_that_is_needed_is_refused(tmp_path):
    """As one is that an earlier version wrote."""
    prices = {unit: price for unit, price in TABLE["prices"].items() if unit != "lone rotation"}
    (tmp_path / "old.json").write_text(json.dumps({**TABLE, "prices": prices}))
    with pytest.raises(UsageError, match=r"old\.json is no table of prices \(KeyError\); write one"):
        CostTable.open("cheetah", tmp_path / "old.json")


def test_long_comparisons_take_more_messages(model):
    stocks = Stocks(2, 1 << 60, [1 << 60] * 2)
    messages = [model.cost(stocks.compare(n)).messages for n in (32_768, 36_000, 65_540, 98_304, 100_000)]
    assert [count - messages[0] for count in messages] == [0, 2, 4, 4, 6]  # as counted in runs of SPU 0.9.5


def test_memory_is_that_of_the_largest_step_and_grows_with_comparisons(model):
    kept, empty = (model.predict(lower(masked_small(shares))) for shares in ((1.0, 1.0), (0.0, 0.0)))
    both = TABLE["memory"]["both directions"]
    assert kept.memory - empty.memory > both
    calls = {"truncation stream": 4, "truncation call": 2}  # two after the other, in two streams each
    steps = [Work({"comparison": 5, "polynomial product": 7}), Work({"comparison": 9, **calls})]
    assert held_at_most(steps) == Work(
        {"process": 1, "stream": 2, "both directions": 1, "comparison": 9, "polynomial product": 7}
    )


def test_table_says_where_it_came_from():
    assert TABLE["machine"]["cpus"] >= 1
    assert TABLE["command"].startswith("reluctant calibrate")
    assert {"date", "peaks", "stock"} <= TABLE.keys()


def test_streams_share_out_everything():
    assert streams(2048, 2) == [2048]
    assert streams(2049, 2) == [1025, 1024]
    assert streams(100_001, 4) == [25_001, 25_001, 25_001, 24_998]


def test_sum_by_hand(model):
    """conv 3->4, 256 ReLUs, conv 4->4, 256 ReLUs, mean, linear 4->5; all products small enough for one ciphertext."""
    found = model.predict(lower(masked_small((1.0, 1.0))))
    products = [(64, 27, 4), (64, 36, 4), (1, 4, 5)]
    linear = 0.0
    for dims in products:
        assert (tiles(*dims).sent, tiles(*dims).packed) == (1, False)
        linear += PRICES["encryption"] + tiles(*dims).returned * PRICES["sparse answer"]
        linear += dims[0] * dims[2] * (PRICES["sparse coefficient"] + PRICES["truncation"])
    linear += 4 * PRICES["truncation"] + 4 * PRICES["truncation stream"]  # the mean, and one stream for each of four
    compared = 2 * (256 * PRICES["comparison"] + PRICES["comparison stream"])
    assert found.linear_bytes == pytest.approx(linear, abs=1)
    assert found.comparison_bytes == pytest.approx(compared, abs=1)
    assert (found.surrogate_bytes, found.pooling_bytes) == (0, 0)
    answer = PRICES["result"] + 5 * PRICES["result element"]
    assert found.bytes == pytest.approx(linear + compared + answer, abs=1)
    returned = sum(tiles(*dims).returned for dims in products)
    assert found.messages == 3 + returned + 4 * 2 + 2 * 40 + 1
    assert sum(found.by_op.values()) == pytest.approx(linear + compared, abs=5)


@pytest.mark.parametrize("surrogate", [Identity(), Shift(), Constant()])
def test_more_relus_never_cost_less_where_dropping_is_free(model, surrogate):
    masked = masked_small((0.0, 0.0), surrogate)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(1)).reshape(4, 8, 8)
    costs = []
    for kept in (0, 1, 30, 200, 255, 256):
        masked.set_mask(Mask(dict.fromkeys(masked.sites, order < kept)))
        costs.append(model.predict(lower(masked)))
        assert costs[-1].surrogate_bytes == 0
        assert [site.kept for site in costs[-1].by_site] == [kept, kept]
    bytes_ = [cost.bytes for cost in costs[1:]]  # where nothing is kept, convolutions may be merged, or set-up be less
    assert bytes_ == sorted(bytes_)
    assert len(set(bytes_)) == len(bytes_)
    assert costs[0].comparison_bytes == 0


def test_slopes_cost_more_than_the_relus_they_replace_and_squares_more_than_slopes(model):
    relus, slopes, squares, rid_of_factors = (
        model.predict(lower(masked_small(kept, surrogate), without)).bytes
        for kept, surrogate, without in (
            ((1.0, 1.0), None, ()),
            ((0.1, 0.1), Affine(), ()),
            ((0.1, 0.1), Quadratic(), ("squares",)),
            ((0.1, 0.1), Quadratic(), ()),
        )
    )
    assert relus < slopes < squares
    assert rid_of_factors < slopes


def test_what_a_party_computes_with_its_own_numbers_is_free(model):
    """A ReLU on the client's image, and a convolution of constants that the server alone knows."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x):
            return self.conv2(torch.relu(self.conv1(torch.relu(x)))).flatten(1)

    program = lower(masked_small((1.0, 0.0), Constant(), Own()))
    found = model.predict(program)
    assert found.comparison_bytes == found.surrogate_bytes == found.linear_bytes - found.by_op["convolution"] == 0
    assert found.by_op.keys() == {"convolution"}


def test_stocks_are_used_up_and_filled():
    stocks = Stocks(processors=1, capacity=8000, transfers=[80], triples=10)
    assert stocks.compare(1)["transfer stock"] == 0
    assert stocks.compare(1)["transfer stock"] == 1
    assert stocks.compare(100 + 99)["transfer stock"] == 1
    assert stocks.multiply(10)["factor"] == 0
    assert stocks.multiply(1)["factor"] > 0
    assert stocks.triples == 4095


def test_images_in_one_batch_share_messages(model):
    program = lower(masked_small((0.5, 0.5)))
    alone, together, apart = model.predict(program), model.predict(program, 4, 4), model.predict(program, 4, 1)
    assert together.messages < 1.5 * alone.messages
    assert apart.messages == 4 * alone.messages
    assert together.bytes < apart.bytes == pytest.approx(4 * alone.bytes, abs=4)


def test_refusals(model):
    with pytest.raises(UnknownName, match="unknown protocol 'twin'"):
        CostModel.load("twin")
    with pytest.raises(UsageError, match="0 images"):
        model.predict(lower(masked_small()), 0)


@pytest.mark.secure
@pytest.mark.parametrize(
    ("network", "kept", "surrogate", "batch"),
    [
        (None, (0.1, 0.25), Quadratic(), 1),
        (Varied, (0.3, 1.0, 0.0, 0.5, 0.5, 0.0), Shift(), 2),
    ],
    ids=["squares", "varied"],
)
def test_prediction_is_what_a_run_sends(model, network, kept, surrogate, batch):
    program = lower(masked_small(kept, surrogate, network and network()))
    images = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    run, found = Cheetah().run(program, images, batch=batch), model.predict(program, 2, batch)
    assert found.bytes == pytest.approx(run.bytes, rel=0.005)
    assert found.messages == run.messages
    assert found.memory == pytest.approx(run.memory, rel=0.25)
    assert found.setup.bytes == pytest.approx(run.setup_bytes, rel=0.1)
    for measured, predicted in zip(run.by_site, found.by_site, strict=True):
        assert predicted.comparison_bytes == pytest.approx(measured.comparison_bytes, rel=0.05, abs=300)
        assert predicted.surrogate_bytes == pytest.approx(measured.surrogate_bytes, rel=0.01)
        assert predicted.messages == measured.messages


def test_transfers_that_are_done_sooner():
    """Few comparisons do not pay for Ferret's set-up, nor where the link is fast; many over a slow link do."""
    program = lower(masked_small())
    assert cheaper_transfers(program, 1, 1, NETWORKS["lan"]) == "softspoken"
    assert cheaper_transfers(program, 1 << 14, 16, NETWORKS["wan"]) == "ferret"
    costs = [
        [m.predict(program, n, 1, NETWORKS["wan"]).seconds for n in (1, 100)]
        for m in (CostTable.open("cheetah"), CostTable.open("cheetah").with_softspoken())
    ]
    assert costs[0][1] < costs[1][1]
