"""A sweep at work: its directory created or continued, its jobs launched until each has ended.

Everything about a sweep that may be killed is in its directory: see `innerloop.sweeps.record`. Light: no torch here.
"""

import copy
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

from innerloop.devices.files import write_whole
from innerloop.errors import FailedRuns, InputError
from innerloop.runs.command import USER_ERRORS
from innerloop.runs.keys import check_hydra, check_schema
from innerloop.runs.locks import LOCK, holder, locked
from innerloop.runs.record import RESULTS
from innerloop.runs.schemas import TrainConfig
from innerloop.sweeps.jobs import ERROR, PRUNED, Job, write_error
from innerloop.sweeps.record import CONF, FINISHED, RECORD, key_of, quoted, read_record, refuse_another

HERE = ("BasicLauncher", "JoblibLauncher", "LocalLauncher")
"""The launchers that start jobs on this machine."""
GRACE = 60.0
"""Seconds that Ctrl-C waits for running jobs to save their state. A second Ctrl-C does not wait."""


def parse(params: Mapping[str, str] | None, arguments: Sequence[str], context: HydraContext) -> list[Override]:
    """Return the overrides of a sweeper's `params` and of the command line, which takes precedence.

    Overrides of the sweep itself, such as its launcher, are left out.
    """
    parser = OverridesParser.create(config_loader=context.config_loader)
    words = [f"{key}={value}" for key, value in (params or {}).items()]
    words += [a for a in arguments if key_of(a) not in ("launcher", "sweep", "allow")]
    return list({override.get_key_element(): override for override in parser.parse_overrides(words)}.values())


