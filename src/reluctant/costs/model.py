"""What a private inference would send and how long it would take, without running it: its work, priced by a table."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from reluctant.costs import ENGINES
from reluctant.costs.cheetah import Work, held_at_most
from reluctant.costs.networks import NETWORKS, Network
from reluctant.costs.work import Part, set_up_work, stocks_of, work
from reluctant.errors import UsageError
from reluctant.program.operations import Activation, Op
from reluctant.program.ops import Program
from reluctant.registry import unknown


class Cost(NamedTuple):
    """What some work takes.

    Args:
        bytes, messages: of both directions together.
        seconds: of computing, on the machine that was measured, with both parties on it.
        trips: round trips of the link that are waited for.
    """

    bytes: float = 0.0
    messages: float = 0.0
    seconds: float = 0.0
    trips: float = 0.0

    def lasts(self, network: Network) -> float:
        """Return the seconds that it takes over ``network``: computing, waiting, sending, none beside another."""
        sending = 0.0 if network.bits_per_second is None else 8 * self.bytes / network.bits_per_second
        return self.seconds + self.trips * network.rtt_seconds + sending


@dataclass(frozen=True)
class Phase:
    """What a part of a run would cost; both directions together, seconds at the client."""

    bytes: int
    messages: int
    seconds: float

    @classmethod
    def of(cls, cost: Cost, network: Network) -> "Phase":
        """Return ``cost`` over ``network``."""
        return cls(round(cost.bytes), round(cost.messages), cost.lasts(network))


@dataclass(frozen=True)
class SitePrediction:
    """What the activation step of one site would cost, over all images."""

    name: str
    kept: int
    comparison_bytes: int
    surrogate_bytes: int
    messages: int
    seconds: float


@dataclass(frozen=True)
class Prediction:
    """What private inference with a program would cost, set-up apart.

    Attributes:
        images: of all of which it is the cost.
        network: the link whose seconds these are.
        bytes, messages: both directions together.
        seconds: from the first image to the last answer, on the machine that was measured.
        comparison_bytes, surrogate_bytes, linear_bytes, pooling_bytes: parts of ``bytes``; the rest is the answers.
        memory: bytes that a party's process holds at most.
        setup: what connecting and the protocol's one-time preparation would cost.
        by_site: every activation site, in order.
        by_op: bytes by the value that each operation makes, of those that send any.
    """

    engine: str
    network: str
    images: int
    bytes: int
    messages: int
    seconds: float
    comparison_bytes: int
    surrogate_bytes: int
    linear_bytes: int
    pooling_bytes: int
    memory: int
    setup: "Phase"
    by_site: tuple[SitePrediction, ...]
    by_op: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object; ``offline`` is the set-up, ``online`` all the rest."""
        found = asdict(self)
        found["offline"], found["online"] = found.pop("setup"), asdict(Phase(self.bytes, self.messages, self.seconds))
        return found


