"""mini-ImageNet: 100 classes of ImageNet with 600 photographs each, 84x84 pixels.

Vinyals et al.: Matching networks for one shot learning. NeurIPS, 2016. The split is the usual one, with 64 training, 16
validation and 20 test classes. It is from Ravi, Larochelle: Optimization as a model for few-shot learning. ICLR, 2017.
ImageNet's terms allow no public download.
"""

import csv
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from innerloop.datasets import pickles
from innerloop.datasets.files import digest, listing
from innerloop.datasets.images import LabelledImages, cache_folder, cached, named_splits
from innerloop.datasets.pictures import PICTURES, pictures
from innerloop.devices.files import user_path
from innerloop.episodes import SPLITS, InputError, Split

CLASSES: dict[Split, int] = {"train": 64, "validation": 16, "test": 20}
PHOTOGRAPHS = 600
SIZE = 84

# The file names under which each part is distributed, by learn2learn and others, and by MetaOptNet.
PICKLES: dict[Split, tuple[str, ...]] = {
    "train": ("mini-imagenet-cache-train.pkl", "miniImageNet_category_split_train_phase_train.pickle"),
    "validation": (
        "mini-imagenet-cache-val.pkl",
        "mini-imagenet-cache-validation.pkl",
        "miniImageNet_category_split_val.pickle",
    ),
    "test": ("mini-imagenet-cache-test.pkl", "miniImageNet_category_split_test.pickle"),
}
LISTS: dict[Split, tuple[str, ...]] = {"train": ("train.csv",), "validation": ("val.csv",), "test": ("test.csv",)}

LAYOUT = (
    "mini-ImageNet has no public download: set data.root=FOLDER. FOLDER holds either the three pickles that few-shot "
    "projects such as learn2learn link to, mini-imagenet-cache-train.pkl, -val.pkl and -test.pkl; or Ravi and "
    "Larochelle's train.csv, val.csv and test.csv (twitter-research/meta-learning-lstm on GitHub) and, at any depth, "
    "the photographs that they list, from ImageNet (image-net.org, after registration). data=cifar_fs needs no FOLDER."
)

# Part of the name of the processed file. Increase it when that file's contents change.
FORMAT = 1


class Part(NamedTuple):
    """One split, as read from the file `origin`.

    members: class name -> its photographs, by index or path. images: returns n of these photographs as (n, 3, 84, 84)
    uint8.
    """

    origin: str
    members: Mapping[str, Any]
    images: Callable[[Any], np.ndarray]


def load(root: str | None = None) -> LabelledImages:
    """Return all 60,000 photographs, (N, 3, 84, 84), with classes in the order of the splits: 1.3 GB of memory.

    root: a folder with three pickles, each with the keys {"image_data", "class_dict"} or {"data", "labels"}; or a
        folder with train.csv, val.csv and test.csv (columns filename and label) and, at any depth, the photographs.
        They are resized to 84x84 without keeping the aspect ratio, as is usual. The processed images are cached in the
        user's cache folder.

    Raises InputError if root is None, or if a file is missing, damaged or not the expected part of mini-ImageNet.
    """
    if root is None:
        raise InputError(LAYOUT)
    folder = user_path(root)
    if not folder.is_dir():
        raise InputError(f"data.root={root}: there is no such folder. {LAYOUT}")
    if files := _find(folder, PICKLES):
        read, names = _pickled, files
    elif files := _find(folder, LISTS):
        read, names = _listed, [*files, *itertools.chain(*_photographs(folder).values())]
    else:
        raise InputError(f"data.root={root}: there are neither the three pickles nor the three lists. {LAYOUT}")
    path = cache_folder("mini_imagenet") / f"mini_imagenet-{digest(folder, names)}-v{FORMAT}.npz"
    stored = cached(path, lambda: parse(read(folder / name) for name in files))
    classes = [(split, str(name)) for split in SPLITS for name in stored[split]]
    return LabelledImages(
        images=torch.from_numpy(stored["images"]),
        classes=tuple(name for _, name in classes),
        counts=np.full(len(classes), PHOTOGRAPHS),
        splits=named_splits(folder, classes),
    )


def parse(parts: Iterable[Part]) -> dict[str, np.ndarray]:
    """Return the arrays to cache, by name.

    images: (N, 3, 84, 84) uint8. train, validation, test: names of the classes of each split, in the order of the
    images.

    Raises InputError unless all classes and all photographs are there.
    """
    images = np.empty((sum(CLASSES.values()) * PHOTOGRAPHS, 3, SIZE, SIZE), np.uint8)
    names: dict[str, np.ndarray] = {}
    done = 0
    for (split, count), part in zip(CLASSES.items(), parts, strict=True):
        if len(part.members) != count:
            raise InputError(f"{part.origin} holds {len(part.members)} classes, the {split} split has {count}")
        names[split] = np.array(sorted(part.members))
        for name in sorted(part.members):
            members = part.members[name]
            if len(members) != PHOTOGRAPHS:
                raise InputError(f"{part.origin}: {name} has {len(members)} photographs, there should be {PHOTOGRAPHS}")
            images[done : done + PHOTOGRAPHS] = part.images(members)
            done += PHOTOGRAPHS
    return {"images": images, **names}


def _find(folder: Path, files: Mapping[Split, Sequence[str]]) -> list[str]:
    """Return the name of each split's file, or an empty list unless all three exist."""
    found = [next((name for name in files[split] if (folder / name).is_file()), None) for split in SPLITS]
    return [name for name in found if name] if all(found) else []


def _pickled(path: Path) -> Part:
    try:
        with open(path, "rb") as file:
            content = pickles.load(file, str(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    try:
        pixels = np.asarray(content["image_data" if "image_data" in content else "data"])
        if "class_dict" in content:
            members = {pickles.text(name): np.asarray(indices) for name, indices in content["class_dict"].items()}
        else:
            labels = np.asarray(content["labels"])
            # Labels may start at zero in every file, so the name of a class includes the name of the file.
            members = {f"{path.stem}/{label}": np.flatnonzero(labels == label) for label in np.unique(labels)}
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (SIZE, SIZE, 3):
            raise ValueError(f"images of shape {pixels.shape}, {pixels.dtype}")
        all_indices = np.concatenate(list(members.values()))
        if not np.array_equal(np.sort(all_indices), np.arange(len(pixels))):
            raise ValueError("its classes do not contain every image exactly once")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is no part of mini-ImageNet: {type(error).__name__}: {error}") from error
    return Part(str(path), members, lambda indices: pixels[indices].transpose(0, 3, 1, 2))


def _listed(path: Path) -> Part:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, restkey="", restval=""))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not rows or not {"filename", "label"} <= set(rows[0]):
        raise InputError(f"{path} is no list of photographs with the columns filename and label")
    found = _photographs(path.parent)
    members: dict[str, list[str]] = {}
    for row in rows:
        if row["filename"] not in found:
            raise InputError(f"{path} names {row['filename']}, which is nowhere in {path.parent}. {LAYOUT}")
        paths = found[row["filename"]]
        if len(paths) > 1:
            raise InputError(f"{path.parent}: {row['filename']} is there more than once: {', '.join(paths)}")
        members.setdefault(row["label"], []).append(paths[0])
    return Part(str(path), members, lambda names: pictures(path.parent, names, SIZE, channels=3))


def _photographs(folder: Path) -> dict[str, list[str]]:
    """Return file name -> paths within `folder` for every image file in it, at any depth."""
    found: dict[str, list[str]] = {}
    for name in listing(folder):
        if name.lower().endswith(PICTURES):
            found.setdefault(name.rpartition("/")[2], []).append(name)
    return found
