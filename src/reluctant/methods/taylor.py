"""First-order Taylor score, one shot.

Paper:    the score of ReLUPruner (AAAI 2026) and StreamliNet (Information Sciences 2024) in its plainest form; the idea
          goes back to Molchanov et al., ICLR 2017, arXiv:1611.06440 (section 2.2).
Deviates: no retraining between removals, no layer weights, no negativity weight: those are their own methods. Where the
          surrogate is the identity, relu(z) - z is the negative part of z; for another surrogate the gap to that one is
          taken.
Symbols:  |dL/dy| |relu(z) - g(z)|, the mean over images, L the cross-entropy.
"""

import logging
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reluctant.distillation import logits
from reluctant.mask import Mask, grouped
from reluctant.masked import MaskedActivation, MaskedModel
from reluctant.methods.base import MaskMethod
from reluctant.sites import evaluating
from reluctant.task import Job

log = logging.getLogger(__name__)


class Probe(nn.Module):
    """ReLU that adds up, element by element, how much the loss would change if it were the surrogate instead."""

    def __init__(self, activation: MaskedActivation) -> None:
        super().__init__()
        self.activation = activation
        self.score = torch.zeros(activation.site.shape, device=activation.keep.device)

    def forward(self, z: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        y = z.relu()
        with torch.no_grad():
            c0, c1, c2 = self.activation.coefficients()
            gap = y - (c0 + c1 * z + c2 * z * z)

        def add(gradient: Tensor) -> None:
            self.score += (gradient * gap).abs().sum(0)

        y.register_hook(add)  # type: ignore[no-untyped-call]
        return y


def layer_report(scores: dict[str, Tensor]) -> list[tuple[str, float, float]]:
    """Return for each site its name, its share of all scores and its mean score, in the order of the sites."""
    total = sum(float(score.sum()) for score in scores.values()) or 1.0
    return [(name, float(score.sum()) / total, float(score.mean())) for name, score in scores.items()]


@dataclass(frozen=True, kw_only=True)
class Taylor(MaskMethod):
    """Keep the ReLUs whose removal would change the loss most, to first order, in the dense network.

    Args:
        images: training images to average over, un-augmented, in batches of ``batch``.
        granularity: what is kept or dropped together: ``pixel``, ``channel`` or ``spatial``.
    """

    name: ClassVar[str] = "taylor"

    images: int = 4096
    batch: int = 128
    granularity: str = "pixel"

    def search(self, model: MaskedModel, job: Job) -> Mask:
        scores = self.scores(model, job)
        for name, share, mean in layer_report(scores):
            log.info("taylor %s: %.1f %% of the score, %.3g a ReLU", name, 100 * share, mean)
        shapes = {name: site.shape for name, site in model.sites.items()}
        groups = {name: grouped(score, self.granularity) for name, score in scores.items()}
        return Mask.top(groups, job.prices, job.limit, shapes)

    def scores(self, model: MaskedModel, job: Job) -> dict[str, Float[Tensor, "..."]]:
        """Return the mean over images of |gradient x gap| at every site; the model is left as it was."""
        seen = 0
        model.to(job.fabric.device)
        if model.constants():
            model.start_surrogates(job.train.to(job.fabric.device).inputs(slice(self.batch)))
        with evaluating(model), model.gates(Probe) as probes:
            for images, labels in job.train.to(job.fabric.device).batches(self.batch):
                # The sum, not the mean, so each image's gradient is its own; times one, so that the first operation may
                # be in place, and a ReLU of the image itself has a gradient, too.
                loss = F.cross_entropy(logits(model(images.requires_grad_() * 1)), labels, reduction="sum")
                loss.backward()  # type: ignore[no-untyped-call]
                seen += len(labels)
                job.progress("taylor", min(seen, self.images), min(self.images, len(job.train)))
                if seen >= self.images:
                    break
            model.zero_grad(set_to_none=True)
            return {name: probe.score.cpu() / seen for name, probe in probes.items()}
