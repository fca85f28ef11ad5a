"""ReLUPruner: ReLUs pruned progressively by a Taylor expansion of the loss.

Paper:    Li, Liu, Wang, Wang, Pan. AAAI 2026; volume 40, number 28, pages 23328-23336.
Deviates: the search starts from the trained network (theirs, by default, from random weights); the schedule runs by the
          step (theirs by the epoch) and a last ranking ends it. The first-order part takes the gap that the paper
          names, relu(z) - z, where the released code takes z, positive inputs included. The paper's H, which only
          second-hand accounts of it were at hand for, is the released code's running mean of squared gradients, here of
          each image's own loss: then it is a curvature of the same loss as the first-order part (an empirical Fisher);
          `second_order="released"` has the gradients of the batch's mean loss instead, z^2 for the squared gap, and no
          negativity on this part. Weight decay spares what has one dimension. Attention maps (PRAM, weight 1,000) enter
          in the released code's finetune alone, so `attention` is 0 in the search.
Symbols:  s = w (nu E|g d| + nu E[d^2] H / 2), with g the gradient after the ReLU, d = relu(z) - z (in general the gap
          to the surrogate), nu the mean of P(z < 0) over 10 batches, H a running mean of E[g^2], and w the weight of
          the layer: the running mean of |g| times the root of that of g^2, times 1 + depth l / (L - 1) (released code
          only), scaled to 0.1 ... 1.1 over the layers. gamma -> labels, alpha -> distil.

A dropped ReLU may return: scores go on being taken where it was, and each ranking is over all ReLUs, as it is in the
released code.
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
from reluctant.mask import Mask, grouped
from reluctant.masked import MaskedActivation, MaskedModel
from reluctant.methods.base import MaskMethod
from reluctant.probing import gap
from reluctant.task import Job
from reluctant.training import parameter_groups

#: Batches that the share of negative inputs is a mean over.
HISTORY = 10


class Ranked(nn.Module):
    """A kept ReLU or its surrogate, by a mask that is set from outside, with a running Taylor score for each.

    Attributes:
        score: running mean of the scores of batches, kept ReLUs' and dropped ones'.
        history: share of negative inputs in each of the latest ``HISTORY`` batches, of the ``seen`` so far.
        curvature: running mean of the squared gradient.
        steepness: of the layer: running means of the norm of an image's gradient and of its mean square.
        weight: of the layer, as of the step before.
    """

    keep: Tensor
    score: Tensor
    history: Tensor
    seen: Tensor
    curvature: Tensor
    steepness: Tensor
    weight: Tensor

    def __init__(self, activation: MaskedActivation, method: "ReLUPruner") -> None:
        super().__init__()
        self.activation, self.method = activation, method
        shape, device = activation.site.shape, activation.keep.device
        for name, size in (("keep", shape), ("weight", ())):
            self.register_buffer(name, torch.ones(size, device=device))
        for name, size in (("score", shape), ("history", (HISTORY, *shape)), ("curvature", shape), ("steepness", (2,))):
            self.register_buffer(name, torch.zeros(size, device=device))
        self.register_buffer("seen", torch.zeros(1, dtype=torch.long, device=device))

    def forward(self, z: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        y: Tensor = BlendedReLU.apply(z, self.keep, *self.activation.terms())  # type: ignore[no-untyped-call]
        if self.training and y.requires_grad:
            y.register_hook(lambda gradient: self.add(z.detach(), gradient))  # type: ignore[no-untyped-call]
        return y

    @torch.no_grad()
    def add(self, z: Float[Tensor, "B ..."], gradient: Float[Tensor, "B ..."]) -> None:
        """Take a batch into the score: its inputs here, and the gradients of its mean loss after the ReLU."""
        released = self.method.second_order == "released"
        self.history.index_copy_(0, self.seen % HISTORY, (z < 0).float().mean(0)[None])
        self.seen += 1
        negativity = self.history.sum(0) / self.seen.clamp(max=HISTORY)
        gradient, gaps = gradient.float(), gap(self.activation, z).float()
        if not released:
            gradient = gradient * len(z)
        first = (gradient * gaps).abs_().mean(0) * negativity
        self.curvature.lerp_(gradient.square().mean(0), 0.01)
        moved = z.float().square().mean(0) if released else gaps.square().mean(0) * negativity
        self.score.lerp_(self.weight * (first + moved * self.curvature / 2), 1 - self.method.momentum)
        norms = gradient.flatten(1).norm(dim=1).mean(), gradient.square().mean()
        self.steepness.lerp_(torch.stack(norms), 1 - self.method.momentum)


@torch.no_grad()
def weigh(gates: list[Ranked], depth: float) -> None:
    """Set the weights of the layers ``gates``, in the order of the forward pass, from their steepness."""
    norm, square = torch.stack([gate.steepness for gate in gates]).unbind(1)
    place = torch.linspace(0, 1, len(gates), device=norm.device)
    size = norm * square.sqrt() * (1 + depth * place)
    spread = size.max() - size.min()
    weights = torch.where(spread > 0, (size - size.min()) / spread + 0.1, 1.0)
    for gate, weight in zip(gates, weights, strict=True):
        gate.weight.copy_(weight)


@dataclass(frozen=True, kw_only=True)
class ReLUPruner(MaskMethod):
    """Rank all ReLUs again and again by how much the loss would change without them, while fewer and fewer are kept.

    Args:
        search_epochs: of SGD with momentum 0.9 at the constant rate ``lr``.
        clip: bound on the norm of the weights' gradient; 0 for none, as released.
        warmup: share of the search in which all ReLUs are kept.
        fall: share of the rest in which the budget falls.
        every: steps between rankings; twice that once the budget has fallen.
        momentum: of the running means of scores and of layers.
        depth: how much more the last layer weighs than the first, for its place alone.
        second_order: ``paper`` or ``released``, see the header.
        granularity: what is kept or dropped together: ``pixel``, ``channel`` or ``spatial``.
        labels, distil: weights of the cross-entropy and of the teacher's term, of ``temperature``.
        attention: of the gap between attention maps; see :class:`reluctant.training.Training`.
    """

    name: ClassVar[str] = "relupruner"
    may_be_zero: ClassVar[tuple[str, ...]] = (
        "weight_decay",
        "clip",
        "warmup",
        "fall",
        "momentum",
        "depth",
        "labels",
        "distil",
        "attention",
    )

    search_epochs: int = 150  # released code, as is all that follows
    batch: int = 128
    lr: float = 0.05
    weight_decay: float = 5e-4
    clip: float = 0.0
    warmup: float = 1 / 30
    fall: float = 0.6
    every: int = 100
    momentum: float = 0.95
    depth: float = 0.2
    second_order: str = "paper"
    granularity: str = "pixel"
    labels: float = 0.5
    distil: float = 0.5
    temperature: float = 4.0
    attention: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.second_order not in ("paper", "released"):
            raise UsageError(f"relupruner.second_order is {self.second_order!r}, expected 'paper' or 'released'")
        for name in ("warmup", "fall", "momentum"):
            value = getattr(self, name)
            if value > 1 or (value == 1 and name != "fall"):
                raise UsageError(f"relupruner.{name} is {value}, expected a share of 1")

    @property
    def epochs(self) -> int:
        return self.search_epochs

    def fallen(self, done: float) -> float:
        """Return how far the budget has fallen after the share ``done`` of the search, from 0 to 1."""
        if done < self.warmup:
            return 0.0
        length = (1 - self.warmup) * self.fall
        return 1.0 if done - self.warmup >= length else ((done - self.warmup) / length) ** 1.5

    def budget(self, done: float, full: float, limit: float) -> float:
        """Return what the mask may cost after the share ``done`` of the search: a cosine from ``full`` to ``limit``."""
        return limit + (full - limit) * (1 + math.cos(math.pi * self.fallen(done))) / 2

    def search(self, model: MaskedModel, job: Job) -> Mask:
        model.to(job.fabric.device)
        if model.constants():
            model.start_surrogates(job.train.to(job.fabric.device).inputs(slice(self.batch)))
        with model.gates(lambda activation: Ranked(activation, self)) as gates:
            self._train(model, gates, job)
            return self.rank(model, gates, job, job.limit)

    def rank(self, model: MaskedModel, gates: dict[str, Ranked], job: Job, limit: float) -> Mask:
        """Return the mask of the highest scores that ``limit`` buys."""
        scores = {name: grouped(gate.score, self.granularity) for name, gate in gates.items()}
        return Mask.top(scores, job.prices, limit, {name: site.shape for name, site in model.sites.items()})

    def _train(self, model: MaskedModel, gates: dict[str, Ranked], job: Job) -> None:
        full = job.prices.cost({name: site.relus for name, site in model.sites.items()})
        steps = job.train.steps(self.batch)
        loop = Loop.of_job(job, epochs=self.search_epochs, batch=self.batch, settings=self.to_json())
        groups = parameter_groups(model, self.weight_decay)
        network, optimizer = loop.setup(model, torch.optim.SGD(groups, self.lr, 0.9))
        clip = (list(model.parameters()), self.clip) if self.clip else None
        teach: dict[str, Any] = {"temperature": self.temperature, "distil": self.distil, "attention": self.attention}
        with teaching(job.teacher, model, loop, **teach) as lesson:
            for step in loop:
                network.train()
                taught = lesson(step)
                output = logits(network(step.images))
                loss = self.labels * F.cross_entropy(output, step.labels) + taught(output)
                loop.take(loss, optimizer, clip=clip)
                weigh(list(gates.values()), self.depth)
                taken, fallen = step.epoch * steps + step.index + 1, self.fallen(step.done)
                if fallen and taken % (self.every if fallen < 1 else 2 * self.every) == 0:
                    mask = self.rank(model, gates, job, self.budget(step.done, full, job.limit))
                    for name, gate in gates.items():
                        gate.keep.copy_(mask[name])
                if step.last:
                    kept = int(torch.stack([gate.keep.sum() for gate in gates.values()]).sum())
                    loop.note(epoch=step.epoch + 1, loss=float(loss.detach()), kept=kept)
