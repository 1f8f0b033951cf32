"""Sweeps that may be killed: what was asked, what is done and what went wrong is in the sweep's directory alone.

    sweep.yaml   what was typed, and a grid's jobs
    conf/        the configuration as it was at the start
    <job>/       a run directory; it ends with results.json, error.json or pruned.json
    finished     is there when all is done
    .lock        is held by the process that runs the sweep or, in a run directory, the job

Light on purpose, as config.py is: the parent of a sweep does without torch.
"""

import copy
import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from innerloop.config import given
from innerloop.errors import FailedRuns, InputError
from innerloop.jobs import ERROR, LOCK, PRUNED, Job, write_error
from innerloop.locks import holder, locked
from innerloop.record import RESULTS

RECORD, CONF, FINISHED = "sweep.yaml", "conf", "finished"

# What may change from one part of a sweep to the next: who runs the jobs, how many at a time, how many in all.
LAUNCHER = ("launcher", "hydra/launcher", "hydra.launcher")
FREE = (*LAUNCHER, "hydra.sweeper.n_jobs", "hydra.sweeper.n_trials")

# How long Ctrl-C waits for running jobs to save their state, in seconds; a second Ctrl-C does not wait.
GRACE = 60.0


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _free(override: str) -> bool:
    return any(_key(override) == name or _key(override).startswith(f"{name}.") for name in FREE)


def _fixed(overrides: Sequence[str]) -> list[str]:
    """What makes a sweep this one, in whatever order it was typed."""
    return sorted(a for a in overrides if not _free(a))


def _refuse_another(directory: Path, asked: Sequence[str]) -> None:
    recorded = read_record(directory)["overrides"]
    if _fixed(asked) != _fixed(recorded):
        raise InputError(
            f"sweep={directory} is the sweep of: {' '.join(a for a in recorded if not _free(a))}. "
            "Name it alone to go on with it, or name another one"
        )


def _named(overrides: Sequence[str]) -> str | None:
    return given("sweep", overrides) or given("hydra.sweep.dir", overrides)


