"""The sweepers that Hydra sees: `hydra/sweeper=grid`, the default, and `hydra/sweeper=search`, by Optuna.

Hydra imports this module whenever it starts, so innerloop is imported where it is used.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class GridConf:
    """All combinations. n_jobs: number of jobs that the launcher gets at a time, null: all; params: key -> choices."""

    _target_: str = "hydra_plugins.innerloop_sweeper.GridSweeper"
    n_jobs: int | None = None
    params: dict[str, str] = field(default_factory=dict)


@dataclass
class SearchConf:
    """A search by Optuna: TPE, and median pruning on the validation metric.

    n_trials: number of trials in all, pruned and failed ones included. n_jobs: number of trials at a time; null: as
    many as the launcher runs. n_startup_trials: drawn at random before TPE models the results.
    prune_after_trials, prune_after_steps: no trial is pruned before this many are complete, nor before this many steps.
    """

    _target_: str = "hydra_plugins.innerloop_sweeper.SearchSweeper"
    n_trials: int = 20
    n_jobs: int | None = None
    n_startup_trials: int = 10
    prune_after_trials: int = 5
    prune_after_steps: int = 0
    seed: int = 0
    params: dict[str, str] = field(default_factory=dict)


class _Sweeper(Sweeper):
    schema: type

    def __init__(self, **settings: Any) -> None:
        known = {f.name for f in fields(self.schema)}
        for name in settings:
            if name not in known:
                from innerloop.errors import InputError
                from innerloop.runs.signatures import unknown_key

                raise InputError(unknown_key(f"hydra.sweeper.{name}", list(known - {"_target_"})))
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.composed = hydra_context, task_function, config


class GridSweeper(_Sweeper):
    """Run `innerloop.sweeps.grid.grid`."""

    schema = GridConf

    def sweep(self, arguments: list[str]) -> None:
        from innerloop.sweeps.grid import grid
        from innerloop.sweeps.sweep import Sweep

        opened = Sweep(self.context, self.task, self.composed, self.settings["n_jobs"])
        grid(opened, self.settings["params"], arguments)


class SearchSweeper(_Sweeper):
    """Run `innerloop.sweeps.search.search`."""

    schema = SearchConf

    def sweep(self, arguments: list[str]) -> None:
        from innerloop.sweeps.search import search
        from innerloop.sweeps.study import Settings
        from innerloop.sweeps.sweep import Sweep

        opened = Sweep(self.context, self.task, self.composed, self.settings["n_jobs"])
        search(opened, Settings.of(self.composed.hydra.sweeper), self.settings["params"], arguments)


store = ConfigStore.instance()
store.store(group="hydra/sweeper", name="grid", node=GridConf, provider="innerloop")
store.store(group="hydra/sweeper", name="search", node=SearchConf, provider="innerloop")