class Sweep:
    """A sweep at work in its directory, created or continued, and locked against a second process.

    n_jobs: number of jobs that the launcher gets at a time; None: all of them.
    """

    def __init__(self, context: HydraContext, task: TaskFunction, config: DictConfig, n_jobs: int | None) -> None:
        if n_jobs is not None and n_jobs < 1:
            raise InputError(f"hydra.sweeper.n_jobs must be above zero, got {n_jobs}")
        self.launcher_name = str(config.hydra.launcher.get("_target_")).rpartition(".")[2]
        if self.launcher_name == "SlurmLauncher" and shutil.which("srun") is None:
            raise InputError("launcher=submitit_slurm needs a SLURM cluster: there is no srun on this machine")
        self.context, self.task, self.config, self.n_jobs = context, task, config, n_jobs
        self.directory = Path(config.hydra.sweep.dir).resolve()
        self.loader: ConfigLoader = context.config_loader
        # As typed: interpolations are resolved by the jobs.
        typed = OmegaConf.to_container(config.hydra.overrides, resolve=False)
        assert isinstance(typed, dict)
        words = [*typed["hydra"], *typed["task"]]
        self.typed = [word for word in words if key_of(word) not in ("sweep", "hydra.mode")]
        # A job's own overrides and the copied files may be somebody else's, so what is allowed comes from here.
        self._common = [a for a in self.typed if key_of(a) in ("launcher", "allow")]

    def job(self, number: int, overrides: Sequence[str]) -> Job:
        """Return a job. It is composed once, to check its overrides and to find its directory.

        Raises InputError for an unknown key.
        """
        cfg = self.compose(overrides)
        check_hydra(cfg.hydra)
        check_schema(OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name != "hydra"]), TrainConfig)
        with open_dict(cfg):
            cfg.hydra.job.num = number
        return Job(number, str(cfg.hydra.sweep.subdir), list(overrides))

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Return the configuration of a job, Hydra's part included."""
        return self.loader.load_sweep_config(self.config, [*overrides, *self._common, self._own_override])

    def refuse_hopeless(self, several: Sequence[Sequence[str]]) -> None:
        """Raise the error of the first of these jobs, given by their overrides, if all of them would end in an error.

        Only where jobs run on this machine, because another one may have what they need, such as a GPU.
        """
        if self.launcher_name not in HERE:
            return
        from innerloop.runs.train import try_out  # imports torch

        errors = []
        for overrides in several:
            cfg = self.compose(overrides)
            try:
                try_out(OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name != "hydra"]))
            except USER_ERRORS as error:
                errors.append(error)
            else:
                return
        raise errors[0]

    @property
    def _own_override(self) -> str:
        return f"sweep={quoted(self.directory)}"

    @contextmanager
    def open(self, record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Lock the directory and yield its record: the existing one, or else this one.

        From then on the configuration files are the copies in the directory.
        """
        others = {p.name for p in self.directory.glob("*")} - {LOCK, CONF}
        if others and RECORD not in others:
            raise InputError(f"{self.directory} holds other files, such as {min(others)}: choose another directory")
        with locked(self.directory / LOCK, f"{self.directory} is a sweep that another process is running"):
            if (self.directory / RECORD).exists():
                refuse_another(self.directory, self.typed)
            else:
                self._create(record)
            self.loader = frozen(self.context.config_loader, self.directory / CONF)
            context = HydraContext(config_loader=self.loader, callbacks=self.context.callbacks)
            self.launcher = Plugins.instance().instantiate_launcher(
                hydra_context=context, task_function=self.task, config=self.config
            )
            allow = "".join(f" {a}" for a in self._common if key_of(a) == "allow" and not a.endswith("=[]"))
            command = f"python train.py -m sweep={self.directory}{allow}"
            print(f"sweep in {self.directory}; continue it with: {command}", flush=True)
            try:
                yield read_record(self.directory)
            except KeyboardInterrupt:
                print(f"stopped; continue it with: {command}", flush=True)
                raise

    def _create(self, record: Mapping[str, Any]) -> None:
        shutil.rmtree(self.directory / CONF, ignore_errors=True)
        # Later copies overwrite earlier ones. Hydra's search path is read from its end, since its first entries win.
        for element in reversed(self.context.config_loader.get_search_path().get_path()):
            if _is_folder(element.path):
                shutil.copytree(element.path.removeprefix("file://"), self.directory / CONF, dirs_exist_ok=True)
        self.write_record({"overrides": self.typed, **record})

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Write sweep.yaml whole or not at all."""
        write_whole(self.directory / RECORD, yaml.safe_dump(dict(record), sort_keys=False))

    def path(self, job: Job) -> Path:
        """Return the directory of a job."""
        return self.directory / job.directory

    def ended(self, job: Job) -> bool:
        """Return True if a job finished, was pruned or failed."""
        return any((self.path(job) / name).exists() for name in (RESULTS, PRUNED, ERROR))

    def work(self, jobs: Sequence[Job]) -> None:
        """Run these jobs until each has ended: with results, pruned, or with a recorded error."""
        size = self.n_jobs or len(jobs)
        for first in range(0, len(jobs), size or 1):
            self._work(jobs[first : first + size])

    def _work(self, jobs: Sequence[Job], retrying: bool = False) -> None:
        failure = self._launch(jobs)
        left = [job for job in jobs if not self.ended(job)]
        # Processes that died left no record of an error. Each job is retried by itself, so that no other is affected.
        started = [job for job in left if (self.path(job) / LOCK).exists()]
        died = [job for job in started if holder(self.path(job) / LOCK) is None]
        # A process that is being killed may still hold its lock. The launcher does not work only if no job has started.
        if failure and not started and len(left) == len(jobs):
            raise failure
        for job in died:
            if retrying:
                write_error(self.path(job), failure or RuntimeError("no result"))
            else:
                self._work([job], retrying=True)
        # A launcher may stop at the first process that dies, while others still work. Their jobs are launched again
        # and wait for those processes.
        left = [job for job in left if not self.ended(job)]
        if left:
            self._work(left)

    def _launch(self, jobs: Sequence[Job]) -> Exception | None:
        """Launch jobs. Returns the launcher's error, None if there was none."""
        for job in jobs:
            print(f"{job.directory}: {' '.join(job.overrides)}", flush=True)
        common = [*self._common, self._own_override]
        words = [[*job.overrides, *common, f"hydra.sweep.subdir={quoted(job.directory)}"] for job in jobs]
        try:
            with self._patience(jobs):
                returns = self.launcher.launch(words, initial_job_idx=jobs[0].number)
        except Exception as error:
            return error
        for job, result in zip(jobs, returns, strict=True):
            if not self.ended(job):  # an error before the job could record it
                failed = result.status is JobStatus.FAILED
                write_error(self.path(job), result._return_value if failed else RuntimeError("no result"))
        return None

    @contextmanager
    def _patience(self, jobs: Sequence[Job]) -> Iterator[None]:
        """On Ctrl-C, wait until the jobs in other processes have saved their state, before a launcher kills them.

        These processes get the same signal.
        """

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
        """Mark the sweep as finished, if it is. Raises FailedRuns with a line for each failed job."""
        failed = [job for job in jobs if (self.path(job) / ERROR).exists()]
        if finished:
            (self.directory / FINISHED).touch()
        if failed:
            errors = {job.directory: json.loads((self.path(job) / ERROR).read_text()) for job in failed}
            lines = [f"  {name}: {e['type']}: {e['error']}" for name, e in errors.items()]
            raise FailedRuns("\n".join([f"{len(failed)} of {len(jobs)} runs failed", *lines]))


def frozen(loader: ConfigLoader, conf: Path) -> ConfigLoader:
    """Return the same loader, reading a sweep's copy of the configuration files."""
    path: ConfigSearchPath = copy.deepcopy(loader.get_search_path())
    elements = path.get_path()
    first, *others = [e for e in elements if _is_folder(e.path)]
    first.path = f"file://{conf}"
    elements[:] = [e for e in elements if e not in others]
    return type(loader)(config_search_path=path)  # type: ignore[call-arg]


def _is_folder(path: str) -> bool:
    return path.startswith("file://") or "://" not in path
