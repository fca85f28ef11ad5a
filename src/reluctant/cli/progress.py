"""Progress on standard error: a bar on a terminal, a line now and then in a log."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from reluctant.units import format_seconds

LINE_SECONDS = 10.0


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
