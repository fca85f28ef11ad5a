"""Random mask.

Paper:    none; the floor that every method must clear.
Deviates: nothing to deviate from.
Symbols:  none.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from reluctant.mask import Mask
from reluctant.masked import MaskedModel
from reluctant.methods.base import MaskMethod
from reluctant.task import Job, stream


@dataclass(frozen=True, kw_only=True)
class Random(MaskMethod):
    """Keep ReLUs drawn uniformly from all sites together."""

    name: ClassVar[str] = "random"

    def search(self, model: MaskedModel, job: Job) -> Mask:
        generator = stream(job.seed)
        scores = {name: torch.rand(site.shape, generator=generator) for name, site in model.sites.items()}
        return Mask.top(scores, job.prices, job.limit)
