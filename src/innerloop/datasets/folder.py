"""The user's own pictures: class folders, tables, or arrays, in a folder or in a file."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from innerloop.datasets.arrays import array_files, read_part
from innerloop.datasets.files import digest
from innerloop.datasets.images import LabelledImages, cache_folder, cached, fixed_splits, named_splits, splits_by_name
from innerloop.datasets.layouts import LAYOUT, find_layout
from innerloop.datasets.pictures import pictures
from innerloop.devices.files import user_path
from innerloop.episodes import SPLITS, InputError, Split
from innerloop.errors import some

log = logging.getLogger("innerloop")

SPLIT_RULES = ("name", "count")
SPLIT_KINDS = ("classes", "same")
SAME = "; where all splits have the same classes with other pictures, set data.split=same"
FEWEST = 2
"""The smallest number of classes of a split: a task needs two."""

# Part of the name of the processed file. Raise it when the content of that file changes.
FORMAT = 1

Splits = dict[Split, np.ndarray]


def load(
    root: str | None = None,
    size: int = 84,
    channels: int = 3,
    train_fraction: float = 0.64,
    validation_fraction: float = 0.16,
    split_rule: str = "name",
    class_level: int | None = None,
    split: str = "classes",
) -> LabelledImages:
    """Return the pictures as (N, channels, size, size), squeezed to squares. A class is named by its folder's path.

    root: a folder or a zip file with class folders at any depth; they may all be in one folder inside. If they are in
        folders train, validation (or val) and test, these are the splits, as are lists train.txt, val.txt and test.txt
        of class names. Or a folder with a CSV of files, labels and perhaps splits, or that CSV. Or pickles or .npz
        files of arrays: see `innerloop.datasets.arrays`. Without splits, the classes are split by their names, always
        in the same way.
    channels: 1 for grey, 3 for colour.
    train_fraction, validation_fraction: fractions of the classes; the rest is for testing.
    split_rule: "name" assigns each class by its own name, so that classes added later move no class from training to
        test; the fractions are met approximately. "count" meets them exactly, as runs did before this rule.
    class_level: of nested folders such as species/site/1.jpg, the depth of the folder that is a class: 1 makes each
        species a class, 2 each site. None: the innermost.
    split: "classes" puts no class into two splits. "same" puts every class into all of them, with other pictures in
        each: for new pictures of the same few classes, and no test of new classes. Splits of the source that share
        classes say which pictures; otherwise their paths do.

    The processed images are kept in the user's cache folder.
    Raises InputError that names what is missing, misplaced or broken.
    """
    if root is None:
        raise InputError(f"data=folder needs data.root: {LAYOUT}")
    if channels not in (1, 3):
        raise InputError(f"data.channels={channels}: choose 1 for grey or 3 for colour")
    if size < 1:
        raise InputError(f"data.size must be above zero, got {size}")
    if class_level is not None and class_level < 1:
        raise InputError(f"data.class_level must be above zero, got {class_level}")
    for name, value, known in (("split_rule", split_rule, SPLIT_RULES), ("split", split, SPLIT_KINDS)):
        if value not in known:
            raise InputError(f"data.{name}={value}: choose one of {', '.join(known)}")
    fractions = (train_fraction, validation_fraction)
    source = user_path(root)
    if not source.exists():
        raise InputError(f"data.root={root}: there is no such folder or file; it must be {LAYOUT}")
    if files := array_files(source):
        return _report(source, _arrays(source, files, size, channels, fractions, split_rule, split))
    layout = find_layout(source, class_level)
    classes, paths = list(layout.classes), [path for members in layout.classes.values() for path in members]
    counts = [len(members) for members in layout.classes.values()]
    if split == "classes":
        splits = _splits(source, classes, layout.splits, fractions, split_rule)
    folder = source.parent if source.is_file() and source.suffix.lower() != ".zip" else source
    level = f"-level{class_level}" if class_level is not None else ""
    table = "" if not layout.table else f"-{hashlib.sha256(repr(paths).encode()).hexdigest()[:8]}"
    path = cache_folder("folder") / f"{digest(folder, paths)}{level}{table}-{channels}x{size}x{size}-v{FORMAT}.npz"
    images = cached(path, lambda: {"images": pictures(folder, paths, size, channels)})["images"]
    if split == "same":
        return _report(source, same_classes(source, images, classes, counts, paths, layout.splits, fractions))
    return _report(source, LabelledImages(torch.from_numpy(images), tuple(classes), np.array(counts), splits))


def _arrays(
    source: Path,
    files: dict[Path, Split | None],
    size: int,
    channels: int,
    fractions: tuple[float, float],
    rule: str,
    split: str,
) -> LabelledImages:
    """Return the pictures of files of arrays, which are split by their names or else by fractions."""
    parts = [read_part(path, part_of, size, channels) for path, part_of in files.items()]
    classes = [name for part in parts for name in part.classes]
    counts = [count for part in parts for count in part.counts]
    images = np.concatenate([part.images for part in parts])
    placed = [(part.split, name) for part in parts for name in part.classes if part.split is not None]
    placed = placed if len(placed) == len(classes) else []
    if split == "same":
        names = [f"{name} {i}" for name, count in zip(classes, counts, strict=True) for i in range(count)]
        bare = [(part_of, name.partition("/")[2]) for part_of, name in placed]
        return same_classes(source, images, classes, counts, names, bare, fractions)
    splits = _splits(source, classes, placed or None, fractions, rule)
    return LabelledImages(torch.from_numpy(images), tuple(classes), np.array(counts), splits)


def same_classes(
    source: Path,
    images: np.ndarray,
    classes: Sequence[str],
    counts: Sequence[int],
    names: Sequence[str],
    placed: Sequence[tuple[Split, str]] | None,
    fractions: tuple[float, float],
) -> LabelledImages:
    """Return every class in all splits, with disjoint pictures.

    images: (n, …), class by class. names: of each image. placed: split and name of each class where the source has
    splits. If they share names, they say which picture is in which split; otherwise the digests of the images' names
    do, in these fractions. Raises InputError for a class that is not in all splits, or cannot be divided.
    """
    _check_fractions(*fractions)
    shared = placed if placed and len({name for _, name in placed}) < len(placed) else None
    labels = np.repeat([name for _, name in shared] if shared else list(classes), counts)
    given = np.repeat([split for split, _ in shared], counts) if shared else None
    parts: dict[Split, list[np.ndarray]] = {name: [] for name in SPLITS}
    unique = sorted(set(labels.tolist())) if shared else list(classes)
    for name in unique:
        members = np.flatnonzero(labels == name)
        divided = (
            _by_digest(members, names, fractions) if given is None else [members[given[members] == s] for s in SPLITS]
        )
        for split, part in zip(SPLITS, divided, strict=True):
            if not len(part):
                few = (
                    f"has no picture for {split}" if shared else f"has {len(members)} pictures, too few for all splits"
                )
                raise InputError(f"{source}: class {name} {few}: add pictures")
            parts[split].append(np.sort(part))
    order = np.concatenate([members for split in SPLITS for members in parts[split]])
    ids = np.arange(3 * len(unique)).reshape(3, -1)
    return LabelledImages(
        images=torch.from_numpy(images[order]),
        classes=tuple(unique) * 3,
        counts=np.array([len(members) for split in SPLITS for members in parts[split]]),
        splits=dict(zip(SPLITS, ids, strict=True)),
    )


def _by_digest(members: np.ndarray, names: Sequence[str], fractions: tuple[float, float]) -> list[np.ndarray]:
    """Return the images of a class, by their numbers, in three parts of these fractions."""
    digests = [hashlib.sha256(names[i].encode("utf-8", "surrogateescape")).digest() for i in members]
    order = members[sorted(range(len(members)), key=digests.__getitem__)]
    return np.split(order, np.round(np.cumsum(fractions) * len(members)).astype(int))


def _report(source: Path, data: LabelledImages) -> LabelledImages:
    """Log what was found, and return it."""
    counts = data.counts[np.concatenate([data.splits[split] for split in SPLITS])]
    log.info(
        "%s: %d pictures of %d classes (%s); %s; %d to %d pictures a class, median %g",
        source,
        data.images.shape[0],
        len(set(data.classes)),
        some(data.classes),
        ", ".join(f"{len(data.splits[split])} for {split}" for split in SPLITS),
        counts.min(),
        counts.max(),
        np.median(counts),
    )
    return data


def _splits(
    source: Path,
    classes: list[str],
    placed: list[tuple[Split, str]] | None,
    fractions: tuple[float, float],
    rule: str,
) -> Splits:
    """Return the splits that the source has, else those by fractions."""
    if placed is not None:
        splits, advice = named_splits(source, placed, SAME), f"there must be {LAYOUT}"
    else:
        splits = _by_fractions(classes, *fractions, rule)
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
    _check_fractions(train, validation)
    counts = [round(fraction * len(classes)) for fraction in (train, validation)]
    return fixed_splits(classes, *counts) if rule == "count" else splits_by_name(classes, train, validation, FEWEST)


def _check_fractions(train: float, validation: float) -> None:
    if min(train, validation) < 0 or train + validation > 1:
        raise InputError(
            f"data.train_fraction={train} and data.validation_fraction={validation} must leave something of 1 for "
            "testing"
        )


def too_few(source: Path, classes: list[str]) -> str:
    """Return the message for a collection with too few classes to meta-train on."""
    return (
        f"{source} has {len(classes)} classes ({', '.join(classes)}): meta-training needs more, at least {FEWEST} for "
        "each of train, validation and test. A few classes with a handful of labelled pictures are a case for adapting "
        "without meta-training: python adapt.py support=FOLDER query=NEW out=PREDICTIONS; or, with many pictures of "
        "each, for data.split=same"
    )
