"""Checks of a whole configuration before anything is written: keys, sizes above zero, known choices, recipes."""

from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from innerloop.devices.ranks import check_trainer
from innerloop.errors import InputError
from innerloop.runs.schemas import TrainConfig
from innerloop.runs.signatures import check_keys, unknown_key

STEPS = ("last", "validation")
PROFILERS = ("simple", "advanced", "pytorch")


def check(cfg: DictConfig, schema: type = TrainConfig) -> None:
    """Raise InputError for what is not possible in a configuration of this schema."""
    check_keys(cfg, schema)
    t, test = cfg.trainer, cfg.test
    for name in ("max_steps", "val_every", "val_episodes", "log_every", "threads", "overfit_batches"):
        value = t[name]
        if value is not None and value < 1:
            raise InputError(f"trainer.{name} must be above zero, got {value}")
    if test.episodes < 1:
        raise InputError(f"test.episodes must be above zero, got {test.episodes}")
    if cfg.seed < 0 or test.seed < 0:
        raise InputError(f"seed and test.seed must not be negative, got {cfg.seed} and {test.seed}")
    if test.steps not in STEPS:
        raise InputError(f"test.steps={test.steps}: choose one of {', '.join(STEPS)}")
    if t.profiler is not None and t.profiler not in PROFILERS:
        raise InputError(f"trainer.profiler={t.profiler}: choose one of null, {', '.join(PROFILERS)}")
    if t.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise InputError(f"trainer.accelerator={t.accelerator}: no GPU is visible; use trainer=cpu or auto")
    shared = {"trainer.val_episodes": t.val_episodes, "test.episodes": test.episodes}
    check_trainer(t, shared | {"data.meta_batch_size": cfg.data.get("meta_batch_size")})


def check_recipe() -> None:
    """Raise InputError if the recipe of Hydra's present job was chosen by the user and does not exist.

    The recipe that follows from data and algorithm need not exist.
    """
    runtime = HydraConfig.get().runtime
    chosen = runtime.choices.get("recipe")
    if chosen is None or chosen == f"{runtime.choices.get('data')}_{runtime.choices.get('algo')}":
        return
    folders = [Path(source.path) / "recipe" for source in runtime.config_sources if source.schema == "file"]
    known = [path.stem for folder in folders for path in folder.glob("*.yaml")]
    if chosen not in known:
        raise InputError(unknown_key(f"recipe/{chosen}", known))
