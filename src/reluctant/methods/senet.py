"""SENet: a budget for each layer by its sensitivity, masks by where the linearized network differs from the dense one.

Paper:    Kundu, Lu, Zhang, Liu, Beerel. ICLR 2023, arXiv:2301.09254.
Deviates: the paper's text was not at hand beyond its summary; the search follows released code by two of its authors
          (RLNet, without its adversarial part). The published sensitivities are solved from the per-layer counts of
          that code's configurations, whose low budgets are otherwise set by hand. The sparse run stands in for theirs:
          it moves weights 20 times, whatever its length, and a site's density is that of all convolutions and linear
          layers since the site before (behind a projected shortcut, of both branches). The student starts from the
          dense network, because short runs have no time for random weights (theirs; `start="random"`). Top
          counts are exact (theirs loses the k-th and its ties). The best epoch is chosen on the held-out split (theirs
          on the test set). Differences may be carried from epoch to epoch (`momentum`): a ReLU that is kept differs
          little, and so tends to be lost in the next epoch. Channels are shared out like ReLUs, in whole ones, so a
          small share may be of none.
Symbols:  sensitivity -> eta = 1 - density at parameter density d; D_l = sum |AR - PR| over an epoch -> difference;
          labels, distil -> 0.5, 0.5
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reluctant.blend import BlendedReLU
from reluctant.budget import affordable, waterfill
from reluctant.distillation import FeatureTeacher, distillation, logits
from reluctant.errors import UsageError
from reluctant.features import watching
from reluctant.loop import Counters, Loop
from reluctant.mask import Mask, grouped
from reluctant.masked import MaskedActivation, MaskedModel
from reluctant.methods.base import MaskMethod
from reluctant.sites import Sites, copied, evaluating
from reluctant.task import Job, stream
from reluctant.training import parameter_groups, share_correct

#: Sensitivity of each ReLU layer, solved from the published counts (the networks' stages on lines of their own).
PUBLISHED: dict[str, tuple[tuple[float, ...], ...]] = {
    "resnet18": (
        (0.056, 0.181, 0.208, 0.245, 0.269),
        (0.346, 0.477, 0.498, 0.544),
        (0.658, 0.795, 0.808, 0.842),
        (0.919, 0.967, 0.975, 0.976),
    ),
    "wrn22": (
        (0.030,),
        (0.137, 0.308, 0.384, 0.423, 0.470, 0.518),
        (0.563, 0.706, 0.772, 0.807, 0.840, 0.871),
        (0.879, 0.949, 0.975, 0.961, 0.975, 0.975),
    ),
    "resnet34": (
        (0.05, 0.12, 0.12, 0.15, 0.17, 0.18, 0.21),
        (0.36, 0.12, 0.38, 0.42, 0.44, 0.48, 0.50, 0.54),
        (0.75, 0.35, 0.77, 0.81, 0.83, 0.87, 0.88, 0.91, 0.91, 0.93, 0.93, 0.95),
        (0.99, 0.73, 0.99, 0.99, 0.99, 0.99),
    ),
}

#: How often the sparse run moves weights, and the share of a layer's that it moves at first.
ROUNDS, MOVED = 20, 0.5
#: Sensitivity of a layer that the sparse run left dense, or that has no weights before it.
LEAST = 1e-3


def published_for(sites: Sites) -> str | None:
    """Return whose published sensitivities fit: the same sizes in turn, perhaps without the stem's ReLU."""
    runs = tuple(len(list(group)) for _, group in itertools.groupby(site.relus for site in sites.values()))
    for name, stages in PUBLISHED.items():
        whole = tuple(map(len, stages))
        if runs in (whole, tuple(length for length in (whole[0] - 1, *whole[1:]) if length)):
            return name
    return None


