"""Networks by name: the zoo, designs, and a user's own.

A zoo name may carry options after a colon, ``resnet18:stem_relu=false,width=32``, and so may a design,
``hybrenet:multipliers=5-7-2,width=8`` or ``sphynx-cifar100-50k``. A user's network is named ``path.py:function``.
Builders are ordinary functions ``(classes, channels, **options) -> nn.Module``.
"""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch
from torch import nn

from reluctant.designs import DESIGNS
from reluctant.designs.base import Design, find_design
from reluctant.errors import UsageError
from reluctant.models.userfile import build_from_file
from reluctant.models.weights import load_weights
from reluctant.models.wrn import wrn
from reluctant.registry import Registry, unknown
from reluctant.task import Task
from reluctant.units import format_setting

__all__ = ["MODELS", "ModelSpec", "load_model"]

Option = bool | int | str | tuple[int, ...]


class Zoo(Registry):
    """The table of builders; beside its rows it knows every ``wrn-D-K``."""

    _pattern = re.compile(r"wrn-(\d{1,4})-(\d{1,3})")

    def __getitem__(self, name: str) -> Any:
        if super().__contains__(name):
            return super().__getitem__(name)
        match = self._pattern.fullmatch(name)
        if match is None:
            raise unknown(self.kind, name, [*self.names(), "wrn-D-K", *DESIGNS, "path.py:function"])
        try:
            return wrn(int(match[1]), int(match[2]))
        except ValueError as error:
            raise UsageError(f"model {name!r}: {error}") from error

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and self._pattern.fullmatch(name) is not None)


MODELS = Zoo(
    "model",
    {
        "resnet8": "reluctant.models.resnet:resnet8",
        "resnet20": "reluctant.models.resnet:resnet20",
        "resnet32": "reluctant.models.resnet:resnet32",
        "resnet18": "reluctant.models.resnet:resnet18",
        "resnet34": "reluctant.models.resnet:resnet34",
        "wrn-22-8": "reluctant.models.wrn:wrn_22_8",
        "vgg16-bn": "reluctant.models.vgg:vgg16_bn",
        "efficientnet-b2": "reluctant.models.efficientnet:efficientnet_b2",
    },
)


