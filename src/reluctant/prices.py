"""What keeping a ReLU costs, site by site."""

from collections.abc import Mapping
from dataclasses import dataclass

from reluctant.sites import Sites


@dataclass(frozen=True)
class SitePrice:
    """Prices at one site, in the unit of the list.

    Args:
        relu: one kept ReLU, over what its surrogate would cost.
        alive: keeping the site alive at all (the rounds of its comparison).
    """

    relu: float = 1.0
    alive: float = 0.0


@dataclass(frozen=True)
class Prices:
    """The price list of one model: what each site charges.

    Args:
        by_site: prices a site.
        unit: what they are counted in (``relus``, ``bytes``, ``seconds``).
        floor: what the network costs with no ReLU left.
    """

    by_site: Mapping[str, SitePrice]
    unit: str = "relus"
    floor: float = 0.0

    @classmethod
    def count(cls, sites: Sites) -> "Prices":
        """Return the list in which every ReLU costs 1 and nothing else costs anything."""
        return cls({name: SitePrice() for name in sites})

    def cost(self, kept: Mapping[str, int]) -> float:
        """Return the cost of keeping that many ReLUs at each site, the floor included."""
        return self.floor + sum(
            self.by_site[name].relu * count + self.by_site[name].alive * (count > 0) for name, count in kept.items()
        )