class Compared(nn.Module):
    """A kept ReLU or its surrogate, by a mask that is set from outside, with the sum of what differs for each."""

    keep: Tensor
    difference: Tensor

    def __init__(self, activation: MaskedActivation) -> None:
        super().__init__()
        self.activation = activation
        self.register_buffer("keep", torch.ones_like(activation.keep, dtype=torch.float32))
        self.register_buffer("difference", torch.zeros_like(self.keep))

    def forward(self, z: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        y: Tensor = BlendedReLU.apply(z, self.keep, *self.activation.terms())  # type: ignore[no-untyped-call]
        return y


@dataclass(frozen=True, kw_only=True)
class SENet(MaskMethod):
    """Give each layer ReLUs in proportion to its sensitivity, where the student differs most from the teacher.

    Args:
        sensitivity: of the layers. ``auto``: the published ones where the network is one of theirs, else measured;
            ``measured`` in a sparse run; ``resnet18``, ``resnet34`` or ``wrn22``: published, for as many sites or one
            fewer (no stem); or a number for each site, with commas between them.
        density: share of the weights that the sparse run keeps.
        sensitivity_epochs: of the sparse run, from random weights.
        search_epochs: of SGD with momentum 0.9 at the constant rate ``lr``; the mask is set anew after each.
        momentum: share of the differences so far that the next epoch's are added to; 0 forgets them, as published.
        start: of the student: ``teacher``, the dense network's weights, or ``random`` ones.
        granularity: what is kept or dropped together: ``pixel``, ``channel`` or ``spatial``.
        labels, distil: weights of the cross-entropy and of the teacher's term, of ``temperature``.
    """

    name: ClassVar[str] = "senet"
    may_be_zero: ClassVar[tuple[str, ...]] = ("weight_decay", "momentum", "labels", "distil")

    sensitivity: str = "auto"
    density: float = 0.1
    sensitivity_epochs: int = 30
    search_epochs: int = 150  # released code, as is all that follows
    batch: int = 128
    lr: float = 0.05
    weight_decay: float = 5e-4
    momentum: float = 0.0
    start: str = "teacher"
    granularity: str = "pixel"
    labels: float = 0.5
    distil: float = 0.5
    temperature: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sensitivity not in ("auto", "measured", *PUBLISHED):
            self._given()
        if self.start not in ("teacher", "random"):
            raise UsageError(f"senet.start is {self.start!r}, expected 'teacher' or 'random'")
        for name in ("density", "momentum"):
            if not getattr(self, name) < 1:
                raise UsageError(f"senet.{name} is {getattr(self, name)}, expected a value under 1")

    @property
    def epochs(self) -> int:
        return self.search_epochs + self.sensitivity_epochs * (self.sensitivity in ("auto", "measured"))

    def search(self, model: MaskedModel, job: Job) -> Mask:
        model.to(job.fabric.device)
        counts = self.counts(model, job)
        if self.start == "random":
            start_anew(model.model, job.seed)
        if model.constants():
            model.start_surrogates(job.train.to(job.fabric.device).inputs(slice(self.batch)))
        with model.gates(Compared) as gates:
            for number, (name, gate) in enumerate(gates.items()):
                gate.keep.copy_(self.first(counts[name], model.sites[name].shape, stream(job.seed, number)))
            self._train(model, gates, counts, job)
            return Mask({name: gate.keep > 0 for name, gate in gates.items()})

    def counts(self, model: MaskedModel, job: Job) -> dict[str, int]:
        """Return how many ReLUs each site is to keep: the most in proportion to sensitivity that the budget buys."""
        room = {name: site.relus for name, site in model.sites.items()}
        maps = {name: torch.zeros(site.shape) for name, site in model.sites.items()}
        groups = {name: room[name] // grouped(zeros, self.granularity).numel() for name, zeros in maps.items()}
        return affordable(self.sensitivities(model, job), room, job.prices, job.limit, groups)

    def sensitivities(self, model: MaskedModel, job: Job) -> dict[str, float]:
        """Return the sensitivity of each site, eta.

        Raises:
            UsageError: those that are named or given are of another number of sites.
        """
        kind = self.sensitivity
        if kind == "auto":
            kind = published_for(model.sites) or "measured"
        if kind == "measured":
            return self.measured(model, job)
        values = tuple(itertools.chain(*PUBLISHED[kind])) if kind in PUBLISHED else self._given()
        if kind in PUBLISHED and len(values) == len(model.sites) + 1:
            values = values[1:]  # no ReLU behind the stem
        if len(values) != len(model.sites):
            raise UsageError(
                f"senet.sensitivity is of {len(values)} layers, the network has {len(model.sites)} ReLU sites; "
                "give one for each, or 'measured'"
            )
        return dict(zip(model.sites, values, strict=True))

    def _given(self) -> tuple[float, ...]:
        try:
            values = tuple(float(text) for text in self.sensitivity.split(","))
        except ValueError:
            values = ()
        if not any(values) or not all(0 <= value < math.inf for value in values):
            raise UsageError(
                f"senet.sensitivity is {self.sensitivity!r}, expected auto, measured, {', '.join(PUBLISHED)}, or "
                "numbers from 0 on with commas between them, not all 0"
            )
        return values

    def measured(self, model: MaskedModel, job: Job) -> dict[str, float]:
        """Return 1 - density of what feeds each site, after training the network sparsely from random weights.

        Weights are moved as in sparse momentum (Dettmers, Zettlemoyer, 2019, arXiv:1907.04840): each round takes the
        smallest of every layer away, as a share that falls to none, and puts as many back where the momentum is
        largest, shared among layers by the mean momentum of their weights.
        """
        fed_by = feeding(model, job.train.to(job.fabric.device).inputs(slice(2)))
        network = copied(job.teacher).to(job.fabric.device).requires_grad_(True)
        start_anew(network, job.seed)
        weights = layers_of(network)
        kept = Counters()
        for number, (name, weight) in enumerate(weights.items()):
            kept[name] = torch.rand(weight.shape, generator=stream(job.seed, number)) < self.density
        optimizer = torch.optim.SGD(parameter_groups(network, self.weight_decay), self.lr, 0.9)
        epochs, settings = self.sensitivity_epochs, self.to_json()
        loop = Loop.of_job(job, epochs=epochs, batch=self.batch, settings=settings, stage="sensitivity")
        wrapped, stepping = loop.setup(network, optimizer, kept=kept)
        total = epochs * job.train.steps(self.batch)
        for step in loop:
            wrapped.train()
            confine(weights, kept)
            loss = F.cross_entropy(logits(wrapped(step.images)), step.labels)
            loop.take(loss, stepping)
            taken = round(step.done * total) + 1
            if taken * ROUNDS // total > (taken - 1) * ROUNDS // total:
                share = MOVED * (1 + math.cos(math.pi * taken / total)) / 2
                momenta = {name: optimizer.state[weight]["momentum_buffer"] for name, weight in weights.items()}
                kept.update(moved(weights, momenta, kept, share))
            if step.last:
                loop.note(epoch=step.epoch + 1, loss=float(loss.detach()))
        return {site: sensitivity([kept[name] for name in names]) for site, names in fed_by.items()}

    def first(self, count: int, shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "..."]:
        """Return the first mask of a site: each place kept by chance, in all channels (or each channel, in whole)."""
        kind = "channel" if self.granularity == "channel" or len(shape) == 1 else "spatial"
        drawn = torch.rand(grouped(torch.zeros(shape), kind).shape, generator=generator)
        return (drawn < count / math.prod(shape)).float().expand(shape)

    def _train(self, model: MaskedModel, gates: dict[str, Compared], counts: dict[str, int], job: Job) -> None:
        shapes = {name: site.shape for name, site in model.sites.items()}
        optimizer = torch.optim.SGD(parameter_groups(model, self.weight_decay), self.lr, 0.9)
        best = Counters(accuracy=-1.0, state={})
        loop = Loop.of_job(job, epochs=self.search_epochs, batch=self.batch, settings=self.to_json())
        network, optimizer = loop.setup(model, optimizer, best=best)
        teacher = FeatureTeacher(job.teacher, model.sites, list(gates), loop)
        for step in loop:
            if not step.index:
                for gate in gates.values():
                    gate.difference.mul_(self.momentum)
            target, theirs = teacher(step)  # first: the student may overwrite its images
            network.train()
            with watching(model, list(gates)) as ours:
                output = logits(network(step.images))
            loss = self.labels * F.cross_entropy(output, step.labels)
            loss = loss + self.distil * distillation(output, target, self.temperature)
            with torch.no_grad():
                for name, gate in gates.items():
                    gate.difference += (theirs[name] - ours[name]).abs().float().sum(0)
            loop.take(loss, optimizer)
            if step.last:
                differences = {name: grouped(gate.difference, self.granularity) for name, gate in gates.items()}
                mask, changed = Mask.top_of_sites(differences, counts, shapes), 0
                for name, gate in gates.items():
                    changed += int((gate.keep.cpu() != mask[name]).sum())
                    gate.keep.copy_(mask[name])
                accuracy = share_correct(model, job.val, job.fabric)
                note = {"loss": float(loss.detach()), "val": accuracy, "changed": changed / model.sites.total}
                loop.note(epoch=step.epoch + 1, **note)
                if accuracy >= best["accuracy"]:
                    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
                    best.update(accuracy=accuracy, state=state)
        model.load_state_dict(best["state"])


def start_anew(network: nn.Module, seed: int) -> None:
    """Set the weights of ``network``, in place, as torch's own layers start, by ``seed`` alone."""
    device = next(network.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in network.cpu().modules():
            reset: Any = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    network.to(device)


def layers_of(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of the convolutions and linear layers by the paths of their modules."""
    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    return {name: layer.weight for name, layer in layers.items() if isinstance(layer.weight, nn.Parameter)}


def feeding(model: MaskedModel, images: Float[Tensor, "B C H W"]) -> dict[str, list[str]]:
    """Return for each site the convolutions and linear layers that ran since the site before it.

    Where none did, those of the site before; before the first of all, none.
    """
    ran: list[str] = []
    found: dict[str, list[str]] = {}

    def fires(name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            found[name] = list(ran) if ran else next(reversed(found.values()), [])
            ran.clear()

        return hook

    modules = dict(model.model.named_modules())
    handles = [
        modules[path].register_forward_hook(lambda module, args, output, path=path: ran.append(path))
        for path in layers_of(model.model)
    ]
    handles += [a.register_forward_pre_hook(fires(a.site.name)) for a in model.masked()]
    with torch.no_grad(), evaluating(model):
        model(images.clone())
    for handle in handles:
        handle.remove()
    return found


def sensitivity(kept: list[Tensor]) -> float:
    """Return 1 - density of layers, given which of their weights are kept."""
    total = sum(mask.numel() for mask in kept)
    return max(LEAST, 1 - sum(int(mask.sum()) for mask in kept) / total) if total else LEAST


@torch.no_grad()
def confine(weights: dict[str, nn.Parameter], kept: Counters) -> None:
    """Set the weights that are not kept to zero, in place."""
    for name, weight in weights.items():
        weight.mul_(kept[name].to(weight.device))


@torch.no_grad()
def moved(
    weights: dict[str, nn.Parameter], momenta: dict[str, Tensor], kept: Counters, share: float
) -> dict[str, Tensor]:
    """Return by layer which weights are kept next: as many in all, the smallest ``share`` of each layer's moved."""
    flat = {name: weight.abs().flatten().cpu() for name, weight in weights.items()}
    force = {name: momenta[name].abs().flatten().cpu() for name in weights}
    had = {name: kept[name].flatten().cpu() for name in weights}
    after, mean = {}, {}
    for name, here in had.items():
        count = int(here.sum())
        order = flat[name].masked_fill(~here, -1.0).argsort(descending=True, stable=True)
        after[name] = torch.zeros_like(here).index_fill_(0, order[: count - int(share * count)], True)
        mean[name] = float(force[name][here].mean()) + 1e-12 if count else 1e-12
    missing = sum(int(had[name].sum()) - int(after[name].sum()) for name in after)
    room = {name: int((~here).sum()) for name, here in after.items()}
    for name, count in waterfill(mean, room, missing).items():
        order = force[name].masked_fill(after[name], -1.0).argsort(descending=True, stable=True)
        after[name].index_fill_(0, order[:count], True)
    return {name: here.reshape(weights[name].shape) for name, here in after.items()}
