"""Model-agnostic meta-learning, and its variants with other inner steps or another start of the inner loop."""

from typing import Any, ClassVar

from torch import Tensor, nn

from innerloop.adaptation import Adaptation, Chain, GradientSteps, PrototypeHead
from innerloop.adaptation.engine import Outputs
from innerloop.episodes import Episode, Loss, Metrics
from innerloop.learners.inner_loop import InnerLoop, multi_step_objective
from innerloop.learners.keywords import flattened
from innerloop.learners.learner import MetaLearner


class MAML(MetaLearner):
    """theta <- theta - beta grad_theta mean_i L_i^Q(theta - alpha grad L_i^S(theta)), with K inner steps.

    Source: Finn, Abbeel and Levine, 2017, algorithm 2. first_order=True is FOMAML, only="head" ANIL (Raghu et al.,
    2020), only="body" BOIL (Oh et al., 2021), learn_lr="parameter" Meta-SGD (Li et al., 2017).

    multi_step: the outer loss is the mean of the query losses after each of the K inner steps, not that after the last
        (Antoniou et al., 2019, section 4), so that fewer steps are good for something, too.
    The other keyword arguments: those of `InnerLoop` and `OuterLoop`. The others: see `MetaLearner`.
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
        multi_step: bool = False,
        **outer: Any,
    ) -> None:
        super().__init__(net, loss, self.compose(inner.steps(loss, net, self.inner_loop)), metrics, **outer)
        self.multi_step = multi_step

    @staticmethod
    def compose(steps: GradientSteps) -> Adaptation:
        """Return the adaptation that these inner steps are part of."""
        return steps

    def share_of_all_steps(self) -> float:
        """Return the part of the outer loss that is the mean over all inner steps; the rest is that of the last one."""
        return float(self.multi_step)

    def loss_weights(self) -> list[float]:
        """Return the weights of the query loss after 1, …, K inner steps. They sum to one."""
        k, share = self.adaptation.training_steps or 0, self.share_of_all_steps()
        return [share / k] * (k - 1) + [1 - share * (k - 1) / k] if k else []

    def query_objective(self, episode: Episode) -> tuple[Tensor, Outputs]:
        counts = self.loss_weights()
        return multi_step_objective(self, episode, counts) if any(counts[:-1]) else super().query_objective(episode)


class ProtoMAML(MAML):
    """MAML whose head starts from the support set's prototypes (Triantafillou et al., 2020, section 3).

    It has no head of its own to learn, and it fits any number of ways. Keyword arguments: those of `MAML`.
    """

    @staticmethod
    def compose(steps: GradientSteps) -> Adaptation:
        return Chain(PrototypeHead(), steps)
