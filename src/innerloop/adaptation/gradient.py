"""The inner loop of MAML: a few steps of gradient descent on the support loss, differentiable through."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import grad

from innerloop.adaptation.adaptation import Adaptation
from innerloop.episodes import InputError, Loss, Samples, Weights

LEARNED_RATES = ("parameter", "tensor")


class GradientSteps(Adaptation):
    """K steps w <- w - rate * grad L^S(w) (MAML, Finn et al., 2017, eq. 1).

    loss: the support loss. steps: K in training, at least 0; eval_steps: K in evaluation (None: the same).
    inner_lr: the rate, or what learned rates start from.
    first_order: treat the inner gradient as a constant (FOMAML): cheaper, and another meta-gradient.
    learn_lr: None, or learn one rate for each "parameter" (Meta-SGD, Li et al., 2017) or each weight "tensor";
        needs `weights`, the weights to be adapted, for their names and shapes.
    clip: clamp each entry of the inner gradient to [-clip, clip].
    """

    def __init__(
        self,
        loss: Loss,
        steps: int,
        inner_lr: float,
        *,
        eval_steps: int | None = None,
        first_order: bool = False,
        learn_lr: str | None = None,
        weights: Mapping[str, Tensor] | None = None,
        clip: float | None = None,
    ) -> None:
        super().__init__()
        eval_steps = steps if eval_steps is None else eval_steps
        if steps < 0 or eval_steps < 0:
            raise InputError(f"inner_steps and eval_inner_steps must not be negative, got {steps} and {eval_steps}")
        if not inner_lr > 0:
            raise InputError(f"inner_lr must be above zero, got {inner_lr}")
        if clip is not None and not clip > 0:
            raise InputError(f"inner_clip must be above zero, got {clip}")
        if learn_lr is not None and learn_lr not in LEARNED_RATES:
            raise InputError(f"unknown learn_lr {learn_lr!r}; choose one of null, {', '.join(LEARNED_RATES)}")
        self.loss, self.steps, self.eval_steps = loss, steps, eval_steps
        self.inner_lr, self.first_order, self.clip = inner_lr, first_order, clip
        self.rates: nn.ParameterDict | None = None
        if learn_lr is not None:
            if weights is None:
                raise InputError("learned inner rates need the weights that they belong to")
            # A module's parameter names may not contain dots.
            self.rates = nn.ParameterDict(
                {
                    name.replace(".", "/"): torch.full(
                        w.shape if learn_lr == "parameter" else (), inner_lr, dtype=w.dtype, device=w.device
                    )
                    for name, w in weights.items()
                }
            )

    def forward(self, net: nn.Module, weights: Weights, support: Samples) -> Weights:
        for _ in range(self.steps):
            weights = self.step(net, weights, support)
        return weights

    def trajectory(self, net: nn.Module, weights: Weights, support: Samples) -> list[Weights]:
        path = [weights]
        for _ in range(self.eval_steps):
            path.append(self.step(net, path[-1], support))
        return path

    def step(self, net: nn.Module, weights: Weights, support: Samples) -> Weights:
        """One inner step."""
        at = {name: w.detach() for name, w in weights.items()} if self.first_order else weights
        gradient = grad(lambda w: self.loss(net, w, support))(at)
        return {name: w - self._rate(name) * self._shape(gradient[name]) for name, w in weights.items()}

    def _rate(self, name: str) -> float | Tensor:
        return self.inner_lr if self.rates is None else self.rates[name.replace(".", "/")]

    def _shape(self, gradient: Tensor) -> Tensor:
        if self.first_order:
            gradient = gradient.detach()
        return gradient if self.clip is None else gradient.clamp(-self.clip, self.clip)
