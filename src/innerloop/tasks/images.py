"""N-way k-shot classification over any labelled images."""

import copy
from collections.abc import Sequence

import numpy as np
import torch

from innerloop.datasets.images import LabelledImages
from innerloop.episodes import SPLITS, Episode, InputError, MetaBatch, Samples, Split
from innerloop.tasks.base import Classification, positive


class FewShotImages(Classification):
    """Each task is to tell apart `ways` classes of the split at hand, from `shots` examples of each.

    The set-up of Vinyals et al. (2016). x: (ways * shots, C, H, W) and (ways * queries, C, H, W), float32 in [0, 1];
    y: the classes numbered 0 to ways - 1 in random order. No image is in both support and query.

    queries: query images of each class; train_queries: the same in training episodes, null for as many.
    rotations: in training episodes a class turned by 90, 180 or 270 degrees is another class, and one task mixes all
    four (Santoro et al., 2016; Vinyals et al., 2016); validation and test tasks are upright.

    min_ways, min_shots: if given, an episode has uniformly min_ways to `ways` classes, and min_shots to `shots` support
    images of each, drawn for each class by itself if `unbalanced`: Meta-Dataset's varied tasks (Triantafillou et al.,
    2020, section 3.2) without its dependence on class sizes. Queries stay balanced. Such an episode is the one of the
    same index at full size, thinned, so that settings pair. Meta-batches are then lists of episodes.

    Raises InputError if a split has too few classes, or a class too few images.
    """

    def __init__(
        self,
        dataset: LabelledImages,
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        train_queries: int | None = None,
        rotations: bool = False,
        min_ways: int | None = None,
        min_shots: int | None = None,
        unbalanced: bool = False,
    ) -> None:
        positive(shots=shots, queries=queries)
        if train_queries is None:
            train_queries = queries
        positive(train_queries=train_queries)
        if ways < 2:
            raise InputError(f"ways must be at least 2, got {ways}")
        for name, fewest, smallest, largest in (("ways", min_ways, 2, ways), ("shots", min_shots, 1, shots)):
            if fewest is not None and not smallest <= fewest <= largest:
                raise InputError(f"min_{name} must be from {smallest} to {name}={largest}, got {fewest}")
        if unbalanced and min_shots is None:
            raise InputError("unbalanced=true draws each class's shots from min_shots to shots: give min_shots too")
        height, width = dataset.images.shape[-2:]
        if rotations and height != width:
            raise InputError(f"rotations=true needs square images, these are {height}x{width}")
        self.dataset, self.ways, self.shots, self.rotations = dataset, ways, shots, rotations
        self.min_ways, self.min_shots, self.unbalanced = min_ways or ways, min_shots or shots, unbalanced
        self.varied_ways = self.min_ways < ways
        self.ragged = self.varied_ways or self.min_shots < shots
        self.queries = {split: train_queries if split == "train" else queries for split in SPLITS}
        for split in SPLITS:
            self._check(split)
        self.input_shape = tuple(dataset.images.shape[1:])
        self.output_size = ways
        self._pooled = False

    def pooled(self) -> "tuple[FewShotImages, int | None]":
        """The same tasks, training labels the classes of the whole training split (with rotations, four of each)."""
        other = copy.copy(self)
        other._pooled = True
        return other, len(self.dataset.splits["train"]) * (4 if self.rotations else 1)

    def draw(self, split: Split, rngs: Sequence[np.random.Generator]) -> MetaBatch:
        """x (tasks, n, C, H, W) float32 in [0, 1] and y (tasks, n) int64; a list of tasks where their n may differ."""
        drawn = [self._choose(split, rng) for rng in rngs]
        if self.ragged:
            return [Episode(*(self._samples(*part) for part in episode)) for episode in drawn]
        parts = zip(*drawn, strict=True)
        return Episode(*(self._samples(*map(np.stack, zip(*part, strict=True))) for part in parts))

    def _choose(self, split: Split, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Support and query, of each image: its index among all images, quarter turns and label, (n,) each."""
        classes, data = self.dataset.splits[split], self.dataset
        angles = 4 if self.rotations and split == "train" else 1
        drawn = rng.choice(angles * len(classes), self.ways, replace=False)
        ids, turns = classes[drawn // angles], drawn % angles
        counts = data.counts[ids]
        # The smallest of independent uniform numbers are a subset without replacement, all classes in one call.
        keys = rng.random((self.ways, counts.max()))
        keys[np.arange(counts.max()) >= counts[:, None]] = np.inf
        members = keys.argsort(axis=1)[:, : self.shots + self.queries[split]]
        labels = drawn if self._pooled and split == "train" else np.arange(self.ways)
        # The sizes are drawn last: whatever they are, classes and images are those of the full size.
        ways = rng.integers(self.min_ways, self.ways + 1)
        shots = rng.integers(self.min_shots, self.shots + 1, size=(self.ways if self.unbalanced else 1, 1))
        here, column = np.arange(self.ways)[:, None] < ways, np.arange(members.shape[1])
        parts = [np.nonzero(here & (column < shots)), np.nonzero(here & (column >= self.shots))]
        return [(data.first[ids[c]] + members[c, i], turns[c], labels[c]) for c, i in parts]

    def _samples(self, indices: np.ndarray, turns: np.ndarray, labels: np.ndarray) -> Samples:
        # numpy, not torch: a worker's or the loop's own threads would wait for each other over these few bytes.
        images = self.dataset.images.numpy().take(indices, axis=0)
        for turn in (1, 2, 3):
            chosen = turns == turn
            if chosen.any():
                images[chosen] = np.rot90(images[chosen], turn, (-2, -1))
        return Samples(torch.from_numpy(np.divide(images, 255, dtype=np.float32)), torch.from_numpy(labels))

    def _check(self, split: Split) -> None:
        ids = self.dataset.splits[split]
        available = len(ids) * (4 if self.rotations and split == "train" else 1)
        if self.ways > available:
            raise InputError(f"ways={self.ways}, but the {split} split has {available} classes")
        smallest = ids[self.dataset.counts[ids].argmin()]
        wanted, held = self.shots + self.queries[split], self.dataset.counts[smallest]
        if wanted > held:
            raise InputError(
                f"shots={self.shots} and {self.queries[split]} queries need {wanted} images of a class, but "
                f"{self.dataset.classes[smallest]} of the {split} split has {held}"
            )
