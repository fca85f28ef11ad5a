"""Class scores of a network, and learning from those of another."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from reluctant.features import attention_gap, stage_ends, watching
from reluctant.loop import Loop, Step, fingerprint, read_state, write_state
from reluctant.masked import MaskedModel, attach
from reluctant.sites import Sites, copied

#: Images at a time where a teacher looks at a whole view.
ROWS = 500


def logits(output: Any) -> Tensor:
    """Return the class scores ``[B, K]`` in what a network returned: the tensor itself, or the first of several."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output


class Teacher:
    """A frozen copy of a network, asked without gradients for its class scores on the images of a loop's steps.

    Where the training has a fixed number of augmented views (:class:`reluctant.task.Augmentation`), the scores of each
    are computed once, held in 16 bits (2 bytes a class an image), and kept beside the loop's state, where a finetune
    finds those of the search before it.

    Args:
        model: in whatever mode; it is copied.
    """

    def __init__(self, model: nn.Module, loop: Loop) -> None:
        self.network = copied(model).to(loop.fabric.device).eval().requires_grad_(False)
        self.loop = loop
        self.known: dict[int, Float[Tensor, "N K"]] = {}

    def __call__(self, step: Step) -> Float[Tensor, "B K"]:
        """Return the class scores for the images of ``step``.

        Raises:
            Paused: the time limit is near, in the middle of a view; what is known of it is saved.
        """
        if step.view is None:
            return self._scores(step.images)
        if step.view not in self.known:
            self.known[step.view] = self._of_view(step.view)
        return self.known[step.view][step.ids].float()

    @torch.no_grad()
    def _scores(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        with self.loop.fabric.autocast():
            return logits(self.network(images.clone())).float()  # a network may overwrite its input

    def _of_view(self, view: int) -> Float[Tensor, "N K"]:
        loop = self.loop
        path = None if loop.directory is None else loop.directory / f"teacher-{view}.state"
        about = fingerprint(self.network.state_dict(), f"{view} {loop.seed} {loop.augmentation} {len(loop.train)}")
        state = read_state(path) if path is not None and path.exists() else None
        parts = [state["scores"]] if state is not None and state["about"] == about else []
        loop.fabric.barrier()  # before one rank writes what another has not looked for yet
        done, total = sum(map(len, parts)), len(loop.train)
        begun, found = time.monotonic(), done
        for images in loop.train.view(ROWS, view, loop.augmentation, seed=loop.seed, start=done):
            if loop.is_late():
                self._keep(path, about, parts)
                loop.pause(f"teacher's view {view}", done, total)
            parts.append(self._scores(images).half().cpu())
            done += len(images)
        if done > found:
            self._keep(path, about, parts)
        loop.leave_out(time.monotonic() - begun)
        return torch.cat(parts).to(loop.fabric.device)

    def _keep(self, path: Path | None, about: str, parts: list[Tensor]) -> None:
        if path is not None and parts and self.loop.fabric.is_global_zero:
            write_state(path, {"about": about, "scores": torch.cat(parts)})


def distillation(
    student: Float[Tensor, "B K"],
    teacher: Float[Tensor, "B K"],
    temperature: float,
    counted: Bool[Tensor, "B"] | None = None,
) -> Float[Tensor, ""]:
    """Return ``T^2 KL(teacher || student)`` at temperature T, the mean over the batch (Hinton et al., 2015).

    Args:
        counted: images that count, others being zero in the mean; all if not given.
    """
    soft = F.log_softmax(student / temperature, 1)
    if counted is None:
        return temperature**2 * F.kl_div(soft, F.softmax(teacher / temperature, 1), reduction="batchmean")
    each = F.kl_div(soft, F.softmax(teacher / temperature, 1), reduction="none").sum(1)
    return temperature**2 * (each * counted).mean()


class FeatureTeacher:
    """A frozen copy of a dense network, asked for class scores and for what its sites put out.

    Features are never held: each step costs a pass of the teacher.

    Args:
        sites: of the network; ``names`` are those to watch.
    """

    def __init__(self, model: nn.Module, sites: Sites, names: Sequence[str], loop: Loop) -> None:
        self.network = attach(model, sites).to(loop.fabric.device).eval().requires_grad_(False)
        self.names, self.loop = names, loop

    @torch.no_grad()
    def __call__(self, step: Step) -> tuple[Float[Tensor, "B K"], dict[str, Tensor]]:
        """Return the class scores for the images of ``step``, and the features ``[B, *shape]`` by site."""
        with self.loop.fabric.autocast(), watching(self.network, self.names) as seen:
            scores = logits(self.network(step.images.clone())).float()
        return scores, seen


#: Asks the teacher about a step, before the student's own pass: so what the teacher computes on the way is gone before
#: what the student must remember is there. What it returns makes of the student's class scores the loss to add.
Lesson = Callable[[Step], Callable[[Float[Tensor, "B K"]], Tensor]]


@contextmanager
def teaching(
    teacher: nn.Module,
    student: nn.Module,
    loop: Loop,
    *,
    temperature: float,
    distil: float,
    attention: float = 0.0,
    only_right: bool = False,
) -> Iterator[Lesson]:
    """Teach ``student`` while inside.

    Args:
        distil: weight of :func:`distillation` at ``temperature``.
        only_right: of those images alone that the teacher gets right.
        attention: weight of :func:`reluctant.features.attention_gap` at the ends of the stages. Above zero it needs a
            masked student, and a pass of the teacher for each step.
    """

    def from_scores(step: Step, target: Tensor) -> Callable[[Tensor], Tensor]:
        right = target.argmax(1) == step.labels if only_right else None
        return lambda output: distil * distillation(output, target, temperature, right)

    if not attention or not isinstance(student, MaskedModel):
        scores = Teacher(teacher, loop)
        yield lambda step: from_scores(step, scores(step))
        return
    ends = stage_ends(student.sites)
    features = FeatureTeacher(teacher, student.sites, ends, loop)
    with watching(student, ends) as seen:

        def lesson(step: Step) -> Callable[[Tensor], Tensor]:
            target, theirs = features(step)
            answers = from_scores(step, target)
            return lambda output: answers(output) + attention * attention_gap(seen, theirs)

        yield lesson
