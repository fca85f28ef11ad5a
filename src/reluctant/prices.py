"""What keeping a ReLU costs, site by site."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

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
        beside: what all but the ReLUs costs while these sites are alive, if that is not always the floor: linear
            operations with nothing alive between them are computed together.
    """

    by_site: Mapping[str, SitePrice]
    unit: str = "relus"
    floor: float = 0.0
    beside: Callable[[frozenset[str]], float] | None = field(default=None, compare=False)

    @classmethod
    def count(cls, sites: Sites) -> "Prices":
        """Return the list in which every ReLU costs 1 and nothing else costs anything."""
        return cls({name: SitePrice() for name in sites})

    @property
    def uniform(self) -> bool:
        """Whether every ReLU costs the same, and no site anything, so that only their number counts."""
        first = next(iter(self.by_site.values()))
        return self.beside is None and all(price == SitePrice(first.relu) for price in self.by_site.values())

    def fixed(self, alive: Iterable[str]) -> float:
        """Return what is paid before the first ReLU, with these sites alive."""
        names = frozenset(alive)
        return (self.beside(names) if self.beside else self.floor) + sum(
            self.by_site[name].alive for name in sorted(names)
        )

    def cost(self, kept: Mapping[str, int]) -> float:
        """Return the cost of the network that keeps that many ReLUs at each site."""
        return self.fixed(name for name, count in kept.items() if count) + sum(
            self.by_site[name].relu * count for name, count in kept.items()
        )
