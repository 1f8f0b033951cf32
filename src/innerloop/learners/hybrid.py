"""The hybrid: a hypernetwork writes the weights that the inner loop starts from."""

from typing import Any

from torch import Tensor, nn

from innerloop.adaptation import Chain
from innerloop.adaptation.engine import Outputs
from innerloop.episodes import Episode, Loss, Metrics, Observation
from innerloop.learners.hypernet import RelationLearner
from innerloop.learners.inner_loop import InnerLoop, multi_step_objective
from innerloop.learners.keywords import flattened
from innerloop.learners.task_relation import TaskRelation


class Hybrid(RelationLearner):
    """w_i^0 = theta + g(S_i; phi), then K inner steps from there: the composition of `HyperNet` and `MAML`.

    With K = 0 it is the hypernetwork learner, and with a generator that writes zeros it is MAML.

    observation: what the task relation model reads, see `Generate`.
    multi_step: the outer loss is the mean of the query losses after 0, 1, …, K inner steps, not that after the last, so
        that what is written is good without inner steps, too.
    Keyword arguments: those of `TaskRelation`, `InnerLoop`, `RelationLearner` and `OuterLoop`. The others: see
    `MetaLearner`.
    """

    @flattened
    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        metrics: Metrics | None = None,
        *,
        relation: TaskRelation = TaskRelation(),
        inner: InnerLoop = InnerLoop(),
        observation: Observation | None = None,
        multi_step: bool = False,
        **outer: Any,
    ) -> None:
        generate = relation.model(net, observation)
        super().__init__(net, loss, Chain(generate, inner.steps(loss, net)), generate, metrics, **outer)
        self.multi_step = multi_step

    def query_objective(self, episode: Episode) -> tuple[Tensor, Outputs]:
        if not self.multi_step:
            return super().query_objective(episode)
        points = 1 + (self.adaptation.training_steps or 0)
        return multi_step_objective(self, episode, [1 / points] * points)
