"""What every logger besides metrics.csv does for a run, from its name to its end."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from torch import Tensor

from innerloop.errors import Stopped


class Label(NamedTuple):
    """The name of a run and the group of its sweep."""

    name: str
    group: str | None


@dataclass(frozen=True)
class RunInfo:
    """What a logger knows of a run at its start.

    config: the resolved configuration in plain containers. resumed_at: the step that a resumed run starts from, else 0.
    """

    directory: Path
    config: dict[str, Any]
    label: Label
    resumed_at: int = 0

    def tags(self) -> list[str]:
        """Return the names of the algorithm, the data and the net."""
        return [self.config[group]["name"] for group in ("algo", "data", "net")]

    def with_version(self) -> dict[str, Any]:
        """Return the configuration and the version of the code that the run started with, null if git knows none."""
        environment = self.recorded("environment.json")
        return self.config | {name: environment.get(name) for name in ("git_commit", "git_dirty")}

    def recorded(self, file: str) -> dict[str, Any]:
        """Return the content of a file such as wandb.json that the run wrote before it was resumed; empty if none."""
        path = self.directory / file
        found = json.loads(path.read_text()) if path.is_file() else {}
        assert isinstance(found, dict)
        return found

    def record(self, file: str, content: Mapping[str, Any]) -> None:
        """Write a file for the time when the run is resumed."""
        (self.directory / file).write_text(json.dumps(content) + "\n")


@dataclass(frozen=True)
class Closing:
    """The results of a finished run.

    results: the content of results.json. summary: the same as name -> number. by_step: a row of numbers for each inner
    step, "step" among them. episodes: a row for each test episode. figures: by name.
    """

    results: Mapping[str, Any]
    summary: Mapping[str, Any]
    by_step: Sequence[Mapping[str, float]]
    episodes: Sequence[Mapping[str, float]]
    figures: Mapping[str, Figure]

    def numbers(self) -> dict[str, float]:
        """Return the entries of the summary that are numbers."""
        return {
            name: float(value)
            for name, value in self.summary.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }


class Tracker(ABC):
    """A logger with an interface to look at: W&B, TensorBoard, MLflow.

    histograms_every: number of outer updates between two histograms, None for none.
    """

    histograms_every: int | None = None

    @abstractmethod
    def log_histograms(self, values: Mapping[str, Tensor], step: int) -> None:
        """Log the distribution of each tensor's entries."""

    @abstractmethod
    def log_closing(self, closing: Closing) -> None:
        """Log the results, tables and figures of a finished run."""

    @abstractmethod
    def end(self, error: BaseException | None) -> None:
        """End the tracked run, as failed if an error ended it."""


def exit_code(error: BaseException | None) -> int:
    """Return 0 for a finished run, 130 for one that was stopped, 1 for one that failed."""
    if error is None:
        return 0
    return 130 if isinstance(error, Stopped | KeyboardInterrupt) else 1


def one_line(error: BaseException) -> str:
    """Return an error's type and message in one line of at most 500 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
