"""The abstraction `Adaptation`, a map from a task's support set to the task's weights, and its composition."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from innerloop.episodes import Samples, Weights


class Adaptation(nn.Module, ABC):
    """A map (net, weights, support) -> weights for one task. An engine runs it over a meta-batch.

    It is differentiable in the weights and in its own meta-parameters, the module's parameters. It modifies nothing.
    """

    @property
    def frees_ways(self) -> bool:
        """Whether the head is built for the task's own classes, so that a task may have fewer classes than the net."""
        return False

    @property
    def training_steps(self) -> int | None:
        """The number of inner steps in training. None if the adaptation has no inner steps."""
        return None

    @abstractmethod
    def forward(self, net: nn.Module, weights: Weights, support: Samples) -> Weights:
        """Return the adapted weights."""

    def trajectory(self, net: nn.Module, weights: Weights, support: Samples) -> list[Weights]:
        """Return the weights after 0, 1, …, K inner steps in evaluation.

        An adaptation without inner steps returns only its result.
        """
        return [self(net, weights, support)]

    def training_path(self, net: nn.Module, weights: Weights, support: Samples) -> list[Weights]:
        """Return the weights after 0, 1, …, K inner steps in training, of which `forward` returns the last."""
        return [self(net, weights, support)]

    def learned_rates(self) -> dict[str, Tensor]:
        """Return the inner rates that the outer loop learns, by the names of the weights that they are used for."""
        return {}


class Identity(Adaptation):
    """The adaptation that returns the weights unchanged, the neutral element of `Chain`."""

    def forward(self, net: nn.Module, weights: Weights, support: Samples) -> Weights:
        return weights


class Chain(Adaptation):
    """A sequence of adaptations, each of which starts from the weights that the previous one returns."""

    def __init__(self, *parts: Adaptation) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    @property
    def frees_ways(self) -> bool:
        return any(part.frees_ways for part in self.parts)

    @property
    def training_steps(self) -> int | None:
        steps = [part.training_steps for part in self.parts if isinstance(part, Adaptation)]
        known = [k for k in steps if k is not None]
        return sum(known) if known else None

    def forward(self, net: nn.Module, weights: Weights, support: Samples) -> Weights:
        for part in self.parts:
            weights = part(net, weights, support)
        return weights

    def trajectory(self, net: nn.Module, weights: Weights, support: Samples) -> list[Weights]:
        return self._joined(weights, lambda part, start: part.trajectory(net, start, support))

    def training_path(self, net: nn.Module, weights: Weights, support: Samples) -> list[Weights]:
        return self._joined(weights, lambda part, start: part.training_path(net, start, support))

    def _joined(self, weights: Weights, of: Callable[[Adaptation, Weights], list[Weights]]) -> list[Weights]:
        path = [weights]
        for part in self.parts:
            assert isinstance(part, Adaptation)
            path = path[:-1] + of(part, path[-1])
        return path
