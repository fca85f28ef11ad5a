"""How much may be spent."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from reluctant.errors import BudgetError
from reluctant.prices import Prices
from reluctant.sites import Sites
from reluctant.units import Quantity, format_quantity, parse_quantity


@dataclass(frozen=True)
class Budget:
    """A limit as somebody wrote it.

    Example:
        >>> Budget.parse("10%").text
        '10%'
    """

    text: str
    quantity: Quantity

    @classmethod
    def parse(cls, text: "str | int | Budget") -> "Budget":
        """Return the budget that ``text`` names; a whole number is a number of ReLUs.

        Raises:
            BudgetError: it cannot be read, or is below zero, or zero of what is no ReLUs.
        """
        if isinstance(text, Budget):
            return text
        return cls(str(text), parse_quantity(str(text)))

    def resolve(self, sites: Sites, prices: Prices) -> float:
        """Return the number to stay under, in the unit of ``prices``.

        Raises:
            BudgetError: above what the model has, under one ReLU, or in a unit that ``prices`` does not count.
        """
        full = prices.cost({name: site.relus for name, site in sites.items()})
        if self.quantity.unit == "share":
            share = self.quantity.value
            # In decimals, because 0.29 * 100 is under 29 in binary ones.
            limit = float(int(Decimal(str(share)) * sites.total)) if prices.unit == "relus" else share * full
        elif self.quantity.unit == prices.unit:
            limit = float(int(self.quantity.value)) if prices.unit == "relus" else self.quantity.value
        else:
            raise BudgetError(
                f"budget {self.text} is in {self.quantity.unit}, but the price list counts {prices.unit}: "
                "give a list in the budget's own unit (reluctant.costs.pricing.price_list)"
            )
        if limit >= full:
            what = f"{sites.total:,} ReLUs of this model ({len(sites)} sites)"
            cost = "" if prices.unit == "relus" else f", which cost {format_quantity(full, prices.unit)}"
            raise BudgetError(f"budget {self.text} reaches all {what}{cost}; nothing to linearize: give less")
        if prices.unit != "relus" and all(prices.cost({name: 1}) > limit for name in sites):
            needed = format_quantity(min(prices.cost({name: 1}) for name in sites), prices.unit)
            raise BudgetError(
                f"budget {self.text} is under the {needed} that this network costs with a single ReLU; give more, take "
                f"a smaller network{' or a faster link' if prices.unit == 'seconds' else ''}"
            )
        if limit < 1 and prices.unit == "relus" and self.quantity.value:
            raise BudgetError(
                f"budget {self.text} is under one of the {sites.total:,} ReLUs of this model; give more, or 0 for none"
            )
        return limit


def waterfill(
    weights: Mapping[str, float], room: Mapping[str, int], limit: int, groups: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Share ``limit`` ReLUs among the sites in proportion to their weights, none above its room; return the counts.

    What a full site cannot take goes to the others, again in proportion. Fractions are settled by the largest
    remainder, equal ones in the order of the sites: the counts sum to ``limit`` exactly. A site without weight gets
    nothing.

    Args:
        groups: ReLUs a site that are kept or dropped together, 1 where not given: counts are then multiples of it, and
            may sum to less.

    Raises:
        BudgetError: a weight is negative or not finite, or the sites with a weight hold fewer than ``limit``.

    Example:
        >>> waterfill({"a": 3.0, "b": 1.0, "c": 1.0}, {"a": 4, "b": 9, "c": 9}, 9)
        {'a': 4, 'b': 3, 'c': 2}
    """
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise BudgetError(f"site {name} has the weight {weight} in its share of ReLUs, expected a number from 0 on")
    shares = {name: Fraction(weight) for name, weight in weights.items() if weight > 0}
    holds = sum(room[name] for name in shares)
    if holds < limit:
        raise BudgetError(f"{limit:,} ReLUs are to be shared, but the sites that have a weight hold {holds:,} in all")
    filled: dict[str, Fraction] = {}
    while len(filled) < len(shares):
        level = (limit - sum(filled.values(), Fraction())) / sum(
            share for name, share in shares.items() if name not in filled
        )
        full = [n for n, share in shares.items() if n not in filled and level * share >= room[n]]
        filled |= {name: Fraction(room[name]) for name in full}
        if not full:
            filled |= {name: level * share for name, share in shares.items() if name not in filled}
    size = {name: groups[name] if groups else 1 for name in weights}
    counts = {name: math.floor(filled.get(name, Fraction()) / size[name]) * size[name] for name in weights}
    left = limit - sum(counts.values())
    for name in sorted(filled, key=lambda name: (counts[name] - filled[name]) / size[name]):
        if size[name] <= left and counts[name] + size[name] <= room[name]:
            counts[name] += size[name]
            left -= size[name]
    return counts


def affordable(
    weights: Mapping[str, float],
    room: Mapping[str, int],
    prices: Prices,
    limit: float,
    groups: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Return the largest :func:`waterfill` that bisection finds to cost at most ``limit`` under ``prices``.

    Raises:
        BudgetError: the limit would buy more than the sites with a weight have, or as in :func:`waterfill`.
    """
    holding = {name: room[name] * (weight > 0) for name, weight in weights.items()}
    low, high = 0, sum(holding.values())
    without = [name for name, weight in weights.items() if not weight > 0]
    if without and prices.cost(holding) < limit:
        raise BudgetError(
            f"the budget buys more than the {high:,} ReLUs of the sites that have a weight; give less, or a weight to "
            f"{without[0]}, too"
        )
    while low < high:
        middle = (low + high + 1) // 2
        fits = prices.cost(waterfill(weights, room, middle, groups)) <= limit
        low, high = (middle, high) if fits else (low, middle - 1)
    return waterfill(weights, room, low, groups)
