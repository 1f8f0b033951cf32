"""A search by Optuna as a sweep: its trials are the sweep's jobs, the study is a file in the sweep's directory."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from innerloop.config import locate
from innerloop.errors import InputError
from innerloop.jobs import ERROR, PRUNED, Job, value_of
from innerloop.record import RESULTS
from innerloop.sweep import RECORD, Sweep, parse

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

STUDY = "study.db"
NAME = "study"


@dataclass(frozen=True)
class Settings:
    """What hydra.sweeper says of a search, see hydra_plugins.innerloop_sweeper.SearchConf."""

    n_trials: int
    n_startup_trials: int
    prune_after_trials: int
    prune_after_steps: int
    seed: int

    @classmethod
    def of(cls, node: DictConfig) -> "Settings":
        """Raises InputError for numbers below zero."""
        found = cls(**{f.name: node[f.name] for f in fields(cls)})
        for name, value in vars(found).items():
            if value < (name == "n_trials"):
                raise InputError(
                    f"hydra.sweeper.{name} must {'be above' if name == 'n_trials' else 'not be below'} zero"
                )
        return found


def space(overrides: Sequence[Override]) -> tuple[list[str], dict[str, "BaseDistribution"]]:
    """(what all trials override, key -> what it is drawn from). Raises InputError where nothing is to be searched.

    interval(a, b), tag(log, interval(a, b)), int(interval(a, b)), range(a, b, step), choice(…) and a,b,c.
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
    """InputError if a trial would train on several devices: each rank would draw a trial of its own, and nobody notice.

    keys: what is searched; not the devices.
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


def _storage(directory: Path) -> "optuna.storages.RDBStorage":
    import optuna

    # Trials in several processes wait for one another this long, in seconds, before sqlite gives up.
    return optuna.storages.RDBStorage(
        f"sqlite:///{directory / STUDY}", engine_kwargs={"connect_args": {"timeout": 120}}
    )


def _pruner(settings: Settings) -> "optuna.pruners.MedianPruner":
    import optuna

    return optuna.pruners.MedianPruner(settings.prune_after_trials, settings.prune_after_steps)


def reporter(run_dir: Path) -> Callable[[int, float], bool] | None:
    """For a trial's job, (step, validation metric) -> whether the trial is pruned; None for a job of no search."""
    from hydra.core.hydra_config import HydraConfig

    directory = Path(HydraConfig.get().sweep.dir)
    if not (directory / STUDY).exists():
        return None
    import optuna

    study = optuna.load_study(
        study_name=NAME, storage=_storage(directory), pruner=_pruner(Settings.of(HydraConfig.get().sweeper))
    )
    name = run_dir.relative_to(directory).as_posix()
    (frozen,) = [trial for trial in study.get_trials(deepcopy=False) if trial.user_attrs.get("directory") == name]
    trial = optuna.Trial(study, frozen._trial_id)

    def report(step: int, value: float) -> bool:
        if step not in study.trials[frozen.number].intermediate_values:  # a trial that began again has said it before
            trial.report(value, step)
        return trial.should_prune()

    return report


