"""What to train under a budget: networks and shares of their ReLUs, by predicted cost and what records say."""

import inspect
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reluctant.budget import Budget
from reluctant.costs.pricing import Unit, unit_of
from reluctant.designs import DESIGNS
from reluctant.errors import BudgetError, ShapeError, SiteError, UnsupportedOperation, UsageError
from reluctant.models import MODELS, ModelSpec
from reluctant.plans import Plan, PricedNetwork, Shape
from reluctant.progress import Progress, silent
from reluctant.recording import public_name
from reluctant.records import Record
from reluctant.report.evidence import Evidence, find_evidence
from reluctant.units import format_quantity

#: Shares of the ReLUs that are looked at. With none, every network that ends in a mean is the same affine map.
DENSITIES = ("100%", "25%", "10%", "5%", "2%")

#: A network whose cheapest share costs more than so many times the budget would lose most of its sites: of those that
#: nobody named, nothing wider is tried, and it is not asked what the budget buys.
REACH = 3


@dataclass(frozen=True)
class Row:
    """A plan, whether it is inside the budget, and what is recorded of it, if anything."""

    plan: Plan
    inside: bool
    evidence: Evidence | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object; accuracies that nobody measured are null."""
        plan = self.plan
        return {
            "model": plan.model,
            "budget": plan.budget.text,
            "relus": {"total": plan.total, "kept": plan.relus, "by_site": dict(plan.kept)},
            "macs": plan.macs,
            "cost": plan.cost,
            "inside": self.inside,
            "predicted": vars(plan.predicted),
            "recorded": None if self.evidence is None else self.evidence.to_json(),
        }


@dataclass(frozen=True)
class Advice:
    """Plans, the best first, and of each network that was not priced the reason.

    Attributes:
        unit: what the budget is counted in, and over which link.
    """

    task: str
    budget: Budget
    unit: Unit
    rows: tuple[Row, ...]
    refused: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "task": self.task,
            "budget": self.budget.text,
            "unit": self.unit.name,
            "engine": self.unit.model.engine,
            "network": self.unit.network.name,
            "rows": [row.to_json() for row in self.rows],
            "refused": dict(self.refused),
        }


def advise(
    task: str,
    classes: int,
    shape: Shape,
    budget: str | Budget,
    *,
    models: Sequence[str] = (),
    densities: Sequence[str] = DENSITIES,
    records: Iterable[Record] = (),
    table: Path | None = None,
    progress: Progress = silent,
) -> Advice:
    """Return which networks with which shares of their ReLUs fit ``budget``, ranked.

    A row is a network with a share of its ReLUs, the same at every site; or with what the budget buys, sites emptied
    where that pays; or one that was recorded, priced with the mask it has. Rows inside the budget come first, and of
    them those with records, by accuracy on held-out images: the test split is there to be reported. Rows without
    records cannot be ranked by what they are for. First come networks that keep ReLUs at more than half of their sites,
    then those with most multiply-adds, then with most ReLUs. Outside the budget the cheapest is first.

    Which records count is said in :func:`find_evidence`. Of several settings of one plan there is the first in rank,
    inside the budget and outside.

    Args:
        shape: of one image.
        budget: in bytes or seconds: ``10s@cheetah/wan``, ``30MB@cheetah``.
        models: networks to look at; without, those of :func:`usual_families`, and what was recorded.
        table: of prices, see :meth:`CostModel.load`.

    Raises:
        BudgetError: it is in another unit, does not say where, or no network meets it (the closest is named).
        UsageError: a network or a share that does not exist.
    """
    budget = Budget.parse(budget)
    if budget.quantity.unit not in ("bytes", "seconds"):
        raise BudgetError(
            f"budget {budget.text} counts ReLUs, which are dearer in one network than in another: say what an "
            "image may cost, as in 10s@cheetah/wan or 30MB@cheetah"
        )
    shares, unit, recorded = [_share(text) for text in densities], unit_of(budget, table), find_evidence(task, records)
    families = [(str(ModelSpec.parse(model)),) for model in models] or _with_recorded(usual_families(), recorded)
    known: dict[object, list[Evidence]] = defaultdict(list)
    for model, evidence in recorded.items():
        known[_network(model)] += evidence
    limit, done, rows, refused = budget.quantity.value, 0, [], {}
    for family in families:
        for number, spec in enumerate(family):
            progress("networks", done + number, sum(map(len, families)))
            try:
                network = PricedNetwork(spec, classes, shape, budget, table)
                found = _rows(network, shares, known[_network(spec)], limit, wanted=bool(models))
            except (ShapeError, SiteError, UnsupportedOperation) as error:
                refused[spec] = str(error)
                continue
            rows += found
            least = min(row.plan.cost for row in found)
            if not models and least > REACH * limit:
                why = f"wider than {spec}, which costs {format_quantity(least, unit.name)} or more"
                refused |= dict.fromkeys(family[number + 1 :], why)
                break
        done += len(family)
    progress("networks", done, done)
    ranked = _first_of_each_plan(sorted(rows, key=_rank))
    if not ranked:
        raise UsageError(next(iter(refused.values())))
    if not ranked[0].inside:
        raise BudgetError(_out_of_reach(ranked[0].plan, budget, unit.name))
    return Advice(task, budget, unit, tuple(ranked), refused)


def usual_families() -> list[tuple[str, ...]]:
    """Return the networks that are looked at where none is named: those that can be of any width, the narrowest first.

    Each network of the zoo and each design that has a width is there at a quarter, half, all and twice of it.
    """
    widths = {}
    for name, builder in MODELS.items():
        if "width" in (parameters := inspect.signature(builder).parameters):
            widths[name] = int(parameters["width"].default)
    widths |= {name: design().width for name, design in DESIGNS.items()}
    return [
        (f"{name}:width={max(1, width // 4)}", f"{name}:width={width // 2}", name, f"{name}:width={2 * width}")
        for name, width in widths.items()
    ]


def _with_recorded(families: list[tuple[str, ...]], recorded: Iterable[str]) -> list[tuple[str, ...]]:
    """Return ``families`` and the recorded networks that are not among them and can be built from their name."""
    seen = {_network(spec) for family in families for spec in family}
    other = {_network(model): (model,) for model in recorded if _network(model) not in seen and _is_named(model)}
    return families + list(other.values())


def _network(model: str) -> object:
    """Return what all names of one network have in common, be it the name in a record or the one that was asked for."""
    try:
        return ModelSpec.parse(public_name(model)).identity
    except UsageError:
        return model


def _is_named(model: str) -> bool:
    """Return whether ``model`` is of the zoo or a design; a record of a user's file does not say where that lies."""
    try:
        return not ModelSpec.parse(model).name.partition(":")[0].endswith(".py")
    except UsageError:
        return False


