"""Callbacks of the debug configurations: what happens in the inner loop, and whether the loss falls at all."""

import logging
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from innerloop.adaptation.gradient import gradient_of
from innerloop.devices.random_state import random_state
from innerloop.episodes import Episode, Weights, weights_of
from innerloop.errors import NotLearningError
from innerloop.learners import MetaLearner

log = logging.getLogger("innerloop")


class InnerDiagnostics(Callback):
    """Log what happens at each inner step of training, as means over the tasks of a meta-batch, when steps are logged.

    inner/loss_k: the support loss after k inner steps. inner/gradient_norm_k: the norm of its gradient with respect to
    the task's weights. inner/update_ratio_k: the norm of the change by inner step k over that of the weights before it.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            assert isinstance(pl_module, MetaLearner)
            learner = pl_module
            with random_state()():  # what training draws next stays the same
                found = learner.engine.map(lambda episode: diagnose(learner, episode), batch)
            learner.log_dict({f"inner/{name}": values.mean() for name, values in found.items()}, batch_size=1)


def diagnose(learner: MetaLearner, episode: Episode) -> dict[str, Tensor]:
    """Return the losses, gradient norms and update ratios of one task's inner loop: see `InnerDiagnostics`."""
    support, found = episode.support, {}
    path = learner.adaptation.trajectory(learner.net, weights_of(learner.net), support)
    trained = learner.adaptation.training_steps or 0
    for k, weights in enumerate(path[: trained + 1]):
        found[f"loss_{k}"] = learner.loss(learner.net, weights, support)
        gradient = gradient_of(lambda w: learner.loss(learner.net, w, support), weights, again=False)
        found[f"gradient_norm_{k}"] = norm(gradient)
        if k > 0:
            change = {name: w - path[k - 1][name] for name, w in weights.items()}
            found[f"update_ratio_{k}"] = norm(change) / norm(path[k - 1])
    return found


def norm(weights: Weights) -> Tensor:
    """Return the Euclidean norm of all entries together."""
    return torch.stack([w.square().sum() for w in weights.values()]).sum().sqrt()


class LossMustFall(Callback):
    """Compare the training loss at the end with the loss at the start, and raise NotLearningError if it did not fall.

    For training on one meta-batch again and again: a learner that cannot lower that loss has a fault.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(float(outputs["loss"] if isinstance(outputs, dict) else outputs))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        first, last = self.losses[0], self.losses[-1]
        if not last < first:
            raise NotLearningError(
                f"the loss did not fall on the same meta-batches: {first:.4g} at first, {last:.4g} after "
                f"{len(self.losses)} meta-batches. Check the loss, the net and the rates (algo.outer_lr, algo.inner_lr)"
            )
        log.info("the training loss fell from %.4g to %.4g on the same meta-batches", first, last)
