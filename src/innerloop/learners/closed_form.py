"""Learners whose head is computed, not searched for."""

from typing import Any

from torch import nn

from innerloop.adaptation import PrototypeHead, RidgeHead
from innerloop.episodes import Loss, Metrics
from innerloop.learners.learner import MetaLearner


class ProtoNet(MetaLearner):
    """Prototypical networks (Snell et al., 2017): the nearest class mean in a learned feature space.

    Fits any number of ways. Parameters: see `MetaLearner`.
    """

    def __init__(self, net: nn.Module, loss: Loss, metrics: Metrics | None = None, **outer: Any) -> None:
        super().__init__(net, loss, PrototypeHead(), metrics, **outer)


class R2D2(MetaLearner):
    """Ridge regression on learned features, differentiated through its solution (Bertinetto et al., 2019).

    For class ids and real targets alike. ridge: see `RidgeHead`. The rest: see `MetaLearner`.
    """

    def __init__(
        self, net: nn.Module, loss: Loss, metrics: Metrics | None = None, *, ridge: float = 1.0, **outer: Any
    ) -> None:
        super().__init__(net, loss, RidgeHead(ridge), metrics, **outer)
