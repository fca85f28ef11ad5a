"""The verb: a network and a budget in, a network within the budget out."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from reluctant.budget import Budget
from reluctant.errors import BudgetError, SiteError
from reluctant.masked import MaskedModel, attach
from reluctant.methods.base import Method
from reluctant.prices import Prices
from reluctant.progress import Progress, silent
from reluctant.sites import find_sites
from reluctant.task import Job, Task
from reluctant.training import check_network, make_fabric

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def linearize(
    model: nn.Module,
    method: Method,
    budget: str | int | Budget,
    task: Task,
    *,
    seed: int = 0,
    fabric: "Fabric | None" = None,
    directory: Path | None = None,
    progress: Progress = silent,
) -> MaskedModel:
    """Return a copy of ``model`` that keeps at most ``budget`` of its ReLUs; ``model`` itself is not changed.

    The result is what the method's search leaves; most want :func:`reluctant.finetune` after it.

    Args:
        method: for instance ``SNL()``.
        budget: ``"50k"``, ``"10%"`` or a number of ReLUs.
        directory: keeps the state of an interrupted search; the same call then goes on where it stopped.

    Raises:
        BudgetError: the budget makes no sense for this model.
        SiteError: the model's ReLUs cannot be found.

    Example::

        small = rl.linearize(model, rl.SNL(), budget="10%", task=task)
    """
    if isinstance(model, MaskedModel):
        raise SiteError("the network is linearized already; give the dense one it was made of")
    check_network(model, task)
    torch.manual_seed(seed)
    sites = find_sites(model, task.example)
    prices = Prices.count(sites)
    limit = Budget.parse(budget).resolve(sites, prices)
    fabric = fabric or make_fabric(input_shape=task.input_shape)
    job = Job(
        train=task.train,
        val=task.val,
        augmentation=task.augmentation,
        limit=limit,
        prices=prices,
        teacher=model,
        fabric=fabric,
        seed=seed,
        directory=directory,
        progress=progress,
    )
    small = method.run(attach(model, sites, method.surrogate), job).to("cpu").eval()
    small.zero_grad(set_to_none=True)
    small.made_by = {"method": method.to_json(), "budget": Budget.parse(budget).text}
    cost = prices.cost(small.mask.by_site())
    if cost > limit:
        raise BudgetError(f"method {method.name} kept {cost:,.0f} {prices.unit}, over its limit of {limit:,.0f}")
    return small
