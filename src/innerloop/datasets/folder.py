"""The user's own pictures: one folder per class, in a folder or in a zip file."""

import logging
import posixpath
import re
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from innerloop.datasets.files import digest, listing
from innerloop.datasets.images import LabelledImages, cache_folder, cached, fixed_splits, named_splits, splits_by_name
from innerloop.datasets.pictures import PICTURES, pictures
from innerloop.episodes import InputError, Split

log = logging.getLogger("innerloop")

LAYOUT = (
    "a folder or a zip file with a folder of pictures for each class, or with folders train, validation and test that "
    "contain such class folders"
)
SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""Names of folders that are splits, in any case, with or without "meta" before them."""
CLASS_FOLDERS = ("innermost", "outermost")
SPLIT_RULES = ("name", "count")
FEWEST = 2
"""The smallest number of classes of a split: a task needs two."""

# Part of the name of the processed file. Raise it when the content of that file changes.
FORMAT = 1


def load(
    root: str | None = None,
    size: int = 84,
    channels: int = 3,
    train_fraction: float = 0.64,
    validation_fraction: float = 0.16,
    split_rule: str = "name",
    class_folders: str = "innermost",
) -> LabelledImages:
    """Return the pictures as (N, channels, size, size), squeezed to squares. A class is named by its folder's path.

    root: a folder or a zip file with class folders at any depth; they may all be in one folder inside. If they are in
        folders train, validation (or val) and test, these are the splits; their names may have capitals, and "meta_"
        before them. Otherwise the classes are split by their names, always in the same way.
    channels: 1 for grey, 3 for colour.
    train_fraction, validation_fraction: fractions of the classes; the rest is for testing.
    split_rule: "name" assigns each class by its own name, so that classes added later move no class from training to
        test; the fractions are met approximately. "count" meets them exactly, as runs did before this rule.

    class_folders: of nested folders such as species/site/1.jpg, "innermost" makes each site a class, "outermost" each
        species.

    The processed images are kept in the user's cache folder.
    Raises InputError that names what is missing, misplaced or broken.
    """
    if root is None:
        raise InputError(f"data=folder needs data.root: {LAYOUT}")
    if channels not in (1, 3):
        raise InputError(f"data.channels={channels}: choose 1 for grey or 3 for colour")
    if size < 1:
        raise InputError(f"data.size must be above zero, got {size}")
    if split_rule not in SPLIT_RULES:
        raise InputError(f"data.split_rule={split_rule}: choose one of {', '.join(SPLIT_RULES)}")
    if class_folders not in CLASS_FOLDERS:
        raise InputError(f"data.class_folders={class_folders}: choose one of {', '.join(CLASS_FOLDERS)}")
    source = Path(root).expanduser()
    if not source.exists():
        raise InputError(f"data.root={root}: there is no such folder or file; it must be {LAYOUT}")
    folders = find_classes(source)
    if class_folders == "outermost":
        folders = outermost(folders)
    else:
        warn_if_nested(folders)
    splits = _splits(source, list(folders), train_fraction, validation_fraction, split_rule)
    paths = [path for members in folders.values() for path in members]
    order = "-outermost" if class_folders == "outermost" else ""
    path = cache_folder("folder") / f"{digest(source, paths)}{order}-{channels}x{size}x{size}-v{FORMAT}.npz"
    stored = cached(path, lambda: {"images": pictures(source, paths, size, channels)})
    return LabelledImages(
        images=torch.from_numpy(stored["images"]),
        classes=tuple(folders),
        counts=np.array([len(members) for members in folders.values()]),
        splits=splits,
    )


def find_classes(source: Path) -> dict[str, list[str]]:
    """Return class -> the paths of its pictures within `source`, both sorted. Common parent folders are in no name.

    Raises InputError if there is no class, a picture outside of class folders, or a class folder without a picture.
    """
    folders: dict[str, list[str]] = {}
    entries = listing(source)
    for entry in entries:
        if entry.lower().endswith(PICTURES):
            folders.setdefault(posixpath.dirname(entry), []).append(entry)
    if not folders:
        raise InputError(f"{source} holds no pictures ({', '.join(PICTURES)}); it must be {LAYOUT}")
    warn_of_other_files(source, entries)
    parents = {""}.union(*map(_parents, folders))
    for folder in sorted(parents.intersection(folders)):
        raise InputError(f"{source}: {folders[folder][0]} is in no class folder; there must be {LAYOUT}")
    for folder in sorted(set(map(posixpath.dirname, entries)) - parents - set(folders)):
        if not folders.keys() & _parents(folder):  # other folders within a class folder are ignored
            raise InputError(f"{source}: the folder {folder} holds no pictures ({', '.join(PICTURES)})")
    common = posixpath.commonpath(map(posixpath.dirname, folders))
    return {folder.removeprefix(f"{common}/"): members for folder, members in sorted(folders.items())}


def outermost(folders: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the classes by their outermost folders, after a folder that is a split."""
    found: dict[str, list[str]] = {}
    for name, members in folders.items():
        first, _, rest = name.partition("/")
        second = rest.partition("/")[0]
        found.setdefault(f"{first}/{second}" if second and split_of(first) else first, []).extend(members)
    return {name: sorted(members) for name, members in sorted(found.items())}


