"""Steps that survive an interruption.

A loop's order of images and its augmentation are functions of seed and epoch; everything else that a step reads is in
its state. So a loop that is killed, or stopped by a time limit, and started again with the same arguments ends with the
same weights as one that was not.
"""

import hashlib
import io
import json
import logging
import pickle
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from reluctant.divergence import LOOK_EVERY, Divergence
from reluctant.errors import CheckpointError, UsageError
from reluctant.files import write_atomically
from reluctant.progress import Progress, TimeLimit, limit_of, silent
from reluctant.task import Augmentation, Batch, Job, Split, trains_channels_last

if TYPE_CHECKING:
    from lightning_fabric import Fabric

log = logging.getLogger(__name__)


@runtime_checkable
class Stateful(Protocol):
    """What has a state that a loop keeps: models, optimizers, averages, a search's own counters."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


def fingerprint(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """Return a SHA-256, in hexadecimal, over ``text`` and the names, types, shapes and values of ``tensors``."""
    sha = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        if tensor.numel():
            sha.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write what an interrupted stretch of work needs to go on; the file is whole or not there."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_atomically(path, buffer.getvalue())


def read_state(path: Path) -> dict[str, Any]:
    """Return what :func:`write_state` wrote; its tensors are on the CPU.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} is damaged; delete it, and what it was of starts again") from error
    return state


def is_late(limit: TimeLimit | None, needed: float, fabric: "Fabric") -> bool:
    """Return whether fewer than ``needed`` seconds are left under ``limit``; the same on all ranks."""
    if limit is None:
        return False
    limit.longest = max(limit.longest, needed)
    late = limit.left < needed
    if fabric.world_size > 1:
        late = bool(fabric.all_reduce(torch.tensor(float(late), device=fabric.device), reduce_op="max"))
    return late


