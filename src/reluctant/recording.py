"""Records of what was measured: evaluations and secure runs, with what is known of their network."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reluctant.checkpoints import Origin, weights_digest
from reluctant.costs.model import CostModel
from reluctant.costs.networks import NETWORKS, parse_network
from reluctant.engines.base import EngineRun
from reluctant.errors import UsageError
from reluctant.masked import MaskedModel
from reluctant.program.certificate import Certificate
from reluctant.program.lower import lower
from reluctant.provenance import describe_device
from reluctant.recipe import Recipe
from reluctant.records import Accuracy, FixedPoint, NetworkCost, Predicted, Record, Secure, describe_kept
from reluctant.secure import SecureRun, as_masked
from reluctant.training import Evaluation


def as_records(items: Iterable[Record | Evaluation | SecureRun]) -> list[Record]:
    """Return the records of ``items``; a secure run gets the name of the task on which its network was evaluated.

    Raises:
        UsageError: an evaluation of something that is no network.
    """
    records, tasks, runs = [], {}, []
    for item in items:
        if isinstance(item, Record):
            records.append(item)
        elif isinstance(item, SecureRun):
            runs.append(item)
        elif item.model is None:
            raise UsageError("an evaluation of something that is no network has no record; evaluate the network itself")
        else:
            tasks[weights_digest(item.model)] = item.task
            records.append(
                evaluation_record(item, item.model, _origin_of(item.model, item.task, item.input_shape), 0.0)
            )
    for run in runs:
        task = tasks.get(weights_digest(run.model), "images")
        records.append(run_record(run, run.model, _origin_of(run.model, task, run.input_shape)))
    return records


def _origin_of(model: nn.Module, task: str, input_shape: tuple[int, ...]) -> Origin:
    """Return what can be said of a network that came from no checkpoint."""
    network, made_by = (model.model, model.made_by) if isinstance(model, MaskedModel) else (model, {})
    method = made_by.get("method")
    if method is None and isinstance(model, MaskedModel) and model.mask.kept < model.mask.total:
        method = {"name": "by hand"}
    return Origin(type(network).__name__, task, 0, input_shape, method, made_by.get("budget"))


def evaluation_record(
    found: Evaluation, model: nn.Module, origin: Origin, seconds: float, *, floats: Record | None = None
) -> Record:
    """Return the record of an evaluation of ``model``.

    Args:
        floats: the record of its evaluation in floats, if ``found`` is of the fixed-point twin; both stand in the new
            one.
    """
    accuracy = known_accuracy(origin)
    if found.split == "val":
        accuracy |= {"val": found.accuracy, "n_val": found.n}
    elif floats is not None:
        accuracy |= {"test": floats.accuracy["test"], "n_test": floats.accuracy["n_test"]}
        accuracy |= {"twin": found.accuracy, "n_twin": found.n}
    else:
        accuracy |= {"test": found.accuracy, "n_test": found.n}
    return Record(
        kind="evaluate",
        accuracy=accuracy,
        seconds=seconds,
        device=describe_device(),
        **about(model, origin),
    )


def run_record(run: SecureRun, model: nn.Module, origin: Origin) -> Record:
    """Return the record of a secure run of ``model``."""
    security, part = run.engine.security, "dense" if origin.method is None else "linearized"
    secure: Secure = {
        "engine": run.engine.name,
        "adversary": security.adversary,
        "parties": security.parties,
        "dealer": security.dealer,
        "private": security.private,
        "offline_included": security.offline_included,
        "statement": security.statement,
        "processes": run.run.processes,
        "network": run.network,
        "batch": run.run.batch,
        "fraction_bits": run.run.fraction_bits,
        "public": _public(model, run),
        "link": _link(run),
        part: network_cost(run),  # type: ignore[misc]
    }
    if run.run.transfers:
        secure["transfers"] = run.run.transfers
    if run.without:
        secure["without"] = list(run.without)
    return Record(
        kind="run",
        accuracy=known_accuracy(origin),
        seconds=run.run.seconds + run.run.setup_seconds,
        device=describe_device(),
        secure=secure,
        **about(model, origin),
    )


def _public(model: nn.Module, run: SecureRun) -> list[str]:
    """Return what a run tells all parties."""
    told = list(run.engine.security.public)
    if run.engine.has_twin and isinstance(model, MaskedModel):
        if "reciprocal" in model.surrogate.terms:
            told.append("whole numbers whose reciprocals are slopes, a channel")
        if "square" in model.surrogate.operations and not {"squares", "carry"} & {*run.without}:
            told.append("at which sites the factors of squares are carried, and a power of two there")
    return told


def _link(run: SecureRun) -> str:
    if run.run.processes == 1:
        return "none: one process"
    network = parse_network(run.network)
    if not network.emulated:
        return "plain TCP on loopback"
    rate, trip = (network.bits_per_second or 0) / 1e6, network.rtt_seconds * 1000
    return f"plain TCP on loopback through a relay that imitates {rate:g} Mbit/s and a round trip of {trip:g} ms"


def network_cost(run: SecureRun) -> NetworkCost:
    """Return what one secure run cost, as records and cards hold it."""
    compared = {
        "argmax_equal_twin": run.argmax_equal_twin,
        "max_abs_error_twin": run.max_abs_error_twin,
        "argmax_equal_float": run.argmax_equal_float,
        "max_abs_error_float": run.max_abs_error_float,
    }
    known = {key: value for key, value in compared.items() if value is not None}
    fixed = {} if run.certificate is None else {"fixed_point": fixed_point(run.certificate)}
    cost: NetworkCost = {**engine_costs(run.run), **known, **fixed}  # type: ignore[typeddict-item]
    return cost


def fixed_point(certificate: Certificate) -> FixedPoint:
    """Return what a record says of a network's fixed point."""
    return {
        "certified": certificate.certified,
        "margin_bits": round(certificate.margin, 2),
        "operation": certificate.worst.output,
        "input_range": list(certificate.input_range),
        "images": certificate.images,
        "statement": f"fixed point: {certificate}",
    }


