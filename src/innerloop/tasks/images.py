"""N-way k-shot classification over any labelled images."""

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from innerloop.backbones import Backbone, Standard, features, named, standard
from innerloop.datasets.augment import augment, transforms
from innerloop.datasets.images import LabelledImages
from innerloop.episodes import SPLITS, Episode, InputError, MetaBatch, Samples, Split, stack
from innerloop.errors import some
from innerloop.tasks.base import Classification, positive
from innerloop.tasks.sampling import Limits, Sampler

log = logging.getLogger("innerloop")

STANDARDIZE = (False, True, "whiten")
SAMPLERS = ("uniform", "meta_dataset")


class FewShotImages(Classification):
    """Tasks of telling apart `ways` classes of a split, from `shots` examples of each.

    The set-up of Vinyals et al. (2016). x: (ways * shots, C, H, W) and (ways * queries, C, H, W), float32 in [0, 1].
    y: the classes numbered 0 to ways - 1 in random order. No image is in both support and query.

    queries: number of query images per class. train_queries: the same for training episodes; None: as many.
    rotations: in training episodes a class turned by 90, 180 or 270 degrees is another class, and a task mixes all four
        (Santoro et al., 2016; Vinyals et al., 2016). Validation and test tasks are upright.
    min_ways, min_shots: if given, the number of classes of an episode is uniform from min_ways to `ways`, and the
        number of support images per class is uniform from min_shots to `shots`, for each class separately if
        `unbalanced`. These are Meta-Dataset's varied tasks (Triantafillou et al., 2020, section 3.2) without their
        dependence on class sizes, which sampler="meta_dataset" has. Queries stay balanced. Such an episode is a part of
        the full-size episode of the same index, so that settings can be compared in pairs. Meta-batches are then lists
        of episodes.
    backbone: a frozen net, or the name of one: see `innerloop.backbones.named`. Then x is (n, dimensions), its vectors,
        which are kept in the user's cache folder.
    standardize: of these vectors. True centres them by the mean of the training classes and gives them unit length;
        "whiten" also whitens them by the scatter within the training classes.
    test_ways: number of classes of validation and test tasks; None: `ways`. The net has outputs for the larger number,
        so the learner must write its head from the support set.
    augment: transforms of torchvision.transforms.v2 for the pictures of training tasks, by name or as a mapping from
        the name to keyword arguments, such as ["RandomHorizontalFlip", {"RandomRotation": {"degrees": 10}}]. They are
        drawn with the episode, so an episode stays a function of (seed, split, index).
    sampler: "uniform" draws `ways` classes with `shots` images each, as above. "meta_dataset" draws the classes, and
        how many images of each, as Meta-Dataset does: see `innerloop.tasks.sampling`. ways, shots and queries have no
        effect then. If the data have groups of classes, such as alphabets, an episode's classes are of one group.
    limits: of that sampler, by name: see `Limits`.
    splits: the splits that there are episodes of, for a source of a mixture that others need not have.
    min_images: classes with fewer images are left out of their split. Classes with too few images for an episode,
        shots + queries, are left out in any case. The log says how many and which.

    Raises InputError if a split has too few classes with enough images, and for sizes that are not possible.
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
        min_images: int | None = None,
        backbone: str | Backbone | None = None,
        standardize: bool | str = False,
        test_ways: int | None = None,
        augment: Sequence[Any] | None = None,
        sampler: str = "uniform",
        limits: Mapping[str, Any] | None = None,
        splits: Sequence[Split] = SPLITS,
    ) -> None:
        positive(shots=shots, queries=queries)
        if train_queries is None:
            train_queries = queries
        positive(train_queries=train_queries, min_images=1 if min_images is None else min_images)
        check_sizes(ways, shots, min_ways, min_shots, unbalanced, test_ways)
        if sampler not in SAMPLERS:
            raise InputError(f"sampler={sampler}: choose one of {', '.join(SAMPLERS)}")
        if sampler == "meta_dataset" and (min_ways, min_shots, test_ways) != (None, None, None):
            raise InputError(
                "sampler=meta_dataset draws ways and shots within data.limits: leave min_ways, min_shots and test_ways"
            )
        check_vectors(backbone, standardize, rotations, augment)
        height, width = dataset.images.shape[-2:]
        if rotations and height != width:
            raise InputError(f"rotations=true needs square images, these are {height}x{width}")
        self.splits = tuple(splits)
        self.dataset, self.ways, self.shots, self.rotations = dataset, ways, shots, rotations
        self.min_ways, self.min_shots, self.unbalanced = min_ways or ways, min_shots or shots, unbalanced
        self.ways_of: dict[Split, int] = dict.fromkeys(SPLITS, test_ways or ways) | {"train": ways}
        self.varied_ways = self.min_ways < ways or self.ways_of["test"] != ways
        self.transforms = transforms(augment or (), dataset.images.shape[1:])
        self.ragged = self.min_ways < ways or self.min_shots < shots
        self.queries = {split: train_queries if split == "train" else queries for split in SPLITS}
        drawn = sampler == "meta_dataset"
        self.classes = {split: self._usable(split, min_images or 1, drawn) for split in self.splits}
        self.samplers = {split: self._sampler(split, Limits.of(limits)) for split in self.splits if drawn}
        if self.samplers:
            # Whatever the data have, so that a net is evaluated on other data, too.
            self.ways_of = dict.fromkeys(SPLITS, Limits.of(limits).max_ways)
            self.varied_ways = self.ragged = True
        self.backbone = backbone
        self.standard: Standard | None = None
        self.features = None if self.backbone is None else self._features(resolved(self.backbone), standardize).numpy()
        self.input_shape = tuple((dataset.images if self.features is None else self.features).shape[1:])
        self.output_size = max(self.ways_of.values())
        self._pooled = False

    def pooled(self) -> "tuple[FewShotImages, int | None]":
        """Return the same tasks, whose training labels are all training classes, and the number of these labels.

        With rotations there are four labels per class.
        """
        other = copy.copy(self)
        other._pooled = True
        return other, len(self.classes["train"]) * (4 if self.rotations else 1)

    def class_names(self, split: Split) -> list[str]:
        return [self.dataset.classes[i] for i in self.classes.get(split, ())]

    def draw(self, split: Split, rngs: Sequence[np.random.Generator]) -> MetaBatch:
        """Return episodes with x (tasks, n, C, H, W) and y (tasks, n), or a list of them if their n may differ."""
        choose = self._by_plan if self.samplers else self._choose
        drawn = [choose(split, rng) for rng in rngs]
        if self.transforms and split == "train":
            return self._collected([self._augmented(d, rng) for d, rng in zip(drawn, rngs, strict=True)])
        if self.ragged:
            return [Episode(*(self._samples(*part) for part in episode)) for episode in drawn]
        parts = zip(*drawn, strict=True)
        stacked = [[np.stack(arrays) for arrays in zip(*part, strict=True)] for part in parts]
        return Episode(*(self._samples(indices, turns, labels) for indices, turns, labels in stacked))

    def _collected(self, episodes: list[Episode]) -> MetaBatch:
        return episodes if self.ragged else stack(episodes)

    def _augmented(self, drawn: list[tuple[np.ndarray, np.ndarray, np.ndarray]], rng: np.random.Generator) -> Episode:
        """Return an episode whose pictures are augmented, at random as the episode's stream has it."""
        seed = int(rng.integers(2**63))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Episode(*(self._samples(*part, augmented=True) for part in drawn))

    def _choose(self, split: Split, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Return for support and query, each (n,): the images' indices, their quarter turns and their labels."""
        classes, data, most = self.classes[split], self.dataset, self.ways_of[split]
        angles = 4 if self.rotations and split == "train" else 1
        drawn = rng.choice(angles * len(classes), most, replace=False)
        ids, turns = classes[drawn // angles], drawn % angles
        counts = data.counts[ids]
        # The images with the smallest of independent uniform numbers are a subset without replacement.
        keys = rng.random((most, counts.max()))
        keys[np.arange(counts.max()) >= counts[:, None]] = np.inf
        members = keys.argsort(axis=1)[:, : self.shots + self.queries[split]]
        labels = drawn if self._pooled and split == "train" else np.arange(most)
        # Sizes are drawn last, so that the classes and images are those of the full size.
        ways = rng.integers(min(self.min_ways, most), most + 1)
        shots = rng.integers(self.min_shots, self.shots + 1, size=(most if self.unbalanced else 1, 1))
        present, column = np.arange(most)[:, None] < ways, np.arange(members.shape[1])
        parts = [np.nonzero(present & (column < shots)), np.nonzero(present & (column >= self.shots))]
        return [(data.first[ids[c]] + members[c, i], turns[c], labels[c]) for c, i in parts]

    def _by_plan(self, split: Split, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Return what `_choose` does, for an episode of Meta-Dataset's sampler. Each class is turned at random."""
        plan = self.samplers[split](rng)
        ids, ways = self.classes[split][plan.classes], len(plan.classes)
        angles = 4 if self.rotations and split == "train" else 1
        turns = rng.integers(angles, size=ways)
        labels = angles * plan.classes + turns if self._pooled and split == "train" else np.arange(ways)
        members = [
            self.dataset.first[c] + rng.choice(self.dataset.counts[c], shots + plan.queries, replace=False)
            for c, shots in zip(ids, plan.shots, strict=True)
        ]
        parts = [[m[: len(m) - plan.queries] for m in members], [m[len(m) - plan.queries :] for m in members]]
        sizes = [[len(m) for m in part] for part in parts]
        return [
            (np.concatenate(part), np.repeat(turns, size), np.repeat(labels, size))
            for part, size in zip(parts, sizes, strict=True)
        ]

    def _sampler(self, split: Split, limits: Limits) -> Sampler:
        ids, groups = self.classes[split], (self.dataset.groups or {}).get(split)
        where = f"the {split} split"
        if groups is not None:
            position = np.full(len(self.dataset.classes), -1)
            position[ids] = np.arange(len(ids))
            groups = [found[found >= 0] for found in (position[group] for group in groups)]
        return Sampler(self.dataset.counts[ids], limits, groups, self.dataset.whole_groups, where)

    def _samples(self, indices: np.ndarray, turns: np.ndarray, labels: np.ndarray, augmented: bool = False) -> Samples:
        if self.features is not None:
            return Samples(torch.from_numpy(self.features.take(indices, axis=0)), torch.from_numpy(labels))
        images = self.dataset.take(indices)
        for turn in (1, 2, 3):
            chosen = turns == turn
            if chosen.any():
                images[chosen] = np.rot90(images[chosen], turn, (-2, -1))
        if augmented:
            images = augment(images, self.transforms)
        return Samples(torch.from_numpy(np.divide(images, 255, dtype=np.float32)), torch.from_numpy(labels))

    def inputs(self, images: Tensor) -> Tensor:
        """Return x of pictures that were read as the data set's were: (n, C, H, W) uint8 -> (n, *input_shape)."""
        if self.backbone is None:
            return images / 255
        x = self._vectors(resolved(self.backbone), images)
        return x if self.standard is None else self.standard(x)

    def _vectors(self, backbone: Backbone, images: Tensor) -> Tensor:
        # A backbone that learned of ink on dark is shown that, whichever way the pictures were read.
        exchanged = backbone.inverted is not None and backbone.inverted != self.dataset.inverted
        return features(backbone, (255 - images if exchanged else images).numpy(), len(images))

    def _features(self, backbone: Backbone, standardize: bool | str) -> Tensor:
        """Return the vectors of all images, (N, dimensions), and set their standard form.

        Those of splits without a part in this source are zeros: they are never drawn, and a backbone costs minutes.
        """
        data = self.dataset
        labels = torch.from_numpy(np.repeat(np.arange(len(data.classes)), data.counts))
        unused = set(SPLITS).difference(self.splits, ["train"] if standardize else [])
        served = np.concatenate([ids for split, ids in data.splits.items() if split not in unused])
        places = torch.isin(labels, torch.from_numpy(served)).nonzero()[:, 0]
        found = self._vectors(backbone, torch.from_numpy(data.take(places.numpy())))
        x = found.new_zeros(len(labels), found.shape[1]).index_copy_(0, places, found)
        if not standardize:
            return x
        train = torch.isin(labels, torch.from_numpy(data.splits["train"]))
        self.standard = standard(x[train], labels[train], whiten=standardize == "whiten")
        return self.standard(x)

    def _usable(self, split: Split, min_images: int, drawn: bool) -> np.ndarray:
        """Return the ids of a split's classes with enough images. Raises InputError if they are too few.

        drawn: the number of images is drawn for each episode, so that two are enough.
        """
        ids = self.dataset.splits[split]
        needed = 2 if drawn else self.shots + self.queries[split]
        enough = self.dataset.counts[ids] >= max(needed, min_images)
        rare = [self.dataset.classes[i] for i in ids[~enough]]
        names = some(rare, 10)
        because = f"shots={self.shots} and {self.queries[split]} queries need {needed} images per class"
        because = "a class needs two images" if drawn else because
        if min_images > needed:
            because = f"min_images={min_images}"
        available = int(enough.sum()) * (4 if self.rotations and split == "train" else 1)
        if self.ways_of[split] > available and not drawn:
            without = f" without {len(rare)} rare classes ({names}; {because})" if rare else ""
            key = "ways" if self.ways_of[split] == self.ways else "test_ways"
            raise InputError(
                f"{key}={self.ways_of[split]}, but the {split} split has {available} classes{without}: lower {key}"
                + (", or queries and shots" if rare else "")
                + ", or add classes"
            )
        if rare:
            log.warning("%d of %d %s classes are left out, since %s: %s", len(rare), len(ids), split, because, names)
        return ids[enough]


def check_sizes(
    ways: int, shots: int, min_ways: int | None, min_shots: int | None, unbalanced: bool, test_ways: int | None
) -> None:
    """Raise InputError for numbers of classes and of support images that are not possible together."""
    if ways < 2:
        raise InputError(f"ways must be at least 2, got {ways}")
    for name, fewest, smallest, largest in (("ways", min_ways, 2, ways), ("shots", min_shots, 1, shots)):
        if fewest is not None and not smallest <= fewest <= largest:
            raise InputError(f"min_{name} must be from {smallest} to {name}={largest}, got {fewest}")
    if unbalanced and min_shots is None:
        raise InputError("unbalanced=true draws each class's shots from min_shots to shots: give min_shots too")
    if test_ways is not None and test_ways < 2:
        raise InputError(f"test_ways must be at least 2, got {test_ways}")
    if test_ways is not None and min_ways is not None:
        raise InputError("min_ways draws the ways of every task: give min_ways or test_ways, not both")


def check_vectors(
    backbone: str | Backbone | None, standardize: bool | str, rotations: bool, augment: Sequence[Any] | None
) -> None:
    """Raise InputError for settings that do not go together with a backbone, or without one."""
    if standardize not in STANDARDIZE:
        raise InputError(f"standardize={standardize}: choose one of false, true, whiten")
    if backbone is None and standardize:
        raise InputError(f"standardize={standardize} is for the vectors of a backbone: set backbone, too")
    if backbone is not None and rotations:
        raise InputError("rotations=true makes classes of turned pictures, of which a backbone has no vectors")
    if backbone is not None and augment:
        raise InputError("augment changes pictures, of which a backbone has no vectors")


def resolved(backbone: str | Backbone) -> Backbone:
    """Return the backbone of a name, or the one that is given."""
    return named(backbone) if isinstance(backbone, str) else backbone