@dataclass(frozen=True)
class ModelSpec:
    """Which network is meant; ``str(spec)`` is the one string that says so, and :meth:`parse` reads it back.

    Args:
        name: a name of the zoo or of a design, or ``/absolute/path.py:function``.
        options: what differs from the defaults of the builder or the design; none for a user's function.

    Example:
        >>> str(ModelSpec.parse("resnet18:stem_relu=False", width=32))
        'resnet18:stem_relu=false,width=32'
    """

    name: str
    options: Mapping[str, Option] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, **options: Option) -> "ModelSpec":
        """Return the spec that ``text`` and ``options`` together name, checked against the builder's signature.

        Raises:
            UsageError: a name or an option that does not exist (with the nearest), a value of the wrong kind, or
                settings of which no network can be built.
        """
        name, _, tail = text.partition(":")
        if name.endswith(".py"):
            return cls._parse_file(name, tail, options)
        typed = [item.partition("=") for item in tail.split(",")] if ":" in text else []
        given: dict[str, Option] = {}
        for key, value in [*((key.strip(), value.strip()) for key, _, value in typed), *options.items()]:
            if key in given:
                raise UsageError(f"model {text!r}: option {key!r} is given twice")
            given[key] = value
        design = find_design(name)
        if design is not None:
            changed = design.changed(given)
            return cls(name, {key: getattr(changed, key) for key in given})
        builder = MODELS[name]
        return cls(name, {key: _checked(name, builder, key, value) for key, value in given.items()})

    @classmethod
    def _parse_file(cls, path: str, function: str, options: Mapping[str, Option]) -> "ModelSpec":
        if not function.isidentifier():
            raise UsageError(f"model {path}:{function}: name the function that builds it, as in {path}:build")
        if options:
            raise UsageError(f"model {path}:{function}: a user's function takes no options, got {', '.join(options)}")
        return cls(f"{Path(path).expanduser().resolve()}:{function}")

    def __str__(self) -> str:
        tail = ",".join(f"{key}={format_setting(value)}" for key, value in self.options.items())
        return f"{self.name}:{tail}" if tail else self.name

    @property
    def design(self) -> Design | None:
        """The design with its settings, where the name is that of a design."""
        design = find_design(self.name)
        return None if design is None else design.changed(self.options)

    @property
    def identity(self) -> object:
        """What all names of one network have in common: a design with its settings, or a builder with all options."""
        if self.name not in MODELS:
            return self.design or self.name
        usual = {option.name: option.default for option in _options(MODELS[self.name])}
        return self.name, tuple((usual | dict(self.options)).items())

    def build(self, classes: int, channels: int, side: int | None = None) -> nn.Module:
        """Return the network with fresh weights, drawn from torch's global generator.

        Args:
            side: of the images, the smaller one; designs refuse images that are too small for them.

        Raises:
            ShapeError: a design that cannot read such images.
            UsageError: a user's file that is missing or fails; the message has the line.
        """
        design = self.design
        if design is not None:
            if side is not None:
                design.check_side(side)
            return design.network(classes, channels)
        path, _, function = self.name.rpartition(":")
        if path:
            return build_from_file(Path(path), function, classes=classes, channels=channels)
        model = MODELS[self.name](classes, channels, **self.options)
        assert isinstance(model, nn.Module)
        return model

    def fresh(self, classes: int, shape: tuple[int, int, int], seed: int = 0) -> nn.Module:
        """Return the network for images of ``shape``, in evaluation mode; torch's global generator is left alone.

        Args:
            seed: of the weights.

        Raises:
            ShapeError, UsageError: as :meth:`build`.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build(classes, shape[0], min(shape[1:])).eval()


def load_model(name: str | ModelSpec, *, task: Task, weights: str | Path | None = None, **options: Option) -> nn.Module:
    """Return the network called ``name`` for the classes and channels of ``task``, in training mode.

    Without ``weights`` they are fresh, drawn from torch's global generator. That the network can read images of the
    task's size is checked of designs alone: :func:`reluctant.find_sites` runs any other and says.

    Args:
        name: a name of the zoo or of a design, with options after a colon if any, or ``path.py:function``.
        weights: a .safetensors file with the state dict of exactly this network.
        options: the same as after a colon.

    Raises:
        UsageError: a name or option that does not exist, a user's file that fails, or a design that is not for such
            images.
        CheckpointError: weights that are missing, damaged or of another network.

    Example:
        >>> model = load_model("resnet18:stem_relu=false", task=task, width=32)
    """
    channels, *sides = task.input_shape
    model = ModelSpec.parse(str(name), **options).build(len(task.classes), channels, min(sides))
    if weights is not None:
        load_weights(model, Path(weights).expanduser())
    return model


def _options(builder: Any) -> list[inspect.Parameter]:
    """Return the options of a builder."""
    return [p for p in inspect.signature(builder).parameters.values() if p.kind is p.KEYWORD_ONLY]


def _checked(name: str, builder: Any, key: str, value: Option) -> Option:
    """Return ``value``, read from text if need be, as the type that the builder's option ``key`` has."""
    kinds = {option.name: option.annotation for option in _options(builder)}
    if key not in kinds:
        raise unknown(f"option of {name}", key, list(kinds))
    kind, text = kinds[key], str(value).lower()
    if kind is bool and text in ("true", "false"):
        return text == "true"
    if kind is int and text.isdecimal() and int(text) > 0:
        return int(text)
    if get_origin(kind) is Literal and text in get_args(kind):
        return text
    choices = get_args(kind) or {bool: ("true", "false"), int: ("a positive whole number",)}[kind]
    raise UsageError(f"model {name}: option {key} is {value!r}; expected {' or '.join(choices)}")
