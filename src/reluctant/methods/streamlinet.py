"""StreamliNet: layer budgets by how negative ReLUs' inputs are, and a search that minds what linearizing costs.

Paper:    Pang, Wang, Yu, Zhao, Zeng. Information Sciences 2024, doi:10.1016/j.ins.2024.120463.
Deviates: the paper was at hand as its abstract alone, and no code of it is known. The abstract names four parts:
          negativity of a ReLU, layer budgets from a metric of several variables with negativity among them, a choice of
          ReLUs by gradients, and a consistency of activation maps that minds the cost of linearizing. Every formula and
          number below is our reconstruction of these, and no result of it is evidence about the paper's method. Ours
          too: a step's cost is relative to the mean of its layer (else dead units have all of it), and a unit that is
          never positive keeps the surrogate of all others (a constant would cost it nothing).
Symbols:  z, the input of a ReLU; f = P(z < 0), rho = E max(-z, 0) / E|z|, negativity nu = f^p rho^(1 - p), g the
          gradient of the loss after the ReLU; metric of a layer (mean nu)^a (mean g^2)^(b / 2) (depth)^c, each of the
          three over its maximum; score s of a ReLU, from log(nu sqrt(E g^2)); cost c = E|relu(z) - g(z)| / E|relu(z)|

Solver ``topk``: each layer keeps exactly its k best scores, k falls from all to the layer's budget as a cubic, and
scores are trained straight through. Solver ``relaxed``: soft gates in [0, 1], as in SNL (arXiv:2202.02340), with a
penalty a layer on the distance of their sum from its budget. Attention maps are those of SENet (arXiv:2301.09254).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reluctant.blend import BlendedReLU
from reluctant.budget import affordable
from reluctant.distillation import FeatureTeacher, distillation, logits
from reluctant.errors import UsageError
from reluctant.features import attention_gap, stage_ends, watching
from reluctant.loop import Counters, Loop
from reluctant.mask import Mask
from reluctant.masked import MaskedActivation, MaskedModel
from reluctant.methods.base import MaskMethod
from reluctant.probing import gap
from reluctant.sites import evaluating
from reluctant.task import Job
from reluctant.training import parameter_groups, set_rate

#: The least that a variable of the metric counts for: a layer without negative inputs gets next to nothing.
LEAST = 1e-6
CHOICES = {
    "budgets": ("metric", "global"),
    "solver": ("topk", "relaxed"),
    "consistency": ("pram", "full", "cost-weighted"),
}


class Calibration(nn.Module):
    """ReLU that adds up, element by element, what negativity and the metric are made of."""

    def __init__(self, activation: MaskedActivation) -> None:
        super().__init__()
        zeros = torch.zeros(activation.site.shape, device=activation.keep.device)
        self.below, self.negative, self.size, self.gradient = (zeros.clone() for _ in range(4))

    def forward(self, z: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        y = z.relu()
        with torch.no_grad():
            self.below += (z < 0).sum(0)
            self.negative += z.clamp(max=0).neg().sum(0)
            self.size += z.abs().sum(0)

        def add(gradient: Tensor) -> None:
            self.gradient += gradient.square().sum(0)

        y.register_hook(add)  # type: ignore[no-untyped-call]
        return y

    def seen(self, count: int, power: float) -> "Seen":
        """Return the means over ``count`` images, on the CPU."""
        below, negative, size, gradient = (
            s.cpu() / count for s in (self.below, self.negative, self.size, self.gradient)
        )
        return Seen(negativity(below, negative, size, power), gradient)


@dataclass(frozen=True)
class Seen:
    """Means over images at one site: negativity of each ReLU, and the square of the gradient after it."""

    negativity: Float[Tensor, "..."]
    gradient: Float[Tensor, "..."]

    @property
    def score(self) -> Float[Tensor, "..."]:
        """``nu sqrt(E g^2)`` of each ReLU."""
        return self.negativity * self.gradient.sqrt()


class Straight(torch.autograd.Function):
    """The 0/1 mask forward; to the scores goes the gradient that a sigmoid of them would get."""

    @staticmethod
    def forward(ctx: Any, score: Tensor, keep: Tensor) -> Tensor:
        ctx.save_for_backward(score)
        return keep

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (score,) = ctx.saved_tensors
        chance = score.sigmoid()
        return grads[0] * chance * (1 - chance), None


class Gate(nn.Module):
    """A ReLU blended with its surrogate, and what its linearization costs on the latest batch, of mean 1 a site."""

    def __init__(self, activation: MaskedActivation) -> None:
        super().__init__()
        self.activation = activation
        self.score = nn.Parameter(torch.zeros(activation.site.shape, device=activation.keep.device))
        self.cost = torch.ones_like(self.score.data)

    def forward(self, z: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        if self.training:
            with torch.no_grad():
                moved, size = gap(self.activation, z).abs().float().mean(0), z.relu().float().mean(0)
                cost = moved / (size + size.mean()).clamp(min=1e-12)
                self.cost = cost / cost.mean().clamp(min=1e-12)
        y: Tensor = BlendedReLU.apply(z, self.gate(), *self.activation.terms())  # type: ignore[no-untyped-call]
        return y

    def gate(self) -> Float[Tensor, "..."]:
        """Return how much of each ReLU is kept, from 0 to 1, with its gradient to the score."""
        raise NotImplementedError

    def chance(self) -> Float[Tensor, "..."]:
        """Return how near each ReLU is to being kept, from 0 to 1, smooth in the score."""
        return self.gate()

    def bound(self) -> None:
        """Hold the scores within their bounds, after a step."""

    def rank(self, start: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return what the ReLUs to keep at the end are the highest of, on the CPU, given their ``start`` scores."""
        return self.gate().detach().cpu() + 1e-6 * start  # many soft gates lie at 0 or 1 alike


