"""Model-agnostic meta-learning."""

from typing import Any

from torch import nn

from innerloop.adaptation import GradientSteps
from innerloop.episodes import Loss, Metrics, weights_of
from innerloop.learners.learner import MetaLearner


class MAML(MetaLearner):
    """theta <- theta - beta grad_theta mean_i L_i^Q(theta - alpha grad L_i^S(theta)), with K inner steps.

    Source: Finn, Abbeel and Levine, 2017, algorithm 2.

    inner_lr, inner_steps, eval_inner_steps (None: inner_steps), first_order, learn_lr, inner_clip: see `GradientSteps`.
    The rest: see `MetaLearner`.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        metrics: Metrics | None = None,
        *,
        inner_lr: float = 0.01,
        inner_steps: int = 1,
        eval_inner_steps: int | None = None,
        first_order: bool = False,
        learn_lr: str | None = None,
        inner_clip: float | None = None,
        **outer: Any,
    ) -> None:
        adaptation = GradientSteps(
            loss,
            inner_steps,
            inner_lr,
            eval_steps=eval_inner_steps,
            first_order=first_order,
            learn_lr=learn_lr,
            weights=weights_of(net),
            clip=inner_clip,
        )
        super().__init__(net, loss, adaptation, metrics, **outer)
