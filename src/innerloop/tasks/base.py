"""Base classes of task families. A family is a distribution over episodes with a loss and metrics."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from innerloop.episodes import SPLITS, InputError, MetaBatch, Observation, Samples, Split, SupportAt, Weights, apply


class Tasks(ABC):
    """A distribution over tasks.

    input_shape: shape of one x. output_size: number of outputs of the net for one x.
    metric: name of the metric that runs are compared by, one of the keys that `metrics` returns.
    fits: what to advise whoever chooses a net that does not take the sizes of the tasks.
    beside: names of the metrics that no policy changes, such as an oracle's, which stand beside it.
    varied_ways: True if some tasks may have only the first few of the `output_size` classes.
    ragged: True if episodes differ in their shapes, so that meta-batches are lists.
    splits: the splits that there are episodes of. A source of a mixture may lack some.
    """

    input_shape: tuple[int, ...]
    output_size: int
    varied_ways: bool = False
    ragged: bool = False
    splits: Sequence[Split] = SPLITS
    fits: ClassVar[str] = "choose a net of numbers, such as net=mlp"
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool]
    beside: ClassVar[Sequence[str]] = ()

    @abstractmethod
    def draw(self, split: Split, rngs: Sequence[np.random.Generator]) -> MetaBatch:
        """Return a meta-batch with one episode per random stream. Each episode depends on its own stream only.

        The meta-batch is stacked if all tasks of the family have the same shape. Otherwise it is a list, even if the
        drawn tasks happen to have the same shape.
        """

    def pooled(self) -> "tuple[Tasks, int | None]":
        """Return the family for ordinary supervised training on all tasks at once, and the number of outputs needed.

        In the returned family, a training label has the same meaning in every task. The number is None if this family
        has that property already, so that the net needs no other outputs.
        """
        return self, None

    @classmethod
    def variant(cls, settings: Mapping[str, Any]) -> "type[Tasks]":
        """Return the class whose metric tasks of these settings, a `data` configuration, have; mostly this class."""
        return cls

    def sizes(self) -> dict[str, Any]:
        """Return the keyword arguments of a net that follow from the tasks, so that nobody types them twice."""
        return {"input_shape": self.input_shape, "output_size": self.output_size}

    def prepare(self, net: nn.Module) -> nn.Module:
        """Return a new net with what its own start asks to be taken from the training tasks; mostly that is nothing."""
        return net

    @property
    def observation(self) -> Observation | None:
        """What a hypernetwork reads of a task. None: the samples themselves, as in all supervised families."""
        return None

    @property
    def support_at(self) -> SupportAt | None:
        """What inner step k sees of a support set. None: each sees all of it, as in all supervised families."""
        return None

    def limit(self, split: Split) -> int | None:
        """Return the number of different tasks that an evaluation on a split has; None: as many as are drawn.

        Such a family gives the episodes of the first indices of validation and test one task each, so that each task
        counts once.
        """
        return None

    def class_names(self, split: Split) -> list[str]:
        """Return the names of the classes, or users, that a split's tasks are made of; none if they are made of none.

        An evaluation warns of those that were in training.
        """
        return []

    def sources(self, split: Split, rngs: Sequence[np.random.Generator]) -> list[str]:
        """Return the name of the source that each episode comes from; none if there are no several sources.

        rngs: fresh streams of the episodes, as `draw` takes them.
        """
        return []

    @abstractmethod
    def loss(self, net: nn.Module, weights: Weights, samples: Samples) -> Tensor:
        """Return the scalar loss that is minimised to fit a task's weights. It is differentiable in `weights`."""

    @abstractmethod
    def metrics(self, net: nn.Module, weights: Weights, samples: Samples) -> dict[str, Tensor]:
        """Return named scalars to report for one task. One of the names is `metric`."""


class Regression(Tasks):
    """Tasks with real targets and the mean squared error. y: (n, output_size)."""

    metric = "mse"
    higher_is_better = False

    def loss(self, net: nn.Module, weights: Weights, samples: Samples) -> Tensor:
        return F.mse_loss(apply(net, weights, samples.x), samples.y)

    def metrics(self, net: nn.Module, weights: Weights, samples: Samples) -> dict[str, Tensor]:
        return {"mse": self.loss(net, weights, samples)}


class Classification(Tasks):
    """Tasks with class ids and the cross-entropy. y: (n,) int64.

    If `output_size` is 1, the loss is the logistic loss on a single logit.
    """

    metric = "accuracy"
    higher_is_better = True

    def loss(self, net: nn.Module, weights: Weights, samples: Samples) -> Tensor:
        return self._loss(apply(net, weights, samples.x), samples.y)

    def metrics(self, net: nn.Module, weights: Weights, samples: Samples) -> dict[str, Tensor]:
        logits = apply(net, weights, samples.x)
        correct = (predict_class(logits) == samples.y).to(logits.dtype)
        return {"accuracy": correct.mean(), "loss": self._loss(logits, samples.y)}

    def _loss(self, logits: Tensor, y: Tensor) -> Tensor:
        if self.output_size == 1:
            return F.binary_cross_entropy_with_logits(logits.squeeze(-1), y.to(logits.dtype))
        return F.cross_entropy(logits, y)


def predict_class(logits: Tensor) -> Tensor:
    """Return class ids (n,) for logits (n, classes), or for a single logit (n, 1)."""
    return (logits.squeeze(-1) > 0).long() if logits.shape[-1] == 1 else logits.argmax(-1)


def positive(**sizes: float) -> None:
    """Raise InputError unless every size is above zero. sizes: name -> value."""
    for name, value in sizes.items():
        if not value > 0:
            raise InputError(f"{name} must be above zero, got {value}")


def tensor(values: np.ndarray) -> Tensor:
    """Return a float32 tensor of the same values."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
