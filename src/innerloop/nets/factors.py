"""A latent-factor model of ratings, whose items belong to all tasks and whose user is the task."""

import math

import torch
from torch import Tensor, nn

from innerloop.episodes import InputError

STARTS = ("random", "means", "factorisation")


class Items(nn.Module):
    """The vectors and biases of items. x: (n,) int64 -> (n, rank + 1), the bias last."""

    def __init__(self, items: int, rank: int) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.randn(items, rank) * (0.3 / math.sqrt(rank or 1)))
        self.bias = nn.Parameter(torch.zeros(items, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.factors[x], self.bias[x]], -1)


class User(nn.Module):
    """A user's bias and vector. Features of items (n, rank + 1) -> ratings (n, 1), but for their mean."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rank, 1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        return features[..., :-1] @ self.weight + features[..., -1:] + self.bias


class Factors(nn.Module):
    """r = mean + b_i + b_u + w_u·v_i, a biased matrix factorisation (Koren, Bell and Volinsky, 2009, equation 4).

    The body holds v_i and b_i of all items, which are meta-parameters. The head holds the user's w_u and b_u, the only
    weights that a task has of its own (`task_part`): inner loops move them and hypernetworks write them.

    items: number of items. rank: length of v_i; 0: biases only. mean: the ratings' mean, which is no parameter.
    start: of the items. "random": small random v_i, b_i = 0. "means", "factorisation": the task family fits b_i, or
        both, to the ratings of its training users, see `innerloop.tasks.ratings.Ratings.prepare`, with the ridge
        penalty `penalty` on each v_i, b_i, w_u and b_u.
    x: numbers of items, (n,) int64 -> (n, 1).
    """

    task_part = "head"
    reads_features = True
    """x are names, not quantities, so an encoder reads what the body makes of them."""

    def __init__(
        self, items: int, mean: float = 0.0, rank: int = 8, start: str = "random", penalty: float = 5.0
    ) -> None:
        super().__init__()
        if items < 1 or rank < 0 or not penalty > 0:
            raise InputError(
                f"items and penalty must be above zero and rank not negative, got {items}, {penalty} and {rank}"
            )
        if start not in STARTS:
            raise InputError(f"unknown start {start!r}; choose one of {', '.join(STARTS)}")
        self.start, self.penalty, self.rank = start, penalty, rank
        self.input_size, self.output_size, self.feature_size = 1, 1, rank + 1
        self.mean: Tensor
        self.register_buffer("mean", torch.tensor(float(mean)))
        self.body, self.head = Items(items, rank), User(rank)

    def forward(self, x: Tensor) -> Tensor:
        return self.mean + self.head(self.body(x))
