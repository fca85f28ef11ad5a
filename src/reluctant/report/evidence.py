"""What records say of a network that somebody may want to train: its accuracy, by budget and by way of keeping it."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from statistics import mean, stdev
from typing import Any

from reluctant.budget import Budget
from reluctant.recording import public_name
from reluctant.records import Record
from reluctant.report.networks import Network, networks
from reluctant.report.results import made_by, setting_of


@dataclass(frozen=True)
class Evidence:
    """The networks of one setting, the newest of each seed, by seed; figures are means over them.

    Attributes:
        budget: what was asked for; ``100%`` of dense networks.
    """

    budget: Budget
    networks: tuple[Network, ...]

    @property
    def method(self) -> str | None:
        """Name of the method, ``None`` for a dense network."""
        return self.networks[0].head.method

    @property
    def seeds(self) -> list[int]:
        """Seeds that were run."""
        return [network.head.seed for network in self.networks]

    @property
    def epochs(self) -> int | None:
        """Passes over the training split, the search included."""
        made = made_by(self.networks[0])
        return None if made is None else made.epochs

    @property
    def val(self) -> float:
        """Share of the held-out images answered right."""
        return mean(val for network in self.networks if (val := _val(network)) is not None)

    @property
    def tests(self) -> list[float]:
        """Share of the test images answered right, of each network that was evaluated."""
        return [network.accuracy for network in self.networks if network.accuracy is not None]

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object; ``spread`` is the sample standard deviation over the seeds, from two on."""
        evaluated = [network.evaluation for network in self.networks if network.evaluation]
        return {
            "method": self.method,
            "seeds": self.seeds,
            "epochs": self.epochs,
            "val": self.val,
            "test": mean(self.tests) if self.tests else None,
            "spread": stdev(self.tests) if len(self.tests) > 1 else None,
            "n_test": evaluated[0].accuracy["n_test"] if evaluated else None,
            "records": [network.head.name for network in self.networks],
        }


def find_evidence(task: str, records: Iterable[Record]) -> dict[str, list[Evidence]]:
    """Return what ``records`` say of each network for ``task``, by the network's name.

    Those count that are complete, have an accuracy on held-out images, and in which what stands for a dropped ReLU
    costs nothing. Of one setting and seed the newest counts: two runs of one seed are no two seeds.
    """
    found: dict[str, dict[tuple[str, str], dict[int, Network]]] = {}
    for network in sorted(networks(records), key=lambda network: datetime.fromisoformat(network.head.created)):
        head = network.head
        budget = "100%" if head.method is None else head.budget
        if (head.task, head.track) == (public_name(task), "free") and budget is not None and _val(network) is not None:
            found.setdefault(head.model, {}).setdefault((budget, setting_of(head)), {})[head.seed] = network
    return {
        model: [
            Evidence(Budget.parse(budget), tuple(by_seed[seed] for seed in sorted(by_seed)))
            for (budget, _), by_seed in settings.items()
        ]
        for model, settings in found.items()
    }


def _val(network: Network) -> float | None:
    return next((val for record in reversed(network.records) if (val := record.accuracy["val"]) is not None), None)
