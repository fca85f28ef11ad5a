"""SNIP: connection sensitivity, applied to the ReLU mask.

Paper:    Lee, Ajanthan, Torr. ICLR 2019, arXiv:1810.02340; of it the score of section 4.1. That this be applied to the
          ReLU mask, as a weak baseline, is SNL's idea (Cho et al., ICML 2022, arXiv:2202.02340): 56.8 % on CIFAR-100
          with a ResNet-18 of 12.9 thousand ReLUs, where SNL has 66.5 %.
Deviates: the paper prunes weights of an untrained network; here the network is the trained one, in evaluation mode, as
          there is nothing to say about the ReLUs of an untrained one. How SNL's authors ran it is not known, so this is
          our reconstruction. The scores are not divided by their sum, which changes no order.
Symbols:  c -> m, the mask; the score is |dL/dm| = |sum over images of dL/dy (relu(z) - g(z))|, g the surrogate.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from reluctant.mask import Mask, grouped
from reluctant.masked import MaskedModel
from reluctant.methods.base import MaskMethod
from reluctant.probing import probe
from reluctant.task import Job


@dataclass(frozen=True, kw_only=True)
class SNIP(MaskMethod):
    """Keep the ReLUs in whose mask the loss of a few images is steepest, one shot.

    Images may cancel each other: only the gradient of their common loss counts, which is what makes it weak.

    Args:
        images: training images, un-augmented, in batches of ``batch``.
        granularity: what is kept or dropped together: ``pixel``, ``channel`` or ``spatial``. A group has one entry of
            the mask, so its score is of the sum of its gradients.
    """

    name: ClassVar[str] = "snip"

    images: int = 128  # one batch, as on CIFAR in the paper
    batch: int = 128
    granularity: str = "pixel"

    def search(self, model: MaskedModel, job: Job) -> Mask:
        shapes = {name: site.shape for name, site in model.sites.items()}
        return Mask.top(self.scores(model, job), job.prices, job.limit, shapes)

    def scores(self, model: MaskedModel, job: Job) -> dict[str, Float[Tensor, "..."]]:
        """Return |dL/dm| by site, a ReLU of a group on average; the model is left as it was."""
        slopes = probe(model, job, torch.mul, images=self.images, batch=self.batch, stage=self.name)
        return {name: grouped(slope, self.granularity).abs() for name, slope in slopes.items()}
