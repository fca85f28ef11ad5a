"""What the page shows, as rows, bars and tiles: the template only lays them out."""

import functools
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from reluctant.costs.money import Tariff
from reluctant.records import KeptSite, NetworkCost, Predicted, Record, Secure, SiteCost
from reluctant.report import plot, sentences
from reluctant.report.findings import Parts, parts
from reluctant.report.front import Front, fronts
from reluctant.report.networks import Network
from reluctant.report.sentences import change, percent
from reluctant.units import format_bytes, format_seconds


@dataclass(frozen=True)
class Cell:
    """A figure of a table, and a smaller one beneath it."""

    column: str
    value: str
    small: str = ""


@dataclass(frozen=True)
class Row:
    """A network in the first table."""

    network: Network
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Bar:
    """A network's bytes an image; ``scale`` is the length of a full bar."""

    label: str
    parts: Parts
    scale: float

    def width(self, part: float) -> str:
        """Return the CSS width of a part."""
        return f"{100 * part / self.scale:.2f}%"


@dataclass(frozen=True)
class Tile:
    """One site in the picture of what was kept; ``map`` is a ``data:`` address."""

    site: KeptSite
    share: float
    map: str | None


@dataclass(frozen=True)
class SiteRow:
    """A site in the table of costs; ``before`` is the same site of the dense network."""

    cost: SiteCost
    kept: KeptSite | None
    before: SiteCost | None


