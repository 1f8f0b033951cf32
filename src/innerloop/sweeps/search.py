"""A search by Optuna: a sweep whose jobs are the trials of a study. Light: Optuna is imported where it is used."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from innerloop.errors import InputError
from innerloop.runs.record import RESULTS
from innerloop.runs.schemas import task_family
from innerloop.sweeps.jobs import ERROR, PRUNED, Job, value_of
from innerloop.sweeps.record import RECORD
from innerloop.sweeps.study import NAME, Settings, as_overrides, pruner, storage
from innerloop.sweeps.sweep import Sweep, parse

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution


def search(sweep: Sweep, settings: Settings, params: Mapping[str, str] | None, arguments: Sequence[str]) -> None:
    """Run trials until there are n_trials, and print the best.

    Raises InputError before anything is written, FailedRuns after all trials have run.
    """
    try:
        import optuna
    except ImportError as error:
        raise InputError('hydra/sweeper=search needs Optuna: pip install -e ".[sweep]"') from error
    fixed, drawn = space(parse(params, arguments, sweep.context))
    cfg = sweep.compose(fixed)
    refuse_ranks(cfg.trainer, list(drawn))
    lowest, highest = ([*fixed, *(f"{key}={_end(d, end)}" for key, d in drawn.items())] for end in (0, -1))
    sweep.job(0, lowest)  # composed as a check
    if not (sweep.directory / RECORD).exists():
        sweep.refuse_hopeless([lowest, highest])
    # Imports torch, once per search: only the task family knows whether more of its metric is better.
    direction = None if (sweep.directory / RECORD).exists() else _direction(cfg)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with sweep.open({"kind": "optuna", "direction": direction}) as record:
        study = optuna.create_study(
            study_name=NAME,
            storage=storage(sweep.directory),
            direction=record["direction"],
            pruner=pruner(settings),
            load_if_exists=True,
        )
        # A new sampler with the same seed would draw the first points again.
        seed = settings.seed + len(study.get_trials(deepcopy=False))
        study.sampler = optuna.samplers.TPESampler(n_startup_trials=settings.n_startup_trials, seed=seed)
        trials = Trials(sweep, study, fixed)
        interrupted = [trial for trial in study.trials if not trial.state.is_finished()]
        for trial in interrupted:
            for key, distribution in drawn.items():  # as Study.ask does: values that were drawn before are kept
                optuna.Trial(study, trial._trial_id)._suggest(key, distribution)
        trials.work([study.trials[trial.number] for trial in interrupted])
        while (missing := settings.n_trials - len(study.get_trials(deepcopy=False))) > 0:
            numbers = [study.ask(drawn).number for _ in range(min(missing, _at_a_time(sweep.config)))]
            trials.work([study.trials[n] for n in numbers])
        trials.print_best()
        sweep.close([trials.job(t) for t in study.trials], finished=True)


def space(overrides: Sequence[Override]) -> tuple[list[str], dict[str, "BaseDistribution"]]:
    """Return (the overrides that all trials share, key -> the distribution that its values are drawn from).

    Distributions: interval(a, b), tag(log, interval(a, b)), int(interval(a, b)), range(a, b, step), choice(…), a,b,c.
    Raises InputError if there is nothing to search.
    """
    fixed, found = [], {}
    for override in overrides:
        key = override.get_key_element()
        if override.is_sweep_override():
            found[key] = _distribution(override)
        else:
            fixed.append(str(override.input_line))
    if not found:
        raise InputError("a search needs what to search, such as 'algo.inner_lr=tag(log,interval(0.001,0.5))'")
    return fixed, found


def _distribution(override: Override) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    try:
        if isinstance(value, IntervalSweep):
            low, high, log = value.start, value.end, "log" in value.tags
            assert low is not None
            assert high is not None
            if isinstance(low, int) and isinstance(high, int):
                return IntDistribution(low, high, log=log)
            return FloatDistribution(float(low), float(high), log=log)
        if isinstance(value, RangeSweep) and isinstance(values := value.range(), range):
            return IntDistribution(min(values), max(values), step=abs(values.step))
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    except (ValueError, IndexError) as error:
        raise InputError(f"{override.input_line}: {error}") from error


def refuse_ranks(trainer: DictConfig, keys: Sequence[str]) -> None:
    """Raise InputError if a trial would train on several devices: each rank would draw a trial of its own, unnoticed.

    keys: what is searched. The devices must not be among it.
    """
    searched = [key for key in keys if key in {f"trainer.{k}" for k in ("strategy", "devices", "num_nodes")}]
    devices = trainer.devices
    one = {"trainer.devices": devices in (1, "1") or (OmegaConf.is_list(devices) and len(devices) == 1)}
    one["trainer.strategy"] = trainer.strategy in ("auto", "single_device")
    one["trainer.num_nodes"] = trainer.get("num_nodes", 1) == 1
    wrong = [f"{key}={OmegaConf.select(trainer, key.partition('.')[2])}" for key, single in one.items() if not single]
    wrong += [f"{key}, which is searched," for key in searched]
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        wrong.append(f"WORLD_SIZE={os.environ['WORLD_SIZE']}")
    if wrong:
        raise InputError(
            f"{wrong[0]} with an Optuna search: its ranks would draw different trials; a trial trains on one device "
            "(trainer.devices=1 trainer.strategy=auto), and a launcher runs several trials at once"
        )


def _direction(cfg: DictConfig) -> str:
    return "maximize" if task_family(cfg).higher_is_better else "minimize"


def _at_a_time(config: DictConfig) -> int:
    launched = OmegaConf.select(config, "hydra.launcher.n_jobs") or 1
    return config.hydra.sweeper.n_jobs or (launched if launched > 0 else os.cpu_count() or 1)


def _end(distribution: Any, end: int) -> Any:
    """Return the first (0) or the last (-1) value of a distribution."""
    choices = getattr(distribution, "choices", None) or (distribution.low, distribution.high)
    return choices[end]


class Trials:
    """The trials of a study as jobs of its sweep. fixed: the overrides that all trials share."""

    def __init__(self, sweep: Sweep, study: "optuna.Study", fixed: Sequence[str]) -> None:
        self.sweep, self.study, self.fixed = sweep, study, fixed

    def job(self, trial: "optuna.trial.FrozenTrial") -> Job:
        """Return the job of a trial. Its directory is recorded in the study, so it stays the same."""
        words = [*self.fixed, *as_overrides(trial)]
        known = trial.user_attrs.get("directory")
        if known:
            return Job(trial.number, known, words)
        job = self.sweep.job(trial.number, words)
        self.study._storage.set_trial_user_attr(trial._trial_id, "directory", job.directory)
        return job

    def work(self, trials: Sequence["optuna.trial.FrozenTrial"]) -> None:
        """Run trials, or resume them, and record in the study how they ended."""
        jobs = [self.job(trial) for trial in trials]
        try:
            self.sweep.work([job for job in jobs if not self.sweep.ended(job)])
        finally:
            for job in jobs:
                self._record(job)

    def _record(self, job: Job) -> None:
        from optuna.trial import TrialState

        path = self.sweep.path(job)
        if (path / RESULTS).exists():
            value = value_of(path)
            if math.isnan(value):
                self._record_failure(job, "the validation metric is not a number")
            else:
                self.study.tell(job.number, value)
        elif (path / PRUNED).exists():
            self.study.tell(job.number, state=TrialState.PRUNED)
        elif (path / ERROR).exists():
            error = json.loads((path / ERROR).read_text())
            self._record_failure(job, f"{error['type']}: {error['error']}")

    def _record_failure(self, job: Job, error: str) -> None:
        from optuna.trial import TrialState

        trial = self.study.trials[job.number]
        self.study._storage.set_trial_user_attr(trial._trial_id, "error", error)
        self.study.tell(job.number, state=TrialState.FAIL)

    def print_best(self) -> None:
        """Print the number of trials in each state, and the best trial's value, overrides and directory."""
        states = [trial.state.name.lower() for trial in self.study.trials]
        counts = ", ".join(f"{states.count(name)} {name}" for name in dict.fromkeys(states))
        print(f"{len(states)} trials: {counts}")
        if "complete" in states:
            best = self.study.best_trial
            print(f"best: trial {best.number}, {best.value:.6g} on the validation tasks")
            print(f"  {' '.join(as_overrides(best))}")
            print(f"  {self.sweep.path(self.job(best))}", flush=True)