def engine_costs(run: EngineRun) -> dict[str, Any]:
    """Return what an engine measured, in all and by site."""
    return {
        "images": run.images,
        "comparisons": run.comparisons,
        "bytes": run.bytes,
        "messages": run.messages,
        "seconds": run.seconds,
        "setup_bytes": run.setup_bytes,
        "setup_seconds": run.setup_seconds,
        "memory": run.memory,
        "by_site": [asdict(site) for site in run.by_site],
    }


def public_name(name: str) -> str:
    """Return a model's or a task's name without the folders of a user's file: they are nobody's business."""
    head, _, tail = name.partition(":")
    if head == "folder":
        return f"folder:{Path(tail).name}"
    return f"{Path(head).name}:{tail}" if head.endswith(".py") else name


def public_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return the resolved recipe, without the folders of a user's files."""
    return {**recipe.to_json(), "task": public_name(recipe.task), "model": public_name(recipe.model)}


def known_accuracy(origin: Origin) -> Accuracy:
    """Return the accuracies that a network brings from its training."""
    facts = origin.facts
    return {"val": facts.get("val"), "n_val": facts.get("n_val"), "test": None, "n_test": None}


def predicted_cost(masked: MaskedModel) -> Predicted | None:
    """Return what private inference with one image would cost, or ``None`` for a network that no program computes."""
    try:
        model, program = CostModel.load("cheetah"), lower(masked)
    except UsageError:
        return None
    by_link = {name: model.predict(program, network=link).to_json() for name, link in NETWORKS.items()}
    found = by_link["loopback"]
    return {
        "engine": found["engine"],
        "bytes": found["bytes"],
        "messages": found["messages"],
        "comparison_bytes": found["comparison_bytes"],
        "surrogate_bytes": found["surrogate_bytes"],
        "linear_bytes": found["linear_bytes"],
        "pooling_bytes": found["pooling_bytes"],
        "seconds": {name: prediction["seconds"] for name, prediction in by_link.items()},
        "setup_bytes": found["setup"]["bytes"],
        "setup_seconds": {name: prediction["setup"]["seconds"] for name, prediction in by_link.items()},
        "memory": found["memory"],
    }


def about(model: nn.Module, origin: Origin) -> dict[str, Any]:
    """Return the keys of a record that say which network it is of."""
    masked = as_masked(model, torch.zeros(1, *origin.input_shape))
    mask, facts, surrogate = masked.mask, origin.facts, masked.surrogate
    method: Mapping[str, Any] | None = origin.method
    return {
        "task": public_name(origin.task),
        "model": public_name(origin.model),
        "method": None if method is None else method["name"],
        "budget": origin.budget,
        "track": "free" if method is None else surrogate.track,
        "surrogate": None if method is None else surrogate.name,
        "squares": mask.total - mask.kept if surrogate.track == "polynomial" else 0,
        "relus": {"total": mask.total, "kept": mask.kept, "sites": len(mask), "sites_kept": mask.sites_kept},
        "mask": describe_kept(mask, mask.digest),
        "checkpoint": weights_digest(model),
        "teacher": facts.get("teacher"),
        "predicted": predicted_cost(masked),
        "seed": facts.get("seed", 0),
        "epochs": facts.get("epochs"),
        "recipe": facts.get("recipe"),
        "selection": facts.get("selection"),
        "note": facts.get("note"),
    }
