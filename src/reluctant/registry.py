"""Tables of what can be chosen by name; a row is imported when it is asked for."""

import difflib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from reluctant.errors import UnknownName


def unknown(kind: str, name: str, known: list[str]) -> UnknownName:
    """Return the error for a name that is not among ``known``, with the nearest one that is."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UnknownName(f"unknown {kind} {name!r}{hint} (known: {', '.join(known)})")


class Registry(Mapping[str, Any]):
    """An immutable table from a name to an object that stands as ``"module:attribute"`` until it is used.

    Example:
        >>> METHODS = Registry("method", {"snl": "reluctant.methods.snl:SNL"})
        >>> METHODS.names()
        ['snl']
    """

    def __init__(self, kind: str, rows: Mapping[str, str]) -> None:
        self.kind = kind
        self._rows = dict(rows)

    def __getitem__(self, name: str) -> Any:
        if name not in self._rows:
            raise unknown(self.kind, name, self.names())
        module, _, attribute = self._rows[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def names(self) -> list[str]:
        """Return the names in the order of the table."""
        return list(self._rows)
