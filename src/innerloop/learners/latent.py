"""Learners whose inner loop changes a code, from which a generator writes the weights."""

from typing import Any

from torch import nn

from innerloop.adaptation import Generate, ZeroCode
from innerloop.episodes import InputError, Loss, Metrics, Observation, task_weights
from innerloop.learners.hypernet import RelationLearner
from innerloop.learners.inner_loop import LatentLoop
from innerloop.learners.keywords import flattened
from innerloop.learners.learner import MetaLearner
from innerloop.learners.task_relation import TaskRelation
from innerloop.nets import Generator, convolutional


class CAVIA(MetaLearner):
    """Fast context adaptation (Zintgraf et al., 2019): K steps on context parameters that start at zero for each task.

    In dense nets the context is another input of the first layer, which is a shift of its biases that is linear in the
    context. In nets with convolutions it modulates the scale and shift of every norm.

    context_size: length of the context. The other keyword arguments: those of `LatentLoop` and `OuterLoop`.
    """

    @flattened
    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        metrics: Metrics | None = None,
        *,
        context_size: int = 5,
        inner: LatentLoop = LatentLoop(),
        **outer: Any,
    ) -> None:
        if context_size < 1:
            raise InputError(f"context_size must be above zero, got {context_size}")
        theta = task_weights(net)
        biases = [name for name in theta if name.endswith("bias")]
        names = [name for name in theta if ".norm." in name] if convolutional(net) else biases[:1]
        generator = Generator({name: theta[name].shape for name in names}, context_size, init="linear")
        super().__init__(net, loss, inner.steps(loss, Generate(ZeroCode(context_size), generator)), metrics, **outer)


class LEO(RelationLearner):
    """Latent embedding optimization (Rusu et al., 2019): K steps on the code that the encoder gives the support set.

    The hypernetwork learner with an inner loop on its code instead of on the weights, without the paper's sampling and
    pre-trained features. Without inner steps it is `HyperNet`.

    observation: what the task relation model reads, see `Generate`.
    Keyword arguments: those of `TaskRelation`, `LatentLoop`, `RelationLearner` and `OuterLoop`.
    """

    @flattened
    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        metrics: Metrics | None = None,
        *,
        relation: TaskRelation = TaskRelation(),
        inner: LatentLoop = LatentLoop(),
        observation: Observation | None = None,
        **outer: Any,
    ) -> None:
        generate = relation.generate(net, observation)
        super().__init__(net, loss, inner.steps(loss, generate), generate, metrics, **outer)