class TopK(Gate):
    """Keeps the ReLUs of the k best scores."""

    keep: Tensor

    def __init__(self, activation: MaskedActivation, start: Float[Tensor, "..."], hysteresis: float) -> None:
        super().__init__(activation)
        self.score.data.copy_(start)
        self.hysteresis = hysteresis
        self.register_buffer("keep", torch.ones_like(self.score.data))

    def gate(self) -> Float[Tensor, "..."]:
        m: Tensor = Straight.apply(self.score, self.keep)  # type: ignore[no-untyped-call]
        return m

    def chance(self) -> Float[Tensor, "..."]:
        return self.score.sigmoid()

    def rank(self, start: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return (self.score + self.hysteresis * self.keep).detach().cpu()

    @torch.no_grad()
    def choose(self, count: int) -> None:
        """Keep the ``count`` best; one that is not kept must beat one that is by more than the hysteresis."""
        best = (self.score + self.hysteresis * self.keep).flatten().topk(count).indices
        self.keep.copy_(torch.zeros_like(self.keep).flatten().index_fill_(0, best, 1.0).view_as(self.keep))


class Relaxed(Gate):
    """Keeps a share of each ReLU, its score, from 1."""

    def __init__(self, activation: MaskedActivation) -> None:
        super().__init__(activation)
        nn.init.ones_(self.score)

    def gate(self) -> Float[Tensor, "..."]:
        return self.score

    def bound(self) -> None:
        self.score.data.clamp_(0, 1)


def negativity(below: Tensor, negative: Tensor, size: Tensor, power: float) -> Tensor:
    """Return ``nu``: 0 where inputs are never negative, 1 where they always are.

    Args:
        below: share of inputs under 0.
        negative, size: mean of max(-z, 0) and of |z|.
    """
    depth = negative / size.clamp(min=1e-12)
    return torch.where(below > 0, below**power * depth ** (1 - power), 0.0)


def standardised(score: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return the logarithm of scores of one site, shifted and scaled to mean 0 and deviation 1; 0 if all are equal."""
    spread = (score / score.mean().clamp(min=1e-30) + 1e-3).log()
    return (spread - spread.mean()) / spread.std(correction=0).clamp(min=1e-6)


@dataclass(frozen=True, kw_only=True)
class StreamliNet(MaskMethod):
    """Set layer budgets by negativity and gradient, then train scores within them; all of it a reconstruction.

    Args:
        images: of the training split that negativity and gradients are means over.
        power: of the frequency in negativity, against the share of magnitude; 1 for frequency alone.
        negativity_weight, gradient_weight, depth_weight: exponents of the metric's variables; all 0 shares evenly.
        budgets: ``metric``, in proportion to it; ``global``, as many as of the network's best scores are in a layer.
        solver: ``topk`` or ``relaxed``, see the header.
        search_epochs: of the search.
        lr: of the weights, by SGD with momentum 0.9; it rises in the first twentieth of the search and then follows a
            cosine down to the share ``lr_end``.
        travel: how far Adam can move a score in the whole search.
        fall: share of the search in which ``topk`` lowers its k.
        hysteresis: by how much a score must be better to take the place of a kept one.
        penalty, growth: weight of a layer's distance from its budget in ``relaxed``, a share of its ReLUs, and what the
            weight grows by after an epoch in which the layer has not come nearer.
        consistency: with the teacher at the ends of stages. ``pram``: attention maps; ``full``: whole features of norm
            1; ``cost-weighted``: squared differences of dropped ReLUs, by what their linearization costs.
        consistency_weight: about 1,000 for ``pram``, 1 to 10 for the others.
        cost_weight: of the mean cost of the ReLUs that scores would drop.
        labels, distil: weights of the cross-entropy and of the teacher's term, of ``temperature``.
    """

    name: ClassVar[str] = "streamlinet"
    may_be_zero: ClassVar[tuple[str, ...]] = (
        *("power", "negativity_weight", "gradient_weight", "depth_weight", "weight_decay", "lr_end", "travel", "fall"),
        *("hysteresis", "penalty", "consistency_weight", "cost_weight", "labels", "distil"),
    )

    images: int = 4096
    power: float = 0.5
    negativity_weight: float = 1.0
    gradient_weight: float = 1.0
    depth_weight: float = 0.0
    budgets: str = "metric"
    solver: str = "topk"
    search_epochs: int = 150
    batch: int = 128
    lr: float = 0.05
    lr_end: float = 0.4
    weight_decay: float = 5e-4
    travel: float = 5.0
    fall: float = 0.6
    hysteresis: float = 0.003
    penalty: float = 1.0
    growth: float = 1.1
    consistency: str = "pram"
    consistency_weight: float = 1000.0
    cost_weight: float = 0.1
    labels: float = 0.5
    distil: float = 0.5
    temperature: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise UsageError(f"streamlinet.{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}")
        for name in ("power", "lr_end", "fall"):
            if getattr(self, name) > 1:
                raise UsageError(f"streamlinet.{name} is {getattr(self, name)}, expected at most 1")

    @property
    def epochs(self) -> int:
        return self.search_epochs

    def search(self, model: MaskedModel, job: Job) -> Mask:
        seen = self.calibrate(model, job)
        counts = self.counts(seen, job)

        starts = {name: standardised(s.score) for name, s in seen.items()}

        def gate(activation: MaskedActivation) -> Gate:
            if self.solver == "relaxed":
                return Relaxed(activation)
            return TopK(activation, starts[activation.site.name], self.hysteresis)

        with model.gates(gate) as gates:
            self._train(model, gates, counts, job)
            return Mask.top_of_sites({name: one.rank(starts[name]) for name, one in gates.items()}, counts)

    def calibrate(self, model: MaskedModel, job: Job) -> dict[str, Seen]:
        """Return what the dense network shows on its first training images, un-augmented, by site."""
        train, count = job.train.to(job.fabric.device), 0
        model.to(job.fabric.device)
        if model.constants():
            model.start_surrogates(train.inputs(slice(self.batch)))
        with evaluating(model), model.gates(Calibration) as sums:
            for images, labels in train.batches(self.batch):
                # The sum, so that each image's gradient is its own; times one, so that a first ReLU may be in place.
                loss = F.cross_entropy(logits(model(images.requires_grad_() * 1)), labels, reduction="sum")
                loss.backward()  # type: ignore[no-untyped-call]
                count += len(labels)
                job.progress(self.name, min(count, self.images), min(self.images, len(train)))
                if count >= self.images:
                    break
            model.zero_grad(set_to_none=True)
        return {name: one.seen(count, self.power) for name, one in sums.items()}

    def metric(self, seen: Mapping[str, Seen]) -> dict[str, float]:
        """Return the metric of each layer, the product of its variables to the power of their weights."""
        variables = (
            (self.negativity_weight, [float(s.negativity.mean()) for s in seen.values()]),
            (self.gradient_weight, [float(s.gradient.mean().sqrt()) for s in seen.values()]),
            (self.depth_weight, [float(place) for place in range(1, len(seen) + 1)]),
        )
        sizes = [(weight, [v / (max(values) or 1.0) + LEAST for v in values]) for weight, values in variables]
        return {name: math.prod(values[place] ** weight for weight, values in sizes) for place, name in enumerate(seen)}

    def counts(self, seen: Mapping[str, Seen], job: Job) -> dict[str, int]:
        """Return how many ReLUs each site is to keep."""
        if self.budgets == "global":
            return Mask.top({name: s.score for name, s in seen.items()}, job.prices, job.limit).by_site()
        room = {name: s.negativity.numel() for name, s in seen.items()}
        return affordable(self.metric(seen), room, job.prices, job.limit)

    def kept_now(self, done: float, count: int, relus: int) -> int:
        """Return the k of a site of ``relus`` after the share ``done`` of the search, ``count`` at its end."""
        return count + int((relus - count) * max(0.0, 1 - done / self.fall) ** 3) if done < self.fall else count

    def _train(self, model: MaskedModel, gates: Mapping[str, Gate], counts: dict[str, int], job: Job) -> None:
        loop = Loop.of_job(job, epochs=self.search_epochs, batch=self.batch, settings=self.to_json())
        steps = self.search_epochs * job.train.steps(self.batch)
        scores = [gate.score for gate in gates.values()]
        groups = parameter_groups(model, self.weight_decay)
        chosen = {id(score) for score in scores}
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) not in chosen]
        sgd = torch.optim.SGD([group for group in groups if group["params"]], self.lr, 0.9)
        pull = Counters({name: {"weight": self.penalty, "off": 1.0} for name in gates})
        network, sgd, adam = loop.setup(
            model, sgd, torch.optim.Adam(scores, self.travel / steps, fused=True), pull=pull
        )
        ends = stage_ends(model.sites)
        teacher = FeatureTeacher(job.teacher, model.sites, ends, loop)
        last = math.acos(2 * self.lr_end - 1) / math.pi
        for step in loop:
            set_rate(sgd, self.lr * min(1.0, 20 * step.done) * (1 + math.cos(math.pi * last * step.done)) / 2)
            for name, gate in gates.items():
                if isinstance(gate, TopK):
                    gate.choose(self.kept_now(step.done, counts[name], gate.score.numel()))
            target, theirs = teacher(step)  # first: the student may overwrite its images
            network.train()
            with watching(model, ends) as ours:
                output = logits(network(step.images))
            loss = self.labels * F.cross_entropy(output, step.labels)
            loss = loss + self.distil * distillation(output, target, self.temperature)
            loss = loss + self.consistency_weight * self.inconsistency(ours, theirs, gates)
            loss = loss + self.cost_weight * select(gates)
            if self.solver == "relaxed":
                loss = loss + self.excess(gates, counts, pull)
            loop.take(loss, sgd, adam)
            for gate in gates.values():
                gate.bound()
            if step.last:
                loop.note(epoch=step.epoch + 1, loss=float(loss.detach()), kept=self._grow(gates, counts, pull))

    def inconsistency(
        self, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], gates: Mapping[str, Gate]
    ) -> Float[Tensor, ""]:
        """Return how far the features of ``theirs`` are from ours, summed over their sites."""
        if self.consistency == "pram":
            return attention_gap(ours, theirs)
        terms = []
        for name, target in theirs.items():
            a, b = ours[name].float(), target.float()
            if self.consistency == "full":
                unit = F.normalize(a.flatten(1), dim=1) - F.normalize(b.flatten(1), dim=1)
                terms.append(unit.square().sum(1).mean())
            else:
                weight = (1 - gates[name].gate().detach()) * gates[name].cost
                terms.append((weight * (a - b).square()).mean() / b.square().mean().clamp(min=1e-12))
        return torch.stack(terms).sum()

    def excess(self, gates: Mapping[str, Gate], counts: dict[str, int], pull: Counters) -> Float[Tensor, ""]:
        """Return the weighted distances of the layers' sums of gates from their budgets, as shares of their ReLUs."""
        terms = [
            pull[name]["weight"] * (gate.gate().sum() - counts[name]).abs() / gate.score.numel()
            for name, gate in gates.items()
        ]
        return torch.stack(terms).sum()

    def _grow(self, gates: Mapping[str, Gate], counts: dict[str, int], pull: Counters) -> float:
        total = 0.0
        for name, gate in gates.items():
            kept = float(gate.gate().detach().sum())
            off = abs(kept - counts[name]) / gate.score.numel()
            if off >= pull[name]["off"]:
                pull[name]["weight"] *= self.growth
            pull[name]["off"] = off
            total += kept
        return total


def select(gates: Mapping[str, Gate]) -> Float[Tensor, ""]:
    """Return the sum over layers of the mean cost of ReLUs times how near they are to being dropped."""
    return torch.stack([((1 - gate.chance()) * gate.cost).mean() for gate in gates.values()]).sum()
