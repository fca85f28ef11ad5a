"""What the loss of a dense network says about each of its ReLUs, before anything is trained.

The loss changes, to first order, by gradient times gap if a ReLU becomes its surrogate, where the gap is what that
changes in the ReLU's output. How methods differ is in what they make of the two before the sum over images.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reluctant.blend import polynomial
from reluctant.distillation import logits
from reluctant.masked import MaskedActivation, MaskedModel
from reluctant.sites import evaluating
from reluctant.task import Job

#: Makes of the gradients ``[B, *shape]`` of each image's own loss and the gaps ``[B, *shape]`` what is summed over B.
Term = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def gap(activation: MaskedActivation, z: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
    """Return ``relu(z) - g(z)`` with g the surrogate of ``activation``; of the identity that is max(-z, 0)."""
    terms = activation.terms()
    return z.neg().clamp_(min=0) if all(term is None for term in terms) else z.relu() - polynomial(z, *terms)


class Probe(nn.Module):
    """ReLU that adds up a term of its gradients and gaps, element by element."""

    def __init__(self, activation: MaskedActivation, term: Term) -> None:
        super().__init__()
        self.activation, self.term = activation, term
        self.total = torch.zeros(activation.site.shape, device=activation.keep.device)

    def forward(self, z: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        y, gaps = z.relu(), gap(self.activation, z)

        def add(gradient: Tensor) -> None:
            self.total += self.term(gradient, gaps).sum(0)

        y.register_hook(add)  # type: ignore[no-untyped-call]
        return y


def probe(
    model: MaskedModel, job: Job, term: Term, *, images: int, batch: int, stage: str
) -> dict[str, Float[Tensor, "..."]]:
    """Return by site the mean of ``term`` over images, of the cross-entropy with all ReLUs there; on the CPU.

    Weights and mode of the model stay; trained coefficients of its surrogates are fitted to the first batch before.

    Args:
        images: of the training split's first, un-augmented, rounded up to whole batches of ``batch``.
        stage: for whoever watches the progress.
    """
    train, seen = job.train.to(job.fabric.device), 0
    model.to(job.fabric.device)
    if model.constants():
        model.start_surrogates(train.inputs(slice(batch)))
    with evaluating(model), model.gates(lambda activation: Probe(activation, term)) as probes:
        for inputs, labels in train.batches(batch):
            # The sum, not the mean, so each image's gradient is its own; times one, so that the first operation may
            # be in place, and a ReLU of the image itself has a gradient, too.
            loss = F.cross_entropy(logits(model(inputs.requires_grad_() * 1)), labels, reduction="sum")
            loss.backward()  # type: ignore[no-untyped-call]
            seen += len(labels)
            job.progress(stage, min(seen, images), min(images, len(train)))
            if seen >= images:
                break
        model.zero_grad(set_to_none=True)
        return {name: one.total.cpu() / seen for name, one in probes.items()}
