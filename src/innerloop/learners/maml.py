"""Model-agnostic meta-learning, and the variants that only choose other inner steps or another start for them."""

from typing import Any, ClassVar

from torch import nn

from innerloop.adaptation import Adaptation, Chain, GradientSteps, PrototypeHead
from innerloop.episodes import Loss, Metrics, weights_of
from innerloop.learners.learner import MetaLearner


class MAML(MetaLearner):
    """theta <- theta - beta grad_theta mean_i L_i^Q(theta - alpha grad L_i^S(theta)), with K inner steps.

    Source: Finn, Abbeel and Levine, 2017, algorithm 2. first_order=True is FOMAML, only="head" ANIL (Raghu et al.,
    2020), only="body" BOIL (Oh et al., 2021), learn_lr="parameter" Meta-SGD (Li et al., 2017).

    inner_lr, inner_steps, eval_inner_steps (None: inner_steps), first_order, only, learn_lr, inner_clip,
    checkpoint_inner_steps: see `GradientSteps`. The rest: see `MetaLearner`.
    """

    inner_loop: ClassVar[type[GradientSteps]] = GradientSteps

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
        only: str | None = None,
        learn_lr: str | None = None,
        inner_clip: float | None = None,
        checkpoint_inner_steps: bool = False,
        **outer: Any,
    ) -> None:
        steps = self.inner_loop(
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
        super().__init__(net, loss, self.compose(steps), metrics, **outer)

    @staticmethod
    def compose(steps: GradientSteps) -> Adaptation:
        """The adaptation that these inner steps are part of."""
        return steps


class ProtoMAML(MAML):
    """MAML whose head starts from the support set's prototypes (Triantafillou et al., 2020, section 3).

    So it has no head of its own to learn, and fits any number of ways. Parameters: those of `MAML`.
    """

    @staticmethod
    def compose(steps: GradientSteps) -> Adaptation:
        return Chain(PrototypeHead(), steps)
