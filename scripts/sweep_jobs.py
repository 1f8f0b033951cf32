"""What a sweep directory holds, while the sweep runs too: its jobs, grouped into the configurations that it tries."""

import json
import math
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from compare import Run, grouped, read, recorded_overrides, t_ci95
from sweep_study import Study, SweepError, as_overrides, read_study

from innerloop.config import CONFIG
from innerloop.drawing import ERRORS, NOTHING, Column, read_metrics
from innerloop.jobs import ERROR, LOCK, PRUNED
from innerloop.locks import holder
from innerloop.record import RESULTS
from innerloop.search import STUDY
from innerloop.sweep import RECORD

ROOT = Path(__file__).resolve().parents[1]

# stopped: begun, and no process is at it; the sweep goes on with it when it is started again.
STATES = ("finished", "running", "stopped", "failed", "pruned", "waiting")
RECORDS = (CONFIG, RESULTS, ERROR, PRUNED)
NUMBERED = r"(\d+)(_|$)"
METRICS = ("accuracy", "mse", "loss")

# What a job may be told without being another configuration, and whatever begins with logger; what is the sweep's.
APART = ("seed", "debug", "logger")
OF_THE_SWEEP = ("sweep", "launcher", "resume")


@dataclass(frozen=True)
class Job:
    """One run of a sweep. overrides: None if not yet known; reached: (meta-batches, validation value) so far."""

    name: str
    state: str
    overrides: list[str] | None
    directory: Path | None = None
    run: Run | None = None
    error: str = ""
    reached: tuple[int, float] | None = None
    metric: str | None = None

    @property
    def settings(self) -> dict[str, str]:
        """Key -> value as typed, but for what makes no configuration of its own."""
        found = {}
        for override in self.overrides or ():
            key, _, value = override.partition("=")
            if key not in APART and not key.startswith("logger."):
                found[key.lstrip("+")] = value
        return found

    @property
    def silent_for(self) -> float:
        """Seconds since the run last wrote something."""
        assert self.directory is not None
        times = [p.stat().st_mtime for p in (self.directory, self.directory / "metrics.csv") if p.exists()]
        return time.time() - max(times)


@dataclass
class Row:
    """The jobs of one configuration. settings: swept key -> value; runs: the finished ones, one a seed."""

    name: str
    settings: dict[str, str]
    jobs: list[Job]
    runs: list[Run] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def count(self, state: str) -> int:
        return sum(job.state == state for job in self.jobs)

    @property
    def metric(self) -> str | None:
        return next((job.metric for job in self.jobs if job.metric), None)

    @property
    def validations(self) -> np.ndarray:
        """The value (seeds,) by which a run is chosen."""
        return np.array([run.results["validation"][run.metric]["mean"] for run in self.runs])

    @property
    def reached(self) -> tuple[int, float] | None:
        """(meta-batches, validation value) of the unfinished job that has come furthest."""
        return max((job.reached for job in self.jobs if job.reached), default=None)

    @property
    def worth(self) -> float:
        """The validation mean, negative for errors: the higher the better. -inf if there is no number."""
        return self._signed(float(self.validations.mean()) if self.runs else math.nan)

    @property
    def standing(self) -> float:
        """The same, and where no run is finished what was reached so far."""
        return self.worth if self.runs or not self.reached else self._signed(self.reached[1])

    def _signed(self, value: float) -> float:
        return -math.inf if math.isnan(value) else -value if self.metric in ERRORS else value

    def curves(self) -> list[Column]:
        """(meta-batches, validation value) of each job that recorded some; of failed and pruned ones if all are so."""
        lively = [job for job in self.jobs if job.state in ("finished", "running")]
        found = [curve_of(job.directory, self.metric) for job in lively or self.jobs if job.directory]
        return [curve for curve in found if len(curve[0])]


@dataclass(frozen=True)
class Sweep:
    """A sweep: its jobs and its rows; keys: what was swept, the seed apart."""

    directory: Path
    jobs: list[Job]
    rows: list[Row]
    keys: list[str]
    study: Study | None

    @cached_property
    def flags(self) -> list[str]:
        """What has train.py read this sweep's own configuration files, where they are no longer those of conf/."""
        kept = self.directory.resolve() / "conf"
        return ["--config-path", str(kept)] if kept.is_dir() and contents(kept) != contents(ROOT / "conf") else []

    @property
    def headings(self) -> dict[str, str]:
        """Swept key -> what its column is called."""
        return headings(self.keys)


