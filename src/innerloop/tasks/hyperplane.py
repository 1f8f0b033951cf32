"""Binary linear classification of noisy labels: the worked example f(x) = w.x + b, and its Bayes prediction."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from innerloop.episodes import Episode, InputError, Samples, Split
from innerloop.tasks.base import Classification, positive, tensor


class Hyperplane(Classification):
    """Which side of a random hyperplane? y = [w.x + b > 0] with w of length one, x ~ N(0, I) and b ~ N(0, offset^2).

    x: (n, dimensions). y: (n,) int64, 0 or 1, on the support flipped with probability `flip`; queries have true labels.
    One logit a point (`output_size` 1).

    clusters: 0 draws w uniformly over all directions, so that there is nothing to be learned of w across tasks. k > 0
    draws w = (m + spread * N(0, I)) / |...|, m one of k fixed unit vectors, each as likely: structure that a
    meta-learner can find. These vectors are a function of (dimensions, clusters) alone, the same for every seed.
    shots: support points of an episode *in all*, not of each class; classes are as they fall. queries: likewise.

    InputError for sizes that are not above zero, negative clusters, spread or offset, and a flip outside [0, 0.5).
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
            # The centres belong to the distribution of tasks, so no run's seed enters.
            self.centres = _unit(np.random.default_rng([dimensions, clusters]).standard_normal((clusters, dimensions)))

    def draw(self, split: Split, rngs: Sequence[np.random.Generator]) -> Episode:
        points, d = self.shots + self.queries, self.dimensions
        uniform, normal = np.empty((len(rngs), 1 + self.shots)), np.empty((len(rngs), 1 + d + points * d))
        for rng, row, numbers in zip(rngs, uniform, normal, strict=True):
            rng.random(out=row)
            rng.standard_normal(out=numbers)
        w, b = self._hyperplanes(uniform[:, 0], normal[:, : d + 1])
        # Labels belong to the inputs as the learner sees them, in float32.
        x = normal[:, d + 1 :].reshape(len(rngs), points, d).astype(np.float32)
        label = (x * w[:, None]).sum(-1) + b[:, None] > 0
        label[:, : self.shots] ^= uniform[:, 1:] < self.flip
        y = torch.from_numpy(label.astype(np.int64))
        return Episode(
            Samples(tensor(x[:, : self.shots]), y[:, : self.shots].contiguous()),
            Samples(tensor(x[:, self.shots :]), y[:, self.shots :].contiguous()),
        )

    def oracle(self, episode: Episode, effective: int = 300, block: int = 2**15, blocks: int = 128) -> Tensor:
        """The Bayes prediction: the probability, given the support, that a query's label is 1.

        No learner has a higher expected accuracy than thresholding it at 0.5, nor a smaller expected logistic loss.
        episode: a meta-batch (tasks, n, dimensions). Returns (tasks, queries), in the dtype of x. Deterministic.

        Importance sampling: hyperplanes from the prior, the same for all tasks, weighted by the likelihood of the
        support, in blocks until a task's effective sample size reaches `effective`; a probability p is then off by
        about sqrt(p (1 - p) / effective). InputError where `blocks` blocks are not enough, as with 25 shots
        of directions that are uniform in 10 dimensions.
        """
        (x, y), (x_query, _) = episode
        if x.dim() != 3 or x.shape[-1] != self.dimensions:
            raise InputError(
                f"the oracle wants a meta-batch with support x (tasks, n, {self.dimensions}), got {tuple(x.shape)}"
            )
        x, y, x_query = (v.detach().cpu() for v in (x, y.bool(), x_query))
        weight_of = (self.flip / (1 - self.flip)) ** torch.arange(x.shape[1] + 1, dtype=torch.float64)
        total, squares, ones = (torch.zeros(n, dtype=torch.float64) for n in (len(x), len(x), x_query.shape[:2]))
        todo = list(range(len(x)))
        rng = np.random.default_rng(0)
        for _ in range(blocks):
            w, b = self._hyperplanes(rng.random(block), rng.standard_normal((block, self.dimensions + 1)))
            planes = tensor(np.concatenate([w, b[:, None]], 1).T)
            for i in todo:
                weight = weight_of[(_above(x[i], planes) != y[i, :, None]).sum(0)]
                # What counts for less than a billionth of the best is not worth looking at.
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
            "give the oracle more blocks, or the tasks fewer shots or dimensions"
        )

    def _hyperplanes(self, uniform: np.ndarray, normal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Directions (n, dimensions) and offsets (n,) from numbers (n,) in [0, 1) and normals (n, dimensions + 1)."""
        direction = normal[:, :-1]
        if self.clusters:
            direction = self.centres[(uniform * self.clusters).astype(int)] + self.spread * direction
        return _unit(direction), self.offset * normal[:, -1]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _above(x: Tensor, planes: Tensor) -> Tensor:
    """Whether points (n, d) lie above hyperplanes (d + 1, planes): (n, planes)."""
    return torch.addmm(planes[-1], x.float(), planes[:-1]) > 0
