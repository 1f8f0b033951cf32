"""Pictures of one's own: a folder for each class, in a folder or in a zip file."""

import posixpath
from pathlib import Path

import numpy as np
import torch

from innerloop.datasets.files import PICTURES, digest, listing, pictures
from innerloop.datasets.images import LabelledImages, cache_folder, cached, fixed_splits, named_splits
from innerloop.episodes import InputError, Split

LAYOUT = (
    "a folder or a zip file with a folder of pictures for each class, or with folders train, validation and test that "
    "hold such class folders"
)
SPLIT_FOLDERS: dict[str, Split] = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}

# Part of the name of the processed file: raise it when what it holds changes.
FORMAT = 1


def load(
    root: str | None = None,
    size: int = 84,
    channels: int = 3,
    train_fraction: float = 0.64,
    validation_fraction: float = 0.16,
) -> LabelledImages:
    """The pictures as (N, channels, size, size), squeezed to squares; a class is named by the path of its folder.

    root: a folder or a zip file with class folders at any depth; all in one folder inside is as good. If they are below
    train, validation (or val) and test these are the splits; else so many of all classes, chosen by their names, are
    for training and for validation, and the rest for testing. channels: 1 for grey, 3 for colour. The processed
    images are kept in the user's cache folder.
    Raises InputError naming what is missing, misplaced or broken.
    """
    if root is None:
        raise InputError(f"data=folder needs data.root: {LAYOUT}")
    if channels not in (1, 3):
        raise InputError(f"data.channels={channels}: choose 1 for grey or 3 for colour")
    if size < 1:
        raise InputError(f"data.size must be above zero, got {size}")
    source = Path(root).expanduser()
    if not source.exists():
        raise InputError(f"data.root={root}: there is no such folder or file; it must be {LAYOUT}")
    folders = find_classes(source)
    splits = _splits(source, list(folders), train_fraction, validation_fraction)
    paths = [path for members in folders.values() for path in members]
    path = cache_folder("folder") / f"{digest(source, paths)}-{channels}x{size}x{size}-v{FORMAT}.npz"
    stored = cached(path, lambda: {"images": pictures(source, paths, size, channels)})
    return LabelledImages(
        images=torch.from_numpy(stored["images"]),
        classes=tuple(folders),
        counts=np.array([len(members) for members in folders.values()]),
        splits=splits,
    )


def find_classes(source: Path) -> dict[str, list[str]]:
    """class -> the paths of its pictures within `source`, both sorted; what lies above all classes is in no name.

    Raises InputError if there is no class, a picture in no class folder, or a class folder without a picture.
    """
    folders: dict[str, list[str]] = {}
    entries = listing(source)
    for entry in entries:
        if entry.lower().endswith(PICTURES):
            folders.setdefault(posixpath.dirname(entry), []).append(entry)
    if not folders:
        raise InputError(f"{source} holds no pictures ({', '.join(PICTURES)}); it must be {LAYOUT}")
    above = {""}.union(*map(_above, folders))
    for folder in sorted(above.intersection(folders)):
        raise InputError(f"{source}: {folders[folder][0]} is in no class folder; there must be {LAYOUT}")
    for folder in sorted(set(map(posixpath.dirname, entries)) - above - set(folders)):
        if not folders.keys() & _above(folder):  # what is in a class folder, beside its pictures, is its own affair
            raise InputError(f"{source}: the folder {folder} holds no pictures ({', '.join(PICTURES)})")
    common = posixpath.commonpath(map(posixpath.dirname, folders))
    return {folder.removeprefix(f"{common}/"): members for folder, members in sorted(folders.items())}


def _above(folder: str) -> set[str]:
    """The folders that a folder is in, within the source."""
    parts = folder.split("/")
    return {"/".join(parts[:n]) for n in range(1, len(parts))}


def _splits(
    source: Path, classes: list[str], train_fraction: float, validation_fraction: float
) -> dict[Split, np.ndarray]:
    """By the outer folders if these are named after splits, else by fractions; two classes in each at least."""
    places = [name.partition("/") for name in classes]
    if any(rest and outer in SPLIT_FOLDERS for outer, _, rest in places):
        for name, (outer, _, rest) in zip(classes, places, strict=True):
            if not rest or outer not in SPLIT_FOLDERS:
                raise InputError(f"{source}: the folder {name} is in none of train, validation (or val) and test")
        splits = named_splits(source, [(SPLIT_FOLDERS[outer], name) for outer, _, name in places])
        advice = f"there must be {LAYOUT}"
    else:
        train, validation = (round(f * len(classes)) for f in (train_fraction, validation_fraction))
        if min(train, validation) < 0 or train + validation > len(classes):
            raise InputError(
                f"data.train_fraction={train_fraction} and data.validation_fraction={validation_fraction} must leave "
                "something of 1 for testing"
            )
        splits = fixed_splits(classes, train, validation)
        advice = "add classes, or change data.train_fraction and data.validation_fraction"
    for split, ids in splits.items():
        if len(ids) < 2:
            raise InputError(
                f"{source} has {len(classes)} classes, {len(ids)} of them for {split}; a task needs two: {advice}"
            )
    return splits
