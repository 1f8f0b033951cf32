"""What a task family is: a distribution over episodes that owns its loss and its metrics."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from innerloop.episodes import InputError, MetaBatch, Samples, Split, Weights, apply


class Tasks(ABC):
    """A distribution over tasks.

    input_shape: the shape of one x. output_size: how many numbers the net gives for one x.
    metric: the name of the number that people compare, one of the keys that `metrics` returns.
    varied_ways: whether tasks may have only the first few of `output_size` classes.
    """

    input_shape: tuple[int, ...]
    output_size: int
    varied_ways: bool = False
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool]

    @abstractmethod
    def draw(self, split: Split, rngs: Sequence[np.random.Generator]) -> MetaBatch:
        """A meta-batch with one episode for each random stream, each a function of its own stream alone.

        Stacked if all tasks of the family have one shape, else a list, whatever the shapes of those at hand.
        """

    def pooled(self) -> "tuple[Tasks, int | None]":
        """The family for ordinary supervised training on all tasks at once, and the outputs that needs.

        Training labels then mean the same in every task; None: they do so already, and the net's own outputs fit.
        """
        return self, None

    @abstractmethod
    def loss(self, net: nn.Module, weights: Weights, samples: Samples) -> Tensor:
        """The scalar that a task's weights are fitted by, differentiable in `weights`."""

    @abstractmethod
    def metrics(self, net: nn.Module, weights: Weights, samples: Samples) -> dict[str, Tensor]:
        """Named scalars to report for one task, `metric` among them."""


class Regression(Tasks):
    """Real targets and the mean squared error. y: (n, output_size)."""

    metric = "mse"
    higher_is_better = False

    def loss(self, net: nn.Module, weights: Weights, samples: Samples) -> Tensor:
        return F.mse_loss(apply(net, weights, samples.x), samples.y)

    def metrics(self, net: nn.Module, weights: Weights, samples: Samples) -> dict[str, Tensor]:
        return {"mse": self.loss(net, weights, samples)}


class Classification(Tasks):
    """Class ids and the cross-entropy; with `output_size` 1 the logistic loss on one logit. y: (n,) int64."""

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
    """Class ids (n,) from logits (n, classes), or from a single logit (n, 1)."""
    return (logits.squeeze(-1) > 0).long() if logits.shape[-1] == 1 else logits.argmax(-1)


def positive(**sizes: float) -> None:
    """InputError unless every named size is above zero."""
    for name, value in sizes.items():
        if not value > 0:
            raise InputError(f"{name} must be above zero, got {value}")


def tensor(values: np.ndarray) -> Tensor:
    """A float32 tensor of the same values."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