def contents(folder: Path) -> dict[Path, bytes]:
    """Path -> content of the YAML files in a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.yaml")}


def read_sweep(directory: Path) -> Sweep:
    """The sweep of a directory. Raises SweepError if there is none."""
    if not directory.is_dir():
        raise SweepError(f"{directory} is no directory")
    planned = planned_jobs(directory / RECORD)
    study = read_study(directory / STUDY) if (directory / STUDY).is_file() else None
    trials = {t.user_attrs["directory"]: t for t in study.trials if "directory" in t.user_attrs} if study else {}
    found = [path.name for path in directory.iterdir() if is_job(path)]
    begun = [name for name in dict.fromkeys([*planned, *trials, *found]) if (directory / name).is_dir()]
    jobs = [
        job_at(directory / name, name, known_overrides(directory / name, planned.get(name), trials.get(name)))
        for name in sorted(begun, key=by_number)
    ]
    jobs += [Job(name, "waiting", told) for name, told in planned.items() if name not in begun]
    jobs += trials_without_directory(study, jobs)
    if not jobs:
        raise SweepError(f"{directory} is no sweep with runs: it has no directories of runs, nor planned ones")
    return Sweep(directory, jobs, *rows_of(jobs), study)


def by_number(name: str) -> tuple[float, str]:
    """What puts names of directories in the order of their jobs."""
    number = re.match(NUMBERED, name)
    return (int(number[1]) if number else math.inf, name)


def is_job(path: Path) -> bool:
    if not path.is_dir():
        return False
    return bool(re.match(NUMBERED, path.name)) or any((path / name).is_file() for name in RECORDS)


def planned_jobs(path: Path) -> dict[str, list[str]]:
    """Directory -> overrides of a grid's jobs; none for a search, or where there is no whole record."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError):
        return {}
    if not isinstance(content, dict) or not {"jobs", "directories"} <= set(content):
        return {}
    return dict(zip(content["directories"], content["jobs"], strict=False))


def read_json(path: Path) -> dict[str, Any]:
    """What the file says; nothing if it is half written."""
    try:
        content = json.loads(path.read_text())
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def known_overrides(path: Path, planned: list[str] | None, trial: Any) -> list[str] | None:
    """What a job was told, by the sweep's record, its own or its trial; None if nobody says it yet."""
    if planned is not None:
        return planned
    # environment.json is the last of a run's records, and written at once: the others are whole then.
    if any((path / name).is_file() for name in ("environment.json", RESULTS)):
        return [o for o in recorded_overrides(path) if o.partition("=")[0] not in OF_THE_SWEEP]
    return as_overrides(trial) if trial else None


def job_at(path: Path, name: str, overrides: list[str] | None) -> Job:
    """The job of a directory, in the state that its files tell."""
    metric, reached = last_validation(path)
    lock = path / LOCK
    # A run without a lock was started without the sweeper: nobody can say whether it is worked on.
    worked_on = not lock.exists() or holder(lock) is not None
    job = Job(name, "running" if worked_on else "stopped", overrides, path, metric=metric, reached=reached)
    if (path / RESULTS).is_file():
        try:
            run = read(path)
        except (OSError, ValueError, yaml.YAMLError) as error:
            return replace(job, state="failed", error=f"its record is not whole: {first_line(str(error))}")
        return replace(job, state="finished", run=run, metric=run.metric, reached=None)
    if (path / ERROR).is_file():
        found = read_json(path / ERROR)
        text = f"{found.get('type', 'Error')}: {found.get('error', 'no message')}"
        return replace(job, state="failed", error=first_line(text))
    if (path / PRUNED).is_file():
        found = read_json(path / PRUNED)
        at = (int(found["step"]), float(found["value"])) if {"step", "value"} <= set(found) else reached
        return replace(
            job, state="pruned", reached=at, metric=metric or found.get("metric", "").rpartition("/")[2] or None
        )
    return job


def first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0]


