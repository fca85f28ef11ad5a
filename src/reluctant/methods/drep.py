"""DReP: a score from the states of neurons, for networks that are not trained again.

Paper:    Hu, Sun, Hu, Dai et al. Journal of Systems Architecture 2024, doi:10.1016/j.sysarc.2024.103156.
Deviates: our reconstruction. Of the paper only the abstract is known to us: the average output state of a neuron tells
          how important its ReLU is, in networks that are neither redesigned nor retrained. Which average, which
          direction, and the structured pruning of whole layers that goes before it are not known. Here a score is how
          far, on average, the output of a neuron is from what its surrogate would put out; for the identity that is
          its average output with the ReLU less that without. It is taken relative to the average output of its site,
          since nothing else makes sites comparable where no gradient is taken.
Symbols:  E|relu(z) - g(z)| / E|relu(z)| over the site, E the mean over images and g the surrogate.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reluctant.mask import Mask, grouped
from reluctant.masked import MaskedActivation, MaskedModel
from reluctant.methods.base import MaskMethod
from reluctant.probing import gap
from reluctant.sites import evaluating
from reluctant.task import Job


class States(nn.Module):
    """ReLU that adds up its outputs, and their distances from the surrogate's, element by element."""

    def __init__(self, activation: MaskedActivation) -> None:
        super().__init__()
        self.activation = activation
        self.output = torch.zeros(activation.site.shape, device=activation.keep.device)
        self.distance = torch.zeros_like(self.output)

    def forward(self, z: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        y = z.relu()
        self.output += y.sum(0)
        self.distance += gap(self.activation, z).abs().sum(0)
        return y


@dataclass(frozen=True, kw_only=True)
class DReP(MaskMethod):
    """Keep the ReLUs whose neurons would change their average output most; no gradient, no training.

    Args:
        images: training images to average over, un-augmented, in batches of ``batch``.
        granularity: what is kept or dropped together: ``pixel``, ``channel`` or ``spatial``.
    """

    name: ClassVar[str] = "drep"

    images: int = 2048
    batch: int = 128
    granularity: str = "pixel"

    def search(self, model: MaskedModel, job: Job) -> Mask:
        scores = {name: grouped(score, self.granularity) for name, score in self.scores(model, job).items()}
        return Mask.top(scores, job.prices, job.limit, {name: site.shape for name, site in model.sites.items()})

    @torch.no_grad()
    def scores(self, model: MaskedModel, job: Job) -> dict[str, Float[Tensor, "..."]]:
        """Return the relative change of every neuron's average output; the model is left as it was."""
        train, seen = job.train.to(job.fabric.device), 0
        model.to(job.fabric.device)
        if model.constants():
            model.start_surrogates(train.inputs(slice(self.batch)))
        with evaluating(model), model.gates(States) as states:
            for inputs, labels in train.batches(self.batch):
                model(inputs)
                seen += len(labels)
                job.progress(self.name, min(seen, self.images), min(self.images, len(train)))
                if seen >= self.images:
                    break
        return {name: (one.distance / (one.output.mean() + 1e-12)).cpu() for name, one in states.items()}
