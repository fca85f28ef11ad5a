"""Selective Network Linearization.

Paper:    Cho, Joshi, Reagen, Garg, Hegde. ICML 2022, arXiv:2202.02340.
Deviates: the mask is projected exactly onto the budget by the size of the gates (the authors stop at the first epoch
          under it and keep every gate above epsilon, 1-3 % below the budget). If the epochs run out first, the same
          projection is made and its distance is logged (their code goes on above the budget without a word). The
          teacher runs without gradients. Selection is on a held-out split, in the finetune (theirs is on the test set).
          The rate of the gates may differ from that of the weights; by default it does not.
Symbols:  alpha -> c, penalty -> lambda, threshold -> epsilon
"""

import logging
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reluctant.blend import BlendedReLU
from reluctant.distillation import Teacher, distillation, logits
from reluctant.loop import Counters, Loop
from reluctant.mask import Mask, grouped
from reluctant.masked import MaskedActivation, MaskedModel
from reluctant.methods.base import MaskMethod
from reluctant.task import Job

log = logging.getLogger(__name__)


class SoftGate(nn.Module):
    """``alpha relu(z) + (1 - alpha) g(z)`` with one trained alpha a ReLU or a channel, unclamped, from 1."""

    def __init__(self, activation: MaskedActivation, granularity: str = "pixel") -> None:
        super().__init__()
        self.activation = activation
        ones = torch.ones(activation.site.shape, device=activation.keep.device)
        self.alpha = nn.Parameter(grouped(ones, granularity))
        self.relus = ones.numel() // self.alpha.numel()

    def forward(self, z: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        y: Tensor = BlendedReLU.apply(z, self.alpha, *self.activation.terms())  # type: ignore[no-untyped-call]
        return y


@dataclass(frozen=True, kw_only=True)
class SNL(MaskMethod):
    """Learn one soft gate an activation under an L1 penalty that grows until the budget holds.

    Args:
        lr, gate_lr: of Adam, for the weights and for the gates.
        penalty: weight of the sum of absolute gates, at first.
        growth: factor on the penalty after an epoch that set no new low of the count.
        patience: epochs before the first growth.
        threshold: a gate above it counts as a kept ReLU; signed, so a negative gate is a dropped one.
        reweight: above zero, each gate's penalty is multiplied by (1 + reweight) / (|alpha| + reweight), so that small
            gates are pressed harder; one step of the reweighting that solves the gated-ReLU kernel problem ("Fixing the
            NTK", arXiv:2309.15096). Not in SNL.
        granularity: ``pixel``, one gate a ReLU; ``channel``, one for all ReLUs of a channel; ``spatial``, one for a
            place in all channels.
        max_epochs: give up and project after so many.
        temperature, distil: of the teacher's term.
    """

    name: ClassVar[str] = "snl"
    may_be_zero: ClassVar[tuple[str, ...]] = ("penalty", "patience", "threshold", "reweight", "distil")

    lr: float = 1e-3  # released code, as is all that follows
    gate_lr: float = 1e-3
    penalty: float = 1e-5
    growth: float = 1.1
    patience: int = 5
    threshold: float = 1e-2
    reweight: float = 0.0
    max_epochs: int = 2000
    batch: int = 128
    temperature: float = 4.0
    distil: float = 1.0
    granularity: str = "pixel"

    @property
    def epochs(self) -> int:
        return self.max_epochs

    def search(self, model: MaskedModel, job: Job) -> Mask:
        with model.gates(lambda activation: SoftGate(activation, self.granularity)) as gates:
            self._train(model, gates, job)
            alphas = {name: gate.alpha.detach().cpu() for name, gate in gates.items()}
        shapes = {name: site.shape for name, site in model.sites.items()}
        mask = Mask.top(alphas, job.prices, job.limit, shapes)
        above = self.kept({name: alpha.expand(shapes[name]) for name, alpha in alphas.items()}) - mask.kept
        if above > 0:
            log.warning("snl: %d more gates were above %g than the budget allows when it ended", above, self.threshold)
        return mask

    def size(self, alpha: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Return the sum of absolute gates, reweighted if asked for."""
        if not self.reweight:
            return alpha.abs().sum()
        return (alpha.abs() * ((1 + self.reweight) / (alpha.detach().abs() + self.reweight))).sum()

    def kept(self, alphas: dict[str, Tensor]) -> int:
        """Return how many gates count as kept ReLUs."""
        return sum(int((alpha > self.threshold).sum()) for alpha in alphas.values())

    def next_penalty(self, penalty: float, epoch: int, kept: int, low: int) -> float:
        """Return the penalty after ``epoch`` (from 0), given the count now and its lowest before: the growth rule."""
        return penalty * self.growth if kept >= low and epoch >= self.patience else penalty

    def _train(self, model: MaskedModel, gates: dict[str, SoftGate], job: Job) -> None:
        alphas = [gate.alpha for gate in gates.values()]
        chosen = {id(alpha) for alpha in alphas}
        weights = [p for p in model.parameters() if id(p) not in chosen]
        optimizer = torch.optim.Adam(
            [{"params": weights, "lr": self.lr}, {"params": alphas, "lr": self.gate_lr}], fused=True
        )
        state = Counters(penalty=self.penalty, low=model.sites.total)
        loop = Loop.of_job(job, epochs=self.max_epochs, batch=self.batch, settings=self.to_json())
        network, optimizer = loop.setup(model, optimizer, counters=state)
        teacher = Teacher(job.teacher, loop)
        for step in loop:
            network.train()
            target = teacher(step)
            output = logits(network(step.images))
            loss = F.cross_entropy(output, step.labels) + self.distil * distillation(output, target, self.temperature)
            size = torch.stack([gate.relus * self.size(gate.alpha) for gate in gates.values()]).sum()
            loop.take(loss + state["penalty"] * size, optimizer)
            if step.last:
                by_site = {name: self.kept({name: gate.alpha}) * gate.relus for name, gate in gates.items()}
                kept = sum(by_site.values())
                loop.note(epoch=step.epoch + 1, loss=float(loss.detach()), kept=kept, penalty=state["penalty"])
                state["penalty"] = self.next_penalty(state["penalty"], step.epoch, kept, state["low"])
                state["low"] = min(state["low"], kept)
                if job.prices.cost(by_site) <= job.limit:
                    loop.stop()
