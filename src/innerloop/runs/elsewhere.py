"""A trained run on other data: pictures of the size that its net was trained on, and other ways to adapt it."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from innerloop.adaptation import Identity
from innerloop.datasets.images import LabelledImages, resized
from innerloop.errors import InputError
from innerloop.learners import FineTune, MetaLearner, ProtoNet
from innerloop.runs.build import DATA_MODULE_KEYS, Parts, make_tasks
from innerloop.runs.config import to_plain
from innerloop.runs.schemas import ADAPT
from innerloop.tasks.base import Classification

log = logging.getLogger("innerloop")


def as_trained(cfg: DictConfig, trained: DictConfig) -> Callable[[LabelledImages], LabelledImages] | None:
    """Return what makes other pictures those that a run's net was trained on; None if nothing is to be done.

    cfg: the configuration of an evaluation on data other than those of the run's configuration, `trained`. If the run
    reads a backbone's vectors, this sets the backbone in cfg.
    """
    if "dataset" not in cfg.data:
        return None
    if backbone := trained.data.get("backbone"):
        if cfg.data.get("backbone") is None:
            log.info("%s: x are vectors of %s, as in training", cfg.data.name, backbone)
            cfg.data |= {"backbone": backbone, "standardize": trained.data.get("standardize"), "rotations": False}
        return None
    plain = to_plain(trained)
    node = {k: v for k, v in plain["data"].items() if k not in (*DATA_MODULE_KEYS, "test_episodes")}
    shape = make_tasks(node, plain.get("allow", ())).input_shape
    if len(shape) != 3 or shape[1] != shape[2]:
        return None
    return lambda images: resized(images, shape[1], shape[0], cfg.data.name)


def check_adapt(cfg: DictConfig) -> None:
    """Raise InputError for an unknown `adapt`, and for a rate or a number of steps that is not possible."""
    if cfg.adapt not in ADAPT:
        raise InputError(f"adapt={cfg.adapt}: choose one of {', '.join(ADAPT)}")
    if not cfg.adapt_lr > 0 or cfg.adapt_steps < 0:
        raise InputError(
            f"adapt_lr must be above zero and adapt_steps not negative, got {cfg.adapt_lr} and {cfg.adapt_steps}"
        )


def adapted_by(parts: Parts, adapt: str, lr: float, steps: int) -> MetaLearner:
    """Return a learner that adapts a trained learner's net in another way: see `ADAPT`.

    "head" and "finetune" take gradient steps with this rate. They start from class means if the classes differ from
    task to task, which is the start of `FineTune`, and else from the head as it was trained. "inner" returns the
    learner itself.
    """
    learner, tasks = parts.learner, parts.tasks
    if adapt == "inner":
        return learner
    learner.net.requires_grad_(True)  # what was frozen in training
    made: dict[str, Any] = {"metrics": tasks.metrics, "outer": replace(learner.outer, freeze=None)}
    if adapt == "none":
        return MetaLearner(learner.net, tasks.loss, Identity(), **made)
    if adapt == "prototype":
        return ProtoNet(learner.net, tasks.loss, **made)
    many = isinstance(tasks, Classification) and tasks.output_size > 1
    made |= {"head": "prototypes" if many else "trained", "only": "head" if adapt == "head" else None}
    return FineTune(learner.net, tasks.loss, inner_lr=lr, eval_inner_steps=steps, **made)
