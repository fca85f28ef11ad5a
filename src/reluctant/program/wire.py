"""Operations as JSON values, and back: what comes back was written by the other party, so nothing in it is trusted."""

import base64
import binascii
from dataclasses import MISSING, fields
from types import NoneType
from typing import Any, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from reluctant.program.operations import OPS, BadOperation, Op

_MASK = NDArray[np.bool_]


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 40


def to_json(op: Op) -> dict[str, Any]:
    """Return the public fields of ``op``: all of them; the arrays stand in them by name only."""
    values = {field.name: getattr(op, field.name) for field in fields(op)}
    return {"kind": op.kind} | {name: _encode(value) for name, value in values.items()}


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"bits": len(value), "base64": base64.b64encode(np.packbits(value).tobytes()).decode()}
    return list(value) if isinstance(value, tuple) else value


def from_json(value: Any) -> Op:
    """Return the operation that ``value`` describes.

    Raises:
        BadOperation: an unknown kind, a missing or surplus field, or a field of the wrong type.
    """
    kind = value.get("kind") if isinstance(value, dict) else value
    if not isinstance(value, dict) or not isinstance(kind, str) or kind not in OPS:
        raise BadOperation(f"unknown operation {str(kind)[:40]!r} (known: {', '.join(OPS)})")
    op = OPS[kind]
    hints, known = get_type_hints(op), {field.name: field for field in fields(op)}
    surplus = set(value) - set(known) - {"kind"}
    if surplus:
        raise BadOperation(f"{op.kind} has no field {min(surplus)[:40]!r}")
    decoded = {}
    for name, field in known.items():
        if name in value:
            decoded[name] = decode(value[name], hints[name], f"{op.kind}.{name}")
        elif field.default is MISSING:
            raise BadOperation(f"{op.kind} lacks its field {name!r}")
    return op(**decoded)


def decode(value: Any, hint: Any, where: str) -> Any:
    """Return the JSON value ``value`` as the type ``hint``: str, int, float, bool, tuples of those, a mask.

    Raises:
        BadOperation: it is of another type; ``where`` is named.
    """
    options = get_args(hint)
    if NoneType in options:
        return None if value is None else decode(value, options[0], where)
    if hint == _MASK:
        return _decode_mask(value, where)
    if options:  # a tuple: of any length if it ends in an ellipsis
        fits = isinstance(value, list) and (options[-1] is Ellipsis or len(value) == len(options))
        if fits and len(value) < 1 << 20:
            return tuple(decode(item, options[0], where) for item in value)
    elif hint is int and _is_integer(value):
        return value
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif hint in (str, bool) and isinstance(value, hint):
        return value
    raise BadOperation(f"{where} is {str(value)[:40]!r}, expected {getattr(hint, '__name__', hint)}")


def _decode_mask(value: Any, where: str) -> NDArray[np.bool_]:
    if isinstance(value, dict) and set(value) == {"bits", "base64"} and _is_integer(value["bits"]):
        try:
            packed = np.frombuffer(base64.b64decode(value["base64"], validate=True), np.uint8)
        except (binascii.Error, TypeError, ValueError):
            packed = np.zeros(0, np.uint8)
        if value["bits"] > 0 and len(packed) == -(-value["bits"] // 8):
            return np.unpackbits(packed, count=value["bits"]).astype(bool)
    raise BadOperation(f"{where} is {str(value)[:40]!r}, expected a packed mask")