def command_line(argv: Sequence[str]) -> list[str]:
    """The arguments of a command, and where it goes on with a sweep that is there already, that sweep's own.

    A sweep is gone on with if `sweep=<its directory>` names it, or if it was started by the same command in the default
    place and was not finished. Raises InputError if the sweep was another one than is now asked for.
    """
    typed = [a for a in argv[1:] if not a.startswith("-") and ("=" in a or a.startswith("~"))]
    if not {"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(argv):
        if given("sweep", typed):
            raise InputError(f"sweep= is a sweep's directory: python train.py -m sweep={given('sweep', typed)}")
        return list(argv)
    if [a for a in argv[1:] if a.startswith("-") and a not in ("-m", "--multirun")]:
        return list(argv)  # to be shown something, or with other configuration files
    asked = [a for a in typed if _key(a) not in ("sweep", "hydra.mode")]
    fixed = _fixed(asked)
    named = _named(typed)
    directory = Path(named) if named else _unfinished(fixed)
    if directory is None or not (directory / RECORD).is_file():
        if named and not asked:
            raise InputError(f"sweep={named}: there is no sweep in this directory; to start one, say what it is to try")
        return list(argv)
    recorded = read_record(directory)["overrides"]
    if fixed:
        _refuse_another(directory, asked)
    if not named:
        print(f"goes on with the same sweep, which was not finished; another one: sweep=<new directory> ({directory})")
    free = [a for a in asked if _free(a)]
    replaced = {_key(a) for a in free}
    if replaced & {"launcher", "hydra/launcher"}:
        replaced |= {_key(a) for a in recorded if _key(a).startswith(LAUNCHER)}
    kept = [a for a in recorded if _key(a) not in replaced]
    place = [] if given("hydra.sweep.dir", kept) else [f"sweep={quoted(directory)}"]
    return [argv[0], "-m", "--config-path", str((directory / CONF).resolve()), *kept, *free, *place]


def _unfinished(fixed: Sequence[str]) -> Path | None:
    """The newest sweep in the default place that was started with these overrides, stopped and not finished."""
    for path in sorted(Path("runs/sweeps").glob(f"*/{RECORD}"), reverse=True):
        same = _fixed(read_record(path.parent)["overrides"]) == list(fixed)
        if same and not (path.parent / FINISHED).exists() and holder(path.parent / LOCK) is None:
            return path.parent
    return None


def read_record(directory: Path) -> dict[str, Any]:
    """What sweep.yaml holds."""
    return yaml.safe_load((directory / RECORD).read_text())


def quoted(value: object) -> str:
    """A string as Hydra reads it back, whatever is in it."""
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def parse(params: Mapping[str, str] | None, arguments: Sequence[str], context: HydraContext) -> list[Override]:
    """The overrides of a sweeper's `params` and of the command line, which decides; not those of the sweep itself."""
    parser = OverridesParser.create(config_loader=context.config_loader)
    words = [f"{key}={value}" for key, value in (params or {}).items()]
    words += [a for a in arguments if _key(a) not in ("launcher", "sweep")]
    return list({override.get_key_element(): override for override in parser.parse_overrides(words)}.values())


class Sweep:
    """A sweep's directory at work: started or gone on with, locked against a second process.

    n_jobs: jobs that the launcher is given at a time; None: all of them.
    """

    def __init__(self, context: HydraContext, task: TaskFunction, config: DictConfig, n_jobs: int | None) -> None:
        if n_jobs is not None and n_jobs < 1:
            raise InputError(f"hydra.sweeper.n_jobs must be above zero, got {n_jobs}")
        self.context, self.task, self.config, self.n_jobs = context, task, config, n_jobs
        self.directory = Path(config.hydra.sweep.dir).resolve()
        self.loader: ConfigLoader = context.config_loader
        overrides = config.hydra.overrides
        # As typed: ${…} belongs to the jobs.
        typed = OmegaConf.to_container(overrides, resolve=False)
        assert isinstance(typed, dict)
        words = [*typed["hydra"], *typed["task"]]
        self._typed = [word for word in words if _key(word) not in ("sweep", "hydra.mode")]
        self._launcher = [a for a in self._typed if _key(a) == "launcher"]

    def job(self, number: int, overrides: Sequence[str]) -> Job:
        """A job, composed once to see that it can be and where it goes."""
        cfg = self.compose(overrides)
        with open_dict(cfg):
            cfg.hydra.job.num = number
        return Job(number, str(cfg.hydra.sweep.subdir), list(overrides))

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration of a job, Hydra's part included."""
        return self.loader.load_sweep_config(self.config, [*overrides, *self._launcher, self._place])

    @property
    def _place(self) -> str:
        return f"sweep={quoted(self.directory)}"

    @contextmanager
    def open(self, record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Locks the directory and yields its record: the one that is there, else this one. Freezes the configs."""
        others = {p.name for p in self.directory.glob("*")} - {LOCK, CONF}
        if others and RECORD not in others:
            raise InputError(f"{self.directory} holds other files, such as {min(others)}: take another directory")
        with locked(self.directory / LOCK, f"{self.directory} is a sweep that another process is running"):
            if (self.directory / RECORD).exists():
                _refuse_another(self.directory, self._typed)
            else:
                self._create(record)
            self.loader = frozen(self.context.config_loader, self.directory / CONF)
            context = HydraContext(config_loader=self.loader, callbacks=self.context.callbacks)
            self.launcher = Plugins.instance().instantiate_launcher(
                hydra_context=context, task_function=self.task, config=self.config
            )
            print(f"sweep in {self.directory}; go on with: python train.py -m sweep={self.directory}", flush=True)
            yield read_record(self.directory)

    def _create(self, record: Mapping[str, Any]) -> None:
        shutil.rmtree(self.directory / CONF, ignore_errors=True)
        # The last to come decides, as in Hydra's search path read from its end.
        for element in reversed(self.context.config_loader.get_search_path().get_path()):
            if _is_folder(element.path):
                shutil.copytree(element.path.removeprefix("file://"), self.directory / CONF, dirs_exist_ok=True)
        draft = self.directory / f"{RECORD}.tmp"
        draft.write_text(yaml.safe_dump({"overrides": self._typed, **record}, sort_keys=False))
        draft.replace(self.directory / RECORD)

    def path(self, job: Job) -> Path:
        return self.directory / job.directory

    def ended(self, job: Job) -> bool:
        return any((self.path(job) / name).exists() for name in (RESULTS, PRUNED, ERROR))

    def work(self, jobs: Sequence[Job]) -> None:
        """Runs these jobs until each has ended: with results, pruned, or with a recorded error."""
        size = self.n_jobs or len(jobs)
        for first in range(0, len(jobs), size or 1):
            self._work(jobs[first : first + size])

    def _work(self, jobs: Sequence[Job], again: bool = False) -> None:
        failure = self._launch(jobs)
        left = [job for job in jobs if not self.ended(job)]
        # Their process is gone, and said nothing: they begin once more, alone, so that no other is blamed.
        died = [job for job in left if (self.path(job) / LOCK).exists() and holder(self.path(job) / LOCK) is None]
        if failure and not died and len(left) == len(jobs):
            raise failure  # the engine itself does not work
        for job in died:
            if again:
                write_error(self.path(job), failure or RuntimeError("no result"))
            else:
                self._work([job], again=True)
        # Where an engine stops at the first lost process, others may still be at work: to begin again waits for them.
        left = [job for job in left if not self.ended(job)]
        if left:
            self._work(left)

    def _launch(self, jobs: Sequence[Job]) -> Exception | None:
        """Launches jobs; returns the engine's error, if it had one."""
        for job in jobs:
            print(f"{job.directory}: {' '.join(job.overrides)}", flush=True)
        common = [*self._launcher, self._place]
        words = [[*job.overrides, *common, f"hydra.sweep.subdir={quoted(job.directory)}"] for job in jobs]
        try:
            with self._patience(jobs):
                returns = self.launcher.launch(words, initial_job_idx=jobs[0].number)
        except Exception as error:
            return error
        for job, result in zip(jobs, returns, strict=True):
            if not self.ended(job):  # an error that came before the run could record it
                failed = result.status is JobStatus.FAILED
                write_error(self.path(job), result._return_value if failed else RuntimeError("no result"))
        return None

    @contextmanager
    def _patience(self, jobs: Sequence[Job]) -> Iterator[None]:
        """On Ctrl-C, which jobs in other processes feel too, lets them save their state before an engine kills them."""

        def wait(number: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            locks = [self.path(job) / LOCK for job in jobs]
            running = [lock for lock in locks if holder(lock) not in (None, os.getpid())]
            end = time.monotonic() + GRACE
            while time.monotonic() < end and any(holder(lock) is not None for lock in running):
                time.sleep(0.1)
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGINT, wait)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def close(self, jobs: Sequence[Job], finished: bool) -> None:
        """Notes that all is done. Raises FailedRuns if jobs failed, with a line for each."""
        failed = [job for job in jobs if (self.path(job) / ERROR).exists()]
        if finished:
            (self.directory / FINISHED).touch()
        if failed:
            errors = {job.directory: json.loads((self.path(job) / ERROR).read_text()) for job in failed}
            lines = [f"  {name}: {e['type']}: {e['error']}" for name, e in errors.items()]
            raise FailedRuns("\n".join([f"{len(failed)} of {len(jobs)} runs failed", *lines]))


def _is_folder(path: str) -> bool:
    return path.startswith("file://") or "://" not in path


def frozen(loader: ConfigLoader, conf: Path) -> ConfigLoader:
    """The same loader, reading a sweep's copy of the configuration files."""
    path: ConfigSearchPath = copy.deepcopy(loader.get_search_path())
    elements = path.get_path()
    first, *others = [e for e in elements if _is_folder(e.path)]
    first.path = f"file://{conf}"
    elements[:] = [e for e in elements if e not in others]
    return type(loader)(config_search_path=path)  # type: ignore[call-arg]


def grid(sweep: Sweep, params: Mapping[str, str] | None, arguments: Sequence[str]) -> None:
    """Runs the product of all choices. Raises InputError before anything is written, FailedRuns after all has run."""
    axes = []
    for override in parse(params, arguments, sweep.context):
        key = override.get_key_element()
        if not override.is_sweep_override():
            axes.append([str(override.input_line)])
        elif override.is_discrete_sweep():
            axes.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            raise InputError(f"{override.input_line}: a grid has no intervals; a search has: hydra/sweeper=search")
    if not (sweep.directory / RECORD).exists():
        jobs = [sweep.job(number, list(words)) for number, words in enumerate(itertools.product(*axes))]
        if len({job.directory for job in jobs}) < len(jobs):
            raise InputError("hydra.sweep.subdir gives two jobs one directory: ${hydra.job.num} tells them apart")
    else:
        jobs = []
    record = {
        "kind": "grid",
        "jobs": [list(job.overrides) for job in jobs],
        "directories": [job.directory for job in jobs],
    }
    with sweep.open(record) as found:
        pairs = zip(found["directories"], found["jobs"], strict=True)
        jobs = [Job(number, directory, words) for number, (directory, words) in enumerate(pairs)]
        todo = [job for job in jobs if not (sweep.path(job) / RESULTS).exists()]
        for job in todo:
            (sweep.path(job) / ERROR).unlink(missing_ok=True)
        sweep.work(todo)
        done = sum((sweep.path(job) / RESULTS).exists() for job in jobs)
        print(f"{done} of {len(jobs)} runs are done in {sweep.directory}", flush=True)
        sweep.close(jobs, finished=done == len(jobs))
