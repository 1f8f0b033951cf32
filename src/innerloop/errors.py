"""Errors whose message alone is shown to the user. A module of its own, so that commands start fast."""

from collections.abc import Iterable


def some(names: Iterable[str], most: int = 5) -> str:
    """Return names for a message, at most so many: "a, b and 3 more"."""
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


class InputError(ValueError):
    """The user asked for something that is not possible."""


class DivergedError(RuntimeError):
    """The loss or the meta-gradient is not a finite number."""


class FailedRuns(RuntimeError):
    """Some runs of a sweep failed; all others are done."""


class NotLearningError(RuntimeError):
    """The training loss did not fall where it must."""


class Pruned(Exception):
    """A search stopped an unpromising run at a validation."""

    def __init__(self, step: int, value: float, metric: str) -> None:
        super().__init__(f"pruned at step {step}: {metric} {value:.4g}")
        self.step, self.value, self.metric = step, value, metric


class RankError(RuntimeError):
    """One of the processes that share a run has died."""


class Stopped(Exception):
    """The run was stopped by Ctrl-C or by a signal to end, and its state was saved."""


class WriteError(RuntimeError):
    """A file of a run cannot be written: a full disk, a quota, a directory that is read-only or gone."""
