"""Quantities as people write them: 50k, 10%, 250ms, 40MB; and settings. The one place that parses and prints them."""

import math
import re
import sys
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from reluctant.errors import BudgetError, UsageError

_COUNT = {"": 1, "k": 10**3, "m": 10**6}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
_BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9}
_FORM = "write ReLUs (50k, 12900), a share of them (10%), a time (250ms@cheetah/wan) or bytes (40MB@cheetah)"
#: Digits, in groups of three if at all in groups; a point is the only decimal mark.
_NUMBER = r"(?:[0-9]{1,3}(?:[,_][0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"


@dataclass(frozen=True)
class Quantity:
    """A number and what it counts: ``relus``, ``share`` (of 1), ``seconds`` or ``bytes``."""

    value: float
    unit: str
    where: str = ""


def parse_quantity(text: str) -> Quantity:
    """Return the quantity that ``text`` names; ``where`` is what stands behind an @ (``cheetah/wan``).

    Raises:
        BudgetError: no number, a unit that is not known, a value that is not above zero (ReLUs and a share of them may
            be zero) or not finite, or an @ behind what costs the same everywhere.

    Example:
        >>> parse_quantity("12.9k")
        Quantity(value=12900.0, unit='relus', where='')
        >>> parse_quantity("250ms@cheetah/wan")
        Quantity(value=0.25, unit='seconds', where='cheetah/wan')
    """
    amount, at, where = text.strip().partition("@")
    match = re.fullmatch(rf"([+-]?(?:{_NUMBER})(?:[eE][+-]?[0-9]+)?)\s*([a-zA-Z%]*)", amount.strip())
    if match is None:
        hint = " (a comma only parts groups of three digits)" if "," in amount else ""
        raise BudgetError(f"budget {text!r} is not a number with a unit{hint}; {_FORM}")
    number, unit = match[1].replace(",", "").replace("_", ""), match[2].lower()
    none = Decimal(number) == 0 and (unit == "%" or unit in _COUNT)
    if not (float(number) > 0 or none):
        raise BudgetError(f"budget {text!r} must be above zero, or no ReLUs at all (0); {_FORM}")
    if float(number) > 1e100:
        raise BudgetError(f"budget {text!r} is too large to be one; {_FORM}")
    if unit == "%":
        quantity = Quantity(float(Decimal(number) / 100), "share", where)
    elif unit in _COUNT:
        quantity = Quantity(float(Decimal(number) * _COUNT[unit]), "relus", where)
    elif unit in _SECONDS:
        quantity = Quantity(float(number) * _SECONDS[unit], "seconds", where)
    elif unit in _BYTES:
        quantity = Quantity(float(number) * _BYTES[unit], "bytes", where)
    else:
        raise BudgetError(f"budget {text!r} has the unknown unit {match[2]!r}; {_FORM}")
    if at and quantity.unit in ("share", "relus"):
        raise BudgetError(
            f"budget {text!r} counts ReLUs, which are as many everywhere: leave out {at + where!r}; {_FORM}"
        )
    if at and not where:
        raise BudgetError(f"budget {text!r} names nothing behind the @; {_FORM}")
    return quantity


_MACS = {"mac": 1.0, "kmac": 1e3, "mmac": 1e6, "gmac": 1e9}


def parse_target(text: str) -> Quantity:
    """Return the quantity that ``text`` names: multiply-adds (``500MMAC``, unit ``macs``), or any of a budget.

    Raises:
        BudgetError: see there.
    """
    match = re.fullmatch(rf"({_NUMBER})\s*([kmg]?mac)s?", text.strip().lower())
    if match is None:
        quantity = parse_quantity(text)
    else:
        quantity = Quantity(float(match[1].replace(",", "").replace("_", "")) * _MACS[match[2]], "macs")
    if not quantity.value > 0:
        raise BudgetError(f"target {text!r} must be above zero, as in 500MMAC")
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
    if not 0 < value < math.inf:
        raise UsageError(f"{what} {text!r} is not a number above zero with a unit ({', '.join(units)}): {example}")
    return value


def as_type_of(default: Any, value: Any, where: str) -> Any:
    """Return ``value`` (perhaps a string off the command line) in the type of ``default``.

    Raises:
        UsageError: it is nothing of that type, or a number that is not finite.
    """
    flag = isinstance(value, bool)
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[str(value).lower()]
        if isinstance(default, int) and not flag and (isinstance(value, int) or float(value) == int(float(value))):
            return value if isinstance(value, int) else int(float(value))
        if isinstance(default, float) and not flag and math.isfinite(float(value)):
            return float(value)
        if isinstance(default, str) and isinstance(value, str):
            return value
        if isinstance(default, tuple):
            return _whole_numbers(value)
    except (KeyError, ValueError, TypeError, OverflowError):
        pass
    usual = format_setting(default) if isinstance(default, tuple) else repr(default)
    kind = "list of whole numbers" if isinstance(default, tuple) else type(default).__name__
    raise UsageError(f"{where} is {value!r}, expected a {kind} such as {usual}")


def _whole_numbers(value: Any) -> tuple[int, ...]:
    """Return the numbers of a list, or of text: ``2-2-2-2``, ``2,2,2,2``, ``5x5x3``, ``none``."""
    items = [] if value == "none" else re.split("[-,x]", value) if isinstance(value, str) else list(value)
    if any(not isinstance(item, str | int) or isinstance(item, bool) for item in items):
        raise TypeError
    return tuple(int(item) for item in items)


def format_setting(value: object) -> str:
    """Return a setting as it stands in a model's name: ``true``, ``32``, ``2-2-2-2``, ``none``."""
    if isinstance(value, tuple):
        return "-".join(map(str, value)) or "none"
    return str(value).lower()


def check_number(value: Any, where: str, *, whole: bool = False, zero: bool = False, negative: bool = False) -> None:
    """Refuse what is no finite number above zero.

    Args:
        whole: it must be a whole number, of at most 31 bits.
        zero, negative: it may be zero, or zero and anything below.

    Raises:
        UsageError: named ``where``.
    """
    kind, most = ("whole number", 2**31 - 1) if whole else ("finite number", sys.float_info.max)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not abs(value) <= most:
        raise UsageError(f"{where} is {value!r}, expected a {kind}{f' of at most {most:,}' if whole else ''}")
    if not (negative or value > 0 or (zero and value == 0)):
        raise UsageError(f"{where} is {value!r}, expected a value {'of zero or more' if zero else 'above zero'}")


def format_quantity(value: float, unit: str) -> str:
    """Return ``value`` of ``relus``, ``macs``, ``bytes`` or ``seconds`` as a person would write it."""
    if unit == "macs":
        return f"{value / 1e6:,.1f} M multiply-adds"
    formats = {"bytes": format_bytes, "seconds": format_seconds}
    return formats[unit](value) if unit in formats else f"{value:,.0f} {unit}"


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