class Counters(dict[str, Any]):
    """Plain values (numbers, strings, tensors) that a search wants kept with the loop's state."""

    def state_dict(self) -> dict[str, Any]:
        """Return the values."""
        return dict(self)

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Take over the values of ``state``."""
        self.update(state)


@dataclass(frozen=True)
class Step:
    """One batch and its place.

    Args:
        done: share of all steps that were taken before this one, from 0 to under 1.
        last: the last step of its epoch.
        ids: places of the images in the training split.
        view: which of the fixed augmentations they have; ``None`` if every epoch has its own.
    """

    epoch: int
    index: int
    done: float
    last: bool
    images: Float[Tensor, "B C H W"]
    labels: Int64[Tensor, "B"]
    ids: Int64[Tensor, "B"]
    view: int | None


@dataclass
class Pace:
    """Seconds that parts of a loop took at most, to know whether another one fits under a time limit.

    Args:
        step: an ordinary step of late; ``None`` if there was none yet.
        last: the last step of an epoch, with the validation after it; ``None`` if there was none yet.
        save: writing the state.
        aside: what else went on in a step that others will not have.
    """

    step: float | None = None
    last: float | None = None
    save: float = 1.0
    aside: float = 0.0

    def needed(self, last: bool, steps: int) -> float:
        """Return the seconds to have before a step, and to save after it; ``steps`` are those of an epoch."""
        step = 1.0 if self.step is None else self.step
        if last:
            step = step * (1 + 0.2 * steps) if self.last is None else self.last
        return 1.25 * (step + self.save)

    def took(self, last: bool, seconds: float) -> None:
        """Note that a step took so many ``seconds``; one that was slow by chance is forgotten after some others."""
        seconds, self.aside = seconds - self.aside, 0.0
        if last:
            self.last = max(seconds, 0.7 * (self.last or 0.0))
        else:
            self.step = max(seconds, 0.9 * (self.step or 0.0))


class Loop:
    """Batches of one stretch of training, its optimizer steps, and its state on disk.

    Args:
        stage: its name; also of its files in ``directory``.
        directory: where the state is kept; ``None`` keeps none.
        settings: what the stretch was started with; a state of other settings is not continued.
        progress: is told of every step; under a :class:`~reluctant.progress.TimeLimit` the loop stops before it.
        save_seconds: at least so often the state is written; it always is after an epoch.

    Example::

        loop = Loop("train", train=task.train, augmentation=task.augmentation, epochs=10, batch=128, fabric=fabric)
        network, optimizer = loop.setup(model, torch.optim.SGD(model.parameters(), 0.1))
        for step in loop:
            loop.take(F.cross_entropy(network(step.images), step.labels), optimizer)
    """

    def __init__(
        self,
        stage: str,
        *,
        train: Split,
        augmentation: Augmentation,
        epochs: int,
        batch: int,
        fabric: "Fabric",
        seed: int = 0,
        directory: Path | None = None,
        settings: Mapping[str, Any] | None = None,
        progress: Progress = silent,
        save_seconds: float = 60.0,
    ) -> None:
        if batch % fabric.world_size:
            raise UsageError(f"a batch of {batch} images cannot be shared evenly by {fabric.world_size} processes")
        self.stage, self.augmentation, self.epochs, self.batch = stage, augmentation, epochs, batch
        self.fabric, self.seed, self.save_seconds = fabric, seed, save_seconds
        self.progress = progress if fabric.global_rank == 0 else silent
        self.limit = limit_of(progress)
        self.train, self.directory = train.to(fabric.device), directory
        given = {"seed": seed, "epochs": epochs, "batch": batch, "augmentation": asdict(augmentation)}
        self.settings = json.loads(json.dumps({**given, **(settings or {})}))
        self.history: list[dict[str, float]] = []
        self._kept: dict[str, Stateful] = {}
        self._model = nn.Module()
        self._plain = self._stopped = False
        self._divergence = Divergence(stage, fabric)
        self._before, self._begun = 0.0, time.monotonic()
        self._pace = Pace()

    @classmethod
    def of_job(cls, job: Job, *, epochs: int, batch: int, settings: Mapping[str, Any], stage: str = "search") -> "Loop":
        """Return the loop of a mask search: the job's data, seed, device and folder, the method's ``settings``."""
        return cls(
            stage,
            train=job.train,
            augmentation=job.augmentation,
            epochs=epochs,
            batch=batch,
            seed=job.seed,
            fabric=job.fabric,
            directory=job.directory,
            settings={**settings, "limit": job.limit},
            progress=job.progress,
        )

    def setup(self, model: nn.Module, *optimizers: torch.optim.Optimizer, **state: Stateful) -> tuple[Any, ...]:
        """Return ``model`` and ``optimizers`` on the loop's device, and load the state of an interrupted run.

        Args:
            state: what else a step reads and changes.
        """
        self.settings["start"] = fingerprint(model.state_dict())
        self._model = self._divergence.model = model
        wrapped = self.fabric.setup(model, *optimizers)
        result = wrapped if isinstance(wrapped, tuple) else (wrapped,)
        self._kept = {"model": model, **{f"optimizer{i}": o for i, o in enumerate(optimizers)}, **state}
        return result

    def __iter__(self) -> Iterator[Step]:
        """Yield the steps that are left. What the body does at the last step of an epoch belongs to that epoch.

        Raises:
            Paused: the time limit is near; the state is saved.
            DivergedError: loss or weights are not finite; the last state saved is of before.
        """
        epoch, index = self._resume()
        steps, saved = self.train.steps(self.batch), time.monotonic()
        self._plain = self.fabric.device.type == "cpu" and not trains_channels_last(self._model)
        while epoch < self.epochs:
            view = self.augmentation.view(epoch) if self.augmentation.views else None
            for images, labels, ids in self._batches(self.train, epoch, index):
                last, done = index == steps - 1, epoch * steps + index
                if self.is_late(self._pace.needed(last, steps)):
                    self._divergence.check()
                    self._save(epoch, index)
                    left = self._seconds() / done * (self.epochs * steps - done) if done else None
                    self.pause(self.stage, done, self.epochs * steps, left)
                begun = time.monotonic()
                step = Step(epoch, index, done / (self.epochs * steps), last, images, labels, ids, view)
                self._divergence.step = step
                yield step
                index += 1
                self.progress(self.stage, done + 1, self.epochs * steps, **self._latest())
                self._measure(last, time.monotonic() - begun)
                if self._stopped or last or index % LOOK_EVERY == 0:
                    self._divergence.check()
                if self._stopped:
                    self._save(self.epochs, 0)
                    return
                if not last and time.monotonic() - saved > self.save_seconds and self._divergence.is_finite():
                    self._save(epoch, index)
                    saved = time.monotonic()
            epoch, index = epoch + 1, 0
            self._save(epoch, index)
            saved = time.monotonic()

    def beside(self, step: Step, split: Split) -> Batch:
        """Return the batch of another ``split`` for ``step``, shuffled and augmented as the loop's own batches are."""
        return next(self._batches(split, step.epoch, step.index % split.steps(self.batch)))

    def _batches(self, split: Split, epoch: int, start: int) -> Iterator[Batch]:
        ranks = {"rank": self.fabric.global_rank, "ranks": self.fabric.world_size}
        for batch in split.epoch(self.batch, epoch, self.augmentation, seed=self.seed, start=start, **ranks):
            if self._plain:
                batch = batch._replace(images=batch.images.clone(memory_format=torch.contiguous_format))
            yield batch

    def _measure(self, last: bool, seconds: float) -> None:
        if self.limit is not None:
            self.limit.go_on()  # on every rank, also those that show no progress
        self._pace.took(last, seconds)

    def is_late(self, needed: float | None = None) -> bool:
        """Return whether fewer than ``needed`` seconds are left under the time limit; the same on all ranks.

        Args:
            needed: an ordinary step's if not given.
        """
        return is_late(self.limit, self._pace.needed(False, 1) if needed is None else needed, self.fabric)

    def pause_before(self, step: Step, needed: float) -> None:
        """Go on if ``needed`` seconds are left for what comes before ``step`` is taken, else save the state and stop.

        Raises:
            Paused: there are fewer.
        """
        if self.is_late(1.25 * (needed + self._pace.save)):
            self._save(step.epoch, step.index)
            steps = self.train.steps(self.batch)
            self.pause(self.stage, step.epoch * steps + step.index, self.epochs * steps)

    def leave_out(self, seconds: float) -> None:
        """Do not take ``seconds`` of the step in hand for what steps take."""
        self._pace.aside += seconds

    def pause(self, stage: str, done: int, total: int, seconds_left: float | None = None) -> NoReturn:
        """Stop for now, at ``done`` of ``total`` of ``stage``.

        Raises:
            Paused: always.
        """
        assert self.limit is not None, "only a loop that is late pauses"
        self.limit.pause(stage, done, total, seconds_left)

    def take(
        self,
        loss: Tensor,
        *optimizers: torch.optim.Optimizer,
        clip: tuple[Iterable[nn.Parameter], float] | None = None,
    ) -> None:
        """Go one step down the gradient of ``loss`` (a scalar); ``clip`` bounds the norm of the gradient of some.

        Afterwards weights and running statistics are the same on all ranks.

        Raises:
            DivergedError: the loss is not finite. On a GPU, or with several ranks, that is seen some steps later.
        """
        self._divergence.see(loss)
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.fabric.backward(loss)
        if clip is not None:
            nn.utils.clip_grad_norm_(clip[0], clip[1])
        for optimizer in optimizers:
            optimizer.step()
        if self.fabric.world_size > 1:
            self._average_buffers()

    @torch.no_grad()
    def _average_buffers(self) -> None:
        """Set every running statistic of the model to its mean over the ranks, so that all go on with the same."""
        buffers = [b for b in self._model.buffers() if b.is_floating_point()]
        if buffers:
            means = self.fabric.all_reduce(torch.cat([b.flatten() for b in buffers]), reduce_op="mean")
            for buffer, mean in zip(buffers, means.split([b.numel() for b in buffers]), strict=True):
                buffer.copy_(mean.view_as(buffer))

    def note(self, **metrics: float) -> None:
        """Add a line to the loop's history, with the seconds so far; it goes to ``<stage>.metrics.jsonl``, too."""
        self.history.append({**metrics, "seconds": self._seconds()})
        if self.fabric.global_rank == 0:
            log.info("%s %s", self.stage, " ".join(f"{key}={value:.4g}" for key, value in metrics.items()))

    def stop(self) -> None:
        """End the loop after this step: there is nothing left to do."""
        self._stopped = True

    def _latest(self) -> dict[str, float]:
        return {k: v for k, v in (self.history[-1] if self.history else {}).items() if k not in ("epoch", "seconds")}

    def _seconds(self) -> float:
        """Wall time since the stretch was begun, interrupted time left out."""
        return self._before + time.monotonic() - self._begun

    @property
    def _file(self) -> Path | None:
        return None if self.directory is None else self.directory / f"{self.stage}.state"

    def _save(self, epoch: int, index: int) -> None:
        if self._file is None or self.fabric.global_rank != 0:
            return
        begun = time.monotonic()
        state = {
            "settings": self.settings,
            "epoch": epoch,
            "index": index,
            "history": self.history,
            "seconds": self._seconds(),
            "last": self._pace.last,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all(),
            **{f"kept/{name}": thing.state_dict() for name, thing in self._kept.items()},
        }
        lines = "".join(json.dumps(line) + "\n" for line in self.history)
        write_atomically(self._file.with_suffix(".metrics.jsonl"), lines.encode())  # first: a state makes it final
        write_state(self._file, state)
        self._pace.save = max(self._pace.save, time.monotonic() - begun)

    def _resume(self) -> tuple[int, int]:
        """Load the state file, if there is one of the same settings; return where to go on."""
        if self._file is None or not self._file.exists():
            return 0, 0
        state = read_state(self._file)
        if state["settings"] != self.settings:
            raise CheckpointError(
                f"{self._file} is of a run with other settings or weights; choose another --out, or delete it"
            )
        for name, thing in self._kept.items():
            thing.load_state_dict(state[f"kept/{name}"])
        self.history = state["history"]
        self._before = state["seconds"]
        self._pace.last = state["last"]
        torch.set_rng_state(state["random"])
        if len(state["random_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["random_cuda"])
        log.info("%s goes on at epoch %d, step %d", self.stage, state["epoch"], state["index"])
        return int(state["epoch"]), int(state["index"])
