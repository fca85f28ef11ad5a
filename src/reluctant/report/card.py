"""The cost card: what a linearized network gives and takes, as one JSON object a network."""

from collections.abc import Sequence
from typing import Any

from reluctant.costs.money import Tariff
from reluctant.records import Record, Secure
from reluctant.report.networks import Network


def cards(networks: Sequence[Network]) -> list[dict[str, Any]]:
    """Return one card for each network that is not an ordinary dense one.

    Accuracies are shares of 1, over the first ``n_test`` test images. ``secure`` is ``None`` where no private inference
    was run, ``secure["dense"]`` where none was run with the dense network in the same setting. A card's ``secure`` has
    ``dense`` and ``linearized`` with the same keys: totals over all ``images``, both directions together.
    ``predicted`` is of one image.
    """
    return [_card(network) for network in networks if not network.is_dense]


def _card(network: Network) -> dict[str, Any]:
    head, twin = network.head, network.twin
    return {
        "task": head.task,
        "model": head.model,
        "design": head.design,
        "method": head.method,
        "budget": head.budget,
        "track": head.track,
        "surrogate": head.surrogate,
        "squares": head.squares,
        "seed": head.seed,
        "relus": dict(head.relus),
        "accuracy": {
            "dense": network.dense_accuracy,
            "linearized": network.accuracy,
            "twin": twin.accuracy.get("twin") if twin else None,
            "n_test": network.evaluation.accuracy["n_test"] if network.evaluation else None,
            "n_twin": twin.accuracy.get("n_twin") if twin else None,
        },
        "secure": _secure(network, network.run.secure) if network.run and network.run.secure else None,
        "predicted": _predicted(head),
        "device": network.run.device if network.run else head.device,
        "mask": next((record.mask["digest"] for record in reversed(network.records) if record.mask), None),
        "records": [record.name for record in network.records],
    }


def _predicted(record: Record) -> dict[str, Any] | None:
    """Return the prediction in a record, and dollars for 1,000 images over each link, at usual prices."""
    found = record.predicted
    if found is None:
        return None
    return {
        **found,
        "dollars": {link: Tariff().dollars(found["bytes"], s) for link, s in found.get("seconds", {}).items()},
    }


def _secure(network: Network, secure: Secure) -> dict[str, Any]:
    return {**secure, "dense": network.dense_cost, "linearized": network.cost}
