"""Model-agnostic meta-learning, and its variants with other inner steps or another start of the inner loop."""

from typing import Any, ClassVar

from torch import nn

from innerloop.adaptation import Adaptation, Chain, GradientSteps, PrototypeHead
from innerloop.episodes import Loss, Metrics
from innerloop.learners.inner_loop import InnerLoop
from innerloop.learners.keywords import flattened
from innerloop.learners.learner import MetaLearner


class MAML(MetaLearner):
    """theta <- theta - beta grad_theta mean_i L_i^Q(theta - alpha grad L_i^S(theta)), with K inner steps.

    Source: Finn, Abbeel and Levine, 2017, algorithm 2. first_order=True is FOMAML, only="head" ANIL (Raghu et al.,
    2020), only="body" BOIL (Oh et al., 2021), learn_lr="parameter" Meta-SGD (Li et al., 2017).

    Keyword arguments: those of `InnerLoop` and `OuterLoop`. The others: see `MetaLearner`.
    """

    inner_loop: ClassVar[type[GradientSteps]] = GradientSteps

    @flattened
    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        metrics: Metrics | None = None,
        *,
        inner: InnerLoop = InnerLoop(),
        **outer: Any,
    ) -> None:
        super().__init__(net, loss, self.compose(inner.steps(loss, net, self.inner_loop)), metrics, **outer)

    @staticmethod
    def compose(steps: GradientSteps) -> Adaptation:
        """Return the adaptation that these inner steps are part of."""
        return steps


class ProtoMAML(MAML):
    """MAML whose head starts from the support set's prototypes (Triantafillou et al., 2020, section 3).

    It has no head of its own to learn, and it fits any number of ways. Keyword arguments: those of `MAML`.
    """

    @staticmethod
    def compose(steps: GradientSteps) -> Adaptation:
        return Chain(PrototypeHead(), steps)
