"""The settings of inner loops, which learners have as keyword arguments: see `innerloop.learners.keywords`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from innerloop.adaptation import Generate, GradientSteps, LatentSteps
from innerloop.adaptation.engine import Outputs
from innerloop.episodes import Episode, InputError, Loss, SupportAt, task_weights, weights_of
from innerloop.learners.learner import MetaLearner


def refuse_shared_weights(net: nn.Module, learner: str) -> None:
    """Raise InputError if a net has weights that all tasks share, for a learner that learns only what tasks adapt."""
    shared = [name for name, _ in net.named_parameters() if name not in task_weights(net)]
    if shared:
        raise InputError(
            f"{learner} learns only weights that a task adapts, and tasks share this net's {', '.join(shared)}: use "
            "algo=maml, hypernet or hybrid"
        )


def multi_step_objective(learner: MetaLearner, episode: Episode, counts: Sequence[float]) -> tuple[Tensor, Outputs]:
    """Return the query losses along the inner loop of training, times `counts`, added, and the report on its end.

    counts: a weight for each of the last inner steps, in their order (Antoniou et al., 2019, section 4).
    """
    path = learner.adaptation.training_path(learner.net, weights_of(learner.net), episode.support)[-len(counts) :]
    losses = [c * learner.query_loss(w, episode) for c, w in zip(counts, path, strict=True)]
    return torch.stack(losses).sum(), learner.report_on(path[-1], episode)


Steps = TypeVar("Steps", bound=GradientSteps)


@dataclass(frozen=True)
class InnerSteps:
    """inner_lr: the inner rate. inner_steps: number of inner steps in training.

    eval_inner_steps: number of inner steps in validation and test, which may exceed those of training; None: as many.
    support_at: what each inner step sees of the support set; None: all of it.
    """

    inner_lr: float = 0.01
    inner_steps: int = 1
    eval_inner_steps: int | None = None
    support_at: SupportAt | None = None


@dataclass(frozen=True)
class DescentLoop(InnerSteps):
    """Gradient descent on all weights.

    inner_clip: limit c of the entries of the inner gradient, which are clamped to [-c, c]; None: no limit.
    """

    inner_clip: float | None = None

    def gradient_steps(self, loss: Loss, kind: type[Steps], **kwargs: Any) -> Steps:
        """Return the inner loop as an adaptation of this kind. kwargs: its further keyword arguments."""
        kwargs |= {"eval_steps": self.eval_inner_steps, "clip": self.inner_clip, "support_at": self.support_at}
        return kind(loss, self.inner_steps, self.inner_lr, **kwargs)


@dataclass(frozen=True)
class InnerLoop(DescentLoop):
    """Gradient descent that the meta-gradient passes through: see `GradientSteps`.

    first_order: treat the inner gradient as a constant. only: part of the net to adapt, "head" or "body"; None: all.
    learn_lr: learn inner rates in the outer loop, one per "parameter", "tensor" or "tensor_step"; None: none.
    checkpoint_inner_steps: compute each inner step again for the meta-gradient, which takes the memory of one step.
    """

    first_order: bool = False
    only: str | None = None
    learn_lr: str | None = None
    checkpoint_inner_steps: bool = False

    def steps(self, loss: Loss, net: nn.Module, kind: type[Steps] = GradientSteps) -> Steps:  # type: ignore[assignment]
        """Return the inner loop on a net's weights as an adaptation of this kind."""
        return self.gradient_steps(
            loss,
            kind,
            first_order=self.first_order,
            only=self.only,
            learn_lr=self.learn_lr,
            weights=task_weights(net),
            recompute=self.checkpoint_inner_steps,
        )


@dataclass(frozen=True)
class LatentLoop(InnerSteps):
    """Gradient descent on the code that a generator writes the weights from: see `LatentSteps`.

    first_order: treat the inner gradient as a constant. learn_lr: learn the rate, one number, in the outer loop.
    """

    inner_lr: float = 1.0
    first_order: bool = False
    learn_lr: bool = False

    def steps(self, loss: Loss, generate: Generate) -> LatentSteps:
        """Return the inner loop on the codes of a generator as an adaptation."""
        return LatentSteps(
            loss,
            generate,
            self.inner_steps,
            self.inner_lr,
            eval_steps=self.eval_inner_steps,
            first_order=self.first_order,
            learn_lr=self.learn_lr,
            support_at=self.support_at,
        )
