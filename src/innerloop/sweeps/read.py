"""Reading a sweep's directory, finished or running: its jobs, the state of each, and their configurations as rows."""

import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from innerloop.errors import InputError
from innerloop.runs.compare import FinishedRun, read_run, recorded_overrides
from innerloop.runs.config import CONFIG
from innerloop.runs.locks import LOCK, holder
from innerloop.runs.record import RESULTS
from innerloop.runs.report.style import EMPTY, METRICS, Column, read_metrics
from innerloop.sweeps.jobs import ERROR, PRUNED
from innerloop.sweeps.record import CONF, RECORD, packages, read_record
from innerloop.sweeps.rows import ReadJob, Row, headings, rows_of
from innerloop.sweeps.study import STUDY, Study, as_overrides, read_study

RECORDS = (CONFIG, RESULTS, ERROR, PRUNED)
NUMBERED = r"(\d+)(_|$)"

# Overrides of a job that belong to the sweep.
SWEEP_KEYS = ("sweep", "launcher", "resume")


@dataclass(frozen=True)
class ReadSweep:
    """A sweep as it is read: its jobs and its rows. keys: what was swept, apart from the seed."""

    directory: Path
    jobs: list[ReadJob]
    rows: list[Row]
    keys: list[str]
    study: Study | None

    @cached_property
    def flags(self) -> list[str]:
        """Flags that make train.py read this sweep's own configuration files, if the checkout's have changed since."""
        kept = self.directory.resolve() / CONF
        checkout = Path(__file__).resolve().parents[3] / CONF
        return ["--config-path", str(kept)] if kept.is_dir() and _contents(kept) != _contents(checkout) else []

    @cached_property
    def allowed(self) -> list[str]:
        """The packages that the sweep was started with as allowed, for a command that makes its runs again."""
        try:
            return packages(read_record(self.directory)["overrides"])
        except InputError:  # a record that is not there yet, or is broken
            return []

    @property
    def headings(self) -> dict[str, str]:
        """Swept key -> the heading of its column."""
        return headings(self.keys)


def _contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.yaml")}


def read_sweep(directory: Path) -> ReadSweep:
    """Return the sweep of a directory. Raises InputError if there is none."""
    if not directory.is_dir():
        raise InputError(f"{directory} is no directory")
    planned = planned_jobs(directory / RECORD)
    study = read_study(directory / STUDY) if (directory / STUDY).is_file() else None
    trials = {t.user_attrs["directory"]: t for t in study.trials if "directory" in t.user_attrs} if study else {}
    found = [path.name for path in directory.iterdir() if _is_job(path)]
    begun = [name for name in dict.fromkeys([*planned, *trials, *found]) if (directory / name).is_dir()]
    jobs = [
        job_at(directory / name, name, known_overrides(directory / name, planned.get(name), trials.get(name)))
        for name in sorted(begun, key=by_number)
    ]
    jobs += [ReadJob(name, "waiting", overrides) for name, overrides in planned.items() if name not in begun]
    jobs += trials_without_directory(study, jobs)
    if not jobs:
        raise InputError(f"{directory} is no sweep with runs: it has no directories of runs, nor planned ones")
    return ReadSweep(directory, jobs, *rows_of(jobs), study)


def by_number(name: str) -> tuple[float, str]:
    """Return the sort key that puts names of directories in the order of their jobs."""
    number = re.match(NUMBERED, name)
    return (int(number[1]) if number else math.inf, name)


def _is_job(path: Path) -> bool:
    if not path.is_dir():
        return False
    return bool(re.match(NUMBERED, path.name)) or any((path / name).is_file() for name in RECORDS)


