"""Reptile: a step of theta towards the weights that plain training on a task leads to."""

from typing import Any

import torch
from torch import Tensor, nn

from innerloop.adaptation import GradientSteps
from innerloop.adaptation.engine import Outputs
from innerloop.episodes import Episode, InputError, Loss, Metrics, Samples, weights_of
from innerloop.learners.inner_loop import DescentLoop, refuse_shared_weights
from innerloop.learners.keywords import flattened
from innerloop.learners.learner import MetaLearner, with_gradient


class Reptile(MetaLearner):
    """theta <- theta + epsilon mean_i (w_i - theta), w_i after K steps of gradient descent on task i.

    Source: Nichol, Achiam and Schulman, 2018, algorithm 2. The outer optimizer gets theta - w_i as the gradient, so
    with optimizer="sgd" epsilon is outer_lr. A training task is not split: its support and query form one set, and
    inner step k sees its mini-batch k modulo `minibatches` (rows k, k + minibatches, …). Without different mini-batches
    Reptile would be joint training (section 5.1 of the paper). In evaluation the inner steps see the whole support set.

    minibatches: number of mini-batches, above zero. The other keyword arguments: those of `DescentLoop` and
    `OuterLoop`.
    """

    adaptation: GradientSteps

    @flattened
    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        metrics: Metrics | None = None,
        *,
        inner: DescentLoop = DescentLoop(inner_steps=5),
        minibatches: int = 2,
        **outer: Any,
    ) -> None:
        if minibatches < 1:
            raise InputError(f"minibatches must be above zero, got {minibatches}")
        refuse_shared_weights(net, "Reptile")
        super().__init__(net, loss, inner.gradient_steps(loss, GradientSteps), metrics, **outer)
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
