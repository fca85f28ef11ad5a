"""Sphynx's micro-search.

Paper:    Cho, Ghodsi, Reagen, Garg, Hegde. Sphynx: ReLU-Efficient Network Design for Private Inference. IEEE Security
          and Privacy 2022, arXiv:2106.11755; its cells are searched as in DARTS (arXiv:1806.09055).
Deviates: architecture steps are of first order; the second-order term of the authors' code is scaled so that it hardly
          counts. The best epoch of the cell search is that of the held-out split, which neither half of the training
          split has. Of the skeletons, the weights' step runs the sampled one alone, since the others' part in its loss
          is zero; and it leaves the places' logits alone, which the authors' also moves. Rates and temperature change
          by the step. The average pool counts its padding as zeros, as that of the design does.
Recalled: procedure and settings are those of the released code; the paper's text could not be read. As in DARTS, an
          architecture step comes before each step of the weights, logits start from a normal distribution of deviation
          0.001, batch norms of the searched cells have no weights, and the share of no edge weakens an edge. Not known
          of the places' search are the form of the skeletons, the data of its steps and whether they share a draw:
          here skeletons are the networks that the design builds (one ReLU a cell, after the 1x1 convolution; four times
          the channels at a reduction), the halves are those of the cell search, and each step draws for itself.
Symbols:  C0 of the search -> search_width; L of the search -> search_cells; alpha -> logits of edges; beta -> logits of
          places; tau -> temperature.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from reluctant.designs.sphynx import Sphynx
from reluctant.errors import UsageError
from reluctant.loop import Counters
from reluctant.models import ModelSpec
from reluctant.searches.base import Search, Study
from reluctant.searches.supernet import Skeletons, Supernet, derive, pairs
from reluctant.task import Split, stream
from reluctant.training import set_rate, share_correct


@dataclass(frozen=True, kw_only=True)
class SphynxSearch(Search):
    """Cells whose operations are found by gradient descent on shares of all of them, then places of reduction cells.

    The network that it starts from says how many cells there will be, and how wide.

    Args:
        search_cells, search_width: of the network in which cells are searched.
        cell_epochs, place_epochs: of the two searches; 0 keeps the network's cells, or its places.
        cell_batch, place_batch: images a step, and as many of the other half for a step of the architecture.
        lr, lr_end: of SGD for the weights; a cosine goes from one to the other.
        clip: bound on the norm of the weights' gradient.
        architecture_lr, architecture_decay: rate and weight decay of Adam for the architecture.
        temperature, temperature_end: of the Gumbel-softmax that draws places, from first to last.
        others: skeletons beside the sampled one that a step of the places looks at.
    """

    name: ClassVar[str] = "sphynx"
    may_be_zero: ClassVar[tuple[str, ...]] = (
        "cell_epochs",
        "place_epochs",
        "lr_end",
        "momentum",
        "weight_decay",
        "architecture_decay",
        "others",
    )

    search_cells: int = 8  # released code, as is all that follows
    search_width: int = 16
    cell_epochs: int = 50
    place_epochs: int = 50
    cell_batch: int = 64
    place_batch: int = 96
    lr: float = 0.025
    lr_end: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 3e-4
    clip: float = 5.0
    architecture_lr: float = 3e-4
    architecture_decay: float = 1e-3
    temperature: float = 10.0
    temperature_end: float = 0.1
    others: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.search_cells < 3:
            raise UsageError(
                f"sphynx.search_cells is {self.search_cells}, expected 3 or more: two reduce, and one does not"
            )
        if not self.cell_epochs and not self.place_epochs:
            raise UsageError("sphynx.cell_epochs and sphynx.place_epochs are both 0: nothing is searched")

    def check(self, study: Study) -> None:
        """Refuse what is no Sphynx, images that cannot be halved twice, and several processes.

        Raises:
            UsageError: with the one at fault.
        """
        super().check(study)
        start = ModelSpec.parse(study.model).design
        if not isinstance(start, Sphynx):
            raise UsageError(
                f"search sphynx looks for the cells of a sphynx network, got {study.model}; name one, as in "
                "sphynx:width=5,cells=10"
            )
        side = min(study.task.input_shape[1:])
        if self.cell_epochs:
            Sphynx().check_side(side)
        if self.place_epochs:
            start.changed({"reductions": (0, 1)}).check_side(side)
        if study.fabric.world_size > 1:
            raise UsageError("search sphynx runs in one process: leave the number of devices out of --device")

    def run(self, study: Study) -> dict[str, Any]:
        """Return cells and places, and in ``model`` the network that has them."""
        design = ModelSpec.parse(study.model).design
        assert isinstance(design, Sphynx), "checked before"
        found: dict[str, Any] = {}
        if self.cell_epochs:
            found |= study.noted("cells", partial(self._find_cells, study))
            design = design.changed({kind: found[kind] for kind in ("normal_cell", "reduction_cell")})
        if self.place_epochs:
            found |= study.noted("places", partial(self._find_places, study, design))
            design = design.changed({"reductions": found["reductions"]})
        return {"model": design.spec, **found}

    def tell(self, found: Mapping[str, Any]) -> str:
        """Return the cells and the places, and how to train the network."""
        lines = []
        if "normal_cell" in found:
            lines += [
                f"normal cell     {found['normal_cell']}",
                f"reduction cell  {found['reduction_cell']}",
                f"of epoch {found['epoch']}, when all operations together had {100 * found['val']:.2f} % of "
                f"{found['n_val']:,} held-out images",
            ]
        if "reductions" in found:
            first, second = found["reductions"]
            lines.append(f"reductions at cells {first} and {second}: probability {found['probability']:.3f}")
        return "\n".join([*lines, f"next: reluctant train {found['model']} --task {found['task']} --out ..."])

    def _find_cells(self, study: Study) -> dict[str, Any]:
        torch.manual_seed(study.seed)
        model = Supernet(self.search_cells, self.search_width, len(study.task.classes), study.task.input_shape[0])
        ours, theirs = halves(study.task.train, study.seed)
        loop = study.loop(
            "cells", ours, epochs=self.cell_epochs, batch=self.cell_batch, settings={"search": self.to_json()}
        )
        best = Counters(val=-1.0)
        network, weights, architecture = loop.setup(
            model, *self._optimizers(model, [model.normal, model.reduction]), best=best
        )
        theirs = theirs.to(study.fabric.device)
        for step in loop:
            network.train()
            set_rate(weights, self.rate(step.done))
            other = loop.beside(step, theirs)
            loop.take(F.cross_entropy(network(other.images), other.labels), architecture)
            loss = F.cross_entropy(network(step.images), step.labels)
            loop.take(loss, weights, clip=(weights.param_groups[0]["params"], self.clip))
            if step.last:
                val = share_correct(model, study.task.val, study.fabric)
                if val >= best["val"]:
                    cells = {"normal_cell": derive(model.normal), "reduction_cell": derive(model.reduction)}
                    best.update(cells, val=val, n_val=len(study.task.val), epoch=step.epoch + 1)
                loop.note(epoch=step.epoch + 1, loss=float(loss.detach()), val=val)
        return dict(best)

    def _find_places(self, study: Study, design: Sphynx) -> dict[str, Any]:
        torch.manual_seed(study.seed)
        places = pairs(design.cells)
        designs = [design.changed({"reductions": pair}) for pair in places]
        model = Skeletons(designs, len(study.task.classes), study.task.input_shape[0])
        ours, theirs = halves(study.task.train, study.seed)
        settings = {"search": self.to_json(), "model": design.spec}
        loop = study.loop("places", ours, epochs=self.place_epochs, batch=self.place_batch, settings=settings)
        network, weights, architecture = loop.setup(model, *self._optimizers(model, [model.logits]))
        theirs = theirs.to(study.fabric.device)
        for step in loop:
            network.train()
            set_rate(weights, self.rate(step.done))
            temperature = self.temperature + (self.temperature_end - self.temperature) * step.done
            other = loop.beside(step, theirs)
            drawn = F.gumbel_softmax(model.logits, temperature, hard=True)
            shown = self._shown(int(drawn.argmax()), len(places))
            with torch.no_grad():  # the straight-through gradient of a logit needs no more than the scores themselves
                scores = torch.stack([network(other.images, which) for which in shown])
            loop.take(F.cross_entropy(torch.einsum("n,nbk->bk", drawn[shown], scores), other.labels), architecture)
            which = int(F.gumbel_softmax(model.logits.detach(), temperature, hard=True).argmax())
            loss = F.cross_entropy(network(step.images, which), step.labels)
            loop.take(loss, weights, clip=(weights.param_groups[0]["params"], self.clip))
            if step.last:
                loop.note(epoch=step.epoch + 1, loss=float(loss.detach()), probability=float(likely(model).max()))
        probabilities = likely(model)
        return {
            "reductions": list(places[int(probabilities.argmax())]),
            "probability": float(probabilities.max()),
            "places": [[*pair, share] for pair, share in zip(places, probabilities.tolist(), strict=True)],
        }

    def rate(self, done: float) -> float:
        """Return the weights' rate after the share ``done`` of all steps: a cosine."""
        return self.lr_end + (self.lr - self.lr_end) * (1 + math.cos(math.pi * done)) / 2

    def _optimizers(self, model: nn.Module, architecture: list[nn.Parameter]) -> tuple[torch.optim.Optimizer, ...]:
        chosen = {id(logits) for logits in architecture}
        weights = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
        return (
            torch.optim.SGD(weights, self.lr, self.momentum, weight_decay=self.weight_decay),
            torch.optim.Adam(architecture, self.architecture_lr, (0.5, 0.999), weight_decay=self.architecture_decay),
        )

    def _shown(self, sampled: int, skeletons: int) -> list[int]:
        """Return the sampled skeleton and some others by chance."""
        rest = [which for which in torch.randperm(skeletons).tolist() if which != sampled]
        return [sampled, *rest[: self.others]]


def likely(model: Skeletons) -> torch.Tensor:
    """Return the probability of each skeleton, ``[N]``."""
    return model.logits.detach().softmax(0).cpu()


def halves(split: Split, seed: int) -> tuple[Split, Split]:
    """Return the images that weights are trained on, and as many others for the architecture, drawn by ``seed``."""
    order = torch.randperm(len(split), generator=stream(seed, len(split)))
    first, second = (
        replace(split, images=split.images[part], labels=split.labels[part]) for part in order.tensor_split(2)
    )
    return first, second