@dataclass(frozen=True)
class View:
    """Everything on one page."""

    records: Sequence[Record]
    networks: Sequence[Network]

    @property
    def title(self) -> str:
        """What the page is about."""
        models = list(dict.fromkeys((record.model, record.task) for record in self.records))
        if len(models) == 1:
            return f"{models[0][0]} on {models[0][1]}"
        return f"{len(self.networks)} networks on {', '.join(dict.fromkeys(task for _, task in models))}"

    @property
    def groups(self) -> list[list[Network]]:
        """Networks of one task and model together, the dense one first."""
        together: dict[tuple[str, str], list[Network]] = defaultdict(list)
        for network in self.networks:
            together[(network.head.task, network.head.model)].append(network)
        return list(together.values())

    @property
    def notices(self) -> list[tuple[str, str]]:
        """What a reader must not miss."""
        return sentences.notices(self.records, self.networks)

    @property
    def ran(self) -> list[Network]:
        """Networks of which an engine's run was measured."""
        return [network for network in self.networks if network.cost]

    @property
    def measured(self) -> list[tuple[str, list[str]]]:
        """Each setting of a measurement, and the networks measured in it if there are several settings."""
        settings: dict[str, list[str]] = defaultdict(list)
        for network in self.ran:
            settings[sentences.measured(network)].append(network.label)
        return [(line, labels if len(settings) > 1 else []) for line, labels in settings.items()]

    @property
    def settings(self) -> list[tuple[Secure, list[str]]]:
        """Each engine and its setting, and the networks that ran in it."""
        same: dict[str, tuple[Secure, list[str]]] = {}
        for network in self.ran:
            secure = _secure(network)
            told = [(key, value) for key, value in secure.items() if key not in ("dense", "linearized")]
            same.setdefault(repr(sorted(told)), (secure, []))[1].append(network.label)
        return list(same.values())

    def rows(self, group: Sequence[Network]) -> list[Row]:
        """Return the first table of one group."""
        return [Row(network, tuple(self._cells(network, group))) for network in group]

    def _cells(self, network: Network, group: Sequence[Network]) -> list[Cell]:
        relus, test = network.head.relus, network.evaluation
        share = "" if network.is_dense else f"{percent(network.kept_share)}, {relus['sites_kept']} of "
        cells = [Cell("ReLUs kept", f"{relus['kept']:,}", f"{share}{relus['sites']} sites")]
        if network.accuracy is None or test is None:
            cells.append(Cell("Test accuracy", "–", "not evaluated"))
        else:
            count = test.accuracy["n_test"] or 0
            right = f"{round(network.accuracy * count):,} of {count:,}"
            cells.append(Cell("Test accuracy", percent(network.accuracy), right))
        if not self.ran:
            return cells
        witness, cost = network, network.cost
        if network.is_dense and cost is None:  # it was run beside a linearized network
            witness = next((other for other in group if other.dense_cost), network)
            cost = witness.dense_cost
        return cells + (_cost_cells(cost, network.dense_cost, _secure(witness)["batch"]) if cost else [_NOT_RUN])

    @property
    def predictions(self) -> list[tuple[Network, Predicted, float]]:
        """Networks whose seconds were predicted, with that and with the dollars for 1,000 images on a WAN."""
        found = [(network, network.head.predicted) for network in self.networks]
        return [
            (network, predicted, Tariff().dollars(predicted["bytes"], predicted["seconds"]["wan"]))
            for network, predicted in found
            if predicted and "seconds" in predicted
        ]

    def bars(self) -> list[Bar]:
        """Return the bytes of every network that was run, its dense one before it."""
        costs: dict[tuple[str, str, str], NetworkCost] = {}
        for network in self.ran:
            place = (network.head.task, network.head.model)
            if network.dense_cost:
                costs.setdefault((*place, "dense"), network.dense_cost)
            if network.cost:
                costs.setdefault((*place, network.label), network.cost)
        widest = max((parts(cost).total for cost in costs.values()), default=0) or 1
        return [Bar(label, parts(cost), widest) for (_, _, label), cost in costs.items()]

    @property
    def byte_sentences(self) -> list[str]:
        """What became of the bytes of comparisons."""
        return [text for network in self.ran if (text := sentences.byte_sentence(network))]

    @property
    def pictured(self) -> tuple[list[Network], list[Network]]:
        """Linearized networks whose mask is known: those to look at first, and the others of a long list."""
        known = [network for network in self.networks if not network.is_dense and network.sites]
        known.sort(key=lambda network: network.cost is None)
        shown = [network for network in known if network.cost] or known[: sentences.NAMED]
        return shown, [network for network in known if network not in shown]

    def tiles(self, network: Network) -> list[Tile]:
        """Return one tile a site. A map is as dark as the share of channels kept, the darkest of the network opaque."""
        deepest = self.deepest(network)
        tiles = []
        for site in network.sites.values():
            density = site.get("density")
            drawn = plot.kept_map(density, deepest * site["shape"][0]) if density and site["kept"] else None
            tiles.append(Tile(site, site["kept"] / max(1, site["total"]), drawn))
        return tiles

    def deepest(self, network: Network) -> float:
        """Return the largest share of channels kept at any pixel of any site."""
        shares = [
            max(map(max, density)) / site["shape"][0]
            for site in network.sites.values()
            if (density := site.get("density"))
        ]
        return max(shares, default=0.0)

    @functools.cached_property
    def fronts(self) -> list[tuple[Front, str]]:
        """Fronts and their pictures."""
        return [(front, plot.front_figure(front, f"front{i}")) for i, front in enumerate(fronts(self.networks))]

    def site_rows(self, network: Network) -> list[SiteRow]:
        """Return the table of costs by site."""
        assert network.cost is not None
        before = {site["name"]: site for site in network.dense_cost["by_site"]} if network.dense_cost else {}
        return [
            SiteRow(row, network.sites.get(row["name"]), before.get(row["name"])) for row in network.cost["by_site"]
        ]

    def site_sums(self, network: Network) -> list[dict[str, str]]:
        """Return the last lines of that table: all activation steps, the rest of the network, and both together."""
        cost, dense = network.cost, network.dense_cost
        assert cost is not None
        split, images = parts(cost), max(1, cost["images"])
        messages = sum(site["messages"] for site in cost["by_site"])
        seconds = sum(site["seconds"] for site in cost["by_site"])
        steps = {
            "name": "all sites",
            "kept": f"{network.head.relus['kept']:,}",
            "comparisons": f"{cost['comparisons']:,}",
            "comparison_bytes": format_bytes(split.comparisons * images),
            "dense": format_bytes(parts(dense).comparisons * dense["images"]) if dense else "",
            "surrogate_bytes": format_bytes(split.surrogates * images),
            "messages": f"{messages:,}",
            "seconds": format_seconds(seconds),
        }
        rest = _one_line(
            "rest of the network", split.rest * images, cost["messages"] - messages, cost["seconds"] - seconds
        )
        return [steps, rest, _one_line("in all", cost["bytes"], cost["messages"], cost["seconds"])]

    def setting(self, network: Network) -> str:
        """Return protocol, network, batch and hardware of the run of ``network``."""
        return sentences.measured(network)

    @property
    def shared(self) -> dict[str, str]:
        """What all records have in common of :meth:`facts`; said once."""
        first, *others = (self.facts(record) for record in self.records)
        return {name: text for name, text in first.items() if all(other.get(name) == text for other in others)}

    def own_facts(self, record: Record) -> dict[str, str]:
        """Return the facts that stand with the record itself."""
        shared = self.shared if len(self.records) > 1 else {}
        return {name: text for name, text in self.facts(record).items() if name not in shared}

    def facts(self, record: Record) -> dict[str, str]:
        """Return how the network of a record was made and chosen, term by term."""
        accuracy, recipe = record.accuracy, record.recipe
        if isinstance(recipe, dict):
            recipe = json.dumps(recipe, ensure_ascii=False).replace('"', "")[1:-1]
        facts = {
            "Selection": record.selection,
            "Held-out accuracy": _of(accuracy["val"], accuracy.get("n_val")),
            "Test accuracy": _of(accuracy["test"], accuracy["n_test"]),
            "Seed": str(record.seed),
            "Epochs": None if record.epochs is None else str(record.epochs),
            "Time": format_seconds(record.seconds),
            "Device": record.device,
            "Made with": ", ".join(f"{key} {value}" for key, value in record.environment.items() if value != "none"),
            "Commit": record.commit,
            "Mask": record.mask["digest"][:16] if record.mask else None,
            "Settings": recipe,
            "Command": record.command,
        }
        return {name: text for name, text in facts.items() if text}


