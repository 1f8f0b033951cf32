"""The configurations of a sweep as rows: each with its jobs, which differ in the seed only."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from innerloop.runs.compare import FinishedRun, grouped, t_ci95
from innerloop.runs.report.style import ERRORS

STATES = ("finished", "running", "stopped", "failed", "pruned", "waiting")
"""States of a job. A stopped one has started and no process works on it: the sweep resumes it when it is continued."""

# Overrides that do not make another configuration, like those that start with logger.
APART = ("seed", "debug", "traceback", "logger")


@dataclass(frozen=True)
class ReadJob:
    """One run of a sweep as it is read.

    overrides: None if they are not known yet. reached: (meta-batches, validation value) of an unfinished run.
    """

    name: str
    state: str
    overrides: list[str] | None
    directory: Path | None = None
    run: FinishedRun | None = None
    error: str = ""
    reached: tuple[int, float] | None = None
    metric: str | None = None

    @property
    def settings(self) -> dict[str, str]:
        """Key -> value as typed, of the overrides that make a configuration."""
        found = {}
        for override in self.overrides or ():
            key, _, value = override.partition("=")
            if key not in APART and not key.startswith("logger."):
                found[key.lstrip("+")] = value
        return found


@dataclass
class Row:
    """The jobs of one configuration. settings: swept key -> value. runs: the finished ones, one per seed."""

    name: str
    settings: dict[str, str]
    jobs: list[ReadJob]
    runs: list[FinishedRun] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def count(self, state: str) -> int:
        return sum(job.state == state for job in self.jobs)

    @property
    def metric(self) -> str | None:
        return next((job.metric for job in self.jobs if job.metric), None)

    @property
    def validations(self) -> np.ndarray:
        """The validation value (seeds,) of each finished run, by which a row is chosen."""
        return np.array([run.results["validation"][run.metric]["mean"] for run in self.runs])

    @property
    def validation_ci95(self) -> float | None:
        """The half-width of Student's 95 % interval of the seeds' validation values."""
        return t_ci95(self.validations) if len(self.runs) > 1 else None

    @property
    def reached(self) -> tuple[int, float] | None:
        """(meta-batches, validation value) of the unfinished job with the most meta-batches."""
        return max((job.reached for job in self.jobs if job.reached), default=None)

    @property
    def worth(self) -> float:
        """The validation mean, negated for errors, so that higher is better. -inf without a number."""
        return self._signed(float(self.validations.mean()) if self.runs else math.nan)

    @property
    def standing(self) -> float:
        """`worth`, or the same of the value reached so far if no run is finished."""
        return self.worth if self.runs or not self.reached else self._signed(self.reached[1])

    def _signed(self, value: float) -> float:
        return -math.inf if math.isnan(value) else -value if self.metric in ERRORS else value


def rows_of(jobs: Sequence[ReadJob]) -> tuple[list[Row], list[str]]:
    """Return (the configurations, in the order of their first job; the keys in which they differ)."""
    groups: dict[str, list[ReadJob]] = defaultdict(list)
    for job in jobs:
        if job.overrides is not None:
            groups[json.dumps(job.settings, sort_keys=True)].append(job)
    each = [group[0].settings for group in groups.values()]
    every_key = dict.fromkeys(key for settings in each for key in settings)
    keys = [key for key in every_key if len({settings.get(key) for settings in each}) > 1]
    rows = [Row("", {k: s[k] for k in keys if k in s}, group) for s, group in zip(each, groups.values(), strict=True)]
    name_rows(rows, keys)
    for row in rows:
        row.runs, row.notes = one_per_seed([job.run for job in row.jobs if job.run])
    return rows, keys


def headings(keys: Sequence[str]) -> dict[str, str]:
    """Return key -> its last part, or the whole key where the last part is not unique."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: key if last.count(name) > 1 else name for key, name in zip(keys, last, strict=True)}


def name_rows(rows: Sequence[Row], keys: Sequence[str]) -> None:
    """Name each row by the values in which it differs from the others, a single row by its algorithm and data."""
    if not keys:
        for row in rows:
            settings = row.jobs[0].settings
            row.name = " ".join(f"{k}={settings[k]}" for k in ("algo", "data") if k in settings) or "defaults"
        return
    heads = headings(keys)
    names = [" ".join(f"{heads[k]}={brief(v)}" for k, v in row.settings.items()) for row in rows]
    exact = [" ".join(f"{heads[k]}={v}" for k, v in row.settings.items()) for row in rows]
    for row, name, longer in zip(rows, names, exact, strict=True):
        row.name = (name if names.count(name) == 1 else longer) or "defaults"


def one_per_seed(runs: Sequence[FinishedRun]) -> tuple[list[FinishedRun], list[str]]:
    """Return the runs that are seeds of one configuration, and a message for each run that is left out."""
    if not runs:
        return [], []
    alike, *others = grouped(runs)
    by_seed: dict[int, FinishedRun] = {}
    for run in alike:
        by_seed.setdefault(run.results["seed"], run)
    doubles = [run for run in alike if by_seed[run.results["seed"]] is not run]
    notes = [f"{run.path.name} is left out: another run has seed {run.results['seed']}" for run in doubles]
    for run in [run for group in others for run in group]:
        notes.append(f"{run.path.name} is left out: its settings or meta-batches differ from {alike[0].path.name}")
    return list(by_seed.values()), notes


def brief(value: str) -> str:
    """Return a value as typed, and a number with many digits to four."""
    if not re.fullmatch(r"[+-]?(\d+\.\d*|\.\d+|\d+)(e[+-]?\d+)?", value, re.I) or len(value) <= 6:
        return value
    return f"{float(value):.4g}"
