"""A grid: a sweep over all combinations of choices. Light: no torch here."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from innerloop.errors import InputError
from innerloop.runs.record import RESULTS
from innerloop.sweeps.jobs import ERROR, Job
from innerloop.sweeps.record import FINISHED, RECORD, identity, read_record
from innerloop.sweeps.sweep import Sweep, parse

TRIED = 50
"""Largest number of jobs of which all are tried out if each of them turns out to be impossible."""


def grid(sweep: Sweep, params: Mapping[str, str] | None, arguments: Sequence[str]) -> None:
    """Run the product of all choices.

    params, arguments: see `parse`. Raises InputError before anything is written, FailedRuns after all jobs have run.
    """
    exists = (sweep.directory / RECORD).exists()
    recorded = read_record(sweep.directory) if exists else {}
    extending = exists and identity(recorded["overrides"]) != identity(sweep.typed)
    jobs = planned(sweep, params, arguments) if extending or not exists else []
    if not exists and len(jobs) <= TRIED:
        sweep.refuse_hopeless([job.overrides for job in jobs])
    with sweep.open({"kind": "grid", **columns(jobs)}) as found:
        if extending:
            found = extended(sweep, found, jobs)
        pairs = zip(found["directories"], found["jobs"], strict=True)
        jobs = [Job(number, directory, words) for number, (directory, words) in enumerate(pairs)]
        unfinished = [job for job in jobs if not (sweep.path(job) / RESULTS).exists()]
        for job in unfinished:
            (sweep.path(job) / ERROR).unlink(missing_ok=True)
        sweep.work(unfinished)
        done = sum((sweep.path(job) / RESULTS).exists() for job in jobs)
        print(f"{done} of {len(jobs)} runs are done in {sweep.directory}", flush=True)
        sweep.close(jobs, finished=done == len(jobs))


def columns(jobs: Sequence[Job]) -> dict[str, Any]:
    """Return the jobs as a grid's record has them."""
    return {"jobs": [list(job.overrides) for job in jobs], "directories": [job.directory for job in jobs]}


def extended(sweep: Sweep, record: Mapping[str, Any], jobs: Sequence[Job]) -> dict[str, Any]:
    """Return the record of a grid after the jobs that it lacks are added to it, and write it.

    jobs: of the extended grid, with all that are recorded. Raises InputError if one of these is missing.
    """
    before = [frozenset(words) for words in record["jobs"]]
    if not set(before) <= {frozenset(job.overrides) for job in jobs}:
        raise InputError(f"{sweep.directory} has jobs that the extended grid lacks: choose another directory")
    missing = [job.overrides for job in jobs if frozenset(job.overrides) not in before]
    new = columns([sweep.job(len(before) + i, list(words)) for i, words in enumerate(missing)])
    found = {**record, "overrides": sweep.typed, **{name: [*record[name], *values] for name, values in new.items()}}
    sweep.write_record(found)
    (sweep.directory / FINISHED).unlink(missing_ok=True)
    return found


def planned(sweep: Sweep, params: Mapping[str, str] | None, arguments: Sequence[str]) -> list[Job]:
    """Return the jobs of a new grid. Raises InputError for an interval, and for two jobs with one directory."""
    axes = []
    for override in parse(params, arguments, sweep.context):
        key = override.get_key_element()
        if not override.is_sweep_override():
            axes.append([str(override.input_line)])
        elif override.is_discrete_sweep():
            axes.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            raise InputError(f"{override.input_line}: a grid has no intervals; a search has: hydra/sweeper=search")
    jobs = [sweep.job(number, list(words)) for number, words in enumerate(itertools.product(*axes))]
    if len({job.directory for job in jobs}) < len(jobs):
        raise InputError("hydra.sweep.subdir gives two jobs one directory: ${hydra.job.num} would tell them apart")
    return jobs
