"""A prior over small classification tables: linear rules, clusters, trees and small nets with noisy labels."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from innerloop.episodes import Episode, InputError, Samples, Split
from innerloop.tasks.base import Classification, positive, tensor

KINDS = ("linear", "clusters", "tree", "net")
LEAST = 2
"""Number of support rows that every class of a table has."""
TRIES = 1000
RELEVANT = 0.6
"""Probability that a feature is relevant; one always is."""


class TablePrior(Classification):
    """Tasks that are tables: `rows` labelled rows and `queries` others, whose features are columns.

    The number of features is uniform from `least_features` to `most_features`, further columns are zero; that of
    classes from `least_ways` to `most_ways`, the table has the classes from 0 on. A column is normal, skewed,
    heavy-tailed or binary, columns may be correlated, and each is standardised over the rows of its table. The label
    of a row is an argmax of linear functions, the cluster that the row is drawn from, a leaf of a tree, or an argmax
    of a small net's outputs; some features are irrelevant. A support label is replaced by a random other one with
    probability `flip`; query labels are true. Tables without two support rows of each class are drawn again.

    x: (n, most_features). y: (n,) int64. kinds: of `KINDS`, equally likely.
    Raises InputError for sizes that are not possible, an unknown kind, and a flip outside [0, 0.5).
    """

    def __init__(
        self,
        kinds: Sequence[str] = KINDS,
        least_features: int = 2,
        most_features: int = 10,
        least_ways: int = 2,
        most_ways: int = 5,
        rows: int = 20,
        queries: int = 30,
        flip: float = 0.05,
    ) -> None:
        positive(least_features=least_features, queries=queries)
        if unknown := [kind for kind in kinds if kind not in KINDS]:
            raise InputError(f"unknown kind {unknown[0]!r} of tables; choose from {', '.join(KINDS)}")
        if not kinds:
            raise InputError(f"kinds is empty: choose from {', '.join(KINDS)}")
        for name, least, most, lowest in (
            ("features", least_features, most_features, 1),
            ("ways", least_ways, most_ways, 2),
        ):
            if not lowest <= least <= most:
                raise InputError(f"least_{name} must be from {lowest} to most_{name}, got {least} and {most}")
        if rows < (LEAST + 1) * most_ways:
            raise InputError(f"rows must be at least {(LEAST + 1) * most_ways} for {most_ways} ways, got {rows}")
        if not 0 <= flip < 0.5:
            raise InputError(f"flip must be at least 0 and below 0.5, got {flip}")
        self.kinds, self.rows, self.queries, self.flip = tuple(kinds), rows, queries, flip
        self.features, self.ways = (least_features, most_features), (least_ways, most_ways)
        self.input_shape, self.output_size = (most_features,), most_ways
        self.varied_ways = least_ways < most_ways

    def draw(self, split: Split, rngs: Sequence[np.random.Generator]) -> Episode:
        points = self.rows + self.queries
        x = np.zeros((len(rngs), points, self.features[1]), np.float32)
        y = np.empty((len(rngs), points), np.int64)
        for i, rng in enumerate(rngs):
            columns, y[i] = self._table(rng)
            x[i, :, : columns.shape[1]] = columns
        inputs, labels, n = tensor(x), torch.from_numpy(y), self.rows
        return Episode(
            Samples(inputs[:, :n].contiguous(), labels[:, :n].contiguous()),
            Samples(inputs[:, n:].contiguous(), labels[:, n:].contiguous()),
        )

    def _table(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        for _ in range(TRIES):
            d, k = (int(rng.integers(*ends, endpoint=True)) for ends in (self.features, self.ways))
            kind = self.kinds[rng.integers(len(self.kinds))]
            if kind == "clusters":
                x, y = _clusters(rng, self.rows + self.queries, d, k)
            else:
                # Labels are computed from what the learner sees, so that the posterior is known.
                x = _standardised(_columns(rng, self.rows + self.queries, d))
                y = RULES[kind](rng, x, k)
            flipped = rng.random(self.rows) < self.flip
            y[: self.rows] = np.where(flipped, (y[: self.rows] + rng.integers(1, k, self.rows)) % k, y[: self.rows])
            if np.bincount(y[: self.rows], minlength=k).min() >= LEAST:
                return x, y
        raise InputError(f"no table with {LEAST} support rows of each class in {TRIES} tries: increase data.rows")

    def oracle(self, episode: Episode, effective: int = 200, block: int = 2**15, blocks: int = 128) -> Tensor:
        """Return the Bayes prediction for linear tables: probabilities given the support, (tasks, queries, classes).

        Importance sampling as in `Hyperplane.oracle`: rules are drawn from the prior and weighted by the likelihood of
        the support labels. That tables were drawn again does not change the posterior, because whether they were
        depends on the support labels alone. Raises InputError for other kinds of tables, or if `blocks` blocks of
        `block` rules do not give an effective sample size of `effective`.
        """
        if self.kinds != ("linear",):
            raise InputError(f"the Bayes prediction is known for data.kinds=[linear] only, not {list(self.kinds)}")
        support, query = episode
        found = torch.zeros(*query.y.shape, self.output_size, dtype=torch.float64)
        for i in range(len(query.y)):
            x, y, x_query = (part[i].numpy() for part in (support.x, support.y, query.x))
            found[i] = torch.from_numpy(self._posterior(x, y, x_query, effective, block, blocks))
        return found

    def _posterior(
        self, x: np.ndarray, y: np.ndarray, x_query: np.ndarray, effective: int, block: int, blocks: int
    ) -> np.ndarray:
        used = (x != 0).any(0)
        x, x_query, k, rng = x[:, used], x_query[:, used], int(y.max()) + 1, np.random.default_rng(0)
        votes, total, squares = np.zeros((len(x_query), self.output_size)), 0.0, 0.0
        right, wrong = 1 - self.flip, self.flip / (k - 1)
        for _ in range(blocks):
            w, b = _linear_rules(rng, block, x.shape[1], k)
            hits = (_argmax(x, w, b) == y).sum(1)
            weight = right**hits * wrong ** (len(y) - hits)
            kept = np.flatnonzero(weight > 1e-6 * weight.max())
            chosen, weight = _argmax(x_query, w[kept], b[kept]), weight[kept]
            for c in range(k):
                votes[:, c] += weight @ (chosen == c)
            total, squares = total + weight.sum(), squares + (weight**2).sum()
            if total**2 >= effective * squares > 0:
                return votes / total
        raise InputError(f"a table needs more than {blocks * block} sampled rules: increase blocks, or use fewer rows")


def _columns(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Return raw columns (n, d), correlated in half of the tables."""
    x = rng.standard_normal((n, d))
    if rng.random() < 0.5:
        x = x @ (np.eye(d) + rng.standard_normal((d, d)) / np.sqrt(d))
    shape = rng.choice(4, d, p=[0.6, 0.15, 0.15, 0.1])
    warped = np.stack([x, np.exp(0.8 * x), x * np.abs(x), (x > 0).astype(float)])
    return warped[shape, :, np.arange(d)].T


