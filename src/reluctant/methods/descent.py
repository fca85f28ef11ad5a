"""Coordinate Descent for Network Linearization.

Paper:    Rakhlin, Jevnisek, Avidan. 2025, arXiv:2511.11781.
Deviates: the paper's full text was not at hand; this is our reconstruction from its abstract and from the scripts that
          the same group published in January-February 2024 ("optimize and reduce"), whose values the defaults are.
          Candidates are compared on one fixed, un-augmented part of the training split (theirs: the whole of it, with
          augmentation drawn anew for each). The reference is measured after the finetune (theirs is the last block
          tried, before it; ``reference="stale"``). The last block is smaller, so the budget is met exactly (theirs is
          undershot by up to a block). Blocks may lie in one site, may be screened to first order, and may be the best
          of all draws (theirs: spread over all sites, unscreened, the first that is tolerable). Batch norms, biases and
          surrogates have no weight decay. Nothing is selected on the test set.
Symbols:  draws -> RT, tolerance -> ADT, ReLUs a block -> DRC (names as we remember them, not verified)

Start with a network that an earlier method left at a higher budget. Then, block by block: draw some sets of kept ReLUs,
drop the one that costs the least training accuracy, and finetune. What is dropped stays dropped.
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from reluctant.distillation import logits, teaching
from reluctant.errors import UsageError
from reluctant.loop import Counters, Loop, fingerprint, read_state, write_state
from reluctant.mask import Mask
from reluctant.masked import MaskedActivation, MaskedModel
from reluctant.methods import METHODS
from reluctant.methods.base import MaskMethod, Method
from reluctant.prices import Prices
from reluctant.probing import gap
from reluctant.progress import Under
from reluctant.scoring import Change, Race, Scorer
from reluctant.sites import evaluating
from reluctant.task import Job, stream
from reluctant.training import parameter_groups, set_rate

log = logging.getLogger(__name__)

#: Keeps the network that the descent starts from, in the start's own folder.
FOUND = "linearized.state"

Block = Int64[Tensor, "n"]


class Pool:
    """The ReLUs that ``mask`` keeps, in one row, site by site; a block is some places of the row.

    Attributes:
        site: number of the site of each.
        place: of each within its site.
        price: of each.
    """

    def __init__(self, mask: Mask, prices: Prices) -> None:
        self.mask, self.names = mask, list(mask)
        places = [mask[name].reshape(-1).nonzero()[:, 0] for name in self.names]
        self.counts = torch.tensor([len(place) for place in places])
        self.place = torch.cat(places)
        self.site = torch.arange(len(places)).repeat_interleave(self.counts)
        self.price = torch.tensor([prices.by_site[name].relu for name in self.names], dtype=torch.float64)[self.site]

    def draw(self, cost: float, spread: str, generator: torch.Generator) -> Block:
        """Return random ReLUs that cost at least ``cost`` together, and less without the last of them.

        Args:
            spread: ``uniform``, from all sites; ``site``, from one, drawn in proportion to what it holds, and from
                another only if it holds too few.
        """
        if spread == "uniform":
            order = torch.randperm(len(self.site), generator=generator)
        else:
            order, starts = torch.zeros(0, dtype=torch.long), self.counts.cumsum(0) - self.counts
            held = self.counts.nonzero()[:, 0]
            for number in held[torch.multinomial(self.counts[held].double(), len(held), generator=generator)].tolist():
                part = torch.randperm(int(self.counts[number]), generator=generator) + starts[number]
                order = torch.cat([order, part])
                if float(self.price[order].sum()) >= cost:
                    break
        spent = self.price[order].cumsum(0)
        return order[: int(torch.searchsorted(spent, cost - 1e-9)) + 1]

    def without(self, block: Block) -> Change:
        """Return what is kept without ``block`` at the sites that it has ReLUs of."""
        change, place, site = {}, self.place[block], self.site[block]
        for number in sorted(set(site.tolist())):
            keep = self.mask[self.names[number]].clone()
            keep.view(-1)[place[site == number]] = False
            change[self.names[number]] = keep
        return change


class Kept:
    """The mask of ``model`` as a part of a loop's state."""

    def __init__(self, model: MaskedModel) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Tensor]:
        """Return the mask, packed."""
        return dict(self.model.mask.pack())

    def load_state_dict(self, state: Any, /) -> None:
        """Set the mask to that of ``state``."""
        self.model.set_mask(Mask.unpack(state, {name: site.shape for name, site in self.model.sites.items()}))


