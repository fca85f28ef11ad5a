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

from jaxtyping import Float
from torch import Tensor

from reluctant.mask import Mask, grouped
from reluctant.masked import MaskedModel
from reluctant.methods.base import MaskMethod
from reluctant.probing import probe
from reluctant.task import Job

log = logging.getLogger(__name__)


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

        def term(gradient: Tensor, gaps: Tensor) -> Tensor:
            return (gradient * gaps).abs()

        return probe(model, job, term, images=self.images, batch=self.batch, stage=self.name)
