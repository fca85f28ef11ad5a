"""Checks JSON values against annotations: scalars, lists, dictionaries, ``TypedDict``, ``Literal``, unions of them."""

import json
from types import NoneType, UnionType
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from reluctant.errors import RecordError


def check(value: Any, hint: Any, where: str) -> None:
    """Raise unless the JSON value ``value``, at the key ``where``, is of the annotated type ``hint`` all through.

    Keys that a ``TypedDict`` does not name are let pass.

    Raises:
        RecordError: a missing key or a wrong type; the key is named.
    """
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    fitting = next((option for option in options if _fits(value, option)), None)
    if fitting is None:
        expected = " or ".join(map(_named, options))
        raise RecordError(f"key {where!r} is {json.dumps(value)[:60]}, expected {expected}")
    if fitting is Any:
        return
    if is_typeddict(fitting):
        for key, inner in get_type_hints(fitting, include_extras=True).items():
            optional = get_origin(inner) is NotRequired
            if key in value:
                check(value[key], get_args(inner)[0] if optional else inner, f"{where}.{key}")
            elif not optional:
                raise RecordError(f"key '{where}.{key}' is missing")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            check(item, get_args(fitting)[0], f"{where}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            check(item, get_args(fitting)[1], f"{where}.{key}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether ``value`` is of the type ``hint``, seen from outside: not what is in a list or an object."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if is_typeddict(hint):
        return isinstance(value, dict)
    return hint is Any or type(value) is (get_origin(hint) or hint) or (hint is float and type(value) is int)


def _named(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if is_typeddict(hint):
        return "an object"
    words = {NoneType: "null", bool: "true or false", int: "an integer", float: "a number", str: "a string"}
    return words.get(hint, "a list" if get_origin(hint) is list else "an object")