class Harm(nn.Module):
    """A masked activation that adds up, element by element, how much the loss rises to first order without its ReLU."""

    def __init__(self, activation: MaskedActivation) -> None:
        super().__init__()
        self.activation = activation
        self.total = torch.zeros(activation.site.shape, device=activation.keep.device)

    def forward(self, z: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        y: Tensor = self.activation(z)
        gaps = gap(self.activation, z)

        def add(gradient: Tensor) -> None:
            self.total -= (gradient * gaps).float().sum(0)

        y.register_hook(add)  # type: ignore[no-untyped-call]
        return y


@dataclass(frozen=True, kw_only=True)
class Descent(MaskMethod):
    """Drop block after block of kept ReLUs, each the least harmful of some random ones, with a finetune after each.

    Args:
        start: the method that makes the network to start from; its surrogate is always the descent's own.
        start_ratio: its limit over the budget. Where the network has no more ReLUs than that, no start is made, and
            the descent begins with all of them.
        steps: blocks that the ReLUs between start and budget are dropped in, of equal size.
        blocks: ``uniform``, a block is drawn from the ReLUs of all sites together; ``site``, from those of one.
        draws: candidates for a block, at most.
        screen: as many times as many are drawn, and those that raise the loss least to first order are the candidates;
            1 for no screening.
        tolerance: a candidate that loses fewer percentage points of accuracy is tolerable.
        accept: ``first``, the first tolerable candidate is dropped, or the best if none is; ``best``, always that.
        reference: accuracy that losses are counted from: ``fresh``, of the network after its finetune; ``stale``, of
            the candidate that was scored last.
        images: of the training split, un-augmented, drawn once, that candidates are scored on.
        finetune: ``always``, after each block; ``failure``, only after one that was not tolerable.
        finetune_epochs: of one finetune, by SGD on a cosine to zero; may be part of an epoch.
        lr, momentum, weight_decay, batch, temperature, distil: of the finetune.
    """

    name: ClassVar[str] = "descent"
    may_be_zero: ClassVar[tuple[str, ...]] = ("tolerance", "momentum", "weight_decay", "distil")
    choices: ClassVar[dict[str, tuple[str, str]]] = {
        "blocks": ("uniform", "site"),
        "accept": ("first", "best"),
        "reference": ("fresh", "stale"),
        "finetune": ("always", "failure"),
    }

    start: Method = field(default_factory=lambda: METHODS["snl"]())  # the scripts, as all that follows
    start_ratio: float = 2.0  # 30K for a budget of 15K on CIFAR-100
    steps: int = 150  # of 100 ReLUs each, on that way
    blocks: str = "uniform"
    draws: int = 50
    screen: int = 1
    tolerance: float = 0.3
    accept: str = "first"
    reference: str = "fresh"
    images: int = 4096
    finetune: str = "always"
    finetune_epochs: float = 20.0
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int = 128
    temperature: float = 4.0
    distil: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in self.choices.items():
            if getattr(self, name) not in known:
                raise UsageError(f"descent.{name} is {getattr(self, name)!r}, expected {' or '.join(map(repr, known))}")
        if self.start_ratio < 1:
            raise UsageError(
                f"descent.start_ratio is {self.start_ratio}: a descent starts above its budget; give 1 or more"
            )
        if not self.momentum < 1:
            raise UsageError(f"descent.momentum is {self.momentum}, expected a value from 0 to under 1")
        if not isinstance(self.start, Method):
            raise UsageError(f"descent.start is {self.start!r}, expected a method such as {METHODS['snl']()!r}")
        object.__setattr__(self, "start", replace(self.start, surrogate=self.surrogate))

    @property
    def epochs(self) -> int:
        return self.start.epochs + math.ceil(self.steps * self.finetune_epochs)

    def search(self, model: MaskedModel, job: Job) -> Mask:
        model.to(job.fabric.device)
        self._begin(model, job)
        if job.prices.cost(model.mask.by_site()) > job.limit:
            self._descend(model, job)
        return model.mask

    def _begin(self, model: MaskedModel, job: Job) -> None:
        """Leave in ``model`` the mask and weights to start from: made now, or by the interrupted call before."""
        full = job.prices.cost({name: site.relus for name, site in model.sites.items()})
        limit = self.start_ratio * job.limit
        if limit >= full:
            log.info("descent: starts from all ReLUs, as %.4g are no less than there are", limit)
            if model.constants():
                model.start_surrogates(job.train.to(job.fabric.device).inputs(slice(self.batch)))
            return
        about = fingerprint(
            model.state_dict(),
            f"{self.start.to_json()} {limit} {job.seed} {len(job.train)} {job.augmentation}",
        )
        directory = None if job.directory is None else job.directory / "start"
        if directory is not None and (directory / FOUND).exists():
            state = read_state(directory / FOUND)
            if state["about"] == about:
                model.load_state_dict(state["state"])
                Kept(model).load_state_dict(state["masks"])
                return
        job.fabric.barrier()  # before one process writes what another has not looked for yet
        self.start.run(model, replace(job, limit=limit, directory=directory, progress=Under(job.progress, "start")))
        model.zero_grad(set_to_none=True)
        if directory is not None and job.fabric.is_global_zero:
            state = {"about": about, "state": model.state_dict(), "masks": Kept(model).state_dict()}
            write_state(directory / FOUND, state)

    def _descend(self, model: MaskedModel, job: Job) -> None:
        excess = job.prices.cost(model.mask.by_site()) - job.limit
        blocks = min(self.steps, model.mask.kept)
        epoch = job.train.steps(self.batch)
        length = max(1, round(self.finetune_epochs * epoch))
        chosen = torch.randperm(len(job.train), generator=stream(job.seed, len(job.train)))[: self.images]
        subset = replace(job.train, images=job.train.images[chosen], labels=job.train.labels[chosen])
        scorer = Scorer(model, subset, job.fabric)
        sgd = torch.optim.SGD(parameter_groups(model, self.weight_decay), self.lr, self.momentum)
        state = Counters(block=0, left=0, taken=0, reference=-1, seconds=0.0)
        loop = Loop.of_job(job, epochs=math.ceil(blocks * length / epoch), batch=self.batch, settings=self.to_json())
        network, optimizer = loop.setup(model, sgd, counters=state, mask=Kept(model))
        with teaching(job.teacher, model, loop, temperature=self.temperature, distil=self.distil) as lesson:
            for step in loop:
                if not state["left"]:
                    loop.pause_before(step, state["seconds"])
                    begun = time.monotonic()
                    state["block"] += 1
                    tolerable = self._drop(scorer, state, job, excess * (1 - state["block"] / blocks))
                    state["left"] = length if self.finetune == "always" or not tolerable else 0
                    sgd.state.clear()
                    state["seconds"] = max(state["seconds"], time.monotonic() - begun)
                    loop.leave_out(time.monotonic() - begun)
                if state["left"]:
                    network.train()
                    set_rate(optimizer, self.lr * (1 + math.cos(math.pi * (1 - state["left"] / length))) / 2)
                    taught = lesson(step)
                    output = logits(network(step.images))
                    loop.take(F.cross_entropy(output, step.labels) + taught(output), optimizer)
                    state["left"], state["taken"] = state["left"] - 1, state["taken"] + 1
                if not state["left"]:
                    kept = model.mask.by_site()
                    loop.note(epoch=state["taken"] / epoch, kept=sum(kept.values()), block=state["block"])
                    if job.prices.cost(kept) <= job.limit:
                        loop.stop()

    def _drop(self, scorer: Scorer, state: Counters, job: Job, above: float) -> bool:
        """Drop the next block, down to a cost of ``above`` more than the limit; return whether it was tolerable."""
        model = scorer.model
        pool = Pool(model.mask, job.prices)
        cost = job.prices.cost(model.mask.by_site()) - job.limit - max(above, 0.0)
        if cost <= 0:
            return True
        generator = stream(job.seed, state["block"], 3)
        drawn = [pool.draw(cost, self.blocks, generator) for _ in range(self.draws * self.screen)]
        reference = scorer.rank()
        if self.screen > 1:
            drawn = screened(drawn, self.draws, pool, harms(scorer))
        if self.reference == "stale" and state["reference"] >= 0:
            reference = state["reference"]
        race = Race(scorer, [pool.without(block) for block in drawn])
        # Counts are whole, and a loss must be below the tolerance.
        enough = math.floor(reference - self.tolerance / 100 * len(scorer) + 1e-9) + 1
        found = race.first(enough) if self.accept == "first" else race.best()
        chosen = race.best() if found is None else found
        if self.reference == "stale":
            all_tried = self.accept == "best" or found is None
            state["reference"] = race.finish(len(drawn) - 1 if all_tried else chosen)
        chosen, right, state["reference"] = job.fabric.broadcast((chosen, race.right[chosen], state["reference"]))
        log.info("descent: block %d costs %d of %d right answers", state["block"], reference - right, reference)
        model.set_mask(Mask({**model.mask, **race.changes[chosen]}))
        return bool(right >= enough)


def harms(scorer: Scorer) -> dict[str, Float[Tensor, "..."]]:
    """Return by site how much the loss over all images rises, to first order, if a ReLU there goes.

    With its sign: the sum of magnitudes tells which blocks change little, hardly which cost few right answers.
    """
    model = scorer.model
    with evaluating(model), model.gates(Harm) as gates:
        for number in range(scorer.chunks):
            images, labels = scorer.chunk(number)
            with scorer.fabric.autocast():
                # Times one, so that the first operation may be in place.
                loss = F.cross_entropy(logits(model(images.requires_grad_() * 1)), labels, reduction="sum")
            torch.autograd.grad(loss, images)  # the gates see the gradients on its way; the weights keep none
        return {name: gate.total.cpu() for name, gate in gates.items()}


def screened(drawn: Sequence[Block], count: int, pool: Pool, harms: dict[str, Float[Tensor, "..."]]) -> list[Block]:
    """Return the ``count`` blocks of least harm to first order, the least harmful first."""
    harm = torch.cat([harms[name].reshape(-1)[pool.mask[name].reshape(-1)] for name in pool.names])
    total = torch.stack([harm[block].sum() for block in drawn])
    return [drawn[number] for number in total.argsort(stable=True)[:count].tolist()]
