"""Whether a training still makes sense: losses and weights that are no longer finite end it, and it says where."""

from typing import TYPE_CHECKING, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reluctant.errors import DivergedError
from reluctant.masked import MaskedModel

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from reluctant.loop import Step

#: Steps between looks, where each would wait for a GPU or for other processes.
LOOK_EVERY = 50

_NEVER = 2**62


class Divergence:
    """Watches the losses of a loop's steps and the weights of its model.

    On a CPU, in one process, a loss is looked at when it is there, before it can do harm. Elsewhere the first step of
    a loss that is not finite is only noted, on the device, until :meth:`check`.

    Args:
        stage: name of the loop.

    Attributes:
        model: whose weights are watched, and whose site is named if it is masked.
        step: the one in hand.
    """

    def __init__(self, stage: str, fabric: "Fabric") -> None:
        self.stage, self.fabric = stage, fabric
        self.model = nn.Module()
        self.step: Step | None = None
        self.at_once = fabric.world_size == 1 and torch.device(fabric.device).type == "cpu"
        self._first = torch.full((), _NEVER, device=fabric.device)

    @torch.no_grad()
    def see(self, loss: Tensor) -> None:
        """Take note of the loss (a scalar) of the step in hand.

        Raises:
            DivergedError: it is not finite, and that could be seen at once.
        """
        if self.step is None:
            return
        if not self.at_once:
            here = torch.where(loss.isfinite(), _NEVER, self.step.epoch << 32 | self.step.index)
            self._first = torch.minimum(self._first, here)
        elif not loss.isfinite():
            self._refuse(self.step.epoch, self.step.index, f"loss is {float(loss):g}")

    @torch.no_grad()
    def is_finite(self) -> bool:
        """Return whether every loss so far, on this rank, and every weight is finite."""
        whole = [self._first == _NEVER, *(parameter.isfinite().all() for parameter in self.model.parameters())]
        return bool(torch.stack(whole).all())

    def check(self) -> None:
        """Wait for the device and the other ranks, and go on if all is well.

        Raises:
            DivergedError: a loss so far, on any rank, or a weight is not finite.
        """
        first = self._first
        if self.fabric.world_size > 1:
            first = self.fabric.all_reduce(first.clone(), reduce_op="min")
        if int(first) != _NEVER:
            self._refuse(int(first) >> 32, int(first) & (2**32 - 1), "loss is not finite")
        if self.step is not None and not self.is_finite():
            self._refuse(self.step.epoch, self.step.index, "weights are not finite")

    def _refuse(self, epoch: int, index: int, what: str) -> NoReturn:
        site = None if self.step is None else self._site(self.step.images)
        where = "" if site is None else f", first at site {site}"
        raise DivergedError(
            f"{self.stage} diverged at epoch {epoch + 1}, step {index + 1}: {what}{where}; lower the learning rate or "
            "bound the gradient (clip)"
        )

    @torch.no_grad()
    def _site(self, images: Float[Tensor, "B C H W"]) -> str | None:
        """Return the first site whose input is not finite for ``images`` now; ``None`` if there is none."""
        if not isinstance(self.model, MaskedModel):
            return None
        found: list[str] = []
        handles = []
        for name, activation in zip(self.model.sites, self.model.activations, strict=True):

            def look(module: nn.Module, args: tuple[Tensor], name: str = name) -> None:
                if not args[0].isfinite().all():
                    found.append(name)

            handles.append(activation.register_forward_pre_hook(look))
        with self.fabric.autocast():
            self.model(images.clone())
        for handle in handles:
            handle.remove()
        return found[0] if found else None
