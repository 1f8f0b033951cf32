"""Linear and multi-layer nets on flattened inputs. Like all nets here, they have `body`, `head` and `feature_size`."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from innerloop.episodes import InputError


class LeakyReLU(nn.LeakyReLU):
    """Leaky ReLU with a slope of 0.1 for negative inputs: max(x, x / 10)."""

    def __init__(self) -> None:
        super().__init__(0.1)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": LeakyReLU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
}


def choose(kind: str, name: str, choices: dict[str, type[nn.Module]]) -> type[nn.Module]:
    """Return the choice of this name. Raises InputError, which lists the choices, if there is none."""
    if name not in choices:
        raise InputError(f"unknown {kind} {name!r}; choose one of {', '.join(choices)}")
    return choices[name]


class MLP(nn.Module):
    """A multi-layer perceptron. x: (n, *input_shape) -> (n, output_size)."""

    def __init__(
        self,
        input_shape: int | Sequence[int],
        hidden: Sequence[int],
        output_size: int,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.input_size = input_shape if isinstance(input_shape, int) else prod(input_shape)
        self.output_size = output_size
        if any(width < 1 for width in hidden):
            raise InputError(f"hidden widths must be above zero, got {list(hidden)}")
        act = choose("activation", activation, ACTIVATIONS)
        sizes = [self.input_size, *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), act()]
        self.body = nn.Sequential(*layers)
        self.feature_size = sizes[-1]
        self.head = nn.Linear(self.feature_size, output_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Linear(MLP):
    """A linear net, f(x) = W x + b. x: (n, *input_shape) -> (n, output_size)."""

    def __init__(self, input_shape: int | Sequence[int], output_size: int) -> None:
        super().__init__(input_shape, [], output_size)
