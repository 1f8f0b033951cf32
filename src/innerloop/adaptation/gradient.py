"""The inner loop of MAML: a few differentiable steps of gradient descent on the support loss."""

import itertools
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import grad

from innerloop.adaptation.adaptation import Adaptation
from innerloop.adaptation.recompute import recomputed
from innerloop.episodes import InputError, Loss, Samples, SupportAt, Weights, task_weights, with_weights
from innerloop.nets.fused import inside_transform

LEARNED_RATES = ("parameter", "tensor", "tensor_step")


MOST_STEPS = 100_000
"""Limit on inner steps, far above what is sensible: a larger number is a mistake, and would take for ever."""


def checked(steps: int, eval_steps: int | None, inner_lr: float) -> tuple[int, int]:
    """Return the numbers of inner steps in training and in evaluation (None: as many as in training).

    Raises InputError if a number is negative or the rate is not above zero.
    """
    eval_steps = steps if eval_steps is None else eval_steps
    if steps < 0 or eval_steps < 0:
        raise InputError(f"inner_steps and eval_inner_steps must not be negative, got {steps} and {eval_steps}")
    if max(steps, eval_steps) > MOST_STEPS:
        raise InputError(f"inner_steps and eval_inner_steps must be at most {MOST_STEPS:,}, got {steps}, {eval_steps}")
    if not inner_lr > 0:
        raise InputError(f"inner_lr must be above zero, got {inner_lr}")
    if inner_lr == math.inf:
        raise InputError("inner_lr must be finite, got inf")
    return steps, eval_steps


def gradient_of(objective: Callable[[Weights], Tensor], at: Weights, again: bool = True) -> Weights:
    """Return the gradient of objective(weights) at these weights, as `torch.func.grad` computes it.

    `torch.func.grad` itself is called only where it is needed, inside other transforms such as vmap. Elsewhere plain
    autograd takes less time and memory.

    again: make the gradient differentiable itself, if autograd is enabled.
    """
    if inside_transform() or torch.is_inference_mode_enabled():
        return grad(objective)(at)
    create_graph = again and torch.is_grad_enabled()
    with torch.enable_grad():
        # Views are new nodes of the graph, so the gradient does not include other uses of the weights.
        at = {
            name: w.view_as(w) if create_graph and w.requires_grad else w.detach().requires_grad_()
            for name, w in at.items()
        }
        value = objective(at)
        gradient = torch.autograd.grad(value, list(at.values()), create_graph=create_graph, materialize_grads=True)
    return dict(zip(at, gradient, strict=True))


