"""Policies: nets that read the states of an environment and return the parameters of a distribution over actions."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from innerloop.episodes import InputError
from innerloop.nets.dense import MLP


class CategoricalPolicy(MLP):
    """A multi-layer perceptron that returns one logit for each action. States: (n, *input_shape) -> (n, actions).

    Raises InputError for inputs that are no states, as learners have that read support sets as points with labels.
    """

    def __init__(
        self,
        input_shape: int | Sequence[int],
        output_size: int,
        hidden: Sequence[int] = (),
        activation: str = "tanh",
    ) -> None:
        super().__init__(input_shape, hidden, output_size, activation)
        self.body.insert(0, States(self.input_size))


class GaussianPolicy(CategoricalPolicy):
    """A policy with normal actions: their means from the state, their standard deviations independent of it.

    States: (n, *input_shape) -> (n, output_size), first the means and then the logarithms of the standard deviations.

    output_size: twice the number of actions. log_std: the initial logarithm. floor: lower limit of the logarithms,
        below which exploration would end. Raises InputError for an odd output_size, and for log_std below the floor.
    """

    def __init__(
        self,
        input_shape: int | Sequence[int],
        output_size: int,
        hidden: Sequence[int] = (64, 64),
        activation: str = "tanh",
        log_std: float = -0.5,
        floor: float = -3.0,
    ) -> None:
        if output_size % 2:
            raise InputError(
                f"a Gaussian policy returns a mean and a standard deviation for each action, and these tasks ask for "
                f"{output_size} outputs: use net=categorical"
            )
        if not log_std >= floor:
            raise InputError(f"log_std must be at least the floor {floor}, got {log_std}")
        super().__init__(input_shape, output_size // 2, hidden, activation)
        self.output_size, self.floor = output_size, floor
        self.log_std = nn.Parameter(torch.full((output_size // 2,), float(log_std)))

    def forward(self, x: Tensor) -> Tensor:
        mean = super().forward(x)
        return torch.cat([mean, self.log_std.clamp_min(self.floor).expand_as(mean)], -1)


class States(nn.Module):
    """The identity for states of this size. Raises InputError for anything else."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        if x[0].numel() != self.size:
            raise InputError(
                f"a policy reads states of {self.size} numbers, got {x[0].numel()}: this learner reads support points "
                "with class ids or targets, and in reinforcement learning there are none; use maml, hypernet or hybrid"
            )
        return x
