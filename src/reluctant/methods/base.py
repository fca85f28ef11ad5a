"""What a method is."""

import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar

from reluctant.errors import UsageError
from reluctant.mask import GRANULARITIES, Mask
from reluctant.masked import MaskedModel
from reluctant.registry import unknown
from reluctant.surrogates import Identity, Surrogate, surrogate_from_json
from reluctant.task import Job
from reluctant.units import as_type_of, check_number

Self = TypeVar("Self", bound="Method")


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Settings of one published way to fit a network's ReLUs into a budget, and the way itself.

    Attributes:
        name: as in the table of methods.
        may_be_zero: the numbers among the settings that need not be above zero.
        may_be_negative: those that may be anything.
        surrogate: what runs where a ReLU is dropped.
    """

    name: ClassVar[str]
    may_be_zero: ClassVar[tuple[str, ...]] = ()
    may_be_negative: ClassVar[tuple[str, ...]] = ()
    surrogate: Surrogate = Identity()

    def __post_init__(self) -> None:
        """Refuse settings that no search can run with: see :func:`reluctant.units.check_number`."""
        for field in fields(self):
            value, where = getattr(self, field.name), f"{self.name}.{field.name}"
            if field.name == "surrogate":
                if not isinstance(value, Surrogate):
                    raise UsageError(f"{where} is {value!r}, expected a surrogate such as {field.default!r}")
            elif isinstance(field.default, int | float) and not isinstance(field.default, bool):
                zero, negative = field.name in self.may_be_zero, field.name in self.may_be_negative
                check_number(value, where, whole=isinstance(field.default, int), zero=zero, negative=negative)
            elif field.name == "granularity":
                if value not in GRANULARITIES:
                    raise UsageError(f"{where} is {value!r}, expected one of {', '.join(GRANULARITIES)}")
            elif isinstance(field.default, str | bool) and not isinstance(value, type(field.default)):
                raise UsageError(f"{where} is {value!r}, expected a value such as {field.default!r}")

    @abstractmethod
    def run(self, model: MaskedModel, job: Job) -> MaskedModel:
        """Return ``model`` with its mask set, within ``job.limit``; its weights may have been trained."""

    @property
    def epochs(self) -> int:
        """The most passes over the training split that the search may take."""
        return 0

    def to_json(self) -> dict[str, Any]:
        """Return the name and every setting as a JSON object."""
        return {"name": self.name, **asdict(self), "surrogate": self.surrogate.to_json()}

    @classmethod
    def from_json(cls: type[Self], value: Mapping[str, Any]) -> Self:
        """Return the method with the settings of ``value``; those not named keep their defaults.

        Raises:
            UnknownName: a setting that the method does not have.
            UsageError: a value of another type than the setting's default, or out of its range.
        """
        settings = {key: item for key, item in value.items() if key != "name"}
        known: dict[str, Any] = {field.name: field.default for field in fields(cls)}
        for key, item in settings.items():
            if key not in known:
                raise unknown(f"setting of method {cls.name}", key, list(known))
            if key == "surrogate":
                settings[key] = surrogate_from_json(item, known[key])
            else:
                settings[key] = as_type_of(known[key], item, f"{cls.name}.{key}")
        return cls(**settings)

    @classmethod
    def header(cls) -> str:
        """Return the docstring of the method's file: paper, deviations, symbols."""
        return inspect.getdoc(sys.modules[cls.__module__]) or ""


@dataclass(frozen=True, kw_only=True)
class MaskMethod(Method):
    """A method that finds a mask; it may train the model's weights on the way."""

    @abstractmethod
    def search(self, model: MaskedModel, job: Job) -> Mask:
        """Return the mask to keep, of cost at most ``job.limit`` under ``job.prices``."""

    def run(self, model: MaskedModel, job: Job) -> MaskedModel:
        """Return ``model`` with the mask that :meth:`search` finds."""
        return model.set_mask(self.search(model, job))
