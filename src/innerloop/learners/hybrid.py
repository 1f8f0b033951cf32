"""The hybrid: a hypernetwork writes where the inner loop starts from."""

from typing import Any

from torch import nn

from innerloop.adaptation import Chain, GradientSteps
from innerloop.episodes import Loss, Metrics, weights_of
from innerloop.learners.hypernet import TwoPart, task_relation_model


class Hybrid(TwoPart):
    """w_i^0 = theta + g(S_i; phi), then K inner steps from there: the composition of `HyperNet` and `MAML`.

    With K = 0 it is the hypernetwork learner; with a generator that writes zeros it is MAML.
    Parameters: those of `MAML` and of `HyperNet`.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        metrics: Metrics | None = None,
        *,
        encoder: str = "deepsets",
        width: int = 64,
        writes: str = "auto",
        chunk_size: int | None = None,
        init: str = "zero",
        inner_lr: float = 0.01,
        inner_steps: int = 1,
        eval_inner_steps: int | None = None,
        first_order: bool = False,
        only: str | None = None,
        learn_lr: str | None = None,
        inner_clip: float | None = None,
        checkpoint_inner_steps: bool = False,
        **outer: Any,
    ) -> None:
        generate = task_relation_model(net, encoder, width, writes, chunk_size, init)
        steps = GradientSteps(
            loss,
            inner_steps,
            inner_lr,
            eval_steps=eval_inner_steps,
            first_order=first_order,
            only=only,
            learn_lr=learn_lr,
            weights=weights_of(net),
            clip=inner_clip,
            recompute=checkpoint_inner_steps,
        )
        super().__init__(net, loss, Chain(generate, steps), generate, metrics, **outer)
