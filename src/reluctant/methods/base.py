"""What a method is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar

from reluctant.errors import UsageError
from reluctant.mask import GRANULARITIES, Mask
from reluctant.masked import MaskedModel
from reluctant.methods import METHODS
from reluctant.papers import FromPaper
from reluctant.registry import unknown
from reluctant.surrogates import Identity, Surrogate, surrogate_from_json
from reluctant.task import Job
from reluctant.units import as_type_of, check_number

Self = TypeVar("Self", bound="Method")


@dataclass(frozen=True, kw_only=True)
class Method(FromPaper, ABC):
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
        inner = {field.name: getattr(self, field.name) for field in fields(self)}
        written = {key: value.to_json() for key, value in inner.items() if isinstance(value, Method | Surrogate)}
        return {"name": self.name, **asdict(self), **written}

    @classmethod
    def from_json(cls: type[Self], value: Mapping[str, Any]) -> Self:
        """Return the method with the settings of ``value``; those not named keep their defaults.

        Raises:
            UnknownName: a setting that the method does not have.
            UsageError: a value of another type than the setting's default, or out of its range.
        """
        settings = {key: item for key, item in value.items() if key != "name"}
        defaults = cls()
        known: dict[str, Any] = {field.name: getattr(defaults, field.name) for field in fields(cls)}
        for key, item in settings.items():
            if key not in known:
                raise unknown(f"setting of method {cls.name}", key, list(known))
            if key == "surrogate":
                settings[key] = surrogate_from_json(item, known[key])
            elif isinstance(known[key], Method):
                settings[key] = method_from_json(item, known[key])
            else:
                settings[key] = as_type_of(known[key], item, f"{cls.name}.{key}")
        return cls(**settings)

    @classmethod
    def granularities(cls) -> tuple[str, ...]:
        """Return what it can keep or drop together."""
        return GRANULARITIES if "granularity" in {field.name for field in fields(cls)} else GRANULARITIES[:1]


@dataclass(frozen=True, kw_only=True)
class MaskMethod(Method):
    """A method that finds a mask; it may train the model's weights on the way."""

    @abstractmethod
    def search(self, model: MaskedModel, job: Job) -> Mask:
        """Return the mask to keep, of cost at most ``job.limit`` under ``job.prices``."""

    def run(self, model: MaskedModel, job: Job) -> MaskedModel:
        """Return ``model`` with the mask that :meth:`search` finds."""
        return model.set_mask(self.search(model, job))


def method_from_json(value: Any, default: Method | None = None) -> Method:
    """Return the method written by :meth:`Method.to_json`, or named by a bare string.

    Args:
        default: what settings without a name are settings of; what they leave out is as it is there.

    Raises:
        UnknownName: no such method or setting.
        UsageError: neither a name nor a table with one, or see :meth:`Method.from_json`.
    """
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        raise UsageError(f"method is {value!r}, expected a name ({', '.join(METHODS)}) or a table with one")
    if default is not None and "name" not in value:
        value = {**default.to_json(), **value}
    if "name" not in value:
        raise UsageError(f"the method's settings name no method; add one of {', '.join(METHODS)}: --method snl")
    method: Method = METHODS[str(value["name"])].from_json(value)
    return method
