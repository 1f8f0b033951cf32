"""algo.compile: the meta-step of a run is compiled before anything is written, or it stays as it is and says why."""

import logging

import torch
from omegaconf import DictConfig

from innerloop.errors import InputError
from innerloop.learners import MetaLearner
from innerloop.runs.build import Parts
from innerloop.runs.threads import is_dense, set_threads

log = logging.getLogger("innerloop")

LONG = 2000
"""Number of meta-batches from which on auto compiles dense nets: shorter runs would not win back the seconds."""
LONG_OF_IMAGES = 300
"""The same for nets with convolutions, whose steps gain more than it takes longer to compile them: docs/speed.md."""


def settle_compilation(cfg: DictConfig, parts: Parts) -> None:
    """Compile the meta-step if the configuration wants it or, with `auto`, if the run gains by it.

    The choice becomes the configuration's algo.compile, so that a run that is resumed elsewhere stays what it was. It
    depends on the configuration and on whether there is a compiler, so the same run has the same numbers.
    Raises InputError if algo.compile is true and the meta-step cannot be compiled.
    """
    learner, wanted = parts.learner, cfg.algo.get("compile", False)
    if not wanted or not cfg.trainer.max_steps:
        return
    if wanted == "auto":
        reason = obstacle(cfg, learner)
        cfg.algo.compile = reason is None
        if reason is not None:
            if is_dense(learner):
                log.info("the meta-step is not compiled: %s", reason)
            return
    elif not first_shapes_are_known(cfg, learner):
        return  # compiled at the first step
    try:
        set_threads(cfg.trainer, learner)  # of the compiled loops, too
        batch = parts.data.meta_batch("train", range(parts.data.meta_batch_size))
        learner.compile_for(batch, small=wanted == "auto")
    except InputError as error:
        if wanted != "auto":
            raise
        log.info("the meta-step is not compiled: %s", error)
        cfg.algo.compile = False


def obstacle(cfg: DictConfig, learner: MetaLearner) -> str | None:
    """Return why `auto` does not compile; None: it does."""
    if not learner.engine.steady:
        return "its objective may change"
    if not first_shapes_are_known(cfg, learner):
        return "it is for one process on the CPU, in 32-true precision and for tasks of equal shape"
    if cfg.trainer.max_steps < (LONG if is_dense(learner) else LONG_OF_IMAGES):
        return f"{cfg.trainer.max_steps:,} meta-batches are too few to win back the time that it takes"
    return None


def first_shapes_are_known(cfg: DictConfig, learner: MetaLearner) -> bool:
    """Return True if meta-batches of training have the shapes, type and device of one that is drawn now."""
    trainer = cfg.trainer
    on_cpu = trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and not torch.accelerator.is_available())
    return on_cpu and trainer.devices in (1, "1", "auto") and trainer.precision == "32-true"