def _standardised(x: np.ndarray) -> np.ndarray:
    scale = x.std(0)
    return ((x - x.mean(0)) / np.where(scale > 1e-6, scale, np.inf)).astype(np.float32)


def _relevant(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    mask = rng.random((n, d)) < RELEVANT
    mask[np.arange(n), rng.integers(d, size=n)] = True
    return mask


def _linear_rules(rng: np.random.Generator, n: int, d: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return n rules: weights (n, k, d) and offsets (n, k)."""
    w = rng.standard_normal((n, k, d), np.float32) * _relevant(rng, n, d)[:, None]
    return w, 0.3 * rng.standard_normal((n, k), np.float32)


def _argmax(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the classes (rules, rows) of rows x by rules."""
    return (w @ x.T + b[..., None]).argmax(1)


def _linear(rng: np.random.Generator, x: np.ndarray, k: int) -> np.ndarray:
    return _argmax(x, *_linear_rules(rng, 1, x.shape[1], k))[0]


def _tree(rng: np.random.Generator, x: np.ndarray, k: int) -> np.ndarray:
    """Return the leaves of a tree of axis-parallel cuts, of which each has a class."""
    y, features = np.zeros(len(x), np.int64), np.flatnonzero(_relevant(rng, 1, x.shape[1])[0])
    leaves = [np.arange(len(x))]
    while len(leaves) < k + rng.integers(3):
        leaf = leaves.pop(int(np.argmax([len(part) for part in leaves])))
        column = x[leaf, rng.choice(features)]
        above = column > np.quantile(column, rng.uniform(0.3, 0.7))
        leaves += [leaf[above], leaf[~above]]
    for number, leaf in enumerate(leaves):
        y[leaf] = number % k
    return y


def _net(rng: np.random.Generator, x: np.ndarray, k: int) -> np.ndarray:
    width = 8
    w = 1.5 * rng.standard_normal((x.shape[1], width)) * _relevant(rng, 1, x.shape[1]).T / np.sqrt(x.shape[1])
    hidden = np.tanh(x @ w + rng.standard_normal(width))
    logits = hidden @ rng.standard_normal((width, k))
    return (logits - logits.mean(0)).argmax(1)


def _clusters(rng: np.random.Generator, n: int, d: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a table whose classes are clusters of equal shape, some of them overlapping."""
    y = rng.choice(k, n, p=rng.dirichlet(np.full(k, 8.0)))
    centres = rng.uniform(0.5, 2.5) * rng.standard_normal((k, d)) * _relevant(rng, 1, d)
    return _standardised(centres[y] + _columns(rng, n, d)), y


RULES = {"linear": _linear, "tree": _tree, "net": _net}
