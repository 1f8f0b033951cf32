"""Item means, and biases and factors by alternating least squares, from the ratings of many users."""

import numpy as np


def item_means(item: np.ndarray, residual: np.ndarray, items: int, penalty: float) -> np.ndarray:
    """Return the bias b_i of each item, (items,), that minimises the sum of (residual - b_i)^2 + penalty b_i^2.

    item: numbers of items, (n,). residual: ratings without their mean, (n,). An item without ratings has the bias 0.
    """
    total = np.bincount(item, residual, items)
    return total / (np.bincount(item, minlength=items) + penalty)


def alternating_least_squares(
    user: np.ndarray, item: np.ndarray, residual: np.ndarray, items: int, rank: int, penalty: float, rounds: int = 15
) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors v_i, (items, rank), and biases b_i, (items,), of r = mean + b_i + b_u + w_u·v_i.

    They minimise the sum over ratings of the squared error + penalty (|v_i|^2 + b_i^2 + |w_u|^2 + b_u^2), each term of
    the penalty once per item and user, by solving for users and items in turn (Zhou et al., 2008; Koren et al., 2009).

    user, item: (n,) numbers; users are sorted. residual: ratings without their mean, (n,). Deterministic.
    """
    users = int(user.max()) + 1
    rng = np.random.default_rng(0)
    v = np.concatenate([0.1 * rng.standard_normal((items, rank)), np.zeros((items, 1))], 1)
    w = np.zeros((users, rank + 1))
    by_item = np.argsort(item, kind="stable")
    sides = [_groups(user, np.arange(len(user))), _groups(item[by_item], by_item)]
    for _ in range(rounds):
        for (of, with_), own, other, members in zip(((user, item), (item, user)), (w, v), (v, w), sides, strict=True):
            _solve(own, other, of, with_, residual, members, penalty)
    return v[:, :-1], v[:, -1]


def _groups(sorted_ids: np.ndarray, places: np.ndarray) -> list[np.ndarray]:
    """Return the places of the ratings of each user or item that has some."""
    return np.split(places, np.flatnonzero(np.diff(sorted_ids)) + 1)


def _solve(
    own: np.ndarray,
    other: np.ndarray,
    of: np.ndarray,
    with_: np.ndarray,
    residual: np.ndarray,
    members: list[np.ndarray],
    penalty: float,
) -> None:
    """Set each row of `own`, a vector and then a bias, to the solution given the rows of `other`."""
    regular = penalty * np.eye(own.shape[1])
    for places in members:
        rows = other[with_[places]]
        x = np.concatenate([rows[:, :-1], np.ones((len(rows), 1))], 1)
        own[of[places[0]]] = np.linalg.solve(x.T @ x + regular, x.T @ (residual[places] - rows[:, -1]))
