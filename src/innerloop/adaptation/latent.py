"""Gradient steps on the code that a hypernetwork's generator reads, instead of on the weights that it writes."""

from functools import partial

import torch
from torch import Tensor, nn

from innerloop.adaptation.adaptation import Adaptation
from innerloop.adaptation.generate import Generate
from innerloop.adaptation.gradient import checked, gradient_of
from innerloop.episodes import Loss, Samples, SupportAt, Weights


class LatentSteps(Adaptation):
    """K steps z <- z - rate * grad_z L^S(theta + g(z; phi)) on a code z, and then w = theta + g(z_K; phi).

    z starts from the encoder's code of the support set (LEO, Rusu et al., 2019, without its sampling), or from zero
    (CAVIA, Zintgraf et al., 2019, where z are the context parameters; see `ZeroCode`).

    generate: encodes the support set and writes the weights.
    loss, steps, inner_lr, eval_steps, first_order, support_at: as in `GradientSteps`.
    learn_lr: learn the rate, one number that starts at inner_lr.
    """

    def __init__(
        self,
        loss: Loss,
        generate: Generate,
        steps: int,
        inner_lr: float,
        *,
        eval_steps: int | None = None,
        first_order: bool = False,
        learn_lr: bool = False,
        support_at: SupportAt | None = None,
    ) -> None:
        super().__init__()
        self.loss, self.generate, self.first_order, self.support_at = loss, generate, first_order, support_at
        self.steps, self.eval_steps = checked(steps, eval_steps, inner_lr)
        self.rate: Tensor | float = nn.Parameter(torch.tensor(inner_lr)) if learn_lr else inner_lr

    @property
    def frees_ways(self) -> bool:
        return self.generate.frees_ways

    @property
    def training_steps(self) -> int:
        return self.steps

    def forward(self, net: nn.Module, weights: Weights, support: Samples) -> Weights:
        return self.path(net, weights, support, self.steps)[-1]

    def trajectory(self, net: nn.Module, weights: Weights, support: Samples) -> list[Weights]:
        return self.path(net, weights, support, self.eval_steps)

    def learned_rates(self) -> dict[str, Tensor]:
        return {"code": self.rate} if isinstance(self.rate, Tensor) else {}

    def path(self, net: nn.Module, weights: Weights, support: Samples, steps: int) -> list[Weights]:
        """Return the weights after 0, 1, …, `steps` steps on the code."""
        codes = [self.generate.code(net, weights, support)]

        def objective(at: Weights, seen: Samples) -> Tensor:
            return self.loss(net, self.generate.write(weights, at["code"], support), seen)

        for k in range(steps):
            code = codes[-1]
            at = {"code": code.detach() if self.first_order else code}
            seen = support if self.support_at is None else self.support_at(support, k)
            gradient = gradient_of(partial(objective, seen=seen), at, again=not self.first_order)["code"]
            codes.append(code - self.rate * (gradient.detach() if self.first_order else gradient))
        return [self.generate.write(weights, code, support) for code in codes]
