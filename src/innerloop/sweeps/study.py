"""The Optuna study of a search: its file in the sweep's directory, reports of its trials, and what it shows.

Optuna is imported where a study is used.
"""

import sqlite3
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from innerloop.errors import InputError

if TYPE_CHECKING:
    import optuna

STUDY, NAME = "study.db", "study"
PATIENCE = 120
"""Seconds that trials in several processes wait for one another before sqlite gives up."""
FEWEST_TRIALS = 5
"""Finished trials that importances need. Of five, the better half are three; fewer would show noise."""


@dataclass(frozen=True)
class Settings:
    """The settings of a search in hydra.sweeper: see hydra_plugins.innerloop_sweeper.SearchConf."""

    n_trials: int
    n_startup_trials: int
    prune_after_trials: int
    prune_after_steps: int
    seed: int

    @classmethod
    def of(cls, node: DictConfig) -> "Settings":
        """Return the settings of a configuration. Raises InputError for numbers below zero."""
        found = cls(**{f.name: node[f.name] for f in fields(cls)})
        for name, value in vars(found).items():
            if value < (name == "n_trials"):
                raise InputError(
                    f"hydra.sweeper.{name} must {'be above' if name == 'n_trials' else 'not be below'} zero"
                )
        return found


def storage(directory: Path) -> "optuna.storages.RDBStorage":
    """Return the file of a sweep's study, which is created if needed."""
    import optuna

    return optuna.storages.RDBStorage(
        f"sqlite:///{directory / STUDY}", engine_kwargs={"connect_args": {"timeout": PATIENCE}}
    )


def pruner(settings: Settings) -> "optuna.pruners.MedianPruner":
    """Return the pruner of a search."""
    import optuna

    return optuna.pruners.MedianPruner(settings.prune_after_trials, settings.prune_after_steps)


def trial_report(directory: Path, run_dir: Path) -> Callable[[int, float], bool] | None:
    """Return the function that a trial reports its validations to, None for a job that is no trial of a search.

    The function takes (step, validation metric) and returns whether the trial is to be pruned.

    directory: of the sweep. run_dir: of the job.
    """
    if not (directory / STUDY).exists():
        return None
    import optuna

    study = optuna.load_study(
        study_name=NAME, storage=storage(directory), pruner=pruner(Settings.of(HydraConfig.get().sweeper))
    )
    name = run_dir.resolve().relative_to(directory.resolve()).as_posix()
    (frozen,) = [trial for trial in study.get_trials(deepcopy=False) if trial.user_attrs.get("directory") == name]
    trial = optuna.Trial(study, frozen._trial_id)

    def report(step: int, value: float) -> bool:
        if step not in study.trials[frozen.number].intermediate_values:  # a restarted trial reports steps again
            trial.report(value, step)
        return trial.should_prune()

    return report


def as_overrides(trial: Any) -> list[str]:
    """Return what was drawn for a trial as overrides."""
    return [f"{key}={value}" for key, value in trial.params.items()]


@dataclass(frozen=True)
class Study:
    """A study as it is read.

    importances: key -> share of one, and empty if there are none yet. about_importances: what they are, or why there
    are none.
    """

    trials: Sequence[Any]
    importances: dict[str, float]
    about_importances: str


def read_study(path: Path) -> Study | None:
    """Return the study in a file, None if the search has not created it yet. Raises InputError without Optuna."""
    try:
        import optuna
    except ImportError:
        raise InputError(f'{path} is read with Optuna, which is not installed: pip install -e ".[sweep]"') from None
    if not _has_study(path):
        return None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    opened = optuna.storages.RDBStorage(f"sqlite:///{path}")
    try:
        study = optuna.load_study(study_name=NAME, storage=opened)
        return Study(study.trials, *importances(study))
    finally:
        opened.remove_session()
        opened.engine.dispose()


def _has_study(path: Path) -> bool:
    # Optuna would create missing tables, and interfere with the search.
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        return "studies" in tables and bool(database.execute("SELECT 1 FROM studies").fetchall())


def importances(study: Any) -> tuple[dict[str, float], str]:
    """Return (key -> share of one, the most important first; what the shares mean), or ({}; why there are none)."""
    import optuna

    complete = optuna.trial.TrialState.COMPLETE
    n = sum(trial.state is complete for trial in study.trials)
    if n < FEWEST_TRIALS:
        return {}, f"importances need {FEWEST_TRIALS} finished trials, there are {n}"
    # With Optuna's default of a tenth, a search of twenty trials would be judged by its best two.
    share = max(0.1, min(0.5, FEWEST_TRIALS / n))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=share)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    about = (
        f"importances for being among the best {share:.0%} of {n} finished trials (PED-ANOVA, Watanabe et al., 2023)"
    )
    return dict(sorted(found.items(), key=lambda item: -item[1])), about
