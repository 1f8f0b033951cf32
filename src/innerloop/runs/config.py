"""Configurations of runs: recorded ones read back, overrides applied to them, nodes as plain containers.

Light: no torch here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from innerloop.errors import InputError
from innerloop.runs.command import explain
from innerloop.runs.schemas import LoggerConfig, TrainerConfig

CONFIG = "config.yaml"


def load_config(run_dir: Path) -> DictConfig:
    """Return the configuration that a run recorded. Raises InputError if the directory holds no run."""
    path = run_dir / CONFIG
    if not path.is_file():
        raise InputError(f"{run_dir} is no run directory: it has no {CONFIG}")
    try:
        cfg = OmegaConf.load(path)
        assert isinstance(cfg, DictConfig)
    except (OmegaConfBaseException, YAMLError, AssertionError) as error:
        raise InputError(f"{path} is no configuration: {error}") from error
    _upgrade(cfg)
    return cfg


OLD_SPLIT_RULE = {"innerloop.datasets.folder.load": "count"}
"""Loader -> the rule that its classes were split by in configurations without `split_rule`."""


def _upgrade(cfg: DictConfig) -> None:
    """Give a configuration that an older version recorded the keys of today."""
    if "debug" in cfg:  # the older name of `traceback`
        cfg.traceback = cfg.pop("debug")
    if isinstance(cfg.get("data"), DictConfig) and cfg.data.get("dataset") in OLD_SPLIT_RULE:
        cfg.data.setdefault("split_rule", OLD_SPLIT_RULE[cfg.data.dataset])
    if isinstance(cfg.get("trainer"), DictConfig):
        today = OmegaConf.structured(TrainerConfig)
        for name in today:
            if name not in cfg.trainer and not OmegaConf.is_missing(today, name):
                cfg.trainer[name] = today[name]


def resumed_config(run_dir: Path, overrides: Sequence[str], today: DictConfig) -> DictConfig:
    """Return the recorded configuration of a run with the command line's overrides applied.

    today: a configuration composed from the files of today. A run recorded before one of its top-level keys existed
        takes that key from it.
    """
    cfg = load_config(run_dir)
    for name in today:
        if name not in cfg:
            cfg[name] = OmegaConf.to_container(today, resolve=False)[name]  # type: ignore[index]
    OmegaConf.set_struct(cfg, True)
    try:
        for override in overrides:
            key, _, value = override.partition("=")
            if key != "resume":
                OmegaConf.update(cfg, key, OmegaConf.create(f"v: {value}").v)
    except OmegaConfBaseException as error:
        raise InputError(explain(error)) from error
    return cfg


def register_run(run_dir: str | None) -> None:
    """Register a run's configuration with Hydra as what an evaluation starts from: data and net `of_run`, `recorded`.

    run_dir: None registers empty ones, for a command that only shows its help.
    """
    cfg = load_config(Path(run_dir)) if run_dir else OmegaConf.create({"net": {}, "data": {}})
    store = ConfigStore.instance()
    store.store(group="data", name="of_run", node=cfg.data)
    store.store(group="net", name="of_run", node=cfg.net)
    kept = {name: cfg[name] for name in ("algo", "trainer", "test", "seed") if name in cfg}
    if "trainer" in kept:
        kept["trainer"] = {**kept["trainer"], "devices": 1, "strategy": "auto"}  # whatever devices trained it
    store.store(name="recorded", node=OmegaConf.create(kept))


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """Return the configuration as plain containers with all interpolations resolved."""
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return plain  # type: ignore[return-value]


def logger_settings(cfg: DictConfig) -> dict[str, Any]:
    """Return name -> settings of every logger; None for the loggers that are not used."""
    whole = OmegaConf.merge(OmegaConf.structured(LoggerConfig), cfg.logger)
    assert isinstance(whole, DictConfig)
    return to_plain(whole)
