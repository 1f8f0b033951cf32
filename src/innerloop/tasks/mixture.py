"""Mixtures of task families: each episode comes from one of several sources."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from innerloop.datasets.layouts import without_split
from innerloop.episodes import (
    SPLITS,
    Episode,
    InputError,
    MetaBatch,
    Samples,
    Split,
    episode_index,
    episode_rng,
    stack,
    tasks_of,
)
from innerloop.errors import some
from innerloop.tasks.base import Classification, Regression, Tasks

OVERLAPS = ("refuse", "allow")


def splits_of(name: str, leave_out: str | None) -> tuple[Split, ...]:
    """Return the splits that a mixture draws from a source: all, or those of a source that is or is not left out."""
    if leave_out is None:
        return SPLITS
    return ("test",) if name == leave_out else ("train", "validation")


class Mixture(Classification):
    """A mixture of classification families: each episode comes from one source.

    In training the source is random. In validation and in the test the sources take turns, so that each has as many
    episodes as the others. An episode is a function of (seed, split, index), as it is in every family; the streams must
    be those of `episode_rng`.

    sources: name -> family. All have x of one shape. If their numbers of outputs differ, the net has the largest.
    weights: name -> how often a source is drawn in training, relative to the others; 1 for a source without one.
    leave_out: a source that is for the test alone, which then has no other. Training and validation use the others.
    overlap: "refuse" raises an error if a training class of one source has the name of a validation or test class of
        another, since that would be no test on new classes. "allow" is for names that mean different classes.

    Raises InputError for sources that do not fit together.
    """

    kind: ClassVar[Any] = Classification
    """The base class of all sources, which has the loss and the metrics."""

    def __init__(
        self,
        sources: Mapping[str, Tasks],
        weights: Mapping[str, float] | None = None,
        leave_out: str | None = None,
        overlap: str = "refuse",
    ) -> None:
        if not sources:
            raise InputError("sources is empty: a mixture needs at least one")
        if leave_out is not None and leave_out not in sources:
            raise InputError(f"leave_out={leave_out}: choose one of the sources, {', '.join(sources)}")
        if leave_out is not None and len(sources) == 1:
            raise InputError(f"leave_out={leave_out} leaves nothing to train on: add sources")
        if overlap not in OVERLAPS:
            raise InputError(f"overlap={overlap}: choose one of {', '.join(OVERLAPS)}")
        self.families, self.leave_out = dict(sources), leave_out
        self._fit_together()
        self.served: dict[Split, list[str]] = {
            split: [n for n, s in sources.items() if split in s.splits and split in splits_of(n, leave_out)]
            for split in SPLITS
        }
        for split, names in self.served.items():
            if not names:
                raise InputError(f"no source has classes for {split}: add one that has")
        self._edges = self._cumulative(weights or {})
        if overlap == "refuse":
            self._refuse_overlap()
        self._offsets: dict[str, int] = {}
        self._stacked = {split: self._same_shapes(split) for split in SPLITS}
        self.ragged = not all(self._stacked.values())

    def _fit_together(self) -> None:
        """Set the sizes of the net. Raises InputError if the sources have none in common."""
        first, *others = self.families
        shapes = {name: source.input_shape for name, source in self.families.items()}
        for name, source in self.families.items():
            if not isinstance(source, self.kind):
                raise InputError(
                    f"source {name} is no {self.kind.__name__.lower()}: Mixture is for families of classes, and "
                    "RegressionMixture for families of functions"
                )
        sizes = {name: source.output_size for name, source in self.families.items()}
        for name in others:
            if shapes[name] != shapes[first]:
                raise InputError(
                    f"x of source {name} has the shape {shapes[name]}, and that of {first} {shapes[first]}: a mixture "
                    "needs one shape; for pictures set data.size and data.channels"
                )
            # A single logit has another loss than one for each class, and real targets have no outputs to spare.
            if sizes[name] != sizes[first] and (self.kind is Regression or 1 in (sizes[name], sizes[first])):
                raise InputError(f"source {name} needs {sizes[name]} outputs, and {first} {sizes[first]}")
        self.input_shape, self.output_size = shapes[first], max(sizes.values())
        self.varied_ways = len({*sizes.values()}) > 1 or any(s.varied_ways for s in self.families.values())

    def _cumulative(self, weights: Mapping[str, float]) -> np.ndarray:
        """Return the upper ends of the intervals of [0, 1) that choose the sources of training."""
        for name, weight in weights.items():
            if name not in self.families:
                raise InputError(f"weights.{name}: choose from the sources, {', '.join(self.families)}")
            number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
            if not number or not 0 <= weight < math.inf:
                raise InputError(f"weights.{name}={weight}: a weight is a number from zero")
        edges = np.cumsum([float(weights.get(name, 1)) for name in self.served["train"]])
        if not edges[-1] > 0:
            raise InputError("the weights of all training sources are zero")
        return edges / edges[-1]

    def _refuse_overlap(self) -> None:
        held: list[tuple[Split, str]] = [(split, n) for split in SPLITS[1:] for n in self.served[split]]
        for first in self.served["train"]:
            trained = set(map(without_split, self.families[first].class_names("train")))
            for split, other in held:
                shared = sorted(trained.intersection(map(without_split, self.families[other].class_names(split))))
                if other != first and shared:
                    raise InputError(
                        f"{len(shared)} classes are for training in source {first} and for {split} in source {other} "
                        f"({some(shared)}): leave one of these sources out, or set data.overlap=allow if these are "
                        "different classes of the same name"
                    )

    def _same_shapes(self, split: Split) -> bool:
        """Return whether all episodes of a split have the same shapes, so that meta-batches are stacked."""
        if any(self.families[name].ragged for name in self.served[split]):
            return False
        drawn = [self.families[name].draw(split, [episode_rng(0, split, 0)]) for name in self.served[split]]
        return len({tuple(t.shape for part in e for t in part) for e in drawn if isinstance(e, Episode)}) == 1

    def sources(self, split: Split, rngs: Sequence[np.random.Generator]) -> list[str]:
        names = self.served[split]
        if split != "train":
            return [names[episode_index(rng) % len(names)] for rng in rngs]
        return [names[int(np.searchsorted(self._edges, rng.random(), side="right"))] for rng in rngs]

    def draw(self, split: Split, rngs: Sequence[np.random.Generator]) -> MetaBatch:
        """Return episodes of the sources, stacked if those of all sources have the same shapes, else as a list."""
        chosen = self.sources(split, rngs)
        places: dict[str, list[int]] = {}
        for i, name in enumerate(chosen):
            places.setdefault(name, []).append(i)
        found: dict[int, Episode] = {}
        for name, indices in places.items():
            episodes = tasks_of(self.families[name].draw(split, [rngs[i] for i in indices]))
            offset = self._offsets.get(name, 0) if split == "train" else 0
            for i, episode in zip(indices, episodes, strict=True):
                found[i] = Episode(*(Samples(x, y + offset) for x, y in episode)) if offset else episode
        ordered = [found[i] for i in range(len(chosen))]
        return stack(ordered) if self._stacked[split] else ordered

    def pooled(self) -> "tuple[Mixture, int | None]":
        """Return the same tasks, whose training labels are all training classes of all sources, and their number."""
        pooled = {name: self.families[name].pooled() for name in self.served["train"]}
        numbers = [number for _, number in pooled.values() if number is not None]
        if len(numbers) < len(pooled):
            if numbers:
                raise InputError("some sources have the same labels in all tasks and some have not: do not mix them")
            return self, None
        other = copy.copy(self)
        other.families = self.families | {name: family for name, (family, _) in pooled.items()}
        other._offsets = dict(zip(pooled, np.cumsum([0, *numbers[:-1]]).tolist(), strict=True))
        return other, sum(numbers)

    def class_names(self, split: Split) -> list[str]:
        return [name for source in self.served[split] for name in self.families[source].class_names(split)]


class RegressionMixture(Mixture):
    """A mixture of families of functions: see `Mixture`. Loss and metric are those of `Regression`."""

    kind = Regression
    metric = Regression.metric
    higher_is_better = Regression.higher_is_better
    loss = Regression.loss
    metrics = Regression.metrics
