"""The distributions that policies draw actions from. Their random numbers are given, so that drawing is a function."""

from abc import ABC, abstractmethod
from math import log, pi

import numpy as np
import torch
from torch import Tensor


class Actions(ABC):
    """A distribution over actions, whose parameters a policy returns.

    actions: number of entries of an action vector. outputs: number of outputs of a policy.
    """

    def __init__(self, actions: int) -> None:
        self.actions = self.outputs = actions

    @abstractmethod
    def noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Return the random numbers that actions of this shape are drawn with: (*shape, actions)."""

    @abstractmethod
    def draw(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Return actions (…, actions) for a policy's outputs (…, outputs) and random numbers (…, actions)."""

    @abstractmethod
    def log_prob(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Return the logarithm of the probability or density of actions (…, actions): (…)."""


class Gaussian(Actions):
    """Normal actions with independent entries. Outputs: the means, then the logarithms of the standard deviations."""

    def __init__(self, actions: int) -> None:
        super().__init__(actions)
        self.outputs = 2 * actions

    def noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.standard_normal((*shape, self.actions))

    def draw(self, outputs: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = outputs.chunk(2, -1)
        return mean + log_std.exp() * noise

    def log_prob(self, outputs: Tensor, actions: Tensor) -> Tensor:
        mean, log_std = outputs.chunk(2, -1)
        distance = (actions - mean) * (-log_std).exp()
        return -(distance.square() / 2 + log_std + log(2 * pi) / 2).sum(-1)


class Categorical(Actions):
    """One of several actions, as a one-hot vector. Outputs: logits.

    The action is the largest of the logits plus Gumbel noise, which has the probabilities of the softmax.
    """

    def noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.gumbel(size=(*shape, self.actions))

    def draw(self, outputs: Tensor, noise: Tensor) -> Tensor:
        chosen = (outputs + noise).argmax(-1, keepdim=True)
        return (chosen == torch.arange(self.actions, device=outputs.device)).to(outputs.dtype)

    def log_prob(self, outputs: Tensor, actions: Tensor) -> Tensor:
        return (outputs.log_softmax(-1) * actions).sum(-1)