@dataclass(frozen=True)
class CostModel:
    """Prices programs for one engine.

    Args:
        engine: its name.
        prices: what a unit of work costs; :mod:`reluctant.costs.cheetah` says which units there are.
        setup: what each part of the set-up costs (:func:`reluctant.costs.work.set_up_work`).
        memory: bytes that a party holds for each unit (:func:`reluctant.costs.cheetah.held_at_most`).
        processors: of the machine that was measured: a long comparison falls into so many streams.
        stock: comparisons for which one fetched stock of oblivious transfers lasts, a stream.

    Example::

        CostModel.load("cheetah").predict(lower(masked)).bytes
    """

    engine: str
    prices: Mapping[str, Cost]
    setup: Mapping[str, Cost]
    memory: Mapping[str, float]
    processors: int
    stock: int

    @classmethod
    def load(cls, engine: str, table: Path | None = None) -> "CostModel":
        """Return the model of ``engine``, with the table that was measured.

        Args:
            table: a file that ``reluctant calibrate`` wrote; the table that comes with this package if not given.

        Raises:
            UnknownName: no table for that engine.
            UsageError: the file is no such table.
        """
        if engine not in ENGINES:
            raise unknown("cost table", engine, list(ENGINES))
        file = resources.files(__package__) / "tables" / f"{engine}.json" if table is None else table
        try:
            found = json.loads(file.read_text())
            prices, setup = ({unit: Cost(**price) for unit, price in found[key].items()} for key in ("prices", "setup"))
            memory = {unit: float(held) for unit, held in found["memory"].items()}
            return cls(found["engine"], prices, setup, memory, int(found["machine"]["cpus"]), int(found["stock"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{file} is no table of prices ({type(error).__name__}); write one: reluctant calibrate --out {file}"
            ) from error

    def with_softspoken(self) -> "CostModel":
        """Return the model of CHEETAH with Softspoken transfers in place of Ferret's: dearer each, cheaper to set up.

        Its bytes and round trips are measured ones (bytes within 2 % of runs), its seconds so many times those of this
        table; its messages are rough, since their number falls with the size of a comparison in no simple way.
        """
        text = (resources.files(__package__) / "tables" / "softspoken.json").read_text()
        changed = json.loads(text)

        def changed_to(key: str, costs: Mapping[str, Cost]) -> dict[str, Cost]:
            return {
                unit: Cost(row["bytes"], row["messages"], row["times"] * costs[unit].seconds, row["trips"])
                for unit, row in changed[key].items()
            }

        prices, setup = changed_to("prices", self.prices), changed_to("setup", self.setup)
        return replace(self, prices={**self.prices, **prices}, setup={**self.setup, **setup})

    def cost(self, work: Work) -> Cost:
        """Return what ``work`` costs."""
        return _sum(Cost(*(count * part for part in self.prices[unit])) for unit, count in work.items())

    def predict(
        self, program: Program, images: int = 1, batch: int = 1, network: Network = NETWORKS["loopback"]
    ) -> Prediction:
        """Return what one run of ``program`` on ``images`` would cost, from the first image to the last answer.

        Stocks that set-up left are used up first, as in a run: the figure of one image can be lower than the average
        of many.

        Args:
            batch: images that travel together.
            network: the link between the parties.

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
        kinds, first = set_up_work(program, max(sizes), self.processors, self.stock)
        held = held_at_most([first, *(done for _, _, done in items)])
        setup = _sum([*(self.setup[kind] for kind in kinds), self.cost(first)])
        return Prediction(
            engine=self.engine,
            network=network.name,
            images=images,
            bytes=round(total.bytes),
            messages=round(total.messages),
            seconds=total.lasts(network),
            **{f"{part}_bytes": round(cost.bytes) for part, cost in by_part.items()},
            memory=round(sum(self.memory[unit] * n for unit, n in held.items())),
            setup=Phase.of(setup, network),
            by_site=tuple(_by_site(program, costs, network)),
            by_op={name: round(count) for name, count in by_op.items()},
        )


def _by_site(
    program: Program, costs: Sequence[tuple[Op | None, Part, Cost]], network: Network
) -> Iterator[SitePrediction]:
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
            seconds=compared.lasts(network) + replaced.lasts(network),
        )


def _sum(costs: Iterable[Cost]) -> Cost:
    return Cost(*(sum(part) for part in zip(Cost(), *costs, strict=True)))


def cheaper_transfers(program: Program, images: int, batch: int, network: Network) -> str:
    """Return the kind of oblivious transfer with which CHEETAH is predicted to be done sooner, set-up included.

    Ferret's set-up takes seconds and is worth it for many comparisons, or where bytes take long; Softspoken sends nine
    times the bytes for a comparison.
    """
    ferret = CostModel.load("cheetah")
    models = {"ferret": ferret, "softspoken": ferret.with_softspoken()}
    found = {name: model.predict(program, images, batch, network) for name, model in models.items()}
    return min(found, key=lambda name: found[name].seconds + found[name].setup.seconds)
