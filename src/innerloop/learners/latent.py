"""Learners whose inner loop moves a code, from which a generator writes the weights."""

from typing import Any

from torch import nn

from innerloop.adaptation import Generate, LatentSteps, ZeroCode
from innerloop.episodes import InputError, Loss, Metrics, weights_of
from innerloop.learners.hypernet import TwoPart, task_relation_model
from innerloop.learners.learner import MetaLearner
from innerloop.nets import Generator, convolutional


class CAVIA(MetaLearner):
    """Fast context adaptation (Zintgraf et al., 2019): K steps on context parameters that start at zero for each task.

    In dense nets the context is a further input of the first layer, that is, a shift of its biases that is linear in
    the context; in nets with convolutions it modulates the scale and shift of every norm.

    context_size: length of the context. inner_lr, inner_steps, eval_inner_steps, first_order, learn_lr: see
    `LatentSteps`. The rest: see `MetaLearner`.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        metrics: Metrics | None = None,
        *,
        context_size: int = 5,
        inner_lr: float = 1.0,
        inner_steps: int = 1,
        eval_inner_steps: int | None = None,
        first_order: bool = False,
        learn_lr: bool = False,
        **outer: Any,
    ) -> None:
        if context_size < 1:
            raise InputError(f"context_size must be above zero, got {context_size}")
        theta = weights_of(net)
        biases = [name for name in theta if name.endswith("bias")]
        names = [name for name in theta if ".norm." in name] if convolutional(net) else biases[:1]
        generator = Generator({name: theta[name].shape for name in names}, context_size, init="linear")
        steps = LatentSteps(
            loss,
            Generate(ZeroCode(context_size), generator),
            inner_steps,
            inner_lr,
            eval_steps=eval_inner_steps,
            first_order=first_order,
            learn_lr=learn_lr,
        )
        super().__init__(net, loss, steps, metrics, **outer)


class LEO(TwoPart):
    """Latent embedding optimization (Rusu et al., 2019): K steps on the code that the encoder makes of the support set.

    The hypernetwork learner with an inner loop in its code instead of in the weights; without the paper's sampling and
    pre-trained features. Without steps it is `HyperNet`.

    encoder, width, writes, chunk_size: see `task_relation_model`. inner_lr, inner_steps, eval_inner_steps,
    first_order, learn_lr: see `LatentSteps`. The rest: see `TwoPart`.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        metrics: Metrics | None = None,
        *,
        encoder: str = "deepsets",
        width: int = 64,
        writes: str = "auto",
        chunk_size: int | None = None,
        init: str = "zero",
        inner_lr: float = 1.0,
        inner_steps: int = 1,
        eval_inner_steps: int | None = None,
        first_order: bool = False,
        learn_lr: bool = False,
        **outer: Any,
    ) -> None:
        generate = task_relation_model(net, encoder, width, writes, chunk_size, init)
        steps = LatentSteps(
            loss,
            generate,
            inner_steps,
            inner_lr,
            eval_steps=eval_inner_steps,
            first_order=first_order,
            learn_lr=learn_lr,
        )
        super().__init__(net, loss, steps, generate, metrics, **outer)
