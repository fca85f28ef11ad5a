"""What a design is."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar

from torch import nn

from reluctant.designs import DESIGNS
from reluctant.errors import ShapeError, UsageError
from reluctant.papers import FromPaper
from reluctant.registry import unknown
from reluctant.settings import changed
from reluctant.task import Task
from reluctant.units import check_number, format_setting

Self = TypeVar("Self", bound="Design")


@dataclass(frozen=True, kw_only=True)
class Design(FromPaper, ABC):
    """Settings of one published way to shape a network for private inference, and the network itself.

    What it builds is an ordinary network: it is trained, masked, priced and run like any other.

    Attributes:
        name: as in the table of designs.
        choices: what a setting that is a word can be.
        may_be_zero: settings whose numbers count from 0.
        width: channels of the first stage, which all others follow: what a target decides.
    """

    name: ClassVar[str]
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    may_be_zero: ClassVar[tuple[str, ...]] = ()
    width: int = 16

    def __post_init__(self) -> None:
        """Refuse settings of no network: whole numbers under 1, words that are not among the choices."""
        for field in fields(self):
            value, where = getattr(self, field.name), f"{self.name}.{field.name}"
            if isinstance(field.default, bool):
                if not isinstance(value, bool):
                    raise UsageError(f"{where} is {value!r}, expected true or false")
            elif isinstance(field.default, int):
                check_number(value, where, whole=True)
            elif isinstance(field.default, tuple):
                if not isinstance(value, tuple):
                    raise UsageError(f"{where} is {value!r}, expected a tuple such as {field.default!r}")
                for item in value:
                    check_number(item, where, whole=True, zero=field.name in self.may_be_zero)
            elif field.name in self.choices and value not in self.choices[field.name]:
                raise UsageError(f"{where} is {value!r}, expected one of {', '.join(self.choices[field.name])}")

    @abstractmethod
    def network(self, classes: int, channels: int) -> nn.Module:
        """Return the network with fresh weights, drawn from torch's global generator."""

    @abstractmethod
    def relus(self, side: int) -> dict[str, int]:
        """Return the ReLUs of each part (``stem``, ``stage 1``, ...) for an image of ``side`` x ``side`` pixels.

        This is the design's own arithmetic; no network is built. Parts without any are left out.
        """

    @property
    @abstractmethod
    def halvings(self) -> int:
        """How many times the map is halved on the way."""

    @property
    def width_step(self) -> int:
        """What the width must be a multiple of."""
        return 1

    def check_side(self, side: int) -> None:
        """Refuse images that are too small.

        Raises:
            ShapeError: the map would be halved below one pixel.
        """
        if side < 2**self.halvings:
            raise ShapeError(
                f"{self.spec} halves the map {self.halvings} times, so images need a side of {2**self.halvings} or "
                f"more, got {side}: take fewer stages"
            )

    def build(self, task: Task) -> nn.Module:
        """Return the network for ``task`` with fresh weights, drawn from torch's global generator.

        Raises:
            ShapeError: the task's images are too small for it.
        """
        self.check_side(min(task.input_shape[1:]))
        return self.network(len(task.classes), task.input_shape[0])

    @classmethod
    @abstractmethod
    def candidates(cls: type[Self], order: tuple[int, ...] | None, settings: Mapping[str, Any]) -> tuple[Self, ...]:
        """Return the designs that the paper would consider, all of some width that a target may change.

        Args:
            order: the stages, most critical first; ``None`` for the paper's, or where stages have no order.
            settings: what is the same in all of them, as in :meth:`from_json`.

        Raises:
            UsageError: none satisfies the constraints; the message has the one that failed.
        """

    @classmethod
    def released(cls: type[Self]) -> Mapping[str, Self]:
        """Return the networks that the authors published, by name; none if they published a rule only."""
        return {}

    @property
    def spec(self) -> str:
        """The string that names it as a model: what differs from the defaults after a colon."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        tail = ",".join(f"{key}={format_setting(value)}" for key, value in changed.items())
        return f"{self.name}:{tail}" if tail else self.name

    def to_json(self) -> dict[str, Any]:
        """Return the name and every setting as a JSON object."""
        settings = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {"name": self.name, **settings}

    @classmethod
    def from_json(cls: type[Self], value: Mapping[str, Any]) -> Self:
        """Return the design with the settings of ``value``; those not named keep their defaults.

        Raises:
            UnknownName: a setting that the design does not have.
            UsageError: a value of another type than the setting's default, or of no network.
        """
        return cls().changed({key: item for key, item in value.items() if key != "name"})

    def changed(self: Self, settings: Mapping[str, Any]) -> Self:
        """Return this design with other ``settings``, which may be text; errors as :meth:`from_json`."""
        return changed(self, settings, "design", self.name)


def find_design(name: str) -> Design | None:
    """Return the design that ``name`` means (``hybrenet``), or a released one (``sphynx-cifar100-50k``), or ``None``.

    Raises:
        UnknownName: a design's name, and behind it one that its authors did not release.
    """
    for row in DESIGNS:
        if name == row:
            return DESIGNS[row]()  # type: ignore[no-any-return]
        if name.startswith(f"{row}-"):
            released = DESIGNS[row].released()
            if name.removeprefix(f"{row}-") not in released:
                raise unknown("model", name, [row, *(f"{row}-{inner}" for inner in released)])
            return released[name.removeprefix(f"{row}-")]  # type: ignore[no-any-return]
    return None


def part_of(site: str) -> str:
    """Return the part that a module of a design's network belongs to: ``stem``, ``stage 2``, ``head``."""
    first = site.partition(".")[0]
    found = re.fullmatch(r"(?:layer|stage)(\d+)", first)
    return f"stage {found[1]}" if found else "head" if first == "fc" else "stem"


def halve(side: int, times: int = 1) -> int:
    """Return the side of a map that a stride of 2 has passed so many times."""
    for _ in range(times):
        side = -(-side // 2)
    return side


def check_multiple(design: Design, side: int) -> None:
    """Refuse images that ``design`` cannot halve exactly each time.

    Raises:
        ShapeError: with the number that the side must be a multiple of.
    """
    if side < 1 or side % 2**design.halvings:
        raise ShapeError(
            f"{design.spec} halves the map exactly {design.halvings} times, so images need a side that is a multiple "
            f"of {2**design.halvings}, got {side}"
        )


def check_order(order: Sequence[int], stages: int) -> None:
    """Refuse an order of stages that does not name each of ``stages`` once.

    Raises:
        UsageError: with the stage at fault.
    """
    for stage in order:
        if not 1 <= stage <= stages:
            raise UsageError(f"order {format_setting(tuple(order))} names stage {stage}, there are 1 to {stages}")
        if order.count(stage) > 1:
            raise UsageError(f"order {format_setting(tuple(order))} names stage {stage} twice")
    for stage in range(1, stages + 1):
        if stage not in order:
            raise UsageError(f"order {format_setting(tuple(order))} leaves out stage {stage} of {stages}")
