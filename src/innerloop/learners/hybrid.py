"""The hybrid: a hypernetwork writes the weights that the inner loop starts from."""

from typing import Any

from torch import nn

from innerloop.adaptation import Chain
from innerloop.episodes import Loss, Metrics, Observation
from innerloop.learners.hypernet import RelationLearner
from innerloop.learners.inner_loop import InnerLoop
from innerloop.learners.keywords import flattened
from innerloop.learners.task_relation import TaskRelation


class Hybrid(RelationLearner):
    """w_i^0 = theta + g(S_i; phi), then K inner steps from there: the composition of `HyperNet` and `MAML`.

    With K = 0 it is the hypernetwork learner, and with a generator that writes zeros it is MAML.

    observation: what the task relation model reads, see `Generate`.
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
        **outer: Any,
    ) -> None:
        generate = relation.model(net, observation)
        super().__init__(net, loss, Chain(generate, inner.steps(loss, net)), generate, metrics, **outer)
