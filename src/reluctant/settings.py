"""Frozen dataclasses whose fields a user may change by name."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from reluctant.registry import unknown
from reluctant.units import as_type_of

Value = TypeVar("Value")


def changed(value: Value, settings: Mapping[str, Any], kind: str, name: str) -> Value:
    """Return ``value`` with other ``settings``, which may be text off the command line.

    Args:
        kind, name: of what it is, for the error: ``design``, ``hybrenet``.

    Raises:
        UnknownName: a setting that it does not have.
        UsageError: a value of another type than the setting's, or one that ``value`` refuses.
    """
    known = {field.name: getattr(value, field.name) for field in fields(value)}  # type: ignore[arg-type]
    for key in settings:
        if key not in known:
            raise unknown(f"setting of {kind} {name}", key, list(known))
    typed = {key: as_type_of(known[key], item, f"{name}.{key}") for key, item in settings.items()}
    return replace(value, **typed)  # type: ignore[type-var]
