"""The schemas of the configurations of train.py, evaluate.py and adapt.py, and the resolvers that their files use."""

import os
import re
import secrets
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from innerloop.errors import InputError
from innerloop.runs.signatures import locate

# A field with a default other than MISSING is newer than runs that were recorded without it.


@dataclass
class TrainerConfig:
    """How long and on which devices a run trains."""

    max_steps: int = MISSING
    val_every: int = MISSING
    val_episodes: int = MISSING
    accelerator: str = MISSING
    devices: Any = MISSING
    strategy: str = MISSING
    precision: str = MISSING
    threads: int | None = MISSING
    log_every: int = MISSING
    deterministic: bool = MISSING
    overfit_batches: int | None = None
    profiler: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class TestConfig:
    """The test at the end of a run."""

    episodes: int | None = MISSING
    seed: int = MISSING
    steps: str = MISSING


@dataclass
class WandbConfig:
    """A Weights & Biases run."""

    mode: str = MISSING
    project: str = MISSING
    entity: str | None = MISSING
    name: str | None = MISSING
    group: str | None = MISSING
    tags: list[str] = MISSING
    artifacts: bool = False
    histograms_every: int | None = None


@dataclass
class TensorBoardConfig:
    """TensorBoard's event files in the run directory."""

    histograms_every: int | None = MISSING


@dataclass
class MLFlowConfig:
    """A run in an MLflow store."""

    uri: str = MISSING
    experiment: str = MISSING


@dataclass
class LoggerConfig:
    """Loggers besides metrics.csv, which every run has."""

    wandb: WandbConfig | None = None
    tensorboard: TensorBoardConfig | None = None
    mlflow: MLFlowConfig | None = None


@dataclass
class TrainConfig:
    """`train.py`. algo, data, net and callbacks are checked against the signatures of their targets: `arguments`."""

    algo: Any = MISSING
    data: Any = MISSING
    net: Any = MISSING
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    test: TestConfig = field(default_factory=TestConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    callbacks: dict[str, Any] = field(default_factory=dict)
    seed: int = MISSING
    resume: str | None = MISSING
    sweep: str | None = MISSING
    traceback: bool = MISSING
    init_from: str | None = None
    allow: list[str] = field(default_factory=list)


ADAPT = ("inner", "head", "finetune", "prototype", "none")
"""How an evaluation adapts a run: as it was trained, gradient steps on the head or on all weights, class means, not."""


@dataclass
class EvaluateConfig:
    """`evaluate.py`."""

    run: str = MISSING
    checkpoint: str = MISSING
    data: Any = MISSING
    net: Any = MISSING
    algo: Any = MISSING
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    test: TestConfig = field(default_factory=TestConfig)
    traceback: bool = MISSING
    seed: int = MISSING
    adapt: str = MISSING
    adapt_lr: float = MISSING
    adapt_steps: int = MISSING
    allow: list[str] = field(default_factory=list)


@dataclass
class AdaptConfig:
    """`adapt.py`."""

    support: str | None = MISSING
    query: str | None = MISSING
    out: str = MISSING
    run: str | None = MISSING
    model: str | None = MISSING
    backbone: str | None = MISSING
    false_alarms: float | None = MISSING
    look_below: float = MISSING
    overwrite: bool = MISSING
    workers: int = MISSING
    batch_size: int = MISSING
    threads: int | None = MISSING
    label: str | None = None
    id: str | None = None
    fit_on: str = "support"
    traceback: bool = MISSING
    allow: list[str] = field(default_factory=list)


_token = secrets.token_hex(3)


def _new_token() -> None:
    global _token
    _token = secrets.token_hex(3)


if hasattr(os, "register_at_fork"):  # a forked process is another run
    os.register_at_fork(after_in_child=_new_token)


def register() -> None:
    """Register the schemas with Hydra and the resolvers with OmegaConf.

    ${token:} is a random word of this process, so that runs that start in the same second, on whatever machines, get
    different directories. ${run_name:} is <algo>-<data>. ${either:a,b} is a, or b where a is null. ${metric:} is the
    metric of the configuration's task family, such as mse, ${monitor:} the name that it is logged under in validation,
    val/mse, and ${mode:} is "max" if more of it is better, else "min".
    """
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="evaluate_schema", node=EvaluateConfig)
    store.store(name="adapt_schema", node=AdaptConfig)
    OmegaConf.register_new_resolver("token", lambda: _token, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("either", lambda first, second: first or second, replace=True)
    OmegaConf.register_new_resolver("run_name", lambda _root_: run_name(_root_), replace=True)
    OmegaConf.register_new_resolver("metric", lambda _root_: task_family(_root_).metric, replace=True)
    OmegaConf.register_new_resolver("monitor", lambda _root_: f"val/{task_family(_root_).metric}", replace=True)
    OmegaConf.register_new_resolver("mode", lambda _root_: _mode(task_family(_root_)), replace=True)


def run_name(cfg: DictConfig) -> str:
    """Return <algo>-<data>, which is part of a run's path.

    Raises InputError if one of the names is missing, or could lead out of the folder of the runs.
    """
    return "-".join(name_of(cfg, group) for group in ("algo", "data"))


def name_of(cfg: DictConfig, group: str) -> str:
    """Return the name of a group's configuration. Raises InputError if it is missing or is not a plain word."""
    node = cfg.get(group)
    name = node.get("name") if isinstance(node, DictConfig) else None
    if name is None:
        raise InputError(f"{group}.name is missing: a file in conf/{group} needs a name")
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise InputError(f"{group}.name={name}: a name has letters, digits, _, + and -, and no other characters")
    return name


NAME = r"\w[\w+-]*"


def task_family(cfg: DictConfig) -> Any:
    """Return the class of a configuration's task family. This imports torch, unlike this module."""
    return locate(cfg.data._target_, "data._target_", cfg.get("allow", ())).variant(cfg.data)  # type: ignore[attr-defined]


def _mode(task_family: Any) -> str:
    return "max" if task_family.higher_is_better else "min"
