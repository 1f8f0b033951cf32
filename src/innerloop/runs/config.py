"""Configurations of runs: recorded ones read back, overrides applied to them, nodes as plain containers.

Light: no torch here.
"""

import os
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from innerloop.errors import InputError
from innerloop.runs.schemas import LoggerConfig, TrainerConfig

CONFIG, OVERRIDES = "config.yaml", "overrides.yaml"


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
        if "class_folders" in cfg.data:
            cfg.data.class_level = 1 if cfg.data.pop("class_folders") == "outermost" else None
    if isinstance(cfg.get("trainer"), DictConfig):
        today = OmegaConf.structured(TrainerConfig)
        for name in today:
            if name not in cfg.trainer and not OmegaConf.is_missing(today, name):
                cfg.trainer[name] = today[name]


def begun_job_config(run_dir: Path, today: DictConfig) -> DictConfig:
    """Return the recorded configuration of a sweep's job that has begun.

    today: the job's configuration, composed from the files of the sweep. A job recorded before one of its top-level
        keys existed takes that key from it.
    """
    cfg = load_config(run_dir)
    cfg.allow = today.allow  # the user's, and not the record's, which may be somebody else's
    for name in today:
        if name not in cfg:
            cfg[name] = OmegaConf.to_container(today, resolve=False)[name]  # type: ignore[index]
    OmegaConf.set_struct(cfg, True)
    return cfg


GROUPS = ("algo", "data", "net", "trainer", "logger", "callbacks")


def register_run(run_dir: str | None) -> None:
    """Register a run's configuration with Hydra as what an evaluation or a resumed run starts from.

    Its groups are registered as `of_run`, the rest as `recorded`, which for evaluations includes algo and trainer.

    run_dir: None registers empty ones, for a command that only shows its help.
    """
    cfg = load_config(Path(run_dir)) if run_dir else OmegaConf.create({})
    store = ConfigStore.instance()
    for group in GROUPS:
        store.store(group=group, name="of_run", node=cfg.get(group) or {})
    kept = {name: cfg[name] for name in ("test", "seed") if name in cfg}
    begun = {"init_from": cfg.init_from} if "init_from" in cfg else {}
    store.store(name="recorded", node=OmegaConf.create(kept | begun))
    kept |= {name: cfg[name] for name in ("algo", "trainer") if name in cfg}
    if "trainer" in kept:
        kept["trainer"] = {**kept["trainer"], "devices": 1, "strategy": "auto"}  # whatever devices trained it
    store.store(name="evaluated", node=OmegaConf.create(kept))


PATHS = ("root", "cache")
"""Keys of `data` that are paths."""


def make_absolute(cfg: DictConfig) -> None:
    """Make paths of the data and of the run that training begins with absolute, so that a run may be resumed and
    evaluated from another working directory.
    """
    if isinstance(start := cfg.get("init_from"), str):
        cfg.init_from = absolute(start)
    if not isinstance(cfg.data, DictConfig):
        return
    sources = (cfg.data.get("sources") or {}).values()
    for node in (cfg.data, *sources, *(source.get("own") or {} for source in sources)):
        for name in PATHS:
            if isinstance(value := node.get(name), str):
                node[name] = absolute(value)
    for name, value in (cfg.data.get("roots") or {}).items():
        if isinstance(value, str):
            cfg.data.roots[name] = absolute(value)
    kind, colon, path = str(cfg.data.get("backbone")).partition(":")
    if kind in ("file", "run") and colon:
        cfg.data.backbone = f"{kind}:{absolute(path)}"


def absolute(path: str) -> str:
    """Return an absolute path, with ~ replaced by the user's home."""
    return os.path.abspath(os.path.expanduser(path))


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
