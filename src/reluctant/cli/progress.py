"""Progress on standard error: a bar on a terminal, a line now and then in a log; and a limit to it."""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from reluctant.errors import Paused
from reluctant.progress import Progress as Watcher
from reluctant.progress import TimeLimit
from reluctant.units import format_seconds

LINE_SECONDS = 10.0
#: Seconds of a time limit that are left to loading the program before, and to leaving all its processes after.
START_AND_END = 3.0


class ProgressView:
    """Shows how far each stage is, with the time left. A context, and the callable that stages report to."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.terminal = sys.stderr.isatty() and not quiet
        self.bars = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TextColumn("[dim]{task.fields[metrics]}[/dim]"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not self.terminal,
        )
        self.tasks: dict[str, TaskID] = {}
        self.begun: dict[str, tuple[float, int]] = {}
        self.printed: dict[str, float] = {}

    def __enter__(self) -> "ProgressView":
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()
        if kind is KeyboardInterrupt:
            print("interrupted; the same command goes on where it stopped", file=sys.stderr)

    def __call__(self, stage: str, done: int, total: int, **metrics: float) -> None:
        text = " ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        if self.terminal:
            if stage not in self.tasks:
                self.tasks[stage] = self.bars.add_task(stage, total=total, metrics=text)
            self.bars.update(self.tasks[stage], completed=done, total=total, metrics=text)
        elif not self.quiet:
            self._line(stage, done, total, text)

    def _line(self, stage: str, done: int, total: int, text: str) -> None:
        now = time.monotonic()
        begun, first = self.begun.setdefault(stage, (now, done))
        if done < total and now - self.printed.get(stage, begun) < LINE_SECONDS:
            return
        self.printed[stage] = now
        left = (now - begun) / max(1, done - first) * (total - done)
        state = f"{format_seconds(left)} left" if done < total else f"done in {format_seconds(now - begun)}"
        print(f"{stage:<24} {done:,}/{total:,}  {state}  {text}".rstrip(), file=sys.stderr)


@contextmanager
def shown(as_json: bool, max_seconds: float | None = None) -> Iterator[Watcher]:
    """Show the progress of what runs inside; past ``max_seconds``, say what is left and leave with exit code 0."""
    with ProgressView(quiet=as_json) as view:
        try:
            yield view if max_seconds is None else TimeLimit(max_seconds - min(START_AND_END, 0.1 * max_seconds), view)
        except Paused as pause:
            first = all(int(os.environ.get(rank, 0)) == 0 for rank in ("RANK", "LOCAL_RANK"))
            left = "" if pause.seconds_left is None else f", about {format_seconds(pause.seconds_left)} of it left"
            about = {"stage": pause.stage, "done": pause.done, "total": pause.total, "seconds_left": pause.seconds_left}
            line = json.dumps({"paused": about}, indent=2) if as_json else f"{pause}{left}; the same command goes on"
            if first:
                print(line)
            raise typer.Exit(0) from None
