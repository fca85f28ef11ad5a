"""What a network's ReLUs cost in bytes or seconds, site by site, so that a budget in either can be kept."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from reluctant.budget import Budget
from reluctant.costs.model import CostModel, Spent
from reluctant.costs.networks import NETWORKS, Network, parse_network
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

    Under a protocol that prepares each image before it comes, that counts, too, unless the budget is in what is left
    for afterwards (``2s@delphi:online/lan``).

    In bytes and seconds, a ReLU costs its comparison and its share of the transfers that are fetched now and then; a
    site costs what its comparisons take however few they are. The sum is an upper bound of what
    :meth:`CostModel.predict` says of one image.

    Args:
        masked: with the surrogate that will be used. Its mask does not matter, and is left as it is.
        table: see :meth:`CostModel.load`.

    Raises:
        BudgetError: the budget does not say under which protocol or over which link, dropping a ReLU saves nothing
            there, since its surrogate costs more, or not all that counts has a price there.
        UnknownName: no such protocol.
        UsageError: no such link, or no such table.
        UnsupportedOperation: no secure program computes the network.
    """
    if budget.quantity.unit not in ("bytes", "seconds"):
        return Prices.count(masked.sites)
    unit = _unit_of(budget, table)
    program = _with_one_relu_a_site(masked)
    items = [(op, unit.of(spent)) for op, _, spent in unit.model.account(program, [1]).steps]
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
    floor = sum(cost for op, cost in items if not isinstance(op, Activation))
    floor += sum(_surrogates(op, unit) for op in program.activations() if op.site in shared)
    prices = Prices(by_site, unit.name, floor)
    if math.isnan(prices.cost(dict.fromkeys(masked.sites, 1))):
        missing = ", ".join(unit.model.omitted)
        raise BudgetError(f"no budget in {unit.name} can be kept under {unit.model.engine}: not known are {missing}")
    return prices


@dataclass(frozen=True)
class _Unit:
    """What a budget is counted in."""

    name: str
    model: CostModel
    network: Network
    online: bool

    def of(self, spent: Spent) -> float:
        cost = spent.online if self.online else spent.total
        return cost.bytes if self.name == "bytes" else cost.lasts(self.network)


def _unit_of(budget: Budget, table: Path | None) -> _Unit:
    name, where = budget.quantity.unit, budget.quantity.where
    engine, slash, link = where.partition("/")
    if not engine or (name == "seconds") != bool(slash):
        written = budget.text.partition("@")[0]
        form = f"{written}@cheetah/wan" if name == "seconds" else f"{written}@cheetah"
        what = "an engine and a link" if name == "seconds" else "an engine alone"
        raise BudgetError(f"budget {budget.text} is in {name}, which depend on {what}: write {form}")
    protocol, colon, phase = engine.partition(":")
    if colon and phase != "online":
        raise BudgetError(
            f"budget {budget.text} counts the phase {phase!r}: write {protocol}:online, or {protocol} for the "
            "preparation of each image as well"
        )
    link_of = parse_network(link) if slash else NETWORKS["loopback"]
    return _Unit(name, CostModel.load(protocol, table), link_of, bool(colon))


def _with_one_relu_a_site(masked: MaskedModel) -> Program:
    """Return the program of ``masked`` where no site is empty, so that nothing is merged across one."""
    before = masked.mask
    try:
        first = {name: (torch.arange(site.relus) == 0).view(site.shape) for name, site in masked.sites.items()}
        return lower(masked.set_mask(Mask(first)))
    finally:
        masked.set_mask(before)


def _surrogates(op: Activation, unit: _Unit) -> float:
    """Return what stands in for all ReLUs of a site costs, where a surrogate that computes something is affordable."""
    if op.c1 is None and op.c2 is None:
        return 0.0
    return unit.of(unit.model.activation(replace(op, keep=np.zeros_like(op.keep))))


def _site_price(op: Activation, unit: _Unit) -> SitePrice:
    size = len(op.keep)

    def step(kept: int) -> float:
        return unit.of(unit.model.activation(replace(op, keep=np.arange(size) < kept)))

    relu = unit.of(unit.model.relu()) - step(0) / size
    alive = max(step(kept) - relu * kept for kept in {1, size - 1, size} - {0})
    return SitePrice(relu, alive - _surrogates(op, unit))
