"""What the measured numbers of a private inference say, worked out site by site."""

from dataclasses import dataclass

from reluctant.records import NetworkCost, SiteCost
from reluctant.report.networks import Network
from reluctant.units import format_bytes

SURROGATES = {"free": "surrogate", "affine": "trained slope", "polynomial": "square"}


@dataclass(frozen=True)
class Parts:
    """Bytes an image, by what they were sent for."""

    comparisons: float
    surrogates: float
    rest: float

    @property
    def total(self) -> float:
        """All bytes an image."""
        return self.comparisons + self.surrogates + self.rest


def parts(cost: NetworkCost) -> Parts:
    """Return the bytes an image of ``cost`` in three parts; ``rest`` is what no activation step sent."""
    comparisons = sum(site["comparison_bytes"] for site in cost["by_site"])
    surrogates = sum(site["surrogate_bytes"] for site in cost["by_site"])
    rest = cost["bytes"] - comparisons - surrogates
    return Parts(*(value / max(1, cost["images"]) for value in (comparisons, surrogates, rest)))


@dataclass(frozen=True)
class Dearer:
    """Sites whose surrogate moved more bytes an element than the ReLU it replaced."""

    sites: tuple[str, ...]
    surrogate_bytes: float
    relu_bytes: float


def dearer_surrogates(network: Network) -> Dearer | None:
    """Return where surrogates cost more than ReLUs in the measured run of ``network``, ``None`` if nowhere.

    The price of a ReLU is that of the dense network at the same site, if it was run too; else that of the ReLUs kept in
    the network itself, at the site or over all of it.
    """
    cost, dense = network.cost, network.dense_cost
    if cost is None:
        return None
    before = {site["name"]: site for site in dense["by_site"]} if dense else {}
    overall = _price(cost["by_site"])
    sites, paid, dropped, replaced = [], 0.0, 0, 0.0
    for row in cost["by_site"]:
        kept = network.sites.get(row["name"])
        elements = (kept["total"] - kept["kept"]) * cost["images"] if kept else 0
        relu = _price([before.get(row["name"], row)]) or overall
        if elements and relu and row["surrogate_bytes"] / elements > relu:
            sites.append(row["name"])
            paid, dropped, replaced = paid + row["surrogate_bytes"], dropped + elements, replaced + relu * elements
    return Dearer(tuple(sites), paid / dropped, replaced / dropped) if sites else None


def _price(rows: list[SiteCost]) -> float | None:
    """Bytes a comparison, or nothing if none was made."""
    made = sum(row["comparisons"] for row in rows)
    return sum(row["comparison_bytes"] for row in rows) / made if made else None


def dearer_sentence(network: Network) -> str | None:
    """Return the sentence that a report owes its reader where a surrogate costs more than a ReLU, else ``None``."""
    found, run = dearer_surrogates(network), network.run
    if found is None or run is None or run.secure is None:
        return None
    noun = SURROGATES[network.head.track]
    where = "" if len(found.sites) == len(network.sites) else f" at {len(found.sites)} of {len(network.sites)} sites"
    name = f"the {network.head.surrogate} surrogate" if network.head.surrogate else "the surrogate"
    text = (
        f"Under {run.secure['engine']} a {noun} costs {_number(found.surrogate_bytes)} bytes against "
        f"{_number(found.relu_bytes)} for the ReLU it replaces{where}: {name} makes {network.label} dearer"
    )
    cost, dense = network.cost, network.dense_cost
    if cost is None or dense is None:
        return f"{text}, not cheaper."
    ours, theirs = parts(cost).total, parts(dense).total
    than = "more than the dense network" if ours > theirs else "still less than the dense network"
    return f"{text}. It moves {format_bytes(ours)} an image, {than} ({format_bytes(theirs)})."


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def promise_held(network: Network) -> tuple[float, float] | None:
    """Return by which share the ReLUs fell, and by which the bytes of the comparisons; ``None`` without both runs."""
    cost, dense = network.cost, network.dense_cost
    if cost is None or dense is None or not parts(dense).comparisons:
        return None
    return 1 - network.kept_share, 1 - parts(cost).comparisons / parts(dense).comparisons


def comparisons_expected(network: Network) -> int | None:
    """Return the comparisons that the run should have made, kept ReLUs x images; ``None`` if there was no run.

    Those kept in channels that were pruned away are not in the program, and none of its sites counts them.
    """
    return network.cost["images"] * sum(row["kept"] for row in network.cost["by_site"]) if network.cost else None
