"""The one abstraction: a map from a task's support set to that task's weights, and its composition."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from innerloop.episodes import Samples, Weights


class Adaptation(nn.Module, ABC):
    """(net, weights, support) -> weights, for one task; an engine runs it over a meta-batch.

    Differentiable in the weights and in its own meta-parameters (the module's parameters); mutates nothing.
    """

    @property
    def frees_ways(self) -> bool:
        """Whether the head fits the classes that the support has, so that a task may have fewer than the net."""
        return False

    @property
    def training_steps(self) -> int | None:
        """The number of inner steps in training, None for an adaptation without inner steps."""
        return None

    @abstractmethod
    def forward(self, net: nn.Module, weights: Weights, support: Samples) -> Weights:
        """The adapted weights."""

    def trajectory(self, net: nn.Module, weights: Weights, support: Samples) -> list[Weights]:
        """The weights at 0, 1, …, K inner steps as evaluation sees them; without inner steps, only the result."""
        return [self(net, weights, support)]

    def learned_rates(self) -> dict[str, Tensor]:
        """The inner rates that the outer loop learns, by the name of the weights that they are for."""
        return {}


class Identity(Adaptation):
    """Leaves the weights as they are; neutral in a Chain."""

    def forward(self, net: nn.Module, weights: Weights, support: Samples) -> Weights:
        return weights


class Chain(Adaptation):
    """One adaptation after the other, each starting where the last one ended."""

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
        path = [weights]
        for part in self.parts:
            assert isinstance(part, Adaptation)
            path = path[:-1] + part.trajectory(net, path[-1], support)
        return path
