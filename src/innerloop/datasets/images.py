"""Labelled images in memory, and what their loaders share: a cache that takes no part for the whole, fixed splits."""

import hashlib
import logging
import os
import secrets
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pooch
import torch
from torch import Tensor

from innerloop.episodes import SPLITS, InputError, Split

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images of many classes, sorted by class, and which classes belong to which split.

    images: (N, C, H, W) uint8. classes: a name for each class. counts: (classes,) int64, the number of images of each.
    first: (classes,) int64, where they begin: class c is images[first[c] : first[c] + counts[c]].
    splits: class ids (int64) of each of the three splits; no class is in two of them.
    Raises InputError where these do not fit together.
    """

    images: Tensor
    classes: tuple[str, ...]
    counts: np.ndarray
    splits: Mapping[Split, np.ndarray]
    first: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise InputError(
                f"images must be uint8 of shape (N, C, H, W), got {tuple(self.images.shape)}, {self.images.dtype}"
            )
        counts = np.asarray(self.counts, dtype=np.int64)
        if counts.shape != (len(self.classes),) or (counts < 0).any() or counts.sum() != len(self.images):
            raise InputError(
                f"counts must give the number of images of each of {len(self.classes)} classes, in all "
                f"{len(self.images)}; got {counts.size} numbers that sum to {counts.sum()}"
            )
        if set(self.splits) != set(SPLITS):
            raise InputError(f"the splits must be {', '.join(SPLITS)}, got {', '.join(self.splits)}")
        splits = {name: np.asarray(self.splits[name], dtype=np.int64) for name in SPLITS}
        ids, uses = np.unique(np.concatenate(list(splits.values())), return_counts=True)
        if (uses > 1).any():
            raise InputError(f"class {ids[uses > 1][0]} is in more than one place of the splits; they must be disjoint")
        if ids.size and not 0 <= ids[0] <= ids[-1] < len(self.classes):
            raise InputError(f"the splits name classes {ids[0]} to {ids[-1]}, there are {len(self.classes)} classes")
        object.__setattr__(self, "counts", counts)
        object.__setattr__(self, "splits", splits)
        object.__setattr__(self, "first", np.cumsum(counts) - counts)


def cache_folder(name: str) -> Path:
    """The user's cache folder for one data set (Linux: $XDG_CACHE_HOME/innerloop/name); it need not exist yet."""
    return Path(pooch.os_cache("innerloop")) / name


def fixed_splits(classes: Sequence[str], train: int, validation: int) -> dict[Split, np.ndarray]:
    """So many classes for training and for validation, all others for testing: which looks random, yet is fixed.

    By the digests of their names rather than by a seeded generator: no version of numpy can move a class from training
    to test, and the order of the given classes plays no part.
    """
    order = np.array(sorted(range(len(classes)), key=lambda i: hashlib.sha256(classes[i].encode()).digest()))
    parts = np.split(order, [train, train + validation])
    return {split: np.sort(part) for split, part in zip(SPLITS, parts, strict=True)}


def named_splits(source: Path, classes: Sequence[tuple[Split, str]]) -> dict[Split, np.ndarray]:
    """The split that each class names with its own name, as the data were published or laid out.

    Raises InputError, naming `source`, if one name is in two splits: few-shot tests are on classes never trained on.
    """
    of: dict[str, Split] = {}
    for split, name in classes:
        if of.setdefault(name, split) != split:
            raise InputError(f"{source}: class {name} is in {of[name]} and in {split}; few-shot splits share no class")
    return {split: np.array([i for i, (own, _) in enumerate(classes) if own == split], np.int64) for split in SPLITS}


def cached(path: Path, build: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays stored at `path` (.npz); built and stored first if there are none or the file is damaged.

    Another process sees the whole file or none: it is written beside its place and moved there. Every read is verified
    by the checksums inside. Where nothing can be written the arrays are built on every start, with a warning.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        log.info("making %s; this is done once", path)
    # All of these are what numpy and zipfile say of damaged bytes; the last, of a compression that does not exist.
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        log.warning("%s is damaged (%s) and is built anew", path, error)
    arrays = build()
    try:
        _write(path, arrays)
    except OSError as error:
        log.warning("%s cannot be written (%s): the data are built anew on every start", path, error)
    return arrays


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "xb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            # Else a machine that loses power may keep the new name and lose what it names.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
