"""Prices that were measured: what a unit of work costs under an engine that runs here."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from reluctant.costs.cheetah import Stocks, Work, held_at_most
from reluctant.costs.model import Account, Cost, CostModel, Spent, Step, total
from reluctant.costs.networks import Network
from reluctant.costs.work import activation_work, set_up_work, stocks_of, work
from reluctant.errors import UsageError
from reluctant.program.operations import Activation
from reluctant.program.ops import Program


@dataclass(frozen=True)
class CostTable(CostModel):
    """Prices programs for one engine, by units of work.

    Args:
        engine: its name.
        prices: what a unit of work costs; :mod:`reluctant.costs.cheetah` says which units there are.
        setup: what each part of the set-up costs (:func:`reluctant.costs.work.set_up_work`).
        memory: bytes that a party holds for each unit (:func:`reluctant.costs.cheetah.held_at_most`).
        processors: of the machine that was measured: a long comparison falls into so many streams.
        stock: comparisons for which one fetched stock of oblivious transfers lasts, a stream.
        source: when it was measured, and on what.
    """

    engine: str
    prices: Mapping[str, Cost]
    setup: Mapping[str, Cost]
    memory: Mapping[str, float]
    processors: int
    stock: int
    source: str = "reluctant calibrate"

    provenance = "measured"

    @classmethod
    def open(cls, engine: str, table: Path | None = None) -> "CostTable":
        """Return the table of ``engine`` that comes with this package, or the one in the file ``table``.

        Raises:
            UsageError: the file is no such table.
        """
        file = resources.files(__package__) / "tables" / f"{engine}.json" if table is None else table
        try:
            found = json.loads(file.read_text())
            prices, setup = ({unit: Cost(**price) for unit, price in found[key].items()} for key in ("prices", "setup"))
            memory = {unit: float(held) for unit, held in found["memory"].items()}
            processors, stock = int(found["machine"]["cpus"]), int(found["stock"])
            if table is not None and (lacking := cls.open(engine).prices.keys() - prices.keys()):
                raise KeyError(min(lacking))
            source = f"reluctant calibrate, {found['date']}, {processors} x {found['machine']['processor']}"
            return cls(found["engine"], prices, setup, memory, processors, stock, source)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{file} is no table of prices ({type(error).__name__}); write one: reluctant calibrate --out {file}"
            ) from error

    def with_softspoken(self) -> "CostTable":
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
        return total(Cost(*(count * part for part in self.prices[unit])) for unit, count in work.items())

    def account(self, program: Program, sizes: Sequence[int]) -> Account:
        """See :meth:`CostModel.account`; the stocks that one batch leaves are there for the next."""
        stocks = stocks_of(program, max(sizes), self.processors, self.stock)
        items = [item for size in sizes for item in work(program, size, stocks)]
        kinds, first = set_up_work(program, max(sizes), self.processors, self.stock)
        held = held_at_most([first, *(done for _, _, done in items)])
        return Account(
            steps=[Step(op, part, Spent(self.cost(done))) for op, part, done in items],
            setup=total([*(self.setup[kind] for kind in kinds), self.cost(first)]),
            memory=sum(self.memory[unit] * n for unit, n in held.items()),
        )

    def relu(self) -> Spent:
        """See :meth:`CostModel.relu`."""
        return Spent(total((self.cost(Work({"comparison": 1})), self._fetched(1))))

    def activation(self, op: Activation) -> Spent:
        """See :meth:`CostModel.activation`."""
        stocks = Stocks(self.processors, 1, [1 << 60] * self.processors)
        steps = [self.cost(done) for _, _, done in activation_work(op, "shared", 1, stocks)]
        return Spent(total([*steps, self._fetched(len(op.kept))]))

    def _fetched(self, comparisons: int) -> Cost:
        """Return the share that so many comparisons have of fetching stocks of transfers."""
        stock = self.cost(Work({"transfer stock": 1, "transfer call": 1}))
        return Cost(*(comparisons * part / self.stock for part in stock))


def cheaper_transfers(program: Program, images: int, batch: int, network: Network) -> str:
    """Return the kind of oblivious transfer with which CHEETAH is predicted to be done sooner, set-up included.

    Ferret's set-up takes seconds and is worth it for many comparisons, or where bytes take long; Softspoken sends nine
    times the bytes for a comparison.
    """
    ferret = CostTable.open("cheetah")
    models = {"ferret": ferret, "softspoken": ferret.with_softspoken()}
    found = {name: model.predict(program, images, batch, network) for name, model in models.items()}
    return min(found, key=lambda name: (found[name].seconds or 0) + (found[name].setup.seconds or 0))
