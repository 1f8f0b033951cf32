"""The Optuna study of a search, for summarize.py. Optuna is imported where there is a study to read."""

import sqlite3
import warnings
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from innerloop.search import NAME

FEWEST_TRIALS = 5  # of which the better half are three: importances of fewer are noise


class SweepError(Exception):
    """A directory that is no sweep, a row that is not there, a library that is missing."""


@dataclass(frozen=True)
class Study:
    """An Optuna study: importances (key -> share of one) with how they came about, or why there are none."""

    trials: Sequence[Any]
    importances: dict[str, float]
    about_importances: str


def read_study(path: Path) -> Study | None:
    """The study of a search; None if it is not there yet. Raises SweepError where Optuna is missing."""
    try:
        import optuna
    except ImportError:
        raise SweepError(f'{path} is read with Optuna, which is not installed: pip install -e ".[sweep]"') from None
    if not has_study(path):
        return None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    try:
        study = optuna.load_study(study_name=NAME, storage=storage)
        return Study(study.trials, *importances(study))
    finally:
        storage.remove_session()
        storage.engine.dispose()


def has_study(path: Path) -> bool:
    """Whether the search has come so far. Optuna would create what is missing, and get in the way of the search."""
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        return "studies" in tables and bool(database.execute("SELECT 1 FROM studies").fetchall())


def importances(study: Any) -> tuple[dict[str, float], str]:
    """Key -> share of one, the most important first, and what they mean; or none, and why."""
    import optuna

    complete = optuna.trial.TrialState.COMPLETE
    n = sum(trial.state is complete for trial in study.trials)
    if n < FEWEST_TRIALS:
        return {}, f"importances need {FEWEST_TRIALS} finished trials, there are {n}"
    # With the default, a tenth, a search of twenty would be judged by its two best trials.
    share = max(0.1, min(0.5, FEWEST_TRIALS / n))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=share)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    about = (
        f"importances for being among the best {share:.0%} of {n} finished trials (PED-ANOVA, Watanabe et al., 2023)"
    )
    return dict(sorted(found.items(), key=lambda item: -item[1])), about


def as_overrides(trial: Any) -> list[str]:
    return [f"{key}={value}" for key, value in trial.params.items()]
