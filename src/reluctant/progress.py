"""What long work tells whoever watches, and when it must stop."""

import time
from dataclasses import dataclass, field
from typing import NoReturn, Protocol, runtime_checkable

from reluctant.errors import Paused, UsageError
from reluctant.units import format_seconds


@runtime_checkable
class Progress(Protocol):
    """What long work tells whoever watches: ``done`` of ``total`` steps of ``stage``, and the latest metrics."""

    def __call__(self, stage: str, done: int, total: int, **metrics: float) -> None: ...


def silent(stage: str, done: int, total: int, **metrics: float) -> None:
    """The progress of someone who does not look."""


@dataclass
class TimeLimit:
    """Progress under a time limit: work that keeps a state stops before it, and goes on in another slice.

    Args:
        seconds: from ``begun`` on.
        progress: who is told.
        begun: on :func:`time.monotonic`'s clock.
        worked: whether anything was done in this slice.
        longest: seconds that the longest stretch took which cannot be broken off.
        went_on: when a stretch ended last, on the same clock.

    Example::

        try:
            rl.fit(model, task, directory=out, progress=rl.TimeLimit(600))
        except rl.Paused as pause:
            print(pause)
    """

    seconds: float
    progress: Progress = silent
    begun: float = field(default_factory=time.monotonic)
    worked: bool = False
    longest: float = 1.0
    went_on: float = 0.0

    def __call__(self, stage: str, done: int, total: int, **metrics: float) -> None:
        self.go_on()
        self.progress(stage, done, total, **metrics)

    def go_on(self) -> None:
        """Note that a stretch of work ended."""
        self.worked, self.went_on = True, time.monotonic()

    @property
    def left(self) -> float:
        """Seconds to the limit; negative after it."""
        return self.begun + self.seconds - time.monotonic()

    def pause(self, stage: str, done: int, total: int, seconds_left: float | None = None) -> NoReturn:
        """Stop here: all that was done is saved.

        Raises:
            Paused: always, but
            UsageError: nothing was done in this slice, nor would it be in another.
        """
        if not self.worked:
            raise UsageError(
                f"{format_seconds(self.seconds)} leave no time for the next step of {stage} ({done:,} of {total:,} "
                f"done), which may take {format_seconds(self.longest)} after loading; give more"
            )
        raise Paused(stage, done, total, seconds_left)


@dataclass(frozen=True)
class Under:
    """Progress whose stages are parts of ``name``."""

    progress: Progress
    name: str

    def __call__(self, stage: str, done: int, total: int, **metrics: float) -> None:
        self.progress(f"{self.name}: {stage}", done, total, **metrics)


def limit_of(progress: Progress) -> TimeLimit | None:
    """Return the time limit that ``progress`` is under."""
    while isinstance(progress, Under):
        progress = progress.progress
    return progress if isinstance(progress, TimeLimit) else None