def _share(text: str) -> Budget:
    share = Budget.parse(text)
    if share.quantity.unit != "share" or share.quantity.value > 1:
        raise BudgetError(f"density {text!r} is not a share of a network's ReLUs: write 10%")
    return share


def _rows(
    network: PricedNetwork, shares: Sequence[Budget], known: Sequence[Evidence], limit: float, wanted: bool
) -> list[Row]:
    rows = [row for evidence in known if (row := _recorded_row(network, evidence, limit))]
    have = {row.plan.budget.quantity for row in rows}
    spread = [network.spread(share) for share in shares if share.quantity not in have]
    rows += [Row(plan, plan.cost <= limit) for plan in spread]
    bought = any(row.inside and row.plan.budget.quantity == network.budget.quantity for row in rows)
    within = wanted or min(row.plan.cost for row in rows) <= REACH * limit
    if within and not bought and (plan := network.spend()) is not None:
        rows.append(Row(plan, plan.cost <= limit))
    return rows


def _recorded_row(network: PricedNetwork, evidence: Evidence, limit: float) -> Row | None:
    """Return the row of what was recorded, at its dearest seed; none if the network has other sites by now."""
    relus = {name: site.relus for name, site in network.sites.items()}
    masks = []
    for recorded in evidence.networks:
        sites = recorded.sites
        if sites and {name: site["total"] for name, site in sites.items()} != relus:
            return None
        masks.append({name: site["kept"] for name, site in sites.items()} or relus)
    plan = max((network.plan(evidence.budget, mask) for mask in masks), key=lambda plan: plan.cost)
    return Row(plan, plan.cost <= limit, evidence)


def _rank(row: Row) -> tuple[float, ...]:
    plan = row.plan
    if not row.inside:
        return 2, plan.cost
    if row.evidence is not None:
        return 0, -row.evidence.val
    return 1, 2 * plan.sites_kept <= len(plan.kept), -plan.macs, -plan.relus


def _first_of_each_plan(rows: Sequence[Row]) -> list[Row]:
    first: dict[object, Row] = {}
    for row in rows:
        first.setdefault((row.plan.model, row.plan.budget.quantity, row.inside), row)
    return list(first.values())


def _out_of_reach(closest: Plan, budget: Budget, unit: str) -> str:
    faster = ", a faster link" if unit == "seconds" else ""
    return (
        f"budget {budget.text} is met by no network that was looked at; {closest.model} comes closest, with "
        f"{format_quantity(closest.cost, unit)} at {closest.relus:,} of {closest.total:,} ReLUs: give more{faster}, or "
        "name a smaller network"
    )
