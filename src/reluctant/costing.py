"""What one inference of a checkpoint consists of, and what it would cost under the protocols that can be priced."""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from reluctant.checkpoints import Checkpoint
from reluctant.costs import ENGINES, PROTOCOLS
from reluctant.costs.ckks import levels
from reluctant.costs.counting import count
from reluctant.costs.model import CostModel
from reluctant.costs.money import Tariff
from reluctant.costs.networks import Network, parse_network
from reluctant.errors import UnsupportedOperation
from reluctant.masked import MaskedModel
from reluctant.program.lower import lower
from reluctant.program.operations import Scale
from reluctant.program.ops import Program
from reluctant.secure import as_masked


def count_cost(
    checkpoint: Checkpoint,
    engine: str = "cheetah",
    network: str = "loopback",
    table: Path | None = None,
    tariff: Tariff | None = None,
    without: Collection[str] = (),
) -> dict[str, Any]:
    """Return what one inference with one image computes: comparisons, surrogate operations, multiply-adds.

    And what it would cost under ``engine`` over ``network``: the keys of :meth:`Prediction.to_json`, and ``dollars``
    for 1,000 images; ``ckks_levels``, see :class:`reluctant.costs.ckks.Levels`.
    Without them for a network that no secure program computes; then ReLUs and surrogates are counted by its mask,
    otherwise as the program computes them.

    Args:
        table: of prices, see :meth:`CostModel.load`.
        tariff: what machines and traffic cost.
        without: rewrites of the program to leave out, see :func:`reluctant.program.lower.lower`.

    Raises:
        UnknownName: no such protocol.
        UsageError: no such link or table.
    """
    prices, link = CostModel.load(engine, table), parse_network(network)
    masked = as_masked(checkpoint.model, checkpoint.example)
    counted = _count(checkpoint, masked)
    try:
        program = lower(masked, without)
    except UnsupportedOperation:
        return counted
    counted["relus"] |= _compared(program)
    counted["surrogates"] |= _operations(program)
    return counted | _predict(prices, program, link, tariff or Tariff()) | {"ckks_levels": levels(program).to_json()}


def compare_costs(
    checkpoint: Checkpoint,
    network: str = "loopback",
    table: Path | None = None,
    tariff: Tariff | None = None,
    without: Collection[str] = (),
) -> dict[str, dict[str, Any]]:
    """Return what one inference with one image would cost under every protocol, by its name.

    The values and arguments are as for :func:`count_cost`, without what is counted.

    Raises:
        UsageError: no such link or table.
        UnsupportedOperation: no secure program computes the network.
    """
    link, program = parse_network(network), lower(as_masked(checkpoint.model, checkpoint.example), without)
    sources = {name: CostModel.load(name, table if name in ENGINES else None) for name in PROTOCOLS}
    return {name: _predict(prices, program, link, tariff or Tariff()) for name, prices in sources.items()}


def _count(checkpoint: Checkpoint, masked: MaskedModel) -> dict[str, Any]:
    counted = count(checkpoint.dense, masked.sites, checkpoint.example).to_json()
    mask, operations = masked.mask, masked.surrogate.operations
    dropped = mask.total - mask.kept
    counted["relus"] |= {
        "kept": mask.kept,
        "compared": mask.kept,
        "sites": len(mask),
        "sites_kept": mask.sites_kept,
        "sites_compared": mask.sites_kept,
        "kept_by_site": mask.by_site(),
    }
    counted["surrogates"] = {
        "name": masked.surrogate.name,
        "squares": dropped * operations.count("square"),
        "slopes": dropped * operations.count("multiply"),
        "biases": dropped * operations.count("add"),
    }
    return counted


def _compared(program: Program) -> dict[str, int]:
    """Return how many ReLUs of an image are compared, and at how many sites."""
    return {"compared": program.kept, "sites_compared": sum(site.kept > 0 for site in program.sites)}


def _operations(program: Program) -> dict[str, int]:
    """Return how many elements of an image are squared, multiplied by a private number, and added to one.

    Those of a site that keeps nothing are counted where it is still computed, as a scale. So is a batch norm that
    could not be folded; what was folded into a layer is none of them.
    """
    ops = list(program.activations())
    scales = [(op, math.prod(program.shapes[op.output])) for op in program.ops if isinstance(op, Scale)]
    return {
        "squares": sum(len(op.rest) for op in ops if op.squares),
        "slopes": sum(len(op.rest) for op in ops if op.scales) + sum(n for op, n in scales if op.scale is not None),
        "biases": sum(len(op.rest) for op in ops if op.c0 is not None) + sum(n for op, n in scales if op.bias),
    }


def _predict(prices: CostModel, program: Program, link: Network, tariff: Tariff) -> dict[str, Any]:
    found = prices.predict(program, network=link)
    paid = None if found.bytes is None or found.seconds is None else tariff.dollars(found.bytes, found.seconds)
    return found.to_json() | {"dollars": paid, "tariff": tariff.to_json()}
