"""The report: one HTML file that says what was done, what it gave, what it cost, and what it is worth as a secret."""

import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from reluctant.errors import UsageError
from reluctant.files import write_atomically
from reluctant.recording import as_records
from reluctant.records import Record
from reluctant.report.card import cards
from reluctant.report.networks import networks, plain_label
from reluctant.report.sentences import lead, percent
from reluctant.report.view import View
from reluctant.secure import SecureRun
from reluctant.training import Evaluation
from reluctant.units import format_bytes, format_seconds


class Report:
    """A view of records. Every number in it comes from one of them.

    Args:
        items: records, or what :func:`reluctant.evaluate` and :func:`reluctant.secure_run` gave.

    Example:
        >>> Report(load_records(["runs/demo"])).save("report.html")  # doctest: +SKIP
    """

    def __init__(self, items: Iterable[Record | Evaluation | SecureRun]) -> None:
        found = {record.digest: record for record in as_records(items)}
        if not found:
            raise UsageError("a report needs at least one record, got none; evaluate or run a network first")
        self.records = tuple(sorted(found.values(), key=lambda record: datetime.fromisoformat(record.created)))
        self.networks = networks(self.records)

    def card(self) -> list[dict[str, Any]]:
        """Return the cost cards; see :func:`reluctant.report.card.cards`."""
        return cards(self.networks)

    def html(self) -> str:
        """Return the page: one file, no script, nothing fetched, light and dark, readable on a phone and on paper."""
        from jinja2 import Environment, PackageLoader, StrictUndefined

        environment = Environment(
            loader=PackageLoader("reluctant.report", ""),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters |= {
            "bytes": format_bytes,
            "count": "{:,}".format,
            "glue": glue,
            "lead": lead,
            "network_name": plain_label,
            "percent": percent,
            "seconds": format_seconds,
        }
        return environment.get_template("report.html.j2").render(view=View(self.records, self.networks))

    def save(self, path: Path | str) -> Path:
        """Write the page to ``path``, whole or not at all, and return it as a path."""
        path = Path(path)
        write_atomically(path, self.html().encode())
        return path


def glue(text: str) -> str:
    """Return ``text`` with its numbers tied to the units behind them, so that no line breaks between."""
    return re.sub(r"(?<=[0-9]) (?=(?:[kMG]?B|ms|s|min|h)\b|%)", "\u00a0", text)