def _of(share: float | None, images: int | None) -> str | None:
    if share is None:
        return None
    return f"{percent(share)} of {images:,} images" if images else percent(share)


def _one_line(name: str, size: float, messages: int, seconds: float) -> dict[str, str]:
    """A line that gives its bytes in one figure, ``spread`` over the columns of comparisons and surrogates."""
    return {
        "name": name,
        "kept": "",
        "comparisons": "",
        "comparison_bytes": format_bytes(size),
        "spread": "yes",
        "messages": f"{messages:,}",
        "seconds": format_seconds(seconds),
    }


_NOT_RUN = Cell("Private inference", "not run")


def _secure(network: Network) -> Secure:
    assert network.run is not None
    assert network.run.secure is not None
    return network.run.secure


def _cost_cells(cost: NetworkCost, dense: NetworkCost | None, batch: int) -> list[Cell]:
    """Figures an image; messages are those of a batch, which its images share."""
    images = max(1, cost["images"])
    passes = math.ceil(images / max(1, batch))

    less = dict.fromkeys(("bytes", "messages", "seconds"), "")
    if dense:
        shared = max(1, dense["images"])
        less = {
            "bytes": change(cost["bytes"] / images, dense["bytes"] / shared),
            "messages": change(cost["messages"] / passes, dense["messages"] / math.ceil(shared / max(1, batch))),
            "seconds": change(cost["seconds"] / images, dense["seconds"] / shared),
        }
    return [
        Cell("Bytes", format_bytes(cost["bytes"] / images), less["bytes"]),
        Cell("Messages", f"{cost['messages'] / passes:,.0f}", less["messages"]),
        Cell("Time", format_seconds(cost["seconds"] / images), less["seconds"]),
        Cell("Set-up", format_seconds(cost["setup_seconds"]), format_bytes(cost["setup_bytes"])),
    ]
