"""Sine waves: the regression tasks of MAML (Finn, Abbeel and Levine, 2017, section 5.1)."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from innerloop.episodes import Episode, InputError, Samples, Split
from innerloop.tasks.base import Regression, positive, tensor


class Sinusoid(Regression):
    """Sine waves y = A sin(w x - phase) without noise; A ~ U[0.1, 5], phase ~ U[0, pi] (radians), x ~ U[-5, 5].

    x: (n, 1). y: (n, 1). The splits are disjoint random streams of one distribution. Amplitudes and phases are
    continuous, so no task occurs twice.

    shots, queries: number of support and query points per episode. frequency: the range of w, which is uniform on it; 1
    as in the paper. Amplitudes, phases and points of an episode do not depend on it. Raises InputError unless all are
    above zero, and for a range that ends before it starts.
    """

    x_range: ClassVar[tuple[float, float]] = (-5.0, 5.0)
    amplitudes: ClassVar[tuple[float, float]] = (0.1, 5.0)
    phases: ClassVar[tuple[float, float]] = (0.0, float(np.pi))

    def __init__(self, shots: int = 10, queries: int = 10, frequency: Sequence[float] = (1.0, 1.0)) -> None:
        positive(shots=shots, queries=queries)
        if len(frequency) != 2 or not 0 < frequency[0] <= frequency[1] < float("inf"):
            raise InputError(f"frequency must be a range [low, high] above zero, got {list(frequency)}")
        self.frequency = (frequency[0], frequency[1])
        self.shots, self.queries = shots, queries
        self.input_shape, self.output_size = (1,), 1

    def draw(self, split: Split, rngs: Sequence[np.random.Generator]) -> Episode:
        # One call per stream and arithmetic on the whole batch: together they cost less than creating the streams.
        uniform = np.empty((len(rngs), 2 + self.shots + self.queries + 1))
        for rng, row in zip(rngs, uniform, strict=True):
            rng.random(out=row)
        amplitude = between(self.amplitudes, uniform[:, :1])
        phase = between(self.phases, uniform[:, 1:2])
        # Targets are computed from the float32 inputs, because these are what the learner sees.
        x = between(self.x_range, uniform[:, 2:-1]).astype(np.float32)
        y = amplitude * np.sin(between(self.frequency, uniform[:, -1:]) * x - phase)
        return split_points(x[..., None], y[..., None], self.shots)


def between(bounds: tuple[float, float] | np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Return numbers that are uniform between a low and a high bound, from numbers that are uniform in [0, 1).

    bounds: one pair (low, high) for all numbers, or an array (2, n) with a pair for each.
    """
    low, high = bounds
    return low + (high - low) * uniform


def split_points(x: np.ndarray, y: np.ndarray, shots: int) -> Episode:
    """Return points (tasks, n, features) and targets (tasks, n, targets) as a meta-batch.

    The first `shots` points of each task are support points, the others are query points.
    """
    return Episode(
        Samples(tensor(x[:, :shots]), tensor(y[:, :shots])),
        Samples(tensor(x[:, shots:]), tensor(y[:, shots:])),
    )
