"""Which sites stay alive, and how many ReLUs each keeps, where they differ in price.

A score says which ReLU is rather kept, not how much rather. What it is worth is taken from the order alone: the share
of all worth that the best share p of the ReLUs holds is Phi(SPREAD - Phi^-1(1 - p)), as if worth were log-normal. That
is the shape of the curves of accuracy against ReLUs: with 2.4 the points that this project's bench gained at 2, 5, 10
and 25 % of the ReLUs lie on it within one, with 2.6 to 2.8 those of SNL's table for CIFAR-100 (ICML 2022, table 2). So
the first ReLUs of a site are worth far more than its last, and a site is emptied where even they do not pay.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

Values = np.ndarray[tuple[int], np.dtype[np.float64]]
Indices = np.ndarray[tuple[int], np.dtype[np.int64]]
Flags = np.ndarray[tuple[int], np.dtype[np.bool_]]
Alive = frozenset[int]

#: Standard deviation of the logarithm of what ReLUs are worth.
SPREAD = 2.4


def worth(scores: Values) -> Values:
    """Return what each item is worth, by the rank of its score; equal scores are worth the same."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2
    quantiles = torch.special.ndtri(torch.from_numpy(middle / len(scores))).numpy()
    found: Values = np.exp(SPREAD * quantiles)[place]
    return found


@dataclass(frozen=True)
class Shelf:
    """The items of one site, the best first.

    Args:
        price: of one item.
        best: what they are worth, falling.
        total: what so many of the first are worth together, from none on.
    """

    price: float
    best: Values
    total: Values

    def bought(self, rate: float) -> int:
        """Return how many items are worth more than ``rate`` times their price."""
        return int(np.searchsorted(-self.best, -rate * self.price, side="left"))


@dataclass(frozen=True)
class Shop:
    """What is for sale.

    Args:
        shelves: one a site.
        fixed: what is paid before the first item, with these sites alive.
        limit: of the whole cost.
    """

    shelves: tuple[Shelf, ...]
    fixed: Callable[[Alive], float]
    limit: float

    def value(self, alive: Alive) -> float:
        """Return what the best purchase with these sites alive is worth; nothing if the limit buys none."""
        room, shelves = self.limit - self.fixed(alive), [self.shelves[site] for site in alive]
        if not shelves or room < sum(shelf.price for shelf in shelves):
            return 0.0

        def cost(rate: float) -> float:
            return sum(shelf.price * shelf.bought(rate) for shelf in shelves)

        low, high = 0.0, max(float(shelf.best[0] / shelf.price) for shelf in shelves)
        if cost(low) > room:
            for _ in range(50):
                middle = (low + high) / 2
                low, high = (middle, high) if cost(middle) > room else (low, middle)
            low = high
        return sum(float(shelf.total[shelf.bought(low)]) for shelf in shelves)

    def overspent(self, alive: Alive) -> float:
        """Return by how much one item at each of these sites exceeds the limit."""
        return self.fixed(alive) + sum(self.shelves[site].price for site in alive) - self.limit

    def all_of(self, alive: Alive) -> float:
        """Return what these sites are worth in whole."""
        return sum(float(self.shelves[site].total[-1]) for site in alive)


def open_sites(shop: Shop) -> Alive:
    """Return which sites to keep alive: a search from all of them down.

    One site is given up at a time, or one with all behind it, since linear operations at the end of a network fall
    together. While the limit is exceeded, it is where most cost is saved for what is lost; then, as long as more is
    bought with what is saved. At last a site may come back. This need not find the best choice there is.
    """
    alive = frozenset(range(len(shop.shelves)))
    while alive and shop.overspent(alive) > 0:
        alive = max(_fewer(alive), key=lambda fewer: _saved_for_lost(shop, alive, fewer))
    bought = shop.value(alive)
    for moves in (_fewer, lambda alive: (alive | {site} for site in range(len(shop.shelves)) if site not in alive)):
        while True:
            found = max(moves(alive), key=shop.value, default=alive)
            if shop.value(found) <= bought:
                break
            alive, bought = found, shop.value(found)
    return alive


def _fewer(alive: Alive) -> Iterator[Alive]:
    for site in sorted(alive, reverse=True):
        yield alive - {site}
        yield frozenset(other for other in alive if other < site)


def _saved_for_lost(shop: Shop, alive: Alive, fewer: Alive) -> float:
    saved = min(shop.overspent(alive) - shop.overspent(fewer), shop.overspent(alive))
    return saved / (shop.all_of(alive) - shop.all_of(fewer))


def buy(value: Values, site: Indices, price: Values, fixed: Callable[[Alive], float], limit: float) -> Flags:
    """Return which items to take, worth as much together as a search finds for ``limit``.

    Args:
        value: what each item is worth, above 0.
        site: of each item, by number; each site's items together.
        price: of an item, by site.
        fixed: what is paid before the first item, with these sites alive.
    """
    parts = np.split(value, np.flatnonzero(np.diff(site)) + 1)
    ordered = [np.sort(part)[::-1] for part in parts]
    shelves = tuple(Shelf(price[number], best, np.cumsum([0.0, *best])) for number, best in enumerate(ordered))
    alive = open_sites(Shop(shelves, fixed, limit))
    while True:
        opened = np.isin(site, list(alive))
        chosen = _fill(value / price[site], site, price, opened, limit - fixed(alive))
        used = frozenset(np.unique(site[chosen]).tolist())
        if used == alive:
            return chosen
        alive = used  # what an empty site costs may buy something elsewhere


def _fill(density: Values, site: Indices, price: Values, opened: Flags, room: float) -> Flags:
    """Return the items of opened sites bought by density; cheaper ones may follow one that is too dear."""
    chosen = np.zeros(len(density), dtype=bool)
    order = np.argsort(-density, kind="stable")
    order = order[opened[order]]
    while len(order) and room > 0:
        spent = np.cumsum(price[site[order]])
        count = int(np.searchsorted(spent, room + 1e-9, side="right"))
        chosen[order[:count]] = True
        room -= float(spent[count - 1]) if count else 0.0
        order = order[count:]
        order = order[price[site[order]] <= room + 1e-9]
    return chosen
