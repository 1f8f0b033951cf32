"""Labelled images in memory, and functions that their loaders share: cache files, and splits by class."""

import hashlib
import logging
import os
import secrets
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import pooch
import torch
from torch import Tensor

from innerloop.datasets.pictures import fitted
from innerloop.episodes import SPLITS, InputError, Split

log = logging.getLogger(__name__)


class Pictures(Protocol):
    """Pictures that are decoded when they are asked for. shape: (N, C, H, W)."""

    shape: tuple[int, int, int, int]

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Return the pictures of these indices (n,): (n, C, H, W) uint8."""


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images of many classes, sorted by class, and the classes of each split.

    images: a tensor (N, C, H, W) of uint8, or `Pictures` of that shape. classes: name of each class.
    counts: (classes,) int64, number of images per class.
    splits: class ids (int64) of each of the three splits. No class is in two of them.
    inverted: whether dark and light were exchanged when the pictures were read, so that ink is 255.
    groups: of each split, arrays of class ids that belong together, such as the characters of an alphabet; a class may
        be in several. None: the data have no hierarchy.
    whole_groups: whether Meta-Dataset's sampler takes all classes of a group, as it does of the nodes of WordNet.
    first: (classes,) int64, index of each class's first image: class c is images[first[c] : first[c] + counts[c]]. It
        follows from the counts and is no argument.

    Raises InputError if these do not fit together.
    """

    images: Tensor | Pictures
    classes: tuple[str, ...]
    counts: np.ndarray
    splits: Mapping[Split, np.ndarray]
    inverted: bool = False
    groups: Mapping[Split, Sequence[np.ndarray]] | None = None
    whole_groups: bool = False
    first: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        if isinstance(self.images, np.ndarray):
            raise InputError("images must be a tensor: torch.from_numpy(images)")
        if isinstance(self.images, Tensor) and (self.images.dtype != torch.uint8 or self.images.ndim != 4):
            raise InputError(
                f"images must be uint8 of shape (N, C, H, W), got {tuple(self.images.shape)}, {self.images.dtype}"
            )
        counts = np.asarray(self.counts, dtype=np.int64)
        total = self.images.shape[0]
        if counts.shape != (len(self.classes),) or (counts < 0).any() or counts.sum() != total:
            raise InputError(
                f"counts must be the numbers of images of {len(self.classes)} classes and sum to {total}, "
                f"got {counts.size} numbers that sum to {counts.sum()}"
            )
        if set(self.splits) != set(SPLITS):
            raise InputError(f"the splits must be {', '.join(SPLITS)}, got {', '.join(self.splits)}")
        splits = {name: np.asarray(self.splits[name], dtype=np.int64) for name in SPLITS}
        ids, uses = np.unique(np.concatenate(list(splits.values())), return_counts=True)
        if (uses > 1).any():
            raise InputError(f"class {ids[uses > 1][0]} is in more than one place of the splits; they must be disjoint")
        if ids.size and not 0 <= ids[0] <= ids[-1] < len(self.classes):
            raise InputError(f"the splits use classes {ids[0]} to {ids[-1]}, but there are {len(self.classes)} classes")
        object.__setattr__(self, "counts", counts)
        object.__setattr__(self, "splits", splits)
        object.__setattr__(self, "first", np.cumsum(counts) - counts)

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Return the images of these indices (n,): (n, C, H, W) uint8."""
        # numpy and not torch, whose threads would wait for each other over these few bytes.
        return (
            self.images.numpy().take(indices, axis=0) if isinstance(self.images, Tensor) else self.images.take(indices)
        )


def resized(data: LabelledImages, size: int, channels: int, name: str) -> LabelledImages:
    """Return the data with images of (channels, size, size), as they are if they have that shape already.

    The log says what is changed. name: of the data, for the log.
    """
    found = tuple(data.images.shape[1:])
    if found == (channels, size, size):
        return data
    modes = {1: "grey", 3: "colour"}
    log.info(
        "%s: pictures of %dx%d, %s, are resized to %dx%d, %s",
        *(name, found[1], found[2], modes[found[0]], size, size, modes[channels]),
    )
    images = fitted(data.take(np.arange(data.images.shape[0])), size, channels)
    return replace(data, images=torch.from_numpy(images))


def cache_folder(name: str) -> Path:
    """Return the user's cache folder for a data set (Linux: $XDG_CACHE_HOME/innerloop/name). It may not exist yet."""
    return Path(pooch.os_cache("innerloop")) / name


def fixed_splits(classes: Sequence[str], train: int, validation: int) -> dict[Split, np.ndarray]:
    """Return the class ids of each split. The split is pseudo-random, but always the same for the same names.

    train, validation: number of training and validation classes. All others are test classes. Classes are ordered by
    the digests of their names, not by a seeded generator. So no version of numpy can move a class from training to
    test, and the order of `classes` does not matter.
    """
    order = np.array(sorted(range(len(classes)), key=lambda i: hashlib.sha256(classes[i].encode()).digest()))
    parts = np.split(order, [train, train + validation])
    return {split: np.sort(part) for split, part in zip(SPLITS, parts, strict=True)}


def splits_by_name(classes: Sequence[str], train: float, validation: float, fewest: int) -> dict[Split, np.ndarray]:
    """Return the class ids of each split, where each class is assigned by the digest of its own name.

    So a class that is added or removed later moves no other class from training to validation or test.

    train, validation: fractions of the classes, which are met approximately. The others are test classes.
    fewest: number of classes that test and validation get at least, from those with the smallest digests.
    """
    digests = [hashlib.sha256(unicodedata.normalize("NFC", name).encode()).digest() for name in classes]
    order = sorted(range(len(classes)), key=lambda i: digests[i])
    position = np.array([int.from_bytes(digests[i][:8]) / 2**64 for i in order])
    test = max(int(np.searchsorted(position, 1 - train - validation)), fewest)
    rest = max(int(np.searchsorted(position, 1 - train)), test + fewest)
    parts = np.split(np.array(order, dtype=np.int64), [test, rest])
    return {split: np.sort(part) for split, part in zip(reversed(SPLITS), parts, strict=True)}


def named_splits(source: Path, classes: Sequence[tuple[Split, str]], advice: str = "") -> dict[Split, np.ndarray]:
    """Return the class ids of each split, for data that are published or stored with a split.

    classes: split and name of each class. advice: the end of the message.
    Raises InputError, naming `source`, if a name is in two splits, because the test classes of few-shot learning must
    not occur in training.
    """
    split_of: dict[str, Split] = {}
    for split, name in classes:
        if split_of.setdefault(name, split) != split:
            raise InputError(
                f"{source}: class {name} is in {split_of[name]} and in {split}; few-shot splits must not share a class"
                + advice
            )
    return {split: np.array([i for i, (s, _) in enumerate(classes) if s == split], np.int64) for split in SPLITS}


def cached(path: Path, build: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the arrays stored at `path` (.npz). Build and store them first if the file is missing or damaged.

    The file is written under a temporary name and then renamed, so other processes never see a partial file. Every read
    is verified by the checksums in the file. If the file cannot be written, the arrays are built on every start, and a
    warning is logged.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        log.info("building %s; this is done only once", path)
    # numpy and zipfile raise any of these for damaged bytes. NotImplementedError: an unknown compression method.
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        log.warning("%s is damaged (%s) and is rebuilt", path, error)
    arrays = build()
    try:
        _write(path, arrays)
    except OSError as error:
        log.warning("%s cannot be written (%s): the data are rebuilt on every start", path, error)
    return arrays


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "xb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            # Without this, the file could have its final name but not its contents after a power failure.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
