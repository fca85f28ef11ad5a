"""What a search is, and what it works with."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import nn

from reluctant.errors import CheckpointError, UsageError
from reluctant.files import write_json
from reluctant.loop import Loop, fingerprint, is_late, read_state, write_state
from reluctant.models import ModelSpec
from reluctant.papers import FromPaper
from reluctant.progress import Progress, Under, limit_of
from reluctant.settings import changed
from reluctant.sites import copied
from reluctant.task import Split, Task
from reluctant.training import Regularizer, Training, evaluate, fit
from reluctant.units import check_number

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Self = TypeVar("Self", bound="Search")


@dataclass(frozen=True)
class Study:
    """The data, the settings and the folder of one search. What was trained in it once is not trained again.

    Args:
        model: name of the network that the search starts from.
        given: that network, trained, if there is one already.
        training: of a network with fresh weights.
        finetune: of one that was changed.
        directory: of the whole search; every network has a folder of its own in it.
        prices: a table of prices, where it is not the usual one.
    """

    task: Task
    model: str
    training: Training
    finetune: Training
    seed: int
    fabric: "Fabric"
    directory: Path
    progress: Progress
    given: nn.Module | None = None
    prices: Path | None = None

    def build(self, spec: str) -> nn.Module:
        """Return the network called ``spec`` with the fresh weights of the seed."""
        return ModelSpec.parse(spec).fresh(len(self.task.classes), self.task.input_shape, self.seed)

    @cached_property
    def dense(self) -> nn.Module:
        """The network that the search starts from, trained."""
        return self.given or self.trained("dense", self.build(self.model), self.training)

    def trained(
        self,
        name: str,
        network: nn.Module,
        training: Training,
        teacher: nn.Module | None = None,
        regularize: Regularizer | None = None,
    ) -> nn.Module:
        """Return ``network`` trained, the epoch that was best on the held-out split.

        Args:
            name: of its folder; a name is for one network.
            teacher: distils into it.
            regularize: see :func:`reluctant.training.fit`.

        Raises:
            CheckpointError: under that name another network was trained, or its file is damaged.
            Paused: the time limit is near; the same call goes on.
        """
        folder = self.directory / name
        kept, start = folder / "trained.state", fingerprint(network.state_dict(), repr(training))
        if not kept.exists():
            folder.mkdir(parents=True, exist_ok=True)
            network = fit(
                network,
                self.task,
                training,
                teacher=teacher,
                seed=self.seed,
                fabric=self.fabric,
                directory=folder,
                progress=Under(self.progress, name),
                regularize=regularize,
            )
            if self.fabric.is_global_zero:
                write_state(kept, {"start": start, "weights": network.state_dict()})
                (folder / "train.state").unlink(missing_ok=True)
            return network
        state = read_state(kept)
        if state.get("start") != start:
            raise CheckpointError(f"{kept} is of another network or other settings; remove {folder}, or choose another")
        network = copied(network)
        network.load_state_dict(state["weights"])
        return network.eval()

    def loop(self, name: str, train: Split, *, epochs: int, batch: int, settings: Mapping[str, Any]) -> Loop:
        """Return the loop of a training that is the search's own.

        Args:
            name: of its folder; its state is kept there until :meth:`noted` has an answer of that name.
            settings: what decides on its steps; a state of other settings is not continued.
        """
        return Loop(
            name,
            train=train,
            augmentation=self.task.augmentation,
            epochs=epochs,
            batch=batch,
            fabric=self.fabric,
            seed=self.seed,
            directory=self.directory / name,
            settings=settings,
            progress=self.progress,
        )

    def noted(self, name: str, find: Callable[[], Any]) -> Any:
        """Return what ``find`` returned, as JSON; it is called once, and its answer kept in the folder of ``name``.

        Of several processes all go on with the answer of the first.

        Raises:
            Paused: the time limit is near, judged by the longest such call so far that could not be broken off.
        """
        path = self.directory / name / "found.json"
        known = self.fabric.broadcast(json.loads(path.read_text()) if path.exists() else None)
        if known is not None:
            return known
        limit = limit_of(self.progress)
        if limit is not None and is_late(limit, limit.longest, self.fabric):
            limit.pause(name, 0, 1)
        begun = time.monotonic()
        found = self.fabric.broadcast(find())
        if limit is not None:
            limit.longest = max(limit.longest, time.monotonic() - max(begun, limit.went_on))
            limit.go_on()
        if self.fabric.is_global_zero:
            write_json(path, found)
            (path.parent / f"{name}.state").unlink(missing_ok=True)
        return found

    def accuracy(self, network: nn.Module) -> float:
        """Return the share of the held-out images that ``network`` gets right."""
        return evaluate(network, self.task, "val").accuracy


@dataclass(frozen=True, kw_only=True)
class Search(FromPaper, ABC):
    """Settings of one way to find a design by training, and the way itself.

    Attributes:
        name: as in the table of searches.
        may_be_zero: the numbers among the settings that need not be above zero.
        usual: what holds of a recipe where the user says nothing, as in a recipe's file.
        from_trained: whether it may start from a network that was trained before.
    """

    name: ClassVar[str]
    may_be_zero: ClassVar[tuple[str, ...]] = ()
    usual: ClassVar[Mapping[str, Any]] = {}
    from_trained: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse numbers that no search can run with."""
        for field in fields(self):
            if isinstance(field.default, int | float) and not isinstance(field.default, bool):
                whole, zero = isinstance(field.default, int), field.name in self.may_be_zero
                check_number(getattr(self, field.name), f"{self.name}.{field.name}", whole=whole, zero=zero)

    def check(self, study: Study) -> None:
        """Refuse, before anything is written, a network that this search cannot work on.

        Raises:
            UsageError: it is none, cannot read the task's images, or is trained where all must be trained alike.
        """
        study.build(study.model)
        if study.given is not None and not self.from_trained:
            raise UsageError(
                f"search {self.name} trains all of its networks alike, so it starts from a name, not from trained "
                f"weights: give {study.model}"
            )

    @abstractmethod
    def run(self, study: Study) -> dict[str, Any]:
        """Return what was found, as a JSON object; ``model`` in it names a network that was.

        Raises:
            Paused: the time limit is near; the same call goes on.
        """

    @abstractmethod
    def tell(self, found: Mapping[str, Any]) -> str:
        """Return what :meth:`run` found, for people, and what to type next."""

    def to_json(self) -> dict[str, Any]:
        """Return the name and every setting as a JSON object."""
        return {"name": self.name, **asdict(self)}

    def changed(self: Self, settings: Mapping[str, Any]) -> Self:
        """Return this search with other ``settings``, which may be text.

        Raises:
            UnknownName: a setting that it does not have.
            UsageError: a value of another type than the setting's default, or out of its range.
        """
        return changed(self, settings, "search", self.name)
