"""AutoReP: automatic ReLU replacement.

Paper:    Peng, Huang, Zhou, Luo, Wang, Wang, Zhao, Xie, Li, Geng, Mao, Wen, Xu, Ding. ICCV 2023, arXiv:2308.10134.
Deviates: the mask is projected exactly onto the budget by the auxiliary weights (the authors accept up to 2,000 ReLUs
          more). The indicator, the running statistics and the coefficients change in training passes only (theirs
          also in evaluation). Selection is on a held-out split, in the finetune (theirs is on the test set, and their
          scripts have no finetune). The teacher runs without gradients. The coefficients are refreshed as the released
          code does it: the variance, not below 0.5, in place of the deviation, c0 divided by 5 and c2 by 10, which
          makes nearly a line of the parabola; `coefficients="exact"` gives the textbook fit, with which a ResNet-20 on
          CIFAR-10 diverged in two epochs at our rates. Until the first refresh, at step 10, they fit a standard
          normal input (theirs are near the identity); no ReLU is dropped that early. The rate follows its cosine by
          the step (theirs by the epoch).
Symbols:  auxiliary -> m_w, threshold -> t_h, penalty -> lambda; indicator m, budget N of M candidates
"""

import logging
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from reluctant.blend import BlendedReLU
from reluctant.distillation import Teacher, distillation, logits
from reluctant.errors import UsageError
from reluctant.loop import Counters, Loop
from reluctant.mask import Mask
from reluctant.masked import MaskedActivation, MaskedModel
from reluctant.methods.base import MaskMethod
from reluctant.surrogates import Quadratic, Surrogate
from reluctant.task import Job

log = logging.getLogger(__name__)


