"""Errors whose message alone is shown. Apart, and without imports, so that the command line can know them at once."""


class InputError(ValueError):
    """The user asked for something that cannot be."""


class DivergedError(RuntimeError):
    """The loss or the meta-gradient is no longer a finite number."""


class FailedRuns(RuntimeError):
    """Runs of a sweep failed; the others are done."""


class Pruned(Exception):
    """A search gave a run up at a validation."""

    def __init__(self, step: int, value: float, metric: str) -> None:
        super().__init__(f"pruned at step {step}: {metric} {value:.4g}")
        self.step, self.value, self.metric = step, value, metric


class RankError(RuntimeError):
    """One of the processes that share a run is gone."""


class Stopped(Exception):
    """The user pressed Ctrl-C, or the machine asked the process to end; the state was saved."""
