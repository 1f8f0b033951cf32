"""The inner loop of MAML: a few steps of gradient descent on the support loss, differentiable through."""

import itertools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import grad

from innerloop.adaptation.adaptation import Adaptation
from innerloop.adaptation.recompute import recomputed
from innerloop.episodes import InputError, Loss, Samples, Weights, with_weights
from innerloop.nets.fused import inside_transform

LEARNED_RATES = ("parameter", "tensor", "tensor_step")


def checked(steps: int, eval_steps: int | None, inner_lr: float) -> tuple[int, int]:
    """The inner steps in training and in evaluation (None: the same); InputError if one, or the rate, cannot be."""
    eval_steps = steps if eval_steps is None else eval_steps
    if steps < 0 or eval_steps < 0:
        raise InputError(f"inner_steps and eval_inner_steps must not be negative, got {steps} and {eval_steps}")
    if not inner_lr > 0:
        raise InputError(f"inner_lr must be above zero, got {inner_lr}")
    return steps, eval_steps


def gradient_of(objective: Callable[[Weights], Tensor], at: Weights, again: bool = True) -> Weights:
    """The gradient of objective(weights) at these weights; again: differentiable once more, where autograd is on.

    What `torch.func.grad` computes. It is needed inside of other transforms, such as vmap; outside, it takes more time
    and memory than autograd on its own.
    """
    if inside_transform() or torch.is_inference_mode_enabled():
        return grad(objective)(at)
    again = again and torch.is_grad_enabled()
    with torch.enable_grad():
        # Nodes of their own in the graph: the gradient is taken to this use of the weights only.
        at = {
            name: w.view_as(w) if again and w.requires_grad else w.detach().requires_grad_() for name, w in at.items()
        }
        value = objective(at)
        gradient = torch.autograd.grad(value, list(at.values()), create_graph=again, materialize_grads=True)
    return dict(zip(at, gradient, strict=True))


class GradientSteps(Adaptation):
    """K steps w <- w - rate * grad L^S(w) (MAML, Finn et al., 2017, eq. 1).

    loss: the support loss. steps: K in training, at least 0; eval_steps: K in evaluation (None: the same).
    inner_lr: the rate, or what learned rates start from.
    first_order: treat the inner gradient as a constant (FOMAML): cheaper, and another meta-gradient.
    only: adapt the weights below this part of the net, and leave the others: "head" (ANIL, Raghu et al., 2020) or
        "body" (BOIL, Oh et al., 2021); None: all.
    learn_lr: None, or learn one rate for each "parameter" (Meta-SGD, Li et al., 2017), for each weight "tensor", or for
        each tensor and step, "tensor_step" (MAML++, Antoniou et al., 2019; further steps of an evaluation take the last
        one's); needs `weights`, the weights to be adapted, for their names and shapes.
    clip: clamp each entry of the inner gradient to [-clip, clip].
    recompute: compute each step a second time for the meta-gradient instead of keeping it, so that memory grows with
        one step and not with K.
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
        self.recompute = recompute
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
                    for name, w in self._moved(weights).items()
                }
            )
        self.rates_by_step = learn_lr == "tensor_step"

    @property
    def training_steps(self) -> int:
        return self.steps

    def forward(self, net: nn.Module, weights: Weights, support: Samples) -> Weights:
        return self.path(net, weights, support, self.steps)[-1]

    def trajectory(self, net: nn.Module, weights: Weights, support: Samples) -> list[Weights]:
        return self.path(net, weights, support, self.eval_steps)

    def learned_rates(self) -> dict[str, Tensor]:
        return {name.replace("/", "."): rate for name, rate in (self.rates or {}).items()}

    def path(self, net: nn.Module, weights: Weights, support: Samples, steps: int) -> list[Weights]:
        """The weights after 0, 1, …, `steps` inner steps."""
        path, start = [weights], weights
        step = self._recomputed_step if self.recompute and torch.is_grad_enabled() else self.step
        for k in range(steps):
            path.append(step(net, path[-1], support, k, start))
        return path

    def objective(self, net: nn.Module, weights: Weights, support: Samples, k: int, start: Weights) -> Tensor:
        """What inner step k descends: the support loss."""
        return self.loss(net, weights, support)

    def step(self, net: nn.Module, weights: Weights, support: Samples, k: int, start: Weights) -> Weights:
        """Inner step k, counted from 0, on the way that began at `start`."""
        at = {name: w.detach() for name, w in weights.items()} if self.first_order else weights
        gradient = gradient_of(
            lambda w: self.objective(net, at | w, support, k, start), self._moved(at), again=not self.first_order
        )
        return weights | {n: weights[n] - self._rate(n, k) * self._shape(g) for n, g in gradient.items()}

    def _recomputed_step(self, net: nn.Module, weights: Weights, support: Samples, k: int, start: Weights) -> Weights:
        own, names, moved = dict(self.named_parameters()), list(weights), list(self._moved(weights))

        def step(x: Tensor, y: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            given = iter(tensors)
            at, begun, mine = (dict(zip(keys, given, strict=False)) for keys in (names, names, own))
            after = with_weights(self, mine).step(net, at, Samples(x, y), k, begun)  # type: ignore[operator]
            return tuple(after[name] for name in moved)

        tensors = (weights[name] for name in names), (start[name] for name in names), own.values()
        found = recomputed(step, *support, *itertools.chain(*tensors))
        return weights | dict(zip(moved, found, strict=True))

    def _moved(self, weights: Mapping[str, Tensor]) -> Weights:
        return {name: w for name, w in weights.items() if self.only is None or name.startswith(f"{self.only}.")}

    def _rate(self, name: str, k: int) -> float | Tensor:
        if self.rates is None:
            return self.inner_lr
        rate = self.rates[name.replace(".", "/")]
        return rate[min(k, len(rate) - 1)] if self.rates_by_step else rate

    def _shape(self, gradient: Tensor) -> Tensor:
        if self.first_order:
            gradient = gradient.detach()
        return gradient if self.clip is None else gradient.clamp(-self.clip, self.clip)
