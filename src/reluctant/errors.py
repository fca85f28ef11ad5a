"""Every error this package raises on purpose.

ReluctantError
├── UsageError                what was asked for cannot be done as asked
│   ├── UnknownName           a method, engine, task, model or key that does not exist
│   ├── BudgetError           a budget that cannot be parsed, or that makes no sense for this model
│   ├── ShapeError            an array of the wrong shape
│   ├── SiteError             an activation that cannot be found or rewritten
│   └── UnsupportedOperation  an operation that no secure program has
├── DataError                 a data file that is missing, damaged or of another layout
├── CheckpointError           a checkpoint that is cut short, altered or of another model
├── RecordError               a record that is missing, damaged or would be overwritten
├── EngineError               a secure run that broke: a port, a link, a party, a time-out
├── DivergedError             a training whose loss or weights are no longer finite
└── Paused                    no error: long work stopped before its time limit, everything saved

Messages are one line: the thing, what was got, what was expected, what to do. The command line prints them after
``error:`` and leaves with exit code 2; of a pause it says what is left, and leaves with 0.
"""

__all__ = [
    "BudgetError",
    "CheckpointError",
    "DataError",
    "DivergedError",
    "EngineError",
    "Paused",
    "RecordError",
    "ReluctantError",
    "ShapeError",
    "SiteError",
    "UnknownName",
    "UnsupportedOperation",
    "UsageError",
]


class ReluctantError(Exception):
    """Base of all errors of this package."""


class UsageError(ReluctantError):
    """What was asked for cannot be done as asked."""


class UnknownName(UsageError):
    """A method, engine, task, model or key that does not exist."""


class BudgetError(UsageError):
    """A budget that cannot be parsed, or that makes no sense for this model."""


class ShapeError(UsageError):
    """An array of the wrong shape."""


class SiteError(UsageError):
    """An activation that cannot be found or rewritten."""


class UnsupportedOperation(UsageError):
    """An operation that no secure program has."""


class DataError(ReluctantError):
    """A data file that is missing, damaged or of another layout."""


class CheckpointError(ReluctantError):
    """A checkpoint that is cut short, altered or of another model."""


class RecordError(ReluctantError):
    """A record that is missing, damaged or would be overwritten."""


class EngineError(ReluctantError):
    """A secure run that broke: a port, a link, a party, a time-out."""


class DivergedError(ReluctantError):
    """A training whose loss or weights are no longer finite."""


class Paused(ReluctantError):
    """Long work stopped before its time limit, everything saved; the same call goes on.

    Args:
        stage: what was going on.
        done, total: steps of it.
        seconds_left: what the stage may still take; ``None`` if that is not known.
    """

    def __init__(self, stage: str, done: int, total: int, seconds_left: float | None = None) -> None:
        super().__init__(stage, done, total, seconds_left)
        self.stage, self.done, self.total, self.seconds_left = stage, done, total, seconds_left

    def __str__(self) -> str:
        return f"stopped in time at {self.stage} {self.done:,} of {self.total:,}, everything saved"
