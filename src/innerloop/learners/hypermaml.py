"""HyperMAML: a hypernetwork in place of the inner loop, which reads what the head predicts."""

from typing import Any

from torch import nn

from innerloop.episodes import Loss, Metrics
from innerloop.learners.hypernet import RelationLearner
from innerloop.learners.task_relation import TaskRelation


class HyperMAML(RelationLearner):
    """head_i = head + g(S_i, p_i; phi): one pass updates the head, as the inner loop of MAML would in many steps.

    Source: Przewięźlikowski et al., 2022, "HyperMAML: few-shot adaptation of deep models with hypernetworks", whose
    head' = head - H(E). E has for each class the support features f(x), the current head's predictions
    p = softmax(head(f(x))), through which no gradient passes, and the labels. The body is not adapted. So it is
    `HyperNet` with writes="head" whose generator also reads p. Not included: the gradient steps during the warm-up of
    the paper's training.

    reads_predictions: False leaves p out, and it is that hypernetwork. encoder, width: see `TaskRelation`. The other
    keyword arguments: those of `RelationLearner` and `OuterLoop`.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        metrics: Metrics | None = None,
        *,
        encoder: str = "deepsets",
        width: int = 64,
        reads_predictions: bool = True,
        **outer: Any,
    ) -> None:
        generate = TaskRelation(encoder, width, writes="head").model(net, predictions=reads_predictions)
        super().__init__(net, loss, generate, generate, metrics, **outer)
