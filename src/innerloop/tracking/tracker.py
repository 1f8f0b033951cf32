"""What every logger besides metrics.csv does for a run, from its label to its last words."""

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
    """What a run is called, and the group of its sweep."""

    name: str
    group: str | None


@dataclass(frozen=True)
class RunInfo:
    """What a logger is told of the run that it starts with.

    config: the resolved configuration, plain containers. resumed_at: the step that a resumed run goes on from, else 0.
    """

    directory: Path
    config: dict[str, Any]
    label: Label
    resumed_at: int = 0

    def tags(self) -> list[str]:
        """The algorithm, the data and the net."""
        return [self.config[group]["name"] for group in ("algo", "data", "net")]

    def with_version(self) -> dict[str, Any]:
        """The configuration and the version of the code that the run began with, null where git knows none."""
        environment = self.recorded("environment.json")
        return self.config | {name: environment.get(name) for name in ("git_commit", "git_dirty")}

    def recorded(self, file: str) -> dict[str, Any]:
        """What an earlier part of this run left for its later ones in a file such as wandb.json."""
        path = self.directory / file
        found = json.loads(path.read_text()) if path.is_file() else {}
        assert isinstance(found, dict)
        return found

    def record(self, file: str, content: Mapping[str, Any]) -> None:
        """Leaves something for the later parts of this run."""
        (self.directory / file).write_text(json.dumps(content) + "\n")


@dataclass(frozen=True)
class Closing:
    """What a finished run ends with.

    results: of results.json. summary: the same, name -> number. by_step: a row of numbers for each inner step, "step"
    among them. episodes: a row for each test episode. figures: by name.
    """

    results: Mapping[str, Any]
    summary: Mapping[str, Any]
    by_step: Sequence[Mapping[str, float]]
    episodes: Sequence[Mapping[str, float]]
    figures: Mapping[str, Figure]

    def numbers(self) -> dict[str, float]:
        """The numbers of the summary."""
        return {
            name: float(value)
            for name, value in self.summary.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }


class Tracker(ABC):
    """A logger that people look at: W&B, TensorBoard, MLflow.

    histograms_every: outer updates between two histograms, None for none.
    """

    histograms_every: int | None = None

    @abstractmethod
    def log_histograms(self, values: Mapping[str, Tensor], step: int) -> None:
        """The distribution of each tensor's entries."""

    @abstractmethod
    def log_closing(self, closing: Closing) -> None:
        """The closing numbers, tables and pictures."""

    @abstractmethod
    def end(self, error: BaseException | None) -> None:
        """Closes the run, as failed where an error ended it."""


def exit_code(error: BaseException | None) -> int:
    """0 for a finished run, 130 for one that was asked to stop, 1 for one that failed."""
    if error is None:
        return 0
    return 130 if isinstance(error, Stopped | KeyboardInterrupt) else 1


def last_words(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
