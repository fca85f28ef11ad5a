"""What a private inference would send, without running it: a program's work, priced by a measured table."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any, NamedTuple

from reluctant.costs.cheetah import Work
from reluctant.costs.work import Part, stocks_of, work
from reluctant.errors import UsageError
from reluctant.program.operations import Activation, Op
from reluctant.program.ops import Program
from reluctant.registry import unknown

#: Engines with a table of prices.
ENGINES = ("cheetah",)


class Cost(NamedTuple):
    """What both parties send, in both directions together."""

    bytes: float = 0.0
    messages: float = 0.0


@dataclass(frozen=True)
class SitePrediction:
    """What the activation step of one site would cost, over all images."""

    name: str
    kept: int
    comparison_bytes: int
    surrogate_bytes: int
    messages: int


@dataclass(frozen=True)
class Prediction:
    """What private inference with a program would cost, set-up apart.

    Attributes:
        images: of all of which it is the cost.
        bytes, messages: both directions together.
        comparison_bytes, surrogate_bytes, linear_bytes, pooling_bytes: parts of ``bytes``; the rest is the answers.
        by_site: every activation site, in order.
        by_op: bytes by the value that each operation makes, of those that send any.
    """

    engine: str
    images: int
    bytes: int
    messages: int
    comparison_bytes: int
    surrogate_bytes: int
    linear_bytes: int
    pooling_bytes: int
    by_site: tuple[SitePrediction, ...]
    by_op: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {**asdict(self), "by_site": [asdict(site) for site in self.by_site]}


@dataclass(frozen=True)
class CostModel:
    """Prices programs for one engine.

    Args:
        engine: its name.
        prices: what a unit of work costs; :mod:`reluctant.costs.cheetah` says which units there are.
        processors: of the machine that was measured: a long comparison falls into so many streams.
        stock: comparisons for which one fetched stock of oblivious transfers lasts, a stream.

    Example::

        CostModel.load("cheetah").predict(lower(masked)).bytes
    """

    engine: str
    prices: Mapping[str, Cost]
    processors: int
    stock: int

    @classmethod
    def load(cls, engine: str) -> "CostModel":
        """Return the model of ``engine``, with the table that was measured.

        Raises:
            UnknownName: no table for that engine.
        """
        if engine not in ENGINES:
            raise unknown("cost table", engine, list(ENGINES))
        table = json.loads((resources.files(__package__) / "tables" / f"{engine}.json").read_text())
        prices = {unit: Cost(**price) for unit, price in table["prices"].items()}
        return cls(engine, prices, table["machine"]["cpus"], table["stock"])

    def cost(self, work: Work) -> Cost:
        """Return what ``work`` costs."""
        pairs = [(self.prices[unit], count) for unit, count in work.items()]
        return Cost(sum(p.bytes * count for p, count in pairs), sum(p.messages * count for p, count in pairs))

    def predict(self, program: Program, images: int = 1, batch: int = 1) -> Prediction:
        """Return what one run of ``program`` on ``images`` would cost, from the first image to the last answer.

        Stocks that set-up left are used up first, as in a run: the figure of one image can be lower than the average
        of many.

        Args:
            batch: images that travel together.

        Raises:
            UsageError: not one image or more.
        """
        if min(images, batch) < 1:
            raise UsageError(f"cost of {images} images in batches of {batch}: expected 1 or more of both")
        parts = -(-images // batch)
        sizes = [images // parts + (number < images % parts) for number in range(parts)]
        stocks = stocks_of(program, max(sizes), self.processors, self.stock)
        items = [item for size in sizes for item in work(program, size, stocks)]
        costs = [(op, part, self.cost(done)) for op, part, done in items]
        total = _sum(cost for _, _, cost in costs)
        by_part = {
            part: _sum(cost for _, other, cost in costs if other == part)
            for part in ("comparison", "surrogate", "linear", "pooling")
        }
        by_op: dict[str, float] = {}
        for op, _, cost in costs:
            if op is not None and cost.bytes:
                by_op[op.output] = by_op.get(op.output, 0.0) + cost.bytes
        return Prediction(
            engine=self.engine,
            images=images,
            bytes=round(total.bytes),
            messages=round(total.messages),
            **{f"{part}_bytes": round(cost.bytes) for part, cost in by_part.items()},
            by_site=tuple(_by_site(program, costs)),
            by_op={name: round(count) for name, count in by_op.items()},
        )


def _by_site(program: Program, costs: Sequence[tuple[Op | None, Part, Cost]]) -> Iterator[SitePrediction]:
    for site in program.sites:
        of_site = [(part, cost) for op, part, cost in costs if isinstance(op, Activation) and op.site == site.name]
        compared = _sum(cost for part, cost in of_site if part == "comparison")
        replaced = _sum(cost for part, cost in of_site if part == "surrogate")
        yield SitePrediction(
            name=site.name,
            kept=site.kept,
            comparison_bytes=round(compared.bytes),
            surrogate_bytes=round(replaced.bytes),
            messages=round(compared.messages + replaced.messages),
        )


def _sum(costs: Iterable[Cost]) -> Cost:
    found = list(costs)
    return Cost(sum(cost.bytes for cost in found), sum(cost.messages for cost in found))