def search(sweep: Sweep, settings: Settings, params: Mapping[str, str] | None, arguments: Sequence[str]) -> None:
    """Runs trials until there are n_trials, and prints the best. Raises InputError before anything is written,
    FailedRuns after all have run."""
    try:
        import optuna
    except ImportError as error:
        raise InputError('hydra/sweeper=search needs Optuna: pip install -e ".[sweep]"') from error
    fixed, drawn = space(parse(params, arguments, sweep.context))
    cfg = sweep.compose(fixed)
    refuse_ranks(cfg.trainer, list(drawn))
    sweep.job(0, [*fixed, *_overrides({key: _any(d) for key, d in drawn.items()})])  # composed, to see that it can be
    if (sweep.directory / RECORD).exists():
        direction = None
    else:
        # Imports torch, once in a search: what says whether more is better is the task family, and nobody else.
        better = locate(cfg.data._target_, "data._target_").higher_is_better  # type: ignore[attr-defined]
        direction = "maximize" if better else "minimize"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with sweep.open({"kind": "optuna", "direction": direction}) as record:
        study = optuna.create_study(
            study_name=NAME,
            storage=_storage(sweep.directory),
            direction=record["direction"],
            pruner=_pruner(settings),
            load_if_exists=True,
        )
        # A sampler that is made anew from the same seed would draw its first points again.
        seed = settings.seed + len(study.get_trials(deepcopy=False))
        study.sampler = optuna.samplers.TPESampler(n_startup_trials=settings.n_startup_trials, seed=seed)
        trials = Trials(sweep, study, fixed)
        interrupted = [trial for trial in study.trials if not trial.state.is_finished()]
        for trial in interrupted:
            for key, distribution in drawn.items():  # as Study.ask does: what was drawn already stays
                optuna.Trial(study, trial._trial_id)._suggest(key, distribution)
        trials.work([study.trials[trial.number] for trial in interrupted])
        while (missing := settings.n_trials - len(study.get_trials(deepcopy=False))) > 0:
            numbers = [study.ask(drawn).number for _ in range(min(missing, _at_a_time(sweep.config)))]
            trials.work([study.trials[n] for n in numbers])
        trials.tell_best()
        sweep.close([trials.job(t) for t in study.trials], finished=True)


def _at_a_time(config: DictConfig) -> int:
    of_launcher = OmegaConf.select(config, "hydra.launcher.n_jobs") or 1
    return config.hydra.sweeper.n_jobs or (of_launcher if of_launcher > 0 else os.cpu_count() or 1)


def _any(distribution: Any) -> Any:
    return distribution.choices[0] if hasattr(distribution, "choices") else distribution.low


def _overrides(params: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in params.items()]


class Trials:
    """The study's trials as jobs of the sweep."""

    def __init__(self, sweep: Sweep, study: "optuna.Study", fixed: Sequence[str]) -> None:
        self.sweep, self.study, self.fixed = sweep, study, fixed

    def job(self, trial: "optuna.trial.FrozenTrial") -> Job:
        """The same, directory included, whenever it is asked for."""
        words = [*self.fixed, *_overrides(trial.params)]
        known = trial.user_attrs.get("directory")
        if known:
            return Job(trial.number, known, words)
        job = self.sweep.job(trial.number, words)
        self.study._storage.set_trial_user_attr(trial._trial_id, "directory", job.directory)
        return job

    def work(self, trials: Sequence["optuna.trial.FrozenTrial"]) -> None:
        """Runs trials, or goes on with them, and tells the study how they ended."""
        jobs = [self.job(trial) for trial in trials]
        try:
            self.sweep.work([job for job in jobs if not self.sweep.ended(job)])
        finally:
            for job in jobs:
                self._tell(job)

    def _tell(self, job: Job) -> None:
        from optuna.trial import TrialState

        path = self.sweep.path(job)
        if (path / RESULTS).exists():
            value = value_of(path)
            if math.isnan(value):
                self._fail(job, "the validation metric is not a number")
            else:
                self.study.tell(job.number, value)
        elif (path / PRUNED).exists():
            self.study.tell(job.number, state=TrialState.PRUNED)
        elif (path / ERROR).exists():
            error = json.loads((path / ERROR).read_text())
            self._fail(job, f"{error['type']}: {error['error']}")

    def _fail(self, job: Job, error: str) -> None:
        from optuna.trial import TrialState

        trial = self.study.trials[job.number]
        self.study._storage.set_trial_user_attr(trial._trial_id, "error", error)
        self.study.tell(job.number, state=TrialState.FAIL)

    def tell_best(self) -> None:
        """Prints how many trials ended how, and the best one's value, configuration and directory."""
        states = [trial.state.name.lower() for trial in self.study.trials]
        counts = ", ".join(f"{states.count(name)} {name}" for name in dict.fromkeys(states))
        print(f"{len(states)} trials: {counts}")
        if "complete" in states:
            best = self.study.best_trial
            print(f"best: trial {best.number}, {best.value:.6g} on the validation tasks")
            print(f"  {' '.join(_overrides(best.params))}")
            print(f"  {self.sweep.path(self.job(best))}", flush=True)
