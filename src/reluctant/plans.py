"""What a network that is not trained yet could keep of its ReLUs, and what an image would then cost."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from reluctant.budget import Budget, waterfill
from reluctant.costs.counting import count
from reluctant.costs.model import Phase
from reluctant.costs.pricing import lowering_with_one_relu, price_list, unit_of
from reluctant.errors import BudgetError
from reluctant.mask import Mask
from reluctant.masked import MaskedModel, attach
from reluctant.models import ModelSpec
from reluctant.prices import Prices
from reluctant.program.operations import Activation
from reluctant.program.ops import Program
from reluctant.sites import find_sites

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Plan:
    """A network and how many of its ReLUs are kept at each site.

    Attributes:
        model: what names it wherever a model is named.
        budget: what ``linearize`` would be told.
        kept: ReLUs by site.
        total: ReLUs there are.
        macs: multiply-adds of the network as it is, all ReLUs kept.
        cost: of one image, in the unit of the budget that was asked for.
        predicted: the same in all units, as far as it is known.
    """

    model: str
    budget: Budget
    kept: Mapping[str, int]
    total: int
    macs: int
    cost: float
    predicted: Phase

    @property
    def relus(self) -> int:
        """ReLUs kept at all sites."""
        return sum(self.kept.values())

    @property
    def sites_kept(self) -> int:
        """Sites that keep at least one."""
        return sum(kept > 0 for kept in self.kept.values())


class PricedNetwork:
    """The network called ``spec`` with fresh weights, priced in the unit of ``budget``.

    Dropped ReLUs become nothing, or what costs nothing: a bias, a public slope.

    Args:
        shape: of one image.
        budget: in bytes or seconds.
        table: of prices, see :meth:`CostModel.load`.

    Raises:
        ShapeError: it cannot read such images.
        SiteError: it has no ReLU.
        UnsupportedOperation: no secure program computes it.
    """

    def __init__(self, spec: str, classes: int, shape: Shape, budget: Budget, table: Path | None = None) -> None:
        network = ModelSpec.parse(spec).fresh(classes, shape)
        example = torch.zeros(1, *shape)
        self.spec, self.budget, self.table, self.unit = spec, budget, table, unit_of(budget, table)
        self.sites = find_sites(network, example)
        self.macs = count(network, self.sites, example).total_macs
        self.masked: MaskedModel = attach(network, self.sites)
        self._with_one_relu = lru_cache(maxsize=4)(lowering_with_one_relu(self.masked))

    def plan(self, budget: Budget, kept: Mapping[str, int]) -> Plan:
        """Return the plan that keeps so many ReLUs at each site; which of a site's is of no consequence.

        Args:
            budget: what ``linearize`` would be told.

        Raises:
            BudgetError: not all that counts has a price.
        """
        program = _keeping(self._with_one_relu(frozenset(name for name, relus in kept.items() if relus)), kept)
        prediction = self.unit.model.predict(program, network=self.unit.network)
        predicted = self.unit.counted(prediction)
        cost = predicted.bytes if self.unit.name == "bytes" else predicted.seconds
        if cost is None:
            raise BudgetError(
                f"budget {self.budget.text} cannot be kept under {self.unit.model.engine}: not known are "
                f"{', '.join(prediction.omitted)}"
            )
        return Plan(self.spec, budget, kept, self.sites.total, self.macs, cost, predicted)

    def spread(self, density: Budget) -> Plan:
        """Return the plan that keeps a share of the ReLUs, the same share at every site.

        No site is emptied, which is the dearest way to keep so many: a search may empty some.
        """
        relus = {name: site.relus for name, site in self.sites.items()}
        whole = density.quantity.value == 1
        limit = self.sites.total if whole else int(density.resolve(self.sites, Prices.count(self.sites)))
        return self.plan(density, waterfill(relus, relus, limit))

    def spend(self) -> Plan | None:
        """Return the plan that spends the budget as ``linearize`` would, were all sites alike in what ReLUs are worth.

        Sites that do not earn what keeping them alive costs are emptied (:mod:`reluctant.knapsack`).

        Returns:
            ``None`` if the budget buys all ReLUs, or not a single one.
        """
        prices = price_list(self.masked, self.budget, self.table)
        try:
            limit = self.budget.resolve(self.sites, prices)
        except BudgetError:
            return None
        scores = {name: torch.arange(site.relus).add(0.5).div(site.relus) for name, site in self.sites.items()}
        return self.plan(self.budget, Mask.top(scores, prices, limit).by_site())


def _keeping(program: Program, kept: Mapping[str, int]) -> Program:
    """Return ``program`` with other numbers of ReLUs at the sites that are alive in it."""
    ops = tuple(
        replace(op, keep=np.arange(len(op.keep)) < kept[op.site]) if isinstance(op, Activation) else op
        for op in program.ops
    )
    return replace(program, ops=ops, sites=tuple(replace(site, kept=kept[site.name]) for site in program.sites))