class GradientSteps(Adaptation):
    """K steps of gradient descent, w <- w - rate * grad L^S(w) (MAML, Finn et al., 2017, eq. 1).

    loss: the support loss. steps: K in training, at least 0. eval_steps: K in evaluation (None: the same K).
    inner_lr: the rate, or the initial value of learned rates.
    first_order: treat the inner gradient as a constant (FOMAML). This costs less and gives another meta-gradient.
    only: the part of the net whose weights are adapted, "head" (ANIL, Raghu et al., 2020) or "body" (BOIL, Oh et al.,
        2021). None: all weights.
    learn_lr: learn one rate per "parameter" (Meta-SGD, Li et al., 2017), per weight "tensor", or per tensor and step,
        "tensor_step" (MAML++, Antoniou et al., 2019; additional steps in evaluation use the rates of the last step).
        None: rates are not learned.
    weights: the weights to adapt. Learned rates need their names and shapes.
    clip: clamp each entry of the inner gradient to [-clip, clip]. None: do not clamp.
    recompute: compute each step a second time for the meta-gradient instead of keeping its graph. This takes the memory
        of one step, not of K steps.
    support_at: what each step sees of the support set. None: all of it.
    """

    def __init__(
        self,
        loss: Loss,
        steps: int,
        inner_lr: float,
        *,
        eval_steps: int | None = None,
        first_order: bool = False,
        only: str | None = None,
        learn_lr: str | None = None,
        weights: Mapping[str, Tensor] | None = None,
        clip: float | None = None,
        recompute: bool = False,
        support_at: SupportAt | None = None,
    ) -> None:
        super().__init__()
        if clip is not None and not clip > 0:
            raise InputError(f"inner_clip must be above zero, got {clip}")
        if learn_lr is not None and learn_lr not in LEARNED_RATES:
            raise InputError(f"unknown learn_lr {learn_lr!r}; choose one of null, {', '.join(LEARNED_RATES)}")
        if only is not None and weights is not None and not any(name.startswith(f"{only}.") for name in weights):
            raise InputError(f"only={only}: this net has no such part, only {', '.join(weights)}")
        self.loss, (self.steps, self.eval_steps) = loss, checked(steps, eval_steps, inner_lr)
        self.inner_lr, self.first_order, self.only, self.clip = inner_lr, first_order, only, clip
        self.recompute, self.support_at = recompute, support_at
        self.rates: nn.ParameterDict | None = None
        if learn_lr is not None:
            if weights is None:
                raise InputError("learned inner rates need the weights that they belong to")
            if learn_lr == "tensor_step" and steps < 1:
                raise InputError("learn_lr=tensor_step needs at least one inner step in training")
            # A module's parameter names may not contain dots.
            self.rates = nn.ParameterDict(
                {
                    name.replace(".", "/"): torch.full(
                        {"parameter": w.shape, "tensor": (), "tensor_step": (steps,)}[learn_lr],
                        inner_lr,
                        dtype=w.dtype,
                        device=w.device,
                    )
                    for name, w in self._part(weights).items()
                    if w.requires_grad
                }
            )
        self.rates_by_step = learn_lr == "tensor_step"

    @property
    def training_steps(self) -> int:
        return self.steps

    def forward(self, net: nn.Module, weights: Weights, support: Samples) -> Weights:
        return self.training_path(net, weights, support)[-1]

    def trajectory(self, net: nn.Module, weights: Weights, support: Samples) -> list[Weights]:
        return self.path(net, weights, support, self.eval_steps)

    def training_path(self, net: nn.Module, weights: Weights, support: Samples) -> list[Weights]:
        return self.path(net, weights, support, self.steps)

    def learned_rates(self) -> dict[str, Tensor]:
        return {name.replace("/", "."): rate for name, rate in (self.rates or {}).items()}

    def path(self, net: nn.Module, weights: Weights, support: Samples, steps: int) -> list[Weights]:
        """Return the weights after 0, 1, …, `steps` inner steps."""
        path, start = [weights], weights
        step = self._recomputed_step if self.recompute and torch.is_grad_enabled() else self.step
        for k in range(steps):
            path.append(step(net, path[-1], support, k, start))
        return path

    def objective(self, net: nn.Module, weights: Weights, support: Samples, k: int, start: Weights) -> Tensor:
        """Return the loss that inner step k lowers, the support loss. k, start: see `step`."""
        return self.loss(net, weights, support)

    def step(self, net: nn.Module, weights: Weights, support: Samples, k: int, start: Weights) -> Weights:
        """Return the weights after inner step k, counted from 0. start: the weights before the first step."""
        at = {name: w.detach() for name, w in weights.items()} if self.first_order else weights
        if self.support_at is not None:
            support = self.support_at(support, k)
        gradient = gradient_of(
            lambda w: self.objective(net, at | w, support, k, start), self.adapted(net, at), again=not self.first_order
        )
        return weights | {n: weights[n] - self._rate(n, k) * self._prepared(g) for n, g in gradient.items()}

    def _recomputed_step(self, net: nn.Module, weights: Weights, support: Samples, k: int, start: Weights) -> Weights:
        parameters, names, adapted = dict(self.named_parameters()), list(weights), list(self.adapted(net, weights))

        # Every tensor that is differentiated must be an argument of `recomputed`, including this module's parameters.
        def step(x: Tensor, y: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            values = iter(tensors)
            at, first, own = (dict(zip(keys, values, strict=False)) for keys in (names, names, parameters))
            after = with_weights(self, own).step(net, at, Samples(x, y), k, first)  # type: ignore[operator]
            return tuple(after[name] for name in adapted)

        tensors = (weights[name] for name in names), (start[name] for name in names), parameters.values()
        results = recomputed(step, *support, *itertools.chain(*tensors))
        return weights | dict(zip(adapted, results, strict=True))

    def adapted(self, net: nn.Module, weights: Mapping[str, Tensor]) -> Weights:
        """Return the weights that the inner steps change: those of the adapted part whose parameters are not frozen.

        Raises InputError if there are none.
        """
        free = {name for name, parameter in task_weights(net).items() if parameter.requires_grad}
        found = {name: w for name, w in self._part(weights).items() if name in free}
        if not found:
            raise InputError("the inner loop has no weights to adapt: all of them are frozen (requires_grad=False)")
        return found

    def _part(self, weights: Mapping[str, Tensor]) -> Weights:
        return {name: w for name, w in weights.items() if self.only is None or name.startswith(f"{self.only}.")}

    def _rate(self, name: str, k: int) -> float | Tensor:
        if self.rates is None:
            return self.inner_lr
        rate = self.rates[name.replace(".", "/")]
        return rate[min(k, len(rate) - 1)] if self.rates_by_step else rate

    def _prepared(self, gradient: Tensor) -> Tensor:
        """Return the inner gradient, detached if it is treated as a constant, and clamped if there is a limit."""
        if self.first_order:
            gradient = gradient.detach()
        return gradient if self.clip is None else gradient.clamp(-self.clip, self.clip)
