"""How much may be spent."""

from dataclasses import dataclass
from decimal import Decimal

from reluctant.errors import BudgetError
from reluctant.prices import Prices
from reluctant.sites import Sites
from reluctant.units import Quantity, parse_quantity


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
            BudgetError: it cannot be read, or is not above zero.
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
                "give ReLUs (50k) or a share of them (10%)"
            )
        if limit >= full:
            what = f"{sites.total:,} ReLUs of this model ({len(sites)} sites)"
            raise BudgetError(f"budget {self.text} reaches all {what}; nothing to linearize: give less")
        if limit < 1 and prices.unit == "relus":
            raise BudgetError(f"budget {self.text} is under one of the {sites.total:,} ReLUs of this model; give more")
        return limit
