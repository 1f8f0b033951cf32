"""Pictures as arrays with labels: the pickles of CIFAR-FS, FC100 and mini-ImageNet, and .npz files."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from innerloop.datasets import pickles
from innerloop.datasets.layouts import SPLIT_NAMES
from innerloop.episodes import SPLITS, InputError, Split

SUFFIXES = (".npz", ".pickle", ".pkl")
IMAGES = ("images", "image_data", "data", "x")
LABELS = ("labels", "targets", "label", "y")
"""Names of the arrays, the first of each that a file has."""


class Part(NamedTuple):
    """The pictures of one file. images: (n, channels, size, size) uint8, class by class. counts: of each class."""

    split: Split | None
    images: np.ndarray
    classes: list[str]
    counts: list[int]


def array_files(source: Path) -> dict[Path, Split | None]:
    """Return the files with arrays that a data set is: one file, or one for each split in a folder; none otherwise.

    A file's split is the one that its name has, such as CIFAR_FS_train.pickle. Files with two are other cuts of the
    same classes and are left out.
    """
    if source.is_file():
        return {source: None} if source.suffix.lower() in SUFFIXES else {}
    found: dict[Path, Split | None] = {}
    for path in sorted(source.iterdir()):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            words = {SPLIT_NAMES.get(word) for word in re.split(r"[^a-z]+", path.stem.lower())} - {None}
            if len(words) == 1:
                found[path] = words.pop()
    return dict(sorted(found.items(), key=lambda item: SPLITS.index(item[1]) if item[1] else len(SPLITS)))


def read_part(path: Path, split: Split | None, size: int, channels: int) -> Part:
    """Return the pictures of a file, resized to squares. Raises InputError if it holds none."""
    content = _content(path)
    images, labels = (next((content[k] for k in names if k in content), None) for names in (IMAGES, LABELS))
    if labels is None and "class_dict" in content and images is not None:
        labels = np.empty(len(images), object)
        for name, members in content["class_dict"].items():
            labels[np.asarray(members)] = pickles.text(name)
    if images is None or labels is None:
        raise InputError(f"{path} holds {', '.join(content)}: there must be images ({', '.join(IMAGES)}) and labels")
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise InputError(f"{path}: images must be uint8 of shape (n, h, w, 1 or 3), got {images.shape}, {images.dtype}")
    if labels.shape != (len(images),):
        raise InputError(f"{path}: there are {len(images)} images and labels of shape {labels.shape}")
    texts = np.array([pickles.text(label) for label in labels.tolist()])
    names, counts = np.unique(texts, return_counts=True)
    order = np.argsort(texts, kind="stable")
    prepared = np.stack([_prepared(images[i], size, channels) for i in order])
    # Labels may start at zero in every file, so a class's name has the file's.
    return Part(split, prepared, [f"{path.stem}/{name}" for name in names], counts.tolist())


def _prepared(image: np.ndarray, size: int, channels: int) -> np.ndarray:
    if image.shape != (size, size, channels):
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        picture = picture.convert("L" if channels == 1 else "RGB").resize((size, size), Image.Resampling.LANCZOS)
        image = np.asarray(picture).reshape(size, size, channels)
    return image.transpose(2, 0, 1)


def _content(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix.lower() == ".npz":
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        with open(path, "rb") as file:
            return pickles.load(file, str(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no valid .npz of arrays: {error}") from error
