"""The networks that a design offers under a target, and what each is made of."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from reluctant.costs.counting import count
from reluctant.costs.model import CostModel, Prediction
from reluctant.costs.networks import Network, parse_network
from reluctant.designs.base import Design, part_of
from reluctant.errors import BudgetError, ReluctantError, ShapeError
from reluctant.masked import attach
from reluctant.models import ModelSpec
from reluctant.program.lower import BY_WEIGHTS, lower
from reluctant.progress import Progress, silent
from reluctant.sites import find_sites
from reluctant.units import format_quantity, parse_target

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Pricing:
    """Where an inference is priced: the engine's table, and the link."""

    model: CostModel
    network: Network

    @classmethod
    def load(cls, engine: str = "cheetah", network: str = "loopback", table: Path | None = None) -> "Pricing":
        """Return the pricing of ``engine`` over ``network``.

        Raises:
            UnknownName, UsageError: no such engine, link or table.
        """
        return cls(CostModel.load(engine, table), parse_network(network))

    def predict(self, spec: str, classes: int, shape: Shape) -> Prediction:
        """Return what one image through the network called ``spec`` would cost, all ReLUs kept, after set-up."""
        network = ModelSpec.parse(spec).fresh(classes, shape)
        masked = attach(network, find_sites(network, torch.zeros(1, *shape)))
        return self.model.predict(lower(masked, BY_WEIGHTS), network=self.network)  # it is not trained yet


@dataclass(frozen=True)
class Target:
    """What one inference may take at most.

    Args:
        text: as it was written.
        unit: ``relus``, ``macs``, ``bytes`` or ``seconds``.
        where: the pricing, for the last two.
    """

    text: str
    limit: float
    unit: str
    where: Pricing | None = None

    @classmethod
    def parse(cls, text: str, table: Path | None = None) -> "Target":
        """Return the target that ``text`` names: ``350k`` ReLUs, ``500MMAC``, ``40MB@cheetah``, ``20s@cheetah/wan``.

        Raises:
            BudgetError: it cannot be read, is a share, or does not say under which engine or over which link.
            UnknownName: no such engine.
            UsageError: no such link.
        """
        quantity = parse_target(text)
        if quantity.unit in ("relus", "macs"):
            return cls(text, quantity.value, quantity.unit)
        engine, slash, link = quantity.where.partition("/")
        if quantity.unit == "share":
            raise BudgetError(f"target {text} is a share, but there is no network yet to have a share of")
        if not engine or (quantity.unit == "seconds") != bool(slash):
            form = "20s@cheetah/wan" if quantity.unit == "seconds" else "40MB@cheetah"
            raise BudgetError(f"target {text} does not say where {quantity.unit} are counted: write {form}")
        return cls(text, quantity.value, quantity.unit, Pricing.load(engine, link or "loopback", table))

    def measure(self, candidate: "Candidate") -> float:
        """Return what one inference takes, in the unit of the target.

        Raises:
            BudgetError: the source of the prices does not say.
        """
        if candidate.prediction is not None and self.where is not None:
            found = candidate.prediction.bytes if self.unit == "bytes" else candidate.prediction.seconds
            if found is None:
                missing = ", ".join(candidate.prediction.omitted)
                raise BudgetError(f"target {self.text} cannot be kept: not known are {missing}")
            return found
        return sum((candidate.relus if self.unit == "relus" else candidate.macs).values())


@dataclass(frozen=True)
class Candidate:
    """A network and what one inference with it consists of.

    Attributes:
        spec: what names it wherever a model is named.
        relus, macs: of each part: ``stem``, ``stage 1``, ..., ``head``.
        prediction: of one image with all ReLUs kept, where it was priced.
    """

    spec: str
    relus: Mapping[str, int]
    macs: Mapping[str, int]
    parameters: int
    prediction: Prediction | None = None

    @property
    def shares(self) -> dict[str, float]:
        """The part that each stage has of the stages' ReLUs; the stem's do not count."""
        stages = {part: self.relus.get(part, 0) for part in self.macs if part.startswith("stage")}
        return {part: relus / sum(stages.values()) for part, relus in stages.items()}

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "model": self.spec,
            "relus": {"total": sum(self.relus.values()), "by_part": dict(self.relus), "shares": self.shares},
            "macs": {"total": sum(self.macs.values()), "by_part": dict(self.macs)},
            "parameters": self.parameters,
            "predicted": None if self.prediction is None else self.prediction.to_json(),
        }


