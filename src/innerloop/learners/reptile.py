"""Reptile: move towards where plain training on a task leads."""

from typing import Any

import torch
from torch import Tensor, nn

from innerloop.adaptation import GradientSteps
from innerloop.adaptation.engine import Outputs
from innerloop.episodes import Episode, InputError, Loss, Metrics, Samples, weights_of
from innerloop.learners.learner import MetaLearner, with_gradient


class Reptile(MetaLearner):
    """theta <- theta + epsilon mean_i (w_i - theta), w_i after K steps of gradient descent on task i.

    Source: Nichol, Achiam and Schulman, 2018, algorithm 2. theta - w_i is handed to the outer optimizer as the
    gradient: with optimizer="sgd" epsilon is outer_lr. A training task is not split: its support and query are one set,
    of which inner step k sees the mini-batch k modulo `minibatches` (rows k, k + minibatches, …); without different
    mini-batches Reptile is joint training (section 5.1 there). In evaluation the steps see the whole support set.

    minibatches: above zero. inner_lr, inner_steps, eval_inner_steps, inner_clip: see `GradientSteps`. The rest: see
    `MetaLearner`.
    """

    adaptation: GradientSteps

    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        metrics: Metrics | None = None,
        *,
        inner_lr: float = 0.01,
        inner_steps: int = 5,
        eval_inner_steps: int | None = None,
        inner_clip: float | None = None,
        minibatches: int = 2,
        **outer: Any,
    ) -> None:
        if minibatches < 1:
            raise InputError(f"minibatches must be above zero, got {minibatches}")
        steps = GradientSteps(loss, inner_steps, inner_lr, eval_steps=eval_inner_steps, clip=inner_clip)
        super().__init__(net, loss, steps, metrics, **outer)
        self.minibatches = minibatches

    def query_objective(self, episode: Episode) -> tuple[Tensor, Outputs]:
        theta = weights_of(self.net)
        whole = Samples(*(torch.cat(parts) for parts in zip(*episode, strict=True)))
        with torch.no_grad():
            weights = theta
            for k in range(self.adaptation.steps):
                rows = slice(k % self.minibatches, None, self.minibatches)
                weights = self.adaptation.step(self.net, weights, Samples(whole.x[rows], whole.y[rows]), k, theta)
            value = self.query_loss(weights, episode)
            travelled = {name: theta[name] - w for name, w in weights.items()}
        return with_gradient(value, theta, travelled), self.report_on(weights, episode)
