"""What a network's ReLUs cost in bytes or seconds, site by site, so that a budget in either can be kept."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from reluctant.budget import Budget
from reluctant.costs.model import CostModel, Phase, Prediction, Spent
from reluctant.costs.networks import NETWORKS, Network, parse_network
from reluctant.errors import BudgetError
from reluctant.mask import Mask
from reluctant.masked import MaskedModel
from reluctant.prices import Prices, SitePrice
from reluctant.program.lower import BY_WEIGHTS, lowering
from reluctant.program.operations import Activation, Op
from reluctant.program.ops import Program

#: A ReLU that a party computes on its own numbers costs nothing, but masks divide by prices.
_LEAST = 1e-12


def price_list(masked: MaskedModel, budget: Budget, table: Path | None = None) -> Prices:
    """Return what the ReLUs of ``masked`` cost in the unit of ``budget``: of one image, after set-up.

    Under a protocol that prepares each image before it comes, that counts, too, unless the budget is in what is left
    for afterwards (``2s@delphi:online/lan``).

    In bytes and seconds, a ReLU costs its comparison and its share of the transfers that are fetched now and then; a
    site costs what its comparisons take however few they are; all else what it costs where these sites are alive and no
    other. The sum is an upper bound of what :meth:`CostModel.predict` says of one image.

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
    unit = unit_of(budget, table)
    with_one_relu = lowering_with_one_relu(masked)
    by_site = {name: SitePrice(_LEAST) for name in masked.sites}
    shared = {op.site: op for op, _ in unit.items(with_one_relu(frozenset(masked.sites))) if isinstance(op, Activation)}
    for name, op in shared.items():
        by_site[name] = _site_price(op, unit)
        if by_site[name].relu <= 0:
            raise BudgetError(
                f"under {unit.model.engine} what stands in for a dropped ReLU ({masked.surrogate.name}) costs more "
                f"{unit.name} than the ReLU, so dropping any saves nothing: take a surrogate of the free track"
            )

    @cache
    def beside(alive: frozenset[str]) -> float:
        items = unit.items(with_one_relu(alive))
        return sum(cost for op, cost in items if not (isinstance(op, Activation) and op.site in alive))

    prices = Prices(by_site, unit.name, beside(frozenset()), beside)
    if math.isnan(prices.cost(dict.fromkeys(masked.sites, 1))):
        missing = ", ".join(unit.model.omitted)
        raise BudgetError(f"no budget in {unit.name} can be kept under {unit.model.engine}: not known are {missing}")
    return prices


@dataclass(frozen=True)
class Unit:
    """What a budget is counted in.

    Args:
        name: ``bytes`` or ``seconds``.
        online: whether only what is left once the image is there counts.
    """

    name: str
    model: CostModel
    network: Network
    online: bool

    def items(self, program: Program) -> list[tuple[Op | None, float]]:
        """Return what each operation of ``program`` costs; an operation may be there several times."""
        return [(op, self.of(spent)) for op, _, spent in self.model.account(program, [1]).steps]

    def counted(self, prediction: Prediction) -> Phase:
        """Return the part of ``prediction`` that counts."""
        return prediction.online if self.online else Phase(prediction.bytes, prediction.messages, prediction.seconds)

    def of(self, spent: Spent) -> float:
        """Return what counts of ``spent``."""
        cost = spent.online if self.online else spent.total
        return cost.bytes if self.name == "bytes" else cost.lasts(self.network)


def unit_of(budget: Budget, table: Path | None = None) -> Unit:
    """Return what ``budget``, which is in bytes or seconds, is counted in; arguments and errors as :func:`price_list`.

    Raises:
        BudgetError: the budget does not say under which protocol or over which link.
    """
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
    return Unit(name, CostModel.load(protocol, table), link_of, bool(colon))


def lowering_with_one_relu(masked: MaskedModel) -> Callable[[frozenset[str]], Program]:
    """Return what makes the program of ``masked`` with one ReLU at each site that is alive, and none elsewhere."""
    lowered = lowering(masked, BY_WEIGHTS)  # training comes after: the gains of these are not counted on

    def program(alive: frozenset[str]) -> Program:
        kept = {n: (torch.arange(s.relus) < (n in alive)).view(s.shape) for n, s in masked.sites.items()}
        return lowered(Mask(kept))

    return program


def _site_price(op: Activation, unit: Unit) -> SitePrice:
    size = len(op.keep)

    def step(kept: int) -> float:
        return unit.of(unit.model.activation(replace(op, keep=np.arange(size) < kept)))

    relu = unit.of(unit.model.relu()) - step(0) / size
    return SitePrice(relu, max(step(kept) - relu * kept for kept in {1, size - 1, size} - {0}))