def last_validation(path: Path) -> tuple[str | None, tuple[int, float] | None]:
    """The metric that a run is validated by, and (meta-batches, value) of the last time."""
    for metric in METRICS:
        steps, values = curve_of(path, metric)
        if len(steps):
            return metric, (int(steps[-1]), float(values[-1]))
    return None, None


def curve_of(path: Path, metric: str | None) -> Column:
    """(meta-batches, validation value), both (n,), of a run; empty as long as there is none."""
    if not (path / "metrics.csv").is_file():
        return NOTHING
    steps, values = read_metrics(path / "metrics.csv").get(f"val/{metric}", NOTHING)
    return steps + 1, values  # the file counts from 0: what was trained are as many and one


def trials_without_directory(study: Study | None, jobs: Sequence[Job]) -> list[Job]:
    """The trials that are to begin, or failed before they had a directory. What all share is told by their siblings."""
    names = {job.name for job in jobs}
    states = {"WAITING": "waiting", "RUNNING": "waiting", "FAIL": "failed"}
    shared = next((job.overrides for job in jobs if job.overrides is not None), None) or []
    found = []
    for trial in study.trials if study else []:
        name = trial.user_attrs.get("directory", f"trial {trial.number}")
        if name in names or trial.state.name not in states:
            continue
        told = [*as_overrides(trial), *(o for o in shared if o.partition("=")[0] not in trial.params)]
        error = trial.user_attrs.get("error", "it left no directory")
        found.append(Job(name, states[trial.state.name], told if trial.params else None, error=error))
    return found


# Rows.


def rows_of(jobs: Sequence[Job]) -> tuple[list[Row], list[str]]:
    """(the configurations, each with its jobs, in the order of their first; the keys by which they differ)."""
    groups: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        if job.overrides is not None:
            groups[json.dumps(job.settings, sort_keys=True)].append(job)
    each = [group[0].settings for group in groups.values()]
    every_key = dict.fromkeys(key for settings in each for key in settings)
    keys = [key for key in every_key if len({settings.get(key) for settings in each}) > 1]
    rows = [Row("", {k: s[k] for k in keys if k in s}, group) for s, group in zip(each, groups.values(), strict=True)]
    name_rows(rows, keys)
    for row in rows:
        row.runs, row.notes = one_a_seed([job.run for job in row.jobs if job.run])
    return rows, keys


def headings(keys: Sequence[str]) -> dict[str, str]:
    """Key -> its last part, where that tells it from the others."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: key if last.count(name) > 1 else name for key, name in zip(keys, last, strict=True)}


def name_rows(rows: Sequence[Row], keys: Sequence[str]) -> None:
    """Calls each row by what tells it from the others; a lone one by its algorithm and data."""
    if not keys:
        for row in rows:
            settings = row.jobs[0].settings
            row.name = " ".join(f"{k}={settings[k]}" for k in ("algo", "data") if k in settings) or "defaults"
        return
    short = headings(keys)
    names = [" ".join(f"{short[k]}={brief(v)}" for k, v in row.settings.items()) for row in rows]
    exact = [" ".join(f"{short[k]}={v}" for k, v in row.settings.items()) for row in rows]
    for row, name, longer in zip(rows, names, exact, strict=True):
        row.name = (name if names.count(name) == 1 else longer) or "defaults"


def one_a_seed(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs that are seeds of one configuration, and a message for each other one."""
    if not runs:
        return [], []
    alike, *others = grouped(runs)
    of_seed: dict[int, Run] = {}
    for run in alike:
        of_seed.setdefault(run.results["seed"], run)
    doubles = [run for run in alike if of_seed[run.results["seed"]] is not run]
    notes = [f"{run.path.name} is left out: seed {run.results['seed']} once more" for run in doubles]
    for run in [run for group in others for run in group]:
        notes.append(f"{run.path.name} is left out: its settings or meta-batches are not those of {alike[0].path.name}")
    return list(of_seed.values()), notes


def brief(value: str) -> str:
    """A value as typed; a number of many digits with four."""
    if not re.fullmatch(r"[+-]?(\d+\.\d*|\.\d+|\d+)(e[+-]?\d+)?", value, re.I) or len(value) <= 6:
        return value
    return f"{float(value):.4g}"


def validation_ci95(row: Row) -> float | None:
    """Half-width of Student's 95 % interval of the seeds' validation values."""
    return t_ci95(row.validations) if len(row.runs) > 1 else None
