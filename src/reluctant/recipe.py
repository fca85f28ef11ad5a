"""An experiment, fully resolved: what is trained, linearized how far and how, from which seed.

A recipe file holds only what differs from the defaults::

    task = "cifar10"
    model = "resnet20"
    budget = "10%"

    [method]
    name = "snl"
    max_epochs = 20

    [training]
    epochs = 30
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from reluctant.budget import Budget
from reluctant.errors import UsageError
from reluctant.methods.base import Method, method_from_json
from reluctant.registry import unknown
from reluctant.task import Task
from reluctant.training import FINETUNE, Training
from reluctant.units import as_type_of, check_number

#: What every generator of random numbers on the way can be started from.
SEEDS = 2**32


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A fully resolved experiment.

    Args:
        training: of the dense network.
        finetune: of the linearized one.
        method, budget: ``None`` for a dense network.
        views, cutout: of the images' augmentation (:class:`reluctant.task.Augmentation`), beside the task's own.
        small: round the trained weights to bf16 and keep them in files of at most 15 MiB.
        note: a line that goes into every record, for instance that this is a short recipe.
    """

    task: str
    model: str
    seed: int = 0
    training: Training = Training()
    method: Method | None = None
    budget: str | None = None
    views: int = 0
    cutout: int = 0
    small: bool = False
    note: str | None = None
    finetune: Training = FINETUNE

    def __post_init__(self) -> None:
        if not 0 <= self.seed < SEEDS:
            raise UsageError(f"seed is {self.seed!r}, expected a whole number from 0 to {SEEDS - 1:,}")
        for name in ("views", "cutout"):
            check_number(getattr(self, name), name, whole=True, zero=True)
        if self.budget is not None:
            Budget.parse(self.budget)

    def to_json(self) -> dict[str, Any]:
        """Return every setting as a JSON object."""
        return {**asdict(self), "method": None if self.method is None else self.method.to_json()}

    def prepare(self, task: Task) -> Task:
        """Return ``task`` with the augmentation that the recipe asks for."""
        return replace(task, augmentation=replace(task.augmentation, views=self.views, cutout=self.cutout))

    @property
    def digest(self) -> str:
        """SHA-256 over all settings, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Recipe":
        """Return the recipe with the settings of ``value``; those not named keep their defaults.

        Raises:
            UnknownName: a key, method or setting that does not exist.
            UsageError: no task or model, or a value of the wrong type.
        """
        known = [field.name for field in fields(cls)]
        settings = dict(value)
        for key in settings:
            if key not in known:
                raise unknown("recipe key", key, known)
        for key in ("task", "model"):
            if key not in settings:
                raise UsageError(f"the recipe names no {key}")
        for key, default in (("training", Training()), ("finetune", FINETUNE)):
            settings[key] = _training(settings.get(key, {}), default, key)
        if settings.get("method") is not None:
            settings["method"] = method_from_json(settings["method"])
        if isinstance(settings.get("budget"), int) and not isinstance(settings["budget"], bool):
            settings["budget"] = str(settings["budget"])
        for key in ("task", "model", "budget", "note"):
            text, optional = settings.get(key), key in ("budget", "note")
            if not (isinstance(text, str) or (optional and text is None)):
                raise UsageError(f"{key} is {text!r}, expected text")
        for key, usual in (("seed", 0), ("views", 0), ("cutout", 0), ("small", False)):
            settings[key] = as_type_of(usual, settings.get(key, usual), key)
        return cls(**settings)


def resolve(
    recipe: Path | None,
    chosen: Mapping[str, Any],
    settings: list[str] | None,
    *,
    usual: Mapping[str, Any] | None = None,
    fixed: Mapping[str, Any] | None = None,
) -> Recipe:
    """Return the recipe of a command: its file, over it what was chosen by option, over that single settings.

    Args:
        chosen: nested; what is ``None`` was not chosen.
        usual: what holds where neither file nor options nor settings say anything.
        fixed: what the network at hand is; a recipe for another task or model is refused.

    Raises:
        UsageError: the recipe cannot be read, see :meth:`Recipe.from_json`, or is not for what is ``fixed``.
    """
    over = merge(_chosen(chosen), nested(settings or []))
    value = merge(merge(usual or {}, read_toml(recipe) if recipe else {}), over)
    for key, given in (fixed or {}).items():
        if value.setdefault(key, given) != given:
            raise UsageError(f"the recipe is for {key} {value[key]!r}, the network given is of {given!r}")
    return Recipe.from_json(value)


def _chosen(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``value`` without what is ``None``, and without tables that are empty then."""
    tables = {key: _chosen(item) if isinstance(item, Mapping) else item for key, item in value.items()}
    return {key: item for key, item in tables.items() if item is not None and item != {}}


def read_toml(path: Path) -> dict[str, Any]:
    """Return the contents of a TOML file.

    Raises:
        UsageError: it is missing or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the recipe {path}: {error}") from error


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the values of ``over``, table by table; a name under a table is its ``name``."""
    result = dict(base)
    for key, value in over.items():
        under = result.get(key)
        if isinstance(value, Mapping) and isinstance(under, Mapping | str):
            result[key] = merge({"name": under} if isinstance(under, str) else under, value)
        else:
            result[key] = value
    return result


def nested(assignments: list[str]) -> dict[str, Any]:
    """Return ``["method.lr=0.1", "seed=3"]`` as ``{"method": {"lr": "0.1"}, "seed": "3"}``, whatever their order.

    Raises:
        UsageError: an assignment without ``=``.
    """
    result: dict[str, Any] = {}
    for assignment in sorted(assignments, key=lambda text: text.partition("=")[0].count(".")):
        path, equals, value = assignment.partition("=")
        if not equals:
            raise UsageError(f"setting {assignment!r} has no value; write key=value, for instance finetune.epochs=10")
        item: Any = value
        for key in reversed(path.strip().split(".")):
            item = {key: item}
        result = merge(result, item)
    return result


def _training(value: Any, default: Training, where: str) -> Training:
    if not isinstance(value, Mapping):
        raise UsageError(f"{where} is {value!r}, expected a table of settings such as epochs = {default.epochs}")
    known = {field.name: getattr(default, field.name) for field in fields(Training)}
    for key in value:
        if key not in known:
            raise unknown(f"{where} setting", key, list(known))
    settings = {key: as_type_of(known[key], item, f"{where}.{key}") for key, item in value.items()}
    try:
        return replace(default, **settings)
    except UsageError as error:
        raise UsageError(f"{where}: {str(error).removeprefix('training: ')}") from error
