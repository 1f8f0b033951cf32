"""Learners whose head is computed in closed form."""

from typing import Any

from torch import nn

from innerloop.adaptation import PrototypeHead, RidgeHead, RidgeStep
from innerloop.episodes import InputError, Loss, Metrics
from innerloop.learners.learner import MetaLearner


class ProtoNet(MetaLearner):
    """Prototypical networks (Snell et al., 2017): the nearest class mean in a learned feature space.

    It fits any number of ways. Keyword arguments: those of `OuterLoop`.
    """

    def __init__(self, net: nn.Module, loss: Loss, metrics: Metrics | None = None, **outer: Any) -> None:
        super().__init__(net, loss, PrototypeHead(), metrics, **outer)


class R2D2(MetaLearner):
    """Ridge regression on learned features, differentiated through its solution (Bertinetto et al., 2019).

    It takes class ids and real targets. ridge: see `RidgeHead`.
    toward: what the penalty draws the head to: "zero", or "theta", the net's own head, for real targets (`RidgeStep`).
        "auto" is theta for nets with a `task_part`, else zero.
    The other keyword arguments: those of `OuterLoop`.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        metrics: Metrics | None = None,
        *,
        ridge: float = 1.0,
        toward: str = "auto",
        **outer: Any,
    ) -> None:
        if toward == "auto":
            toward = "theta" if hasattr(net, "task_part") else "zero"
        heads = {"zero": RidgeHead, "theta": RidgeStep}
        if toward not in heads:
            raise InputError(f"unknown toward {toward!r}; choose one of {', '.join(heads)}")
        super().__init__(net, loss, heads[toward](ridge), metrics, **outer)