class Indicator(torch.autograd.Function):
    """The stored 0/1 mask forward; ``dL/dw = softplus(w) dL/dm`` backward."""

    @staticmethod
    def forward(ctx: Any, auxiliary: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(auxiliary)
        return kept.to(auxiliary.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (auxiliary,) = ctx.saved_tensors
        return grads[0] * F.softplus(auxiliary), None


def hysteresis(kept: Bool[Tensor, "..."], auxiliary: Float[Tensor, "..."], threshold: float) -> Bool[Tensor, "..."]:
    """Return the next indicator: a kept ReLU goes at w <= -threshold, a dropped one returns at w > threshold."""
    return torch.where(kept, auxiliary > -threshold, auxiliary > threshold)


class HardGate(nn.Module):
    """A kept ReLU or its surrogate, by an indicator with hysteresis over a trained auxiliary weight."""

    kept: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, activation: MaskedActivation, auxiliary: Tensor, threshold: float) -> None:
        super().__init__()
        device = activation.keep.device
        self.activation, self.threshold = activation, threshold
        self.auxiliary = nn.Parameter(auxiliary.to(device))
        self.register_buffer("kept", torch.ones(activation.site.shape, dtype=torch.bool, device=device))
        self.register_buffer("mean", torch.zeros(activation.site.shape[0], device=device))
        self.register_buffer("variance", torch.ones(activation.site.shape[0], device=device))

    def forward(self, z: Float[Tensor, "B C ..."]) -> Float[Tensor, "B C ..."]:
        if self.training:
            with torch.no_grad():
                self.kept.copy_(hysteresis(self.kept, self.auxiliary, self.threshold))
                if self.activation.c0 is not None:
                    torch.batch_norm_update_stats(z, self.mean, self.variance, 0.1)
        y: Tensor = BlendedReLU.apply(z, self.indicator(), *self.activation.terms())  # type: ignore[no-untyped-call]
        return y

    def indicator(self) -> Float[Tensor, "..."]:
        """Return the 0/1 mask as it is now, with its straight-through gradient to the auxiliary weight."""
        m: Tensor = Indicator.apply(self.auxiliary, self.kept)  # type: ignore[no-untyped-call]
        return m


@dataclass(frozen=True, kw_only=True)
class AutoReP(MaskMethod):
    """Train a hard mask through a straight-through indicator, and polynomials that start as fits of ReLU.

    Args:
        search_epochs: of Adam over everything.
        lr, mask_lr: its rates for weights and coefficients, and for auxiliary weights.
        lr_end: share of the rates that a cosine ends at.
        threshold: half the width of the hysteresis.
        penalty: weight of the share of ReLUs over budget. One-sided, so it only has to beat the task's gradient.
        refresh_every, refresh_until: the coefficients are set anew from the running statistics at each so-manieth
            step, up to that step; after it they are trained only.
        coefficients: ``exact`` or ``released``, see the header.
    """

    name: ClassVar[str] = "autorep"
    may_be_zero: ClassVar[tuple[str, ...]] = ("lr_end", "threshold", "penalty", "refresh_until", "distil")

    surrogate: Surrogate = Quadratic(scale=0.1)  # CIFAR script
    search_epochs: int = 200  # released CIFAR-100 script, as is all that follows
    batch: int = 128
    lr: float = 1e-3
    mask_lr: float = 1e-3
    lr_end: float = 0.01
    threshold: float = 0.003
    penalty: float = 140.0
    refresh_every: int = 10
    refresh_until: int = 500
    temperature: float = 4.0
    distil: float = 1.0
    coefficients: str = "released"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coefficients not in ("exact", "released"):
            raise UsageError(f"autorep.coefficients is {self.coefficients!r}, expected 'exact' or 'released'")

    @property
    def epochs(self) -> int:
        return self.search_epochs

    def search(self, model: MaskedModel, job: Job) -> Mask:
        generator = torch.Generator().manual_seed(job.seed)

        def gate(activation: MaskedActivation) -> HardGate:
            return HardGate(activation, torch.rand(activation.site.shape, generator=generator), self.threshold)

        with model.gates(gate) as gates:
            self._train(model, gates, job)
            auxiliary = {name: gate.auxiliary.detach().cpu() for name, gate in gates.items()}
            kept = sum(int(gate.kept.sum()) for gate in gates.values())
        mask = Mask.top(auxiliary, job.prices, job.limit)
        if kept > mask.kept:
            log.warning("autorep: %d more ReLUs were kept than the budget allows when it ended", kept - mask.kept)
        return mask

    def over_budget(self, gates: dict[str, HardGate], job: Job) -> Float[Tensor, ""]:
        """Return ``max(0, cost of the kept ReLUs - limit)`` over the cost of all, with its gradient."""
        cost = torch.stack([job.prices.by_site[n].relu * gate.indicator().sum() for n, gate in gates.items()]).sum()
        full = sum(job.prices.by_site[name].relu * gate.kept.numel() for name, gate in gates.items())
        uniform = job.prices.uniform  # then nothing is fixed but the floor, and no device is waited for
        fixed = job.prices.fixed([] if uniform else [name for name, gate in gates.items() if gate.kept.any()])
        return F.relu(cost - (job.limit - fixed)) / full

    def refresh(self, gate: HardGate) -> None:
        """Set the coefficients of ``gate`` to the fit of ReLU under its running statistics (DaPa)."""
        if self.coefficients == "exact":
            gate.activation.start(gate.mean, gate.variance.clamp(min=1e-6).sqrt())
            return
        gate.activation.start(gate.mean, gate.variance.clamp(min=0.5))
        with torch.no_grad():
            factors = (1 / 5, gate.activation.surrogate.scales[2] / 10)
            for coefficient, factor in zip((gate.activation.c0, gate.activation.c2), factors, strict=True):
                if coefficient is not None:
                    coefficient.mul_(factor)

    def _train(self, model: MaskedModel, gates: dict[str, HardGate], job: Job) -> None:
        auxiliary = [gate.auxiliary for gate in gates.values()]
        chosen = {id(weight) for weight in auxiliary}
        rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
        optimizer = torch.optim.Adam(
            [{"params": rest, "peak": self.lr}, {"params": auxiliary, "peak": self.mask_lr}], fused=True
        )
        state = Counters(calls=0)
        loop = Loop.of_job(job, epochs=self.search_epochs, batch=self.batch, settings=self.to_json())
        network, optimizer = loop.setup(model, optimizer, counters=state)
        teacher = Teacher(job.teacher, loop)
        for step in loop:
            network.train()
            cosine = (1 + math.cos(math.pi * step.done)) / 2
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * (self.lr_end + (1 - self.lr_end) * cosine)
            target = teacher(step)
            output = logits(network(step.images))
            loss = F.cross_entropy(output, step.labels) + self.distil * distillation(output, target, self.temperature)
            loop.take(loss + self.penalty * self.over_budget(gates, job), optimizer)
            state["calls"] += 1
            if state["calls"] <= self.refresh_until and state["calls"] % self.refresh_every == 0:
                for gate in gates.values():
                    self.refresh(gate)
            if step.last:
                kept = sum(int(gate.kept.sum()) for gate in gates.values())
                loop.note(epoch=step.epoch + 1, loss=float(loss.detach()), kept=kept)
