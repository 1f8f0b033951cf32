"""Recommendation for new users: a task is a user, of whom a few ratings are known."""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from innerloop.datasets.ratings import RatingTable
from innerloop.episodes import SPLITS, Episode, InputError, Samples, Split, Weights, apply, episode_index
from innerloop.nets import Factors
from innerloop.tasks.base import Tasks, positive
from innerloop.tasks.factorise import alternating_least_squares, item_means

log = logging.getLogger("innerloop")

NO_ITEM = -1
"""In the place of an item's number: there is no rating here. Query sets are padded with it to one length."""
TOP = 10
"""Number of recommended items that nDCG looks at."""
SUPPORTS = ("random", "earliest")


class Ratings(Tasks):
    """Tasks of predicting a user's ratings from `shots` of them. No user is in two splits.

    x: numbers of items, (n,) int64. y: ratings (n, 1) float32. The support has `shots` ratings, the query all others of
    the user, or `queries` of them. Query sets are padded to the length of the longest one of their split: a padded
    place has the item NO_ITEM and counts in no loss or metric. The loss is the mean squared error.

    Metrics, of each user over all ratings of the query, with predictions clamped to the scale: "mae", "rmse", and
    "ndcg": nDCG@10 with the gain 2^rating - 1 and the discount log2(1 + place) (Burges et al., 2005), of the ten items
    of the query with the highest predictions against the ten with the highest ratings.

    support: "random" ratings of the user, or the "earliest" ones, which needs times.
    folds, fold: the users are divided at random into `folds` equal parts; part `fold` is for the test, the next one for
        validation, all others for training. So folds test disjoint sets of users.
    A user with fewer than shots + 1 ratings is left out; the log says how many. Validation and test have one episode
    of each user, in order: see `limit`. Raises InputError for sizes that are not possible.
    """

    metric = "mae"
    higher_is_better = False
    fits = "choose net=factors"

    def __init__(
        self,
        dataset: RatingTable,
        shots: int = 10,
        queries: int | None = None,
        support: str = "random",
        folds: int = 10,
        fold: int = 0,
    ) -> None:
        positive(shots=shots, queries=1 if queries is None else queries)
        if support not in SUPPORTS:
            raise InputError(f"support={support}: choose one of {', '.join(SUPPORTS)}")
        if support == "earliest" and dataset.time is None:
            raise InputError("support=earliest needs the time of each rating: set data.time")
        if folds < 3:
            raise InputError(f"folds must be at least 3, one for the test and one for validation, got {folds}")
        if not 0 <= fold < folds:
            raise InputError(f"fold must be from 0 to folds - 1 = {folds - 1}, got {fold}")
        self.dataset, self.shots, self.queries, self.support = dataset, shots, queries, support
        self.input_shape, self.output_size = (), 1
        self.users = self._split(folds, fold)
        longest = {split: int(dataset.counts[users].max()) - shots for split, users in self.users.items()}
        self.lengths = {split: min(n, queries or n) for split, n in longest.items()}

    def _split(self, folds: int, fold: int) -> dict[Split, np.ndarray]:
        counts = self.dataset.counts
        order = np.random.default_rng(len(counts)).permutation(len(counts))
        part = np.empty(len(counts), np.int64)
        part[order] = np.arange(len(counts)) % folds
        parts = {"test": part == fold, "validation": part == (fold + 1) % folds}
        parts["train"] = ~(parts["test"] | parts["validation"])
        enough = counts > self.shots
        if few := int((~enough).sum()):
            log.warning(
                "%d of %d users are left out: they have fewer than %d ratings", few, len(counts), self.shots + 1
            )
        users = {split: np.flatnonzero(parts[split] & enough) for split in SPLITS}
        for split, found in users.items():
            if not len(found):
                raise InputError(
                    f"no user of the {split} split has more than shots={self.shots} ratings ({len(counts)} users, "
                    f"{int(enough.sum())} with enough, in {folds} folds): lower shots or folds, or add ratings"
                )
        return users

    def sizes(self) -> dict[str, object]:
        mean = self.dataset.rating[self._of_training_users()].mean(dtype=np.float64)
        return {"items": len(self.dataset.items), "mean": float(mean)}

    def limit(self, split: Split) -> int | None:
        return None if split == "train" else len(self.users[split])

    def draw(self, split: Split, rngs: Sequence[np.random.Generator]) -> Episode:
        n = len(rngs)
        x, y = np.empty((n, self.shots), np.int64), np.empty((n, self.shots), np.float32)
        x_query = np.full((n, self.lengths[split]), NO_ITEM)
        y_query = np.zeros((n, self.lengths[split]), np.float32)
        for row, rng in enumerate(rngs):
            support, query = self._choose(split, rng)
            query = query[: self.lengths[split]]
            x[row], y[row] = self.dataset.item[support], self.dataset.rating[support]
            x_query[row, : len(query)] = self.dataset.item[query]
            y_query[row, : len(query)] = self.dataset.rating[query]
        parts = ((x, y), (x_query, y_query))
        return Episode(*(Samples(torch.from_numpy(a), torch.from_numpy(b)[..., None]) for a, b in parts))

    def _choose(self, split: Split, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return the places of the support and of all other ratings of one user."""
        users = self.users[split]
        user = users[rng.integers(len(users)) if split == "train" else episode_index(rng) % len(users)]
        first, end = self.dataset.first[user : user + 2]
        places = first + rng.permutation(end - first)
        if self.support == "earliest":
            assert self.dataset.time is not None
            places = places[np.argsort(self.dataset.time[places], kind="stable")]
        return places[: self.shots], places[self.shots :]

    def loss(self, net: nn.Module, weights: Weights, samples: Samples) -> Tensor:
        error, rated = self._errors(apply(net, weights, samples.x.clamp_min(0)), samples)
        return error.square().sum() / rated.sum()

    def metrics(self, net: nn.Module, weights: Weights, samples: Samples) -> dict[str, Tensor]:
        predicted = apply(net, weights, samples.x.clamp_min(0)).clamp(*self.dataset.scale)
        error, rated = self._errors(predicted, samples)
        count = rated.sum()
        ndcg = ndcg_at(TOP, predicted.squeeze(-1), samples.y.squeeze(-1), rated)
        return {"mae": error.abs().sum() / count, "rmse": (error.square().sum() / count).sqrt(), "ndcg": ndcg}

    @staticmethod
    def _errors(predicted: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        """Return the errors, 0 in padded places, and whether there is a rating, both (n,)."""
        rated = (samples.x >= 0).to(predicted.dtype)
        return (predicted - samples.y).squeeze(-1) * rated, rated

    def prepare(self, net: nn.Module) -> nn.Module:
        """Return the net, a `Factors` net with its items fitted to all ratings of the training users if it asks."""
        if not isinstance(net, Factors) or net.start == "random":
            return net
        user, item, rating = self.training_ratings()
        residual, items = rating - rating.mean(), len(self.dataset.items)
        if net.start == "means":
            factors, bias = None, item_means(item, residual, items, net.penalty)
        else:
            factors, bias = alternating_least_squares(user, item, residual, items, net.rank, net.penalty)
        with torch.no_grad():
            net.body.bias.copy_(torch.from_numpy(bias)[:, None])
            if factors is not None:
                net.body.factors.copy_(torch.from_numpy(factors))
        return net

    def training_ratings(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return user, item and rating of all ratings of the training users, (n,) each, the users numbered from 0."""
        data, users, chosen = self.dataset, self.users["train"], self._of_training_users()
        user = np.repeat(np.arange(len(users)), data.counts[users])
        return user, data.item[chosen], data.rating[chosen].astype(float)

    def _of_training_users(self) -> np.ndarray:
        """Return whether each rating is of a training user, (n,)."""
        chosen = np.zeros(len(self.dataset.users), bool)
        chosen[self.users["train"]] = True
        return np.repeat(chosen, self.dataset.counts)

    def class_names(self, split: Split) -> list[str]:
        return [self.dataset.users[user] for user in self.users[split]]


def ndcg_at(top: int, scores: Tensor, ratings: Tensor, rated: Tensor) -> Tensor:
    """Return the normalised discounted cumulative gain of the `top` items with the highest scores.

    scores, ratings, rated: (n,); only items with rated = 1 take part. Of items with equal scores the earlier comes
    first.
    """
    top = min(top, len(scores))
    gains = (2.0**ratings - 1) * rated
    lowest = torch.finfo(scores.dtype).min
    order = torch.where(rated > 0, scores, lowest).sort(descending=True, stable=True).indices[:top]
    discount = 1 / torch.arange(2, top + 2, dtype=scores.dtype, device=scores.device).log2()
    best = gains.sort(descending=True).values[:top]
    return (gains.gather(0, order) * discount).sum() / (best * discount).sum()
