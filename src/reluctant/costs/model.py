"""What a private inference would send and how long it would take, without running it: the face of all price sources.

A price source is a table that was measured (:mod:`reluctant.costs.table`) or a profile made of what is published
(:mod:`reluctant.costs.profile`). Either says what each step of a program costs; the sums are made here.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from reluctant.costs import PROTOCOLS
from reluctant.costs.networks import NETWORKS, Network
from reluctant.errors import UsageError
from reluctant.program.operations import Activation, Op
from reluctant.program.ops import Program

Part = Literal["linear", "comparison", "surrogate", "pooling", "answer"]

#: A figure that the source does not have. Whatever it is added to is unknown, too; it leaves this package as ``None``.
UNKNOWN = math.nan


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


class Spent(NamedTuple):
    """What some work takes once the image is there, and what it takes before, for every image."""

    online: Cost = Cost()
    offline: Cost = Cost()

    @property
    def total(self) -> Cost:
        """Both together."""
        return total(self)


class Step(NamedTuple):
    """What one step of a program takes: for which operation (none for the answers), as which part of it."""

    op: Op | None
    part: Part
    spent: Spent


class Account(NamedTuple):
    """What a price source says of a program.

    Args:
        steps: in their order, for all images.
        setup: what is done once.
        memory: bytes that a party's process holds at most.
    """

    steps: Sequence[Step]
    setup: Cost
    memory: float


@dataclass(frozen=True)
class Phase:
    """What a part of a run would cost; both directions together, seconds at the client. ``None`` is not known."""

    bytes: int | None
    messages: int | None
    seconds: float | None

    @classmethod
    def of(cls, cost: Cost, network: Network) -> "Phase":
        """Return ``cost`` over ``network``."""
        return cls(_whole(cost.bytes), _whole(cost.messages), _known(cost.lasts(network)))


@dataclass(frozen=True)
class SitePrediction:
    """What the activation step of one site would cost, over all images; ``None`` is not known."""

    name: str
    kept: int
    comparison_bytes: int | None
    surrogate_bytes: int | None
    messages: int | None
    seconds: float | None
    round_trips: float | None


@dataclass(frozen=True)
class Prediction:
    """What private inference with a program would cost, set-up apart. ``None`` is what the source does not say.

    Attributes:
        provenance, source: whether the prices were measured here or are an analytic profile, and where they are from.
        omitted: what the figures do not cover.
        images: of all of which it is the cost.
        network: the link whose seconds these are.
        bytes, messages: both directions together, of all work that an image uses up.
        seconds: of the same; under a measured table from the first image to the last answer.
        round_trips: of the link, that are waited for once the images are there.
        comparison_bytes, surrogate_bytes, linear_bytes, pooling_bytes: parts of ``bytes``; the rest is the answers.
        memory: bytes that a party's process holds at most.
        setup: what connecting and the protocol's one-time preparation would cost; in none of the above.
        offline: what is done before an image comes. Where a protocol prepares each image, that, and it is part of
            ``bytes`` and ``seconds``; else the set-up.
        online: all the rest of ``bytes`` and ``seconds``.
        by_site: every activation site, in order.
        by_op: bytes by the value that each operation makes, of those that send any.
    """

    engine: str
    provenance: str
    source: str
    omitted: tuple[str, ...]
    network: str
    images: int
    bytes: int | None
    messages: int | None
    seconds: float | None
    round_trips: float | None
    comparison_bytes: int | None
    surrogate_bytes: int | None
    linear_bytes: int | None
    pooling_bytes: int | None
    memory: int | None
    setup: Phase
    offline: Phase
    online: Phase
    by_site: tuple[SitePrediction, ...]
    by_op: Mapping[str, int | None]

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return asdict(self)


class CostModel(ABC):
    """Prices programs for one protocol.

    Attributes:
        engine: name of the protocol.
        provenance: ``measured``, or ``analytic profile`` for what cannot be run here.
        source: where the prices are from.
        omitted: what they do not cover.

    Example::

        CostModel.load("cheetah").predict(lower(masked)).bytes
    """

    engine: str
    provenance: str
    source: str
    omitted: tuple[str, ...] = ()

    @staticmethod
    def load(engine: str, table: Path | None = None) -> "CostModel":
        """Return the price source of the protocol called ``engine``.

        Args:
            table: a file that ``reluctant calibrate`` wrote; the table that comes with this package if not given.

        Raises:
            UnknownName: no such protocol.
            UsageError: the file is no table of that protocol.
        """
        found: CostModel = PROTOCOLS[engine].open(engine, table)
        return found

    @classmethod
    @abstractmethod
    def open(cls, engine: str, table: Path | None) -> "CostModel":
        """Return the price source of ``engine``; see :meth:`load`."""

    @abstractmethod
    def account(self, program: Program, sizes: Sequence[int]) -> Account:
        """Return what ``program`` costs on batches of so many images each, one after the other."""

    @abstractmethod
    def relu(self) -> Spent:
        """Return what one ReLU more takes at a site that keeps some, with its share of what is fetched now and then."""

    @abstractmethod
    def activation(self, op: Activation) -> Spent:
        """Return what the step of one site takes for one image, with its share of what is fetched now and then."""

    def predict(
        self, program: Program, images: int = 1, batch: int = 1, network: Network = NETWORKS["loopback"]
    ) -> Prediction:
        """Return what ``program`` on ``images`` would cost.

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
        steps, setup, memory = self.account(program, sizes)
        online, offline = total(step.spent.online for step in steps), total(step.spent.offline for step in steps)
        both = total((online, offline))
        by_part = {
            part: total(step.spent.total for step in steps if step.part == part)
            for part in ("comparison", "surrogate", "linear", "pooling")
        }
        by_op: dict[str, float] = {}
        for step in steps:
            if step.op is not None and step.spent.total.bytes:
                by_op[step.op.output] = by_op.get(step.op.output, 0.0) + step.spent.total.bytes
        return Prediction(
            engine=self.engine,
            provenance=self.provenance,
            source=self.source,
            omitted=self.omitted,
            network=network.name,
            images=images,
            bytes=_whole(both.bytes),
            messages=_whole(both.messages),
            seconds=_known(both.lasts(network)),
            round_trips=_known(online.trips),
            **{f"{part}_bytes": _whole(cost.bytes) for part, cost in by_part.items()},
            memory=_whole(memory),
            setup=Phase.of(setup, network),
            offline=Phase.of(offline if any(offline) else setup, network),
            online=Phase.of(online, network),
            by_site=tuple(_by_site(program, steps, network)),
            by_op={name: _whole(count) for name, count in by_op.items()},
        )


def _by_site(program: Program, steps: Sequence[Step], network: Network) -> Iterator[SitePrediction]:
    for site in program.sites:
        of_site = [step for step in steps if isinstance(step.op, Activation) and step.op.site == site.name]
        compared, replaced = (
            total(step.spent.total for step in of_site if step.part == part) for part in ("comparison", "surrogate")
        )
        both = total((compared, replaced))
        yield SitePrediction(
            name=site.name,
            kept=site.kept,
            comparison_bytes=_whole(compared.bytes),
            surrogate_bytes=_whole(replaced.bytes),
            messages=_whole(both.messages),
            seconds=_known(both.lasts(network)),
            round_trips=_known(total(step.spent.online for step in of_site).trips),
        )


def total(costs: Iterable[Cost]) -> Cost:
    """Return the sum of ``costs``; nothing costs nothing."""
    return Cost(*(sum(part) for part in zip(Cost(), *costs, strict=True)))


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _whole(value: float) -> int | None:
    return None if math.isnan(value) else round(value)