@dataclass(frozen=True)
class Found:
    """The candidates that meet a target, the best first, and of each that does not the reason."""

    candidates: tuple[Candidate, ...]
    refused: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return them as a JSON object."""
        return {"candidates": [row.to_json() for row in self.candidates], "refused": dict(self.refused)}


def find_candidates(
    designs: tuple[Design, ...],
    classes: int,
    shape: Shape,
    target: Target | None = None,
    pricing: Pricing | None = None,
    progress: Progress = silent,
) -> Found:
    """Return what ``designs`` are made of, each as wide as ``target`` allows; without a target as wide as they are.

    Under a target in ReLUs the network with the fewest multiply-adds is first, under any other the one with the most
    ReLUs; which is best is for a training to say.

    Args:
        shape: of one image.
        pricing: where their costs are predicted; the target's own if it has one.

    Raises:
        BudgetError: no width of any of them meets the target.
        ShapeError: the images are too small for all of them.
    """
    found: list[Candidate] = []
    refused: dict[str, str] = {}
    failures: list[ReluctantError] = []
    for number, design in enumerate(designs):
        progress("candidates", number, len(designs))
        try:
            design.check_side(min(shape[1:]))
            if target is None:
                found.append(describe(design.spec, classes, shape, pricing))
            else:
                found.append(fit_width(design, target, classes, shape, pricing))
        except (BudgetError, ShapeError) as error:
            refused[design.spec] = str(error)
            failures.append(error)
    if not found:
        raise failures[0]
    progress("candidates", len(designs), len(designs))
    if target is not None and target.unit == "relus":
        found.sort(key=lambda candidate: sum(candidate.macs.values()))
    elif target is not None:
        found.sort(key=lambda candidate: -sum(candidate.relus.values()))
    return Found(tuple(found), refused)


def fit_width(design: Design, target: Target, classes: int, shape: Shape, pricing: Pricing | None = None) -> Candidate:
    """Return ``design`` with the largest width that meets ``target``, as far as costs grow with the width.

    Args:
        pricing: as in :func:`find_candidates`.

    Raises:
        BudgetError: the least width does not.
    """
    step = design.width_step
    low, high, guess = 0, math.inf, 8 * step
    best: Candidate | None = None
    while high > low + step:
        tried = describe(design.changed({"width": guess}).spec, classes, shape, target.where)
        cost = target.measure(tried)
        if cost <= target.limit:
            low, best = guess, tried
        else:
            high = guess
        # Costs grow at most with the square of the width: from below, hardly a network is built that is too large.
        growth = 2.0 if cost <= target.limit else 1.5
        guess = int(guess * (target.limit / cost) ** (1 / growth)) // step * step
        guess = int(min(max(guess, low + step), max(high - step, low + step)))
    if best is None:
        raise BudgetError(
            f"target {target.text} is under the {format_quantity(cost, target.unit)} that {tried.spec} takes, the "
            "narrowest of its kind: give more, or take fewer blocks"
        )
    if target.where is None and pricing is not None:
        return replace(best, prediction=pricing.predict(best.spec, classes, shape))
    return best


def describe(spec: str, classes: int, shape: Shape, pricing: Pricing | None = None) -> Candidate:
    """Return what one inference of the network called ``spec`` consists of; nothing is computed, unless it is priced.

    Raises:
        ShapeError: a design that cannot read images of that shape.
    """
    with torch.device("meta"):
        network = ModelSpec.parse(spec).fresh(classes, shape)
        example = torch.zeros(1, *shape)
    counted = count(network, find_sites(network, example), example)
    relus: dict[str, int] = {}
    macs: dict[str, int] = {}
    for name, site in counted.relus.items():
        relus[part_of(name)] = relus.get(part_of(name), 0) + site
    for name, module in counted.macs.items():
        if "." not in name:
            macs[part_of(name)] = macs.get(part_of(name), 0) + module
    return Candidate(
        spec, relus, macs, counted.parameters, None if pricing is None else pricing.predict(spec, classes, shape)
    )
