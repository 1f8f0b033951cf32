"""MAML with implicit gradients: the meta-gradient at a regularised optimum does not depend on the path to it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, grad_and_value

from innerloop.adaptation import GradientSteps
from innerloop.adaptation.engine import Outputs
from innerloop.devices.precision import full_precision
from innerloop.episodes import Episode, InputError, Loss, MetaBatch, Metrics, Samples, Weights, weights_of
from innerloop.learners.inner_loop import DescentLoop, refuse_shared_weights
from innerloop.learners.keywords import flattened
from innerloop.learners.learner import MetaLearner, with_gradient


class ProximalSteps(GradientSteps):
    """Inner steps on L^S(w) + proximal / 2 |w - theta|^2, where theta are the weights that they start from."""

    proximal: float = 0.0

    def objective(self, net: nn.Module, weights: Weights, support: Samples, k: int, start: Weights) -> Tensor:
        distance = torch.stack([(w - start[name]).square().sum() for name, w in weights.items()]).sum()
        return self.loss(net, weights, support) + 0.5 * self.proximal * distance


class IMAML(MetaLearner):
    """Implicit MAML (Rajeswaran et al., 2019, algorithms 1 and 2).

    The inner loop descends L^S(w) + proximal / 2 |w - theta|^2 from theta to w* and keeps no graph. At the optimum
    dw*/dtheta = (I + H / proximal)^-1, with H the Hessian of L^S at w*. So the meta-gradient is the v that solves
    (I + H / proximal) v = grad L^Q(w*), found by conjugate gradient. Memory does not grow with the inner steps.
    Training uses full precision even under autocast, because there the Hessian would not be symmetric.

    proximal: the paper's lambda. cg_steps: iterations of conjugate gradient, each of one Hessian-vector product.
    The other keyword arguments: those of `DescentLoop` and `OuterLoop`.
    """

    @flattened
    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        metrics: Metrics | None = None,
        *,
        inner: DescentLoop = DescentLoop(inner_steps=16),
        proximal: float = 2.0,
        cg_steps: int = 5,
        **outer: Any,
    ) -> None:
        if not proximal > 0:
            raise InputError(f"proximal must be above zero, got {proximal}")
        if cg_steps < 1:
            raise InputError(f"cg_steps must be above zero, got {cg_steps}")
        refuse_shared_weights(net, "iMAML")
        steps = inner.gradient_steps(loss, ProximalSteps)
        steps.proximal = proximal
        steps.support_at = None  # the meta-gradient is that at the optimum of one objective
        super().__init__(net, loss, steps, metrics, **outer)
        self.proximal, self.cg_steps = proximal, cg_steps

    def training_step(self, batch: MetaBatch, batch_idx: int) -> Tensor:
        with full_precision():
            return super().training_step(batch, batch_idx)

    def query_objective(self, episode: Episode) -> tuple[Tensor, Outputs]:
        theta = weights_of(self.net)
        with torch.no_grad():
            weights = self.adaptation(self.net, theta, episode.support)
            slope, value = grad_and_value(lambda w: self.query_loss(w, episode))(weights)
            slope_of_support = grad(lambda w: self.loss(self.net, w, episode.support))

            def system(v: Weights) -> Weights:
                inner = grad(lambda w: _dot(slope_of_support(w), v))(weights)
                return {name: v[name] + h / self.proximal for name, h in inner.items()}

            solution = conjugate_gradient(system, slope, self.cg_steps)
        return with_gradient(value, theta, solution), self.report_on(weights, episode)


def conjugate_gradient(system: Any, target: Weights, steps: int) -> Weights:
    """Return the x of system(x) = target after `steps` iterations from zero.

    system: a symmetric positive definite linear map of weights. There is no branch on the data, so it runs under vmap;
    a solution that is reached early does not change any more.
    """
    x = {name: torch.zeros_like(b) for name, b in target.items()}
    residual = direction = target
    size = _dot(residual, residual)
    for _ in range(steps):
        mapped = system(direction)
        rate = _ratio(size, _dot(direction, mapped))
        x = {name: x[name] + rate * d for name, d in direction.items()}
        residual = {name: r - rate * mapped[name] for name, r in residual.items()}
        before, size = size, _dot(residual, residual)
        factor = _ratio(size, before)
        direction = {name: r + factor * direction[name] for name, r in residual.items()}
    return x


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / torch.where(b > 0, b, 1.0), 0.0)


def _dot(a: Weights, b: Weights) -> Tensor:
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()
