"""Simple CNAPS: a modulated body, and class means and covariances in place of a generated head."""

import copy
from typing import Any

from torch import nn

from innerloop.adaptation import Chain, Identity, MahalanobisHead
from innerloop.episodes import InputError, Loss, Metrics
from innerloop.learners.hypernet import RelationLearner
from innerloop.learners.task_relation import TaskRelation
from innerloop.nets import QuadraticHead


class SimpleCNAPs(RelationLearner):
    """Simple CNAPS (Bateni et al., 2020): FiLM(S; phi), then the Mahalanobis distance to the means of the new features.

    The composition of the generator that modulates the scale and shift of the body's norms, as in `CNAPs`, and of
    `MahalanobisHead`, which has the equations. It fits any number of ways and of shots. In the paper a pre-trained body
    is frozen, as with freeze="body"; otherwise it is trained as well.

    film: False leaves the generator out. beta: see `MahalanobisHead`. encoder, width: see `TaskRelation`. The other
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
        film: bool = True,
        beta: float = 1.0,
        **outer: Any,
    ) -> None:
        if not film and outer.get("update") == "alternating":
            raise InputError("film=false leaves nothing for update=alternating to move first: use update=joint")
        body = TaskRelation(encoder, width, writes="film").model(net) if film else Identity()
        generate = Chain(body, MahalanobisHead(beta))
        super().__init__(with_quadratic_head(net), loss, generate, generate, metrics, **outer)


def with_quadratic_head(net: nn.Module) -> nn.Module:
    """Return the net with a `QuadraticHead` that has the weights of its linear head. The given net is not changed."""
    linear = net.get_submodule("head")
    head = QuadraticHead(linear.in_features, linear.out_features)  # type: ignore[arg-type]
    head.weight, head.bias = linear.weight, linear.bias  # type: ignore[assignment]
    other = copy.copy(net)
    other._modules = {**net._modules, "head": head}
    return other
