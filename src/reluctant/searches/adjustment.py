"""Network adjustment.

Paper:    Chen, Niu, Xie, Liu, Wei, Tian. Network Adjustment: Channel Search Guided by FLOPs Utilization Ratio.
          CVPR 2020, arXiv:2004.02767.
Deviates: utilisation may be per ReLU, byte or second as well, which the paper does not have. Every network is trained,
          the last one, too, and the best by held-out images is taken, where the paper takes the last. A rate of dropout
          is at most 0.9; no more than half of the layers get wider at a time; the factor on all widths keeps them at
          4 or more, and where whole channels come no nearer to the resource than 1 %, layers take it one by one.
          The learning rate falls to zero, not to 0.001, and of a training the epoch is kept that was best. Utilisation
          is measured on held-out images, as the paper does for CIFAR (for ImageNet it takes the test images).
Symbols:  FUR -> utilisation; p_l -> rate; c_l dF/dc_l -> weight; F -> resource; iters -> rounds; times -> repeats;
          base drop rate -> p0; drop rate -> dropout; architecture learning rate and its decay -> eta, eta_decay.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reluctant.designs.adjusted import Adjusted
from reluctant.errors import BudgetError, UsageError
from reluctant.loop import Step
from reluctant.models import ModelSpec
from reluctant.searches.base import Search, Study
from reluctant.searches.metering import MIN_WIDTH, RESOURCES, Meter, Widths, match_resource, with_widths
from reluctant.sites import copied, evaluating
from reluctant.task import Split, stream
from reluctant.units import format_quantity

#: No layer loses more of its channels in a measurement.
MAX_DROPOUT = 0.9


@dataclass(frozen=True, kw_only=True)
class Adjustment(Search):
    """Channels move from layers that make little use of a resource to those that make most of it; its amount stays.

    A layer's utilisation is what the loss rises by where channels of the layer that cost so much are dropped.

    Args:
        resource: what a layer's channels cost, and what is the same after each round: ``macs``, ``relus``, ``bytes``
            or ``seconds`` of one inference.
        engine, network: under which protocol and over which link bytes and seconds are predicted.
        rounds: adjustments; after each the network is trained anew.
        p0: share of the channels that an average layer loses in the measurement; in any layer they cost the same.
        repeats: measurements of each layer, whose mean counts.
        update_num: layers that get wider in the first round, and as many that get narrower.
        update_decay: how many fewer in each further one.
        eta: part of its first width by which the layer with the highest, or lowest, utilisation changes.
        eta_decay: how much less each next one changes.
        dropout: of channels, at the end of each training and in the last layer; it grows linearly up to there.
    """

    name: ClassVar[str] = "adjustment"
    may_be_zero: ClassVar[tuple[str, ...]] = ("update_decay", "eta_decay", "dropout")
    usual: ClassVar[Mapping[str, Any]] = {"training": {"epochs": 200, "lr": 0.15, "weight_decay": 3e-4, "warmup": 0.0}}

    resource: str = "macs"
    engine: str = "cheetah"
    network: str = "loopback"
    rounds: int = 10
    p0: float = 0.05
    repeats: int = 5
    update_num: int = 6
    update_decay: float = 0.5
    eta: float = 0.15
    eta_decay: float = 0.01
    dropout: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resource not in RESOURCES:
            raise UsageError(f"adjustment.resource is {self.resource!r}, expected {', '.join(RESOURCES)}")
        for name in ("p0", "dropout"):
            if getattr(self, name) >= 1:
                raise UsageError(f"adjustment.{name} is {getattr(self, name)}, expected a share of channels under 1")

    def check(self, study: Study) -> None:
        """Refuse a network that has no width for every layer, or was trained before, or resources without prices.

        Raises:
            UnknownName, UsageError: also for an engine or a link that is not known.
        """
        start = _start(study)
        super().check(study)
        try:
            self._meter(study).price(start)
        except BudgetError as error:
            raise UsageError(
                f"no {self.resource} are predicted under {self.engine}: {error}; take resource=macs"
            ) from error

    def run(self, study: Study) -> dict[str, Any]:
        """Return the best network, and of each one its widths, what it takes, held-out accuracy and utilisation."""
        first = _start(study)
        meter = self._meter(study)
        design, networks = first, []
        for number in range(self.rounds + 1):
            name = f"round-{number}"
            fresh, dropping = study.build(design.spec), partial(self._dropping, study)
            network = study.trained(name, fresh, study.training, regularize=dropping)
            val = study.noted(f"{name}/val", partial(study.accuracy, network))
            row = {"model": design.spec, "widths": list(design.layers), **meter.takes(design), "val": val}
            networks.append(row)
            if number == self.rounds:
                break
            row["rates"] = rates(study.noted(f"{name}/weights", partial(meter.weights, design)), self.p0)
            row["utilisation"] = self._utilisation(study, name, network, row["rates"])
            wider = self.update_widths(design.layers, first.layers, row["utilisation"], number)
            fitted = partial(match_resource, wider, partial(meter.of_widths, first), meter.price(first))
            before, design = design, with_widths(first, study.noted(f"{name}/next", fitted))
            if design.layers == before.layers:
                break
        best = max(range(len(networks)), key=lambda number: networks[number]["val"])
        n = len(study.task.val)
        return {"model": networks[best]["model"], "best": best, "n_val": n, "networks": networks}

    def _meter(self, study: Study) -> Meter:
        return Meter.of(self.resource, study.task, self.engine, self.network, study.prices)

    def _dropping(self, study: Study, network: nn.Module, step: Step) -> AbstractContextManager[None]:
        """Return the dropout of a training's step."""
        modules, draws = _adjusted(network), stream(study.seed, step.epoch, step.index, study.fabric.global_rank, 2)
        each = dropout_schedule(self.dropout * step.epoch / study.training.epochs, len(modules))
        return channel_dropout(modules, each, draws)

    def _utilisation(self, study: Study, name: str, network: nn.Module, each: Sequence[float]) -> list[float]:
        """Return by how much the loss on held-out images rises where a layer loses its share of channels."""
        network, split = copied(network).to(study.fabric.device), study.task.val.to(study.fabric.device)
        modules = _adjusted(network)
        whole: float = study.noted(f"{name}/loss", partial(mean_loss, network, split))

        def risen(layer: int) -> float:
            losses = []
            for repeat in range(self.repeats):
                draws = stream(study.seed, layer, repeat, 3)
                with channel_dropout([modules[layer]], [each[layer]], draws):
                    losses.append(mean_loss(network, split))
            return sum(losses) / len(losses) - whole

        return [study.noted(f"{name}/layer-{layer}", partial(risen, layer)) for layer in range(len(modules))]

    def update_widths(self, widths: Widths, initial: Widths, utilisation: Sequence[float], number: int) -> Widths:
        """Return the widths after the adjustment of round ``number``, from 0 on; what they cost may have changed.

        Args:
            initial: the widths before the first one, which steps are parts of.
            utilisation: of each layer.
        """
        count = min(max(round(self.update_num - number * self.update_decay), 0), len(widths) // 2)
        ranked = sorted(range(len(widths)), key=lambda layer: utilisation[layer])
        after = list(widths)
        for rank in range(count):
            step = max(self.eta - rank * self.eta_decay, 0.0)
            low, high = ranked[rank], ranked[-1 - rank]
            after[low] = max(MIN_WIDTH, round(widths[low] - step * initial[low]))
            after[high] = round(widths[high] + step * initial[high])
        return tuple(after)

    def tell(self, found: Mapping[str, Any]) -> str:
        """Return the networks as a table, the best one marked, and how to train it further."""
        priced = self.resource in ("bytes", "seconds")
        lines = [f"{'round':<7}{'ReLUs':>10}{'MMAC':>10}{self.resource if priced else '':>12}{'held-out':>12}"]
        for number, row in enumerate(found["networks"]):
            price = format_quantity(row[self.resource], self.resource) if priced else ""
            mark = "  best" if number == found["best"] else ""
            counts = f"{number:<7}{row['relus']:>10,}{row['macs'] / 1e6:>10.1f}{price:>12}"
            lines.append(f"{counts}{100 * row['val']:>10.2f} %{mark}")
        widths = "-".join(map(str, found["networks"][found["best"]]["widths"]))
        lines.append(f"widths {widths}; {found['n_val']:,} held-out images")
        return "\n".join([*lines, f"next: reluctant train {found['model']} --task {found['task']} --out ..."])


def rates(weights: Sequence[float], p0: float) -> list[float]:
    """Return the rate of dropout in each layer by which all lose as much: ``p0`` times the mean of ``weights``.

    A layer whose channels take next to nothing loses no more than :data:`MAX_DROPOUT` of them, and so less than others.
    """
    removed = p0 * sum(weights) / len(weights)
    return [removed / weight if weight * MAX_DROPOUT > removed else MAX_DROPOUT for weight in weights]


def dropout_schedule(last: float, layers: int) -> list[float]:
    """Return rates of dropout that grow linearly from layer to layer, up to ``last``."""
    return [last * (layer + 1) / layers for layer in range(layers)]


@contextmanager
def channel_dropout(modules: Sequence[nn.Module], each: Sequence[float], draws: torch.Generator) -> Iterator[None]:
    """Within it, ``modules`` put out maps whose channels are zero with the probability ``each`` says, in any mode.

    Every image and channel is drawn on its own; what is left is as much larger. On exit nothing of it is left.

    Args:
        draws: a generator of the CPU.
    """

    def drop(rate: float, module: nn.Module, given: object, output: Tensor) -> Tensor:
        keep = torch.rand(output.shape[:2], generator=draws) >= rate
        return output * (keep / (1 - rate)).to(output)[..., None, None]

    hooks = [
        module.register_forward_hook(partial(drop, rate)) for module, rate in zip(modules, each, strict=True) if rate
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def mean_loss(network: nn.Module, split: Split, *, batch: int = 500) -> float:
    """Return the mean cross-entropy of ``network`` on ``split``, in evaluation mode and float32."""
    total = 0.0
    with evaluating(network):
        for images, labels in split.batches(batch):
            total += float(F.cross_entropy(network(images), labels, reduction="sum"))
    return total / len(split)


def _start(study: Study) -> Adjusted:
    design = ModelSpec.parse(study.model).design
    if not isinstance(design, Adjusted):
        raise UsageError(
            f"{study.model} has no width for every layer: start from adjusted, or from its like with other blocks, "
            "such as adjusted:blocks=2-2-2-2,width=32"
        )
    if min(design.layers) < MIN_WIDTH:
        raise UsageError(
            f"{study.model} has a layer of {min(design.layers)} channels, and none may have under {MIN_WIDTH}"
        )
    return design


def _adjusted(network: nn.Module) -> Sequence[nn.Module]:
    return network.adjusted  # type: ignore[return-value]
