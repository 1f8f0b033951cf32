"""What the labelled pictures themselves say of a classifier: every one is predicted by models that have not seen it."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import brentq, minimize_scalar
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from innerloop.practice.heads import Scores

ALL_ONCE = 300
"""Up to this number of pictures, each is left out alone."""
TINY = 1e-9
FOLDS = 20
"""Number of parts that are left out in turn where there are more pictures."""
Fit = Callable[[Tensor, Tensor, int], Mapping[str, Callable[[Tensor], Scores]]]
"""fit(x, y, classes) -> classifiers by name. x: (n, …). y: (n,) class ids."""


class HeldOut(NamedTuple):
    """Scores of pictures by classifiers that were fitted without them.

    members: (m,) their numbers, of classes that have another picture. scores: by name of classifier. folds: number of
    parts that were left out in turn.
    """

    members: Tensor
    scores: dict[str, Scores]
    folds: int


def joined_groups(pairs: Sequence[tuple[int, int]], n: int) -> Tensor:
    """Return for each of n pictures or rows the number of the first that pairs join it with, (n,)."""
    places = np.array(pairs, int).reshape(-1, 2)
    graph = coo_array((np.ones(len(places)), (places[:, 0], places[:, 1])), (n, n))
    numbers = connected_components(graph, directed=False)[1]
    return torch.from_numpy(np.unique(numbers, return_index=True)[1][numbers]).long()


def hold_out(
    fit: Fit, x: Tensor, y: Tensor, classes: int, most_folds: int = ALL_ONCE, groups: Tensor | None = None
) -> HeldOut | None:
    """Return the held-out scores of all pictures whose class has others; None if no class has.

    Each picture is left out alone if there are at most `most_folds`; otherwise they are left out in `FOLDS` parts, or
    in as many as `most_folds`, none of which holds all pictures of a class.

    groups: (n,) number of the group of each picture, such as copies; None: each picture is a group. Those of one group
    are left out together, if each of their classes is in another group, too.
    """
    parts = _parts(y, torch.arange(len(y)) if groups is None else groups, most_folds)
    if not parts:
        return None
    found: dict[str, list[tuple[Tensor, Scores]]] = {}
    with one_thread():
        for out in parts:
            kept = torch.ones(len(y), dtype=torch.bool)
            kept[out] = False
            for name, model in fit(x[kept], y[kept], classes).items():
                found.setdefault(name, []).append((out, model(x[out])))
    complete = {name: of_name for name, of_name in found.items() if len(of_name) == len(parts)}
    order = torch.cat(parts)
    back = order.argsort()
    scores = {
        name: Scores(*(torch.cat([s[i] for _, s in of_name])[back] for i in range(2)))
        for name, of_name in complete.items()
    }
    return HeldOut(order[back], scores, len(parts))


def _parts(y: Tensor, groups: Tensor, most_folds: int) -> list[Tensor]:
    """Return the numbers of the pictures of each part that is left out. No part holds all groups of a class."""
    members: dict[int, list[int]] = {}
    # Class by class, so that the pictures of one class are in as many parts as possible.
    for i in y.argsort(stable=True).tolist():
        members.setdefault(int(groups[i]), []).append(i)
    classes_of = {group: {int(y[i]) for i in places} for group, places in members.items()}
    counts = Counter(c for found in classes_of.values() for c in found)
    out = [group for group, found in classes_of.items() if all(counts[c] > 1 for c in found)]
    if len(out) <= most_folds:
        return [torch.tensor(members[group]) for group in out]
    folds = min(FOLDS, most_folds)
    parts, held = [list[int]() for _ in range(folds)], [Counter[int]() for _ in range(folds)]
    for number, group in enumerate(out):
        for fold in ((number + k) % folds for k in range(folds)):
            if all(held[fold][c] + 1 < counts[c] for c in classes_of[group]):
                parts[fold] += members[group]
                held[fold].update(classes_of[group])
                break
        else:
            parts.append(members[group])
    return [torch.tensor(part) for part in parts if part]


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: many small steps wait for each other's threads more than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def temperature(logits: Tensor, y: Tensor) -> tuple[float, float]:
    """Return the temperature that fits probabilities to held-out logits, and the mean log loss with it.

    It is the one with the least log loss (Guo et al., 2017) among those whose mean probability of the predicted class
    is at most (n + 1) / (n + 2), the rule of succession: after n right answers nobody knows that the next one is right.
    Without that limit a few pictures that are all right would make a model sure of itself.

    logits: (n, classes).
    """
    logits = logits.double()
    n = len(logits)
    spread = max(float(logits.std()), 1e-12)

    def at(log_temperature: float) -> float:
        return spread * math.exp(log_temperature)

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits / at(log_temperature), y))

    def too_sure(log_temperature: float) -> float:
        return float((logits / at(log_temperature)).softmax(1).amax(1).mean()) - (n + 1) / (n + 2)

    low, high = -8.0, 6.0
    if too_sure(low) > 0 > too_sure(high):
        low = brentq(too_sure, low, high)  # the confidence falls with the temperature
    best = float(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6}).x)
    return at(best), loss(best)


def threshold(distances: Tensor, false_alarms: float) -> float:
    """Return the distance above which a picture is unlike every class, from held-out distances of known classes, (n,).

    At most the share `false_alarms` of pictures of known classes exceeds it, on average over supports (split conformal
    prediction, Vovk et al., 2005). With too few pictures for that share it is the largest distance.
    """
    n = len(distances)
    rank = math.ceil((n + 1) * (1 - false_alarms))
    return max(float(distances.sort().values[min(rank, n) - 1]), TINY)  # it divides


def choose(held_out: HeldOut, y: Tensor) -> str:
    """Return the name of the classifier with the most right answers, and of several the one with the least log loss."""
    labels = y[held_out.members]

    def worth(name: str) -> tuple[int, float]:
        logits = held_out.scores[name].logits
        return int((logits.argmax(1) == labels).sum()), -temperature(logits, labels)[1]

    return max(held_out.scores, key=worth)


class Share(NamedTuple):
    """A share of right answers with its 95 % interval (Wilson, 1927)."""

    right: int
    total: int

    @property
    def value(self) -> float:
        return self.right / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end."""
        n, z = self.total, 1.959964
        if not n:
            return math.nan, math.nan
        centre = (self.value + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(self.value * (1 - self.value) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        # Rounding must not put the value outside of its interval.
        return min(centre - half, self.value) if self.right else 0.0, max(centre + half, self.value) if (
            self.right < n
        ) else 1.0

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


class Bin(NamedTuple):
    """Predictions of similar probability. confidence, accuracy: their means."""

    size: int
    confidence: float
    accuracy: float


def reliability(probabilities: np.ndarray, y: np.ndarray, bins: int = 10) -> list[Bin]:
    """Return the predictions by the probability of the predicted class. probabilities: (n, classes). y: (n,)."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == y
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    return [
        Bin(int(k.sum()), float(confidence[k].mean()), float(right[k].mean()))
        for k in (place == b for b in range(bins))
        if k.any()
    ]


def calibration_error(bins: list[Bin]) -> float:
    """Return the expected calibration error (Naeini et al., 2015): the mean of |accuracy - confidence|."""
    total = sum(b.size for b in bins)
    return sum(b.size * abs(b.accuracy - b.confidence) for b in bins) / total


def area_under_roc(known: np.ndarray, unknown: np.ndarray) -> float:
    """Return how often a score of an unknown picture is above one of a known picture; ties count half."""
    below = np.searchsorted(np.sort(known), unknown, side="left")
    not_above = np.searchsorted(np.sort(known), unknown, side="right")
    return float((below + not_above).mean() / (2 * len(known)))