def planned_jobs(path: Path) -> dict[str, list[str]]:
    """Return directory -> overrides of a grid's jobs; empty for a search, or if the record is not whole."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError):
        return {}
    if not isinstance(content, dict) or not {"jobs", "directories"} <= set(content):
        return {}
    return dict(zip(content["directories"], content["jobs"], strict=False))


def known_overrides(path: Path, planned: list[str] | None, trial: Any) -> list[str] | None:
    """Return a job's overrides by the sweep's record, its own record or its trial; None if no record has them yet."""
    if planned is not None:
        return planned
    # environment.json is the last of a run's records and is written whole, so the others are whole by then.
    if any((path / name).is_file() for name in ("environment.json", RESULTS)):
        return [o for o in recorded_overrides(path) if o.partition("=")[0] not in SWEEP_KEYS]
    return as_overrides(trial) if trial else None


def job_at(path: Path, name: str, overrides: list[str] | None) -> ReadJob:
    """Return the job in a directory, in the state that its files show."""
    metric, reached = last_validation(path)
    lock = path / LOCK
    # A run without a lock was started without the sweeper, so whether a process works on it is not known.
    running = not lock.exists() or holder(lock) is not None
    job = ReadJob(name, "running" if running else "stopped", overrides, path, metric=metric, reached=reached)
    if (path / RESULTS).is_file():
        try:
            run: FinishedRun = read_run(path)
        except (OSError, ValueError, yaml.YAMLError) as error:
            return replace(job, state="failed", error=f"its record is not whole: {first_line(str(error))}")
        return replace(job, state="finished", run=run, metric=run.metric, reached=None)
    if (path / ERROR).is_file():
        found = _read_json(path / ERROR)
        text = f"{found.get('type', 'Error')}: {found.get('error', 'no message')}"
        return replace(job, state="failed", error=first_line(text))
    if (path / PRUNED).is_file():
        found = _read_json(path / PRUNED)
        at = (int(found["step"]), float(found["value"])) if {"step", "value"} <= set(found) else reached
        metric = metric or found.get("metric", "").rpartition("/")[2] or None
        return replace(job, state="pruned", reached=at, metric=metric)
    return job


def silent_for(job: ReadJob) -> float:
    """Return the seconds since a job last wrote something."""
    assert job.directory is not None
    times = [p.stat().st_mtime for p in (job.directory, job.directory / "metrics.csv") if p.exists()]
    return time.time() - max(times)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError:  # half written
        return {}
    return content if isinstance(content, dict) else {}


def first_line(text: str) -> str:
    """Return the first line of a text."""
    return (text.strip().splitlines() or [""])[0]


def last_validation(path: Path) -> tuple[str | None, tuple[int, float] | None]:
    """Return a run's validation metric and (meta-batches, value) of its last validation."""
    for metric in METRICS:
        steps, values = validation_curve(path, metric)
        if len(steps):
            return metric, (int(steps[-1]), float(values[-1]))
    return None, None


def validation_curve(path: Path, metric: str | None) -> Column:
    """Return (meta-batches, validation value), both (n,), of a run; empty if there is none yet."""
    if not (path / "metrics.csv").is_file():
        return EMPTY
    steps, values = read_metrics(path / "metrics.csv").get(f"val/{metric}", EMPTY)
    return steps + 1, values  # the file numbers meta-batches from 0


def curves_of(row: Row) -> list[Column]:
    """Return (meta-batches, validation value) of each finished or running job of a row that has some.

    If all jobs failed or were pruned, theirs are returned.
    """
    lively = [job for job in row.jobs if job.state in ("finished", "running")]
    found = [validation_curve(job.directory, row.metric) for job in lively or row.jobs if job.directory]
    return [curve for curve in found if len(curve[0])]


def trials_without_directory(study: Study | None, jobs: Sequence[ReadJob]) -> list[ReadJob]:
    """Return the trials that wait, or that failed before they had a directory.

    The overrides that all trials share are taken from another job.
    """
    names = {job.name for job in jobs}
    states = {"WAITING": "waiting", "RUNNING": "waiting", "FAIL": "failed"}
    shared = next((job.overrides for job in jobs if job.overrides is not None), None) or []
    found = []
    for trial in study.trials if study else []:
        name = trial.user_attrs.get("directory", f"trial {trial.number}")
        if name in names or trial.state.name not in states:
            continue
        overrides = [*as_overrides(trial), *(o for o in shared if o.partition("=")[0] not in trial.params)]
        error = trial.user_attrs.get("error", "it left no directory")
        found.append(ReadJob(name, states[trial.state.name], overrides if trial.params else None, error=error))
    return found
