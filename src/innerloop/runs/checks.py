"""Checks of a whole configuration before anything is written: keys, sizes above zero, known choices."""

import torch
from lightning.pytorch.accelerators import AcceleratorRegistry
from omegaconf import DictConfig

from innerloop.devices.ranks import check_trainer
from innerloop.errors import InputError
from innerloop.runs.keys import check_schema
from innerloop.runs.schemas import TrainConfig, name_of

MOST_THREADS = 1024
"""Limit on threads, far above what is sensible."""
STEPS = ("last", "validation")
PROFILERS = ("simple", "advanced", "pytorch")


def check(cfg: DictConfig, schema: type = TrainConfig) -> None:
    """Raise InputError for what is not possible in a configuration of this schema."""
    check_schema(cfg, schema)
    for group in ("algo", "data", "net"):
        name_of(cfg, group)
    t, test = cfg.trainer, cfg.test
    for name in ("val_every", "val_episodes", "log_every", "threads", "overfit_batches"):
        value = t[name]
        if value is not None and value < 1:
            raise InputError(f"trainer.{name} must be above zero, got {value}")
    if t.threads is not None and t.threads > MOST_THREADS:
        raise InputError(f"trainer.threads must be at most {MOST_THREADS:,}, got {t.threads}")
    if t.max_steps < 0:
        raise InputError(f"trainer.max_steps must not be negative, got {t.max_steps}")
    if test.episodes is None or test.episodes < 1:
        raise InputError(f"test.episodes must be above zero, got {'null' if test.episodes is None else test.episodes}")
    if cfg.seed < 0 or test.seed < 0:
        raise InputError(f"seed and test.seed must not be negative, got {cfg.seed} and {test.seed}")
    if cfg.seed >= 2**32:  # NumPy's generator of the whole process takes no larger one
        raise InputError(f"seed must be below 2**32, got {cfg.seed}")
    if test.steps not in STEPS:
        raise InputError(f"test.steps={test.steps}: choose one of {', '.join(STEPS)}")
    if t.profiler is not None and t.profiler not in PROFILERS:
        raise InputError(f"trainer.profiler={t.profiler}: choose one of null, {', '.join(PROFILERS)}")
    accelerators = ["auto", "gpu", *AcceleratorRegistry.available_accelerators()]
    if t.accelerator not in accelerators:
        raise InputError(f"trainer.accelerator={t.accelerator}: choose one of {', '.join(accelerators)}")
    if t.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise InputError(f"trainer.accelerator={t.accelerator}: no GPU is visible; use trainer=cpu or auto")
    shared = {"trainer.val_episodes": t.val_episodes, "test.episodes": test.episodes}
    meta_batch_size = cfg.data.get("meta_batch_size")
    if isinstance(meta_batch_size, int):  # otherwise the data module says so
        shared["data.meta_batch_size"] = meta_batch_size
    check_trainer(t, shared)
