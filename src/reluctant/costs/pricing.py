"""What a network's ReLUs cost in bytes or seconds, site by site, so that a budget in either can be kept."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from reluctant.budget import Budget
from reluctant.costs.cheetah import Stocks, Work
from reluctant.costs.model import CostModel
from reluctant.costs.networks import NETWORKS, Network, parse_network
from reluctant.costs.work import activation_work, stocks_of, work
from reluctant.errors import BudgetError
from reluctant.mask import Mask
from reluctant.masked import MaskedModel
from reluctant.prices import Prices, SitePrice
from reluctant.program.lower import lower
from reluctant.program.operations import Activation
from reluctant.program.ops import Program

#: A ReLU that a party computes on its own numbers costs nothing, but masks divide by prices.
_LEAST = 1e-12


def price_list(masked: MaskedModel, budget: Budget, table: Path | None = None) -> Prices:
    """Return what the ReLUs of ``masked`` cost in the unit of ``budget``: of one image, after set-up.

    In bytes and seconds, a ReLU costs its comparison and its share of the transfers that are fetched now and then; a
    site costs what its comparisons take however few they are. The sum is an upper bound of what
    :meth:`CostModel.predict` says of one image.

    Args:
        masked: with the surrogate that will be used. Its mask does not matter, and is left as it is.
        table: see :meth:`CostModel.load`.

    Raises:
        BudgetError: the budget does not say under which engine or over which link, or dropping a ReLU saves nothing
            there, since its surrogate costs more.
        UnknownName: no such engine.
        UsageError: no such link, or no such table.
        UnsupportedOperation: no secure program computes the network.
    """
    if budget.quantity.unit not in ("bytes", "seconds"):
        return Prices.count(masked.sites)
    unit = _unit_of(budget, table)
    program = _with_one_relu_a_site(masked)
    stocks = stocks_of(program, 1, unit.model.processors, unit.model.stock)
    items = [(op, unit.of(done)) for op, _, done in work(program, 1, stocks)]
    shared = {op.site for op, _ in items if isinstance(op, Activation)}
    by_site = {name: SitePrice(_LEAST) for name in masked.sites}
    for op in program.activations():
        if op.site in shared:
            by_site[op.site] = _site_price(op, unit)
            if by_site[op.site].relu <= 0:
                raise BudgetError(
                    f"under {unit.model.engine} what stands in for a dropped ReLU ({masked.surrogate.name}) costs more "
                    f"{unit.name} than the ReLU, so dropping any saves nothing: take a surrogate of the free track"
                )
    return Prices(by_site, unit.name, sum(cost for op, cost in items if not isinstance(op, Activation)))


@dataclass(frozen=True)
class _Unit:
    """What a budget is counted in."""

    name: str
    model: CostModel
    network: Network

    def of(self, done: Work) -> float:
        cost = self.model.cost(done)
        return cost.bytes if self.name == "bytes" else cost.lasts(self.network)


def _unit_of(budget: Budget, table: Path | None) -> _Unit:
    name, where = budget.quantity.unit, budget.quantity.where
    engine, slash, link = where.partition("/")
    if not engine or (name == "seconds") != bool(slash):
        written = budget.text.partition("@")[0]
        form = f"{written}@cheetah/wan" if name == "seconds" else f"{written}@cheetah"
        what = "an engine and a link" if name == "seconds" else "an engine alone"
        raise BudgetError(f"budget {budget.text} is in {name}, which depend on {what}: write {form}")
    return _Unit(name, CostModel.load(engine, table), parse_network(link) if slash else NETWORKS["loopback"])


def _with_one_relu_a_site(masked: MaskedModel) -> Program:
    """Return the program of ``masked`` where no site is empty, so that nothing is merged across one."""
    before = masked.mask
    try:
        first = {name: (torch.arange(site.relus) == 0).view(site.shape) for name, site in masked.sites.items()}
        return lower(masked.set_mask(Mask(first)))
    finally:
        masked.set_mask(before)


def _site_price(op: Activation, unit: _Unit) -> SitePrice:
    size = len(op.keep)

    def step(kept: int) -> float:
        stocks = Stocks(unit.model.processors, 1, [1 << 60] * unit.model.processors)
        changed = replace(op, keep=np.arange(size) < kept)
        return sum(unit.of(done) for _, _, done in activation_work(changed, "shared", 1, stocks))

    fetched = unit.of(Work({"transfer stock": 1, "transfer call": 1})) / unit.model.stock
    relu = unit.of(Work({"comparison": 1})) - step(0) / size
    return SitePrice(relu + fetched, max(step(kept) - relu * kept for kept in {1, size - 1, size} - {0}))