def warn_if_nested(folders: dict[str, list[str]]) -> None:
    """Log a warning if folders that one may take for classes hold several class folders."""
    names = [name.partition("/")[2] if split_of(name.partition("/")[0]) else name for name in folders]
    outer = {name.partition("/")[0] for name in names if "/" in name}
    if outer and len(outer) < len(names):
        example = next(name for name in names if "/" in name)
        log.warning(
            "%d classes, which are the innermost folders, such as %s. If %s is one class, its pictures may now be in "
            "training and in the test: set data.class_folders=outermost",
            len(names),
            example,
            example.partition("/")[0],
        )


def warn_of_other_files(source: Path, entries: list[str]) -> None:
    """Log a warning that counts the files that are no pictures of a known format, by their suffix."""
    others = [e for e in entries if not e.endswith("/") and not e.lower().endswith(PICTURES)]
    if others:
        counts = Counter(posixpath.splitext(name)[1].lower() or "no suffix" for name in others)
        listed = ", ".join(f"{suffix} ({count})" for suffix, count in counts.most_common(5))
        log.warning("%s: %d files are no pictures of a known format and are left out: %s", source, len(others), listed)


def without_split(name: str) -> str:
    """Return the name of a class without the folder of its split, such as "owl" for "train/owl"."""
    first, _, rest = name.partition("/")
    return rest if rest and split_of(first) else name


def split_of(folder: str) -> Split | None:
    """Return the split that a folder's name stands for, None if it is not the name of a split."""
    return SPLIT_FOLDERS.get(re.sub(r"^meta[ _-]?", "", folder.lower()))


def _parents(folder: str) -> set[str]:
    """Return the folders within the source that a folder is in."""
    parts = folder.split("/")
    return {"/".join(parts[:n]) for n in range(1, len(parts))}


def _splits(
    source: Path, classes: list[str], train_fraction: float, validation_fraction: float, rule: str
) -> dict[Split, np.ndarray]:
    """Return the splits by the outer folders if these are named after splits, else by fractions."""
    outer = [name.partition("/") for name in classes]
    if any(rest and split_of(first) for first, _, rest in outer):
        placed: list[tuple[Split, str]] = []
        for name, (first, _, rest) in zip(classes, outer, strict=True):
            split = split_of(first)
            if not rest or split is None:
                raise InputError(f"{source}: the folder {name} is in none of train, validation (or val) and test")
            placed.append((split, rest))
        splits = named_splits(source, placed)
        advice = f"there must be {LAYOUT}"
    else:
        splits = _by_fractions(classes, train_fraction, validation_fraction, rule)
        advice = "add classes, or change data.train_fraction and data.validation_fraction"
    for split, ids in splits.items():
        if len(ids) < FEWEST and len(classes) < 3 * FEWEST:
            raise InputError(too_few(source, classes))
        if len(ids) < FEWEST:
            raise InputError(
                f"{source} has {len(classes)} classes, {len(ids)} of them for {split}; a task needs two: {advice}"
            )
    return splits


def _by_fractions(classes: list[str], train: float, validation: float, rule: str) -> dict[Split, np.ndarray]:
    counts = [round(fraction * len(classes)) for fraction in (train, validation)]
    if min(train, validation) < 0 or train + validation > 1 or sum(counts) > len(classes):
        raise InputError(
            f"data.train_fraction={train} and data.validation_fraction={validation} must leave something of 1 for "
            "testing"
        )
    return fixed_splits(classes, *counts) if rule == "count" else splits_by_name(classes, train, validation, FEWEST)


def too_few(source: Path, classes: list[str]) -> str:
    """Return the message for a collection with too few classes to meta-train on."""
    return (
        f"{source} has {len(classes)} classes ({', '.join(classes)}): meta-training needs more, at least {FEWEST} for "
        "each of train, validation and test. A few classes with a handful of labelled pictures are a case for adapting "
        "a trained run without meta-training: innerloop.load(RUN).adapt(support)"
    )
