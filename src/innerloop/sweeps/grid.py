"""A grid: a sweep over all combinations of choices. Light: no torch here."""

import itertools
from collections.abc import Mapping, Sequence

from innerloop.errors import InputError
from innerloop.runs.record import RESULTS
from innerloop.sweeps.jobs import ERROR, Job
from innerloop.sweeps.record import RECORD
from innerloop.sweeps.sweep import Sweep, parse


def grid(sweep: Sweep, params: Mapping[str, str] | None, arguments: Sequence[str]) -> None:
    """Run the product of all choices.

    params, arguments: see `parse`. Raises InputError before anything is written, FailedRuns after all jobs have run.
    """
    jobs = [] if (sweep.directory / RECORD).exists() else planned(sweep, params, arguments)
    record = {
        "kind": "grid",
        "jobs": [list(job.overrides) for job in jobs],
        "directories": [job.directory for job in jobs],
    }
    with sweep.open(record) as found:
        pairs = zip(found["directories"], found["jobs"], strict=True)
        jobs = [Job(number, directory, words) for number, (directory, words) in enumerate(pairs)]
        unfinished = [job for job in jobs if not (sweep.path(job) / RESULTS).exists()]
        for job in unfinished:
            (sweep.path(job) / ERROR).unlink(missing_ok=True)
        sweep.work(unfinished)
        done = sum((sweep.path(job) / RESULTS).exists() for job in jobs)
        print(f"{done} of {len(jobs)} runs are done in {sweep.directory}", flush=True)
        sweep.close(jobs, finished=done == len(jobs))


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
