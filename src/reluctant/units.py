"""Quantities as people write them: 50k, 10%, 250ms, 40MB. The one place that parses and prints them."""

import re
from dataclasses import dataclass

from reluctant.errors import BudgetError, UsageError

_COUNT = {"": 1.0, "k": 1e3, "m": 1e6}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
_BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9}
_FORM = "write ReLUs (50k, 12900), a share of them (10%), a time (250ms@cheetah/wan) or bytes (40MB@cheetah)"


@dataclass(frozen=True)
class Quantity:
    """A number and what it counts: ``relus``, ``share`` (of 1), ``seconds`` or ``bytes``."""

    value: float
    unit: str
    where: str = ""


def parse_quantity(text: str) -> Quantity:
    """Return the quantity that ``text`` names; ``where`` is what stands behind an @ (``cheetah/wan``).

    Raises:
        BudgetError: no number, a unit that is not known, or a value that is not above zero.

    Example:
        >>> parse_quantity("12.9k")
        Quantity(value=12900.0, unit='relus', where='')
        >>> parse_quantity("250ms@cheetah/wan")
        Quantity(value=0.25, unit='seconds', where='cheetah/wan')
    """
    amount, _, where = text.strip().partition("@")
    match = re.fullmatch(
        r"([+-]?[0-9][0-9_,]*\.?[0-9]*(?:[eE][+-]?[0-9]+)?|[+-]?\.[0-9]+)\s*([a-zA-Z%]*)", amount.strip()
    )
    if match is None:
        raise BudgetError(f"budget {text!r} is not a number with a unit; {_FORM}")
    value, unit = float(match[1].replace(",", "").replace("_", "")), match[2].lower()
    if unit == "%":
        quantity = Quantity(value / 100, "share", where)
    elif unit in _COUNT:
        quantity = Quantity(value * _COUNT[unit], "relus", where)
    elif unit in _SECONDS:
        quantity = Quantity(value * _SECONDS[unit], "seconds", where)
    elif unit in _BYTES:
        quantity = Quantity(value * _BYTES[unit], "bytes", where)
    else:
        raise BudgetError(f"budget {text!r} has the unknown unit {match[2]!r}; {_FORM}")
    if not quantity.value > 0:
        raise BudgetError(f"budget {text!r} must be above zero; {_FORM}")
    return quantity


_RATE = {"bps": 1.0, "kbps": 1e3, "mbps": 1e6, "gbps": 1e9}


def parse_rate(text: str) -> float:
    """Return the bits a second that ``text`` names: ``400mbps``.

    Raises:
        UsageError: it is no number above zero with one of the units bps, kbps, mbps, gbps.
    """
    return _measure(text, _RATE, "rate", "400mbps")


def parse_duration(text: str) -> float:
    """Return the seconds that ``text`` names: ``20ms``.

    Raises:
        UsageError: it is no number above zero with one of the units us, ms, s, min.
    """
    return _measure(text, _SECONDS, "duration", "20ms")


def _measure(text: str, units: dict[str, float], what: str, example: str) -> float:
    match = re.fullmatch(r"([0-9]+\.?[0-9]*)\s*([a-zA-Z]+)", text.strip())
    value = float(match[1]) * units.get(match[2].lower(), 0.0) if match else 0.0
    if not value > 0:
        raise UsageError(f"{what} {text!r} is not a number above zero with a unit ({', '.join(units)}): {example}")
    return value


def format_bytes(count: float) -> str:
    """Return ``count`` bytes in the decimal unit that fits: ``format_bytes(3_160_000) == '3.16 MB'``."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def format_seconds(seconds: float) -> str:
    """Return a duration as ``850 ms``, ``12.3 s``, ``4 min 05 s`` or ``2 h 03 min``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
    return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60:02d} min"
