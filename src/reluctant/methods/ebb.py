"""Ebb: the budget ebbs, the mask is exact at all times, and a dropped ReLU is a line that costs nothing.

Paper:    none; this project's own method. It puts together a Taylor start (Molchanov et al., ICLR 2017,
          arXiv:1611.06440), the cubic schedule of gradual pruning (Zhu, Gupta, 2017, arXiv:1710.01878) and scores that
          are trained straight through (AutoReP, arXiv:2308.10134), and adds a surrogate whose slope is free.
Deviates: nothing to deviate from.
Symbols:  s, the score of a ReLU; k(t), how many are kept at step t: always exactly those of the k(t) highest scores.

A dropped ReLU becomes z / n + b (:class:`reluctant.surrogates.Reciprocal`), with a public whole number n a channel and
a private bias b an element. Its score starts as the normal quantile of its rank by E[(g d)^2], with d the gap between
ReLU and surrogate and g the gradient of the loss there: one scale for all sites, on which Adam then moves the scores.
While k(t) falls from all to the budget, each score gets the gradient of keeping its ReLU, kept or not, so a dropped one
may return. Prices other than a count move the same scores: the mask is then the best that the falling budget buys, and
sites that do not earn their fixed price are emptied whole.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reluctant.blend import BlendedReLU
from reluctant.distillation import logits, teaching
from reluctant.errors import UsageError
from reluctant.loop import Loop
from reluctant.mask import Mask
from reluctant.masked import MaskedActivation, MaskedModel
from reluctant.methods.base import MaskMethod
from reluctant.prices import Prices
from reluctant.probing import probe
from reluctant.surrogates import Reciprocal, Surrogate
from reluctant.task import Job
from reluctant.training import set_rate


class Straight(torch.autograd.Function):
    """The 0/1 mask forward; its gradient goes to the scores unchanged."""

    @staticmethod
    def forward(ctx: object, score: Tensor, keep: Tensor) -> Tensor:
        return keep

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class Scored(nn.Module):
    """A kept ReLU or its surrogate, by a mask that is set from outside, with a trained score for each."""

    keep: Tensor

    def __init__(self, activation: MaskedActivation) -> None:
        super().__init__()
        device = activation.keep.device
        self.activation = activation
        self.score = nn.Parameter(torch.zeros(activation.site.shape, device=device))
        self.register_buffer("keep", torch.ones(activation.site.shape, device=device))

    def forward(self, z: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        m = Straight.apply(self.score, self.keep)  # type: ignore[no-untyped-call]
        y: Tensor = BlendedReLU.apply(z, m, *self.activation.terms())  # type: ignore[no-untyped-call]
        return y


def quantiles(scores: dict[str, Float[Tensor, "..."]]) -> dict[str, Float[Tensor, "..."]]:
    """Return the normal quantile of each score's rank among all sites' scores: mean 0, deviation 1, ties by place."""
    flat = torch.cat([score.reshape(-1).double() for score in scores.values()])
    ranks = torch.empty(len(flat), dtype=torch.float64)
    ranks[flat.argsort(stable=True)] = torch.arange(len(flat), dtype=torch.float64)
    normal = torch.special.ndtri((ranks + 0.5) / len(flat)).float()
    parts = normal.split([score.numel() for score in scores.values()])
    return {name: part.reshape(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


@dataclass(frozen=True, kw_only=True)
class Ebb(MaskMethod):
    """Train a score a ReLU while the mask is always exactly the best that a falling budget buys.

    Args:
        search_epochs: in which the budget falls and, for the last part, stands.
        fall: share of them in which it falls, as a cubic.
        lr: of the weights, by SGD with Nesterov momentum 0.9, weight decay ``weight_decay`` and a gradient's norm of at
            most ``clip``; it rises in the first twentieth and then follows a cosine down to the share ``lr_end``, from
            which a finetune goes on.
        surrogate_lr: factor on ``lr`` for the surrogates' trained values.
        travel: how far Adam can move a score in the whole search; their deviation is 1 at first.
        images: that the first scores are averaged over.
        temperature, distil, attention: of the teacher's terms; see :class:`reluctant.training.Training`.
    """

    name: ClassVar[str] = "ebb"
    may_be_zero: ClassVar[tuple[str, ...]] = ("lr_end", "weight_decay", "travel", "distil", "attention")

    surrogate: Surrogate = Reciprocal()
    search_epochs: int = 30
    fall: float = 0.8
    batch: int = 128
    lr: float = 0.05
    lr_end: float = 0.4
    weight_decay: float = 5e-4
    clip: float = 5.0
    surrogate_lr: float = 5.0
    travel: float = 5.0
    images: int = 4096
    temperature: float = 4.0
    distil: float = 1.0
    attention: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.fall <= 1 or not self.lr_end < 1:
            raise UsageError(f"ebb.fall is {self.fall} and ebb.lr_end {self.lr_end}, expected shares of 1")

    @property
    def epochs(self) -> int:
        return self.search_epochs

    def budget(self, done: float, full: float, limit: float) -> float:
        """Return what the mask may cost after the share ``done`` of the search, from ``full`` to ``limit``."""
        return limit + (full - limit) * max(0.0, 1 - done / self.fall) ** 3

    def search(self, model: MaskedModel, job: Job) -> Mask:
        scores = quantiles(self.stakes(model, job))
        with model.gates(Scored) as gates:
            for name, gate in gates.items():
                gate.score.data.copy_(scores[name])
            self._train(model, gates, job)
            return Mask.top({name: gate.score for name, gate in gates.items()}, job.prices, job.limit)

    def stakes(self, model: MaskedModel, job: Job) -> dict[str, Float[Tensor, "..."]]:
        """Return E[(g d)^2] at every ReLU of the dense network."""
        sizes = {"images": self.images, "batch": self.batch}
        return probe(model, job, lambda gradient, gap: (gradient * gap).float().square(), **sizes, stage="ebb")

    def _optimizers(self, model: MaskedModel, scores: list[nn.Parameter], steps: int) -> list[torch.optim.Optimizer]:
        chosen = {id(score) for score in scores}
        constants = [p for p in model.constants() if id(p) not in chosen]
        chosen |= {id(constant) for constant in constants}
        weights = [p for p in model.parameters() if id(p) not in chosen]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in weights if p.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in weights if p.dim() <= 1]},
            {"params": constants, "factor": self.surrogate_lr},
        ]
        sgd = torch.optim.SGD([group for group in groups if group["params"]], self.lr, 0.9, nesterov=True)
        return [sgd, torch.optim.Adam(scores, self.travel / steps, fused=True)]

    def _train(self, model: MaskedModel, gates: dict[str, Scored], job: Job) -> None:
        scores = [gate.score for gate in gates.values()]
        full = job.prices.cost({name: site.relus for name, site in model.sites.items()})
        loop = Loop.of_job(job, epochs=self.search_epochs, batch=self.batch, settings=self.to_json())
        steps = self.search_epochs * job.train.steps(self.batch)
        network, sgd, adam = loop.setup(model, *self._optimizers(model, scores, steps))
        clipped = [p for group in sgd.param_groups for p in group["params"]]
        last = math.acos(2 * self.lr_end - 1) / math.pi
        teach: dict[str, Any] = {"temperature": self.temperature, "distil": self.distil, "attention": self.attention}
        with teaching(job.teacher, model, loop, **teach) as lesson:
            for step in loop:
                network.train()
                set_rate(sgd, self.lr * min(1.0, 20 * step.done) * (1 + math.cos(math.pi * last * step.done)) / 2)
                keep_best(gates, job.prices, self.budget(step.done, full, job.limit), step.index)
                taught = lesson(step)
                output = logits(network(step.images))
                loss = F.cross_entropy(output, step.labels) + taught(output)
                loop.take(loss, sgd, adam, clip=(clipped, self.clip))
                if step.last:
                    kept = int(torch.stack([gate.keep.sum() for gate in gates.values()]).sum())
                    loop.note(epoch=step.epoch + 1, loss=float(loss.detach()), kept=kept)


@torch.no_grad()
def keep_best(gates: dict[str, Scored], prices: Prices, limit: float, index: int) -> None:
    """Set the mask of ``gates`` to the best scores that ``limit`` buys.

    Where ReLUs differ in price, that is a knapsack, and solved at every 20th ``index`` of an epoch only.
    """
    if prices.uniform:
        relu = next(iter(prices.by_site.values())).relu
        flat = torch.cat([gate.score.flatten() for gate in gates.values()])
        best = flat.topk(min(len(flat), max(0, int((limit - prices.floor) / relu + 1e-9)))).indices
        keep = torch.zeros_like(flat).index_fill_(0, best, 1.0)
        for gate, part in zip(gates.values(), torch.split(keep, [g.keep.numel() for g in gates.values()]), strict=True):
            gate.keep.copy_(part.view_as(gate.keep))
    elif index % 20 == 0:
        mask = Mask.top({name: gate.score for name, gate in gates.items()}, prices, limit)
        for name, gate in gates.items():
            gate.keep.copy_(mask[name])
