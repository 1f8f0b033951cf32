"""Binary linear classification with noisy labels: the worked example f(x) = w.x + b, and its Bayes prediction."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from innerloop.episodes import Episode, InputError, Samples, Split
from innerloop.tasks.base import Classification, positive, tensor


class Hyperplane(Classification):
    """Tasks that ask on which side of a random hyperplane a point lies.

    y = [w.x + b > 0] with w of length one, x ~ N(0, I) and b ~ N(0, offset^2). x: (n, dimensions). y: (n,) int64 in
    {0, 1}. Support labels are flipped with probability `flip`; query labels are true. The net returns one logit per
    point (`output_size` 1).

    clusters: 0 draws w uniformly over all directions, so there is nothing to learn about w across tasks. k > 0 draws
        w = (m + spread * N(0, I)) / |...|, where m is one of k fixed unit vectors, all equally likely. A meta-learner
        can find this structure. The vectors depend on (dimensions, clusters) only, and are the same for every seed.
    shots: number of support points per episode *in total*, not per class. The number per class is random.
    queries: number of query points per episode, also in total.

    Raises InputError for sizes that are not above zero, for a negative clusters, spread or offset, and for a flip
    outside [0, 0.5).
    """

    def __init__(
        self,
        dimensions: int = 10,
        clusters: int = 0,
        spread: float = 0.25,
        shots: int = 10,
        queries: int = 15,
        flip: float = 0.05,
        offset: float = 0.3,
    ) -> None:
        positive(dimensions=dimensions, shots=shots, queries=queries)
        for name, value in {"clusters": clusters, "spread": spread, "offset": offset}.items():
            if not value >= 0:
                raise InputError(f"{name} must not be negative, got {value}")
        if not 0 <= flip < 0.5:
            raise InputError(f"flip must be at least 0 and below 0.5, got {flip}")
        self.dimensions, self.clusters, self.spread = dimensions, clusters, spread
        self.shots, self.queries, self.flip, self.offset = shots, queries, flip, offset
        self.input_shape, self.output_size = (dimensions,), 1
        if clusters:
            # The centres are part of the distribution of tasks, so they do not depend on a run's seed.
            self.centres = _unit(np.random.default_rng([dimensions, clusters]).standard_normal((clusters, dimensions)))

    def draw(self, split: Split, rngs: Sequence[np.random.Generator]) -> Episode:
        points, d = self.shots + self.queries, self.dimensions
        uniform, normal = np.empty((len(rngs), 1 + self.shots)), np.empty((len(rngs), 1 + d + points * d))
        for rng, row, numbers in zip(rngs, uniform, normal, strict=True):
            rng.random(out=row)
            rng.standard_normal(out=numbers)
        w, b = self._hyperplanes(uniform[:, 0], normal[:, : d + 1])
        # Labels are computed from the float32 inputs, because these are what the learner sees.
        x = normal[:, d + 1 :].reshape(len(rngs), points, d).astype(np.float32)
        label = (x * w[:, None]).sum(-1) + b[:, None] > 0
        label[:, : self.shots] ^= uniform[:, 1:] < self.flip
        y = torch.from_numpy(label.astype(np.int64))
        return Episode(
            Samples(tensor(x[:, : self.shots]), y[:, : self.shots].contiguous()),
            Samples(tensor(x[:, self.shots :]), y[:, self.shots :].contiguous()),
        )

    def oracle(self, episode: Episode, effective: int = 300, block: int = 2**15, blocks: int = 128) -> Tensor:
        """Return the Bayes prediction: the probability, given the support, that a query's label is 1.

        No learner has a smaller expected logistic loss than this probability, or a higher expected accuracy than this
        probability with a threshold of 0.5.

        episode: a meta-batch (tasks, n, dimensions). Returns (tasks, queries), in the dtype of x. Deterministic.

        Importance sampling: hyperplanes are drawn from the prior, the same ones for all tasks, and weighted by the
        likelihood of the support. Blocks of `block` hyperplanes are drawn until a task's effective sample size reaches
        `effective`. The error of a probability p is then about sqrt(p (1 - p) / effective). Raises InputError if
        `blocks` blocks are not enough, for example with 25 shots and uniform directions in 10 dimensions.
        """
        (x, y), (x_query, _) = episode
        if x.dim() != 3 or x.shape[-1] != self.dimensions:
            raise InputError(
                f"the oracle needs a meta-batch with support x (tasks, n, {self.dimensions}), got {tuple(x.shape)}"
            )
        x, y, x_query = (v.detach().cpu() for v in (x, y.bool(), x_query))
        weight_by_errors = (self.flip / (1 - self.flip)) ** torch.arange(x.shape[1] + 1, dtype=torch.float64)
        total, squares, ones = (torch.zeros(n, dtype=torch.float64) for n in (len(x), len(x), x_query.shape[:2]))
        todo = list(range(len(x)))
        rng = np.random.default_rng(0)
        for _ in range(blocks):
            w, b = self._hyperplanes(rng.random(block), rng.standard_normal((block, self.dimensions + 1)))
            planes = tensor(np.concatenate([w, b[:, None]], 1).T)
            for i in todo:
                weight = weight_by_errors[(_above(x[i], planes) != y[i, :, None]).sum(0)]
                # Hyperplanes with less than a billionth of the largest weight are skipped to save time.
                kept = (weight > 1e-9 * weight.max()).nonzero().squeeze(1)
                weight = weight[kept]
                total[i] += weight.sum()
                squares[i] += (weight**2).sum()
                ones[i] += _above(x_query[i], planes[:, kept]).double() @ weight
            todo = [i for i in todo if not total[i] ** 2 >= effective * squares[i] > 0]
            if not todo:
                return (ones / total[:, None]).to(episode.query.x)
        raise InputError(
            f"{len(todo)} of {len(x)} tasks need more than {blocks * block} sampled hyperplanes: "
            "increase blocks, or use fewer shots or dimensions"
        )

    def _hyperplanes(self, uniform: np.ndarray, normal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return directions (n, dimensions) and offsets (n,) of hyperplanes from the prior.

        uniform: random numbers (n,) in [0, 1). normal: standard normal numbers (n, dimensions + 1).
        """
        direction = normal[:, :-1]
        if self.clusters:
            direction = self.centres[(uniform * self.clusters).astype(int)] + self.spread * direction
        return _unit(direction), self.offset * normal[:, -1]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _above(x: Tensor, planes: Tensor) -> Tensor:
    """Return a mask (n, planes): True if w.x + b > 0. x: (n, d). planes: (d + 1, planes), rows w and then b."""
    return torch.addmm(planes[-1], x.float(), planes[:-1]) > 0
