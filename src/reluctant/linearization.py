"""The verb: a network and a budget in, a network within the budget out."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from reluctant.budget import Budget
from reluctant.costs.pricing import price_list
from reluctant.errors import BudgetError, SiteError
from reluctant.loop import fingerprint, read_state, write_state
from reluctant.mask import Mask
from reluctant.masked import MaskedModel, attach
from reluctant.methods.base import Method
from reluctant.progress import Progress, silent
from reluctant.sites import find_sites
from reluctant.task import Job, Task
from reluctant.training import check_network, make_fabric
from reluctant.units import format_quantity

if TYPE_CHECKING:
    from lightning_fabric import Fabric


#: Training images that surrogates are fitted to where nothing is searched.
_FIT_IMAGES = 512

#: Keeps what a search found, for the finetune that follows it in another slice.
FOUND = "linearized.state"


def linearize(
    model: nn.Module,
    method: Method,
    budget: str | int | Budget,
    task: Task,
    *,
    seed: int = 0,
    fabric: "Fabric | None" = None,
    directory: Path | None = None,
    table: Path | None = None,
    progress: Progress = silent,
) -> MaskedModel:
    """Return a copy of ``model`` that keeps at most ``budget`` of its ReLUs; ``model`` itself is not changed.

    The result is what the method's search leaves; most want :func:`reluctant.finetune` after it.

    Args:
        method: for instance ``SNL()``.
        budget: ``"50k"``, ``"10%"`` or a number of ReLUs; ``"40MB@cheetah"`` or ``"2s@cheetah/wan"``, what one image is
            predicted to cost after set-up. ``0`` drops every ReLU: then nothing is searched, whatever the method, whose
            surrogates start as fits of the ReLUs that they replace.
        table: of prices, from ``reluctant calibrate``; the one that comes with this package if not given.
        directory: keeps the state of an interrupted search, and its result; the same call then goes on from there.

    Raises:
        BudgetError: the budget makes no sense for this model and this surrogate.
        SiteError: the model's ReLUs cannot be found.

    Example::

        small = rl.linearize(model, rl.SNL(), budget="10%", task=task)
    """
    if isinstance(model, MaskedModel):
        raise SiteError("the network is linearized already; give the dense one it was made of")
    check_network(model, task)
    torch.manual_seed(seed)
    sites = find_sites(model, task.example)
    asked = Budget.parse(budget)
    prices = price_list(attach(model, sites, method.surrogate), asked, table)
    limit = asked.resolve(sites, prices)
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
    about = fingerprint(
        model.state_dict(), f"{method.to_json()} {limit} {seed} {task.name} {len(task.train)} {task.augmentation}"
    )
    small = _found(attach(model, sites, method.surrogate), directory, about)
    if small is None:
        whole = attach(model, sites, method.surrogate)
        small = (method.run(whole, job) if limit else _without_relus(whole, task)).to("cpu").eval()
        small.zero_grad(set_to_none=True)
        if directory is not None and fabric.is_global_zero:
            masks = {name: small.mask[name] for name in sites}
            write_state(directory / FOUND, {"about": about, "state": small.state_dict(), "masks": masks})
    small.made_by = {"method": method.to_json(), "budget": asked.text}
    cost = prices.cost(small.mask.by_site())
    if cost > limit:
        kept, most = format_quantity(cost, prices.unit), format_quantity(limit, prices.unit)
        raise BudgetError(f"method {method.name} kept ReLUs for {kept}, over its limit of {most}")
    return small


def _without_relus(masked: MaskedModel, task: Task) -> MaskedModel:
    """Return ``masked`` with every ReLU replaced by its surrogate, fitted to what comes in on training images."""
    if masked.constants():
        masked.start_surrogates(task.train.inputs(slice(_FIT_IMAGES)))
    return masked.set_mask(~Mask.full(masked.sites))


def _found(masked: MaskedModel, directory: Path | None, about: str) -> MaskedModel | None:
    """Return ``masked`` as an earlier call of the same settings left it; ``None`` if there was none."""
    if directory is None or not (directory / FOUND).exists():
        return None
    state = read_state(directory / FOUND)
    if state["about"] != about:
        return None
    masked.load_state_dict(state["state"])
    return masked.set_mask(Mask(state["masks"])).cpu().eval()
