"""CIFAR-100: 60,000 colour images of 100 classes in 20 superclasses. CIFAR-FS and FC100 are two splits of it.

Krizhevsky: Learning multiple layers of features from tiny images. Technical report, University of Toronto, 2009.
Downloaded from the author's page, or read from a file or a folder.
"""

import tarfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from innerloop.datasets import pickles
from innerloop.datasets.files import LARGEST_FILE, digest, fetch
from innerloop.datasets.images import LabelledImages, cache_folder, cached, named_splits
from innerloop.devices.files import user_path
from innerloop.episodes import InputError, Split

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
MD5 = "eb9058c3a382ffc7106e4002c42a8d85"
ARCHIVE, FOLDER = "cifar-100-python.tar.gz", "cifar-100-python"
CLASSES = 100
# Number of images per class in each part. Few-shot learning splits by class, so both parts are used together.
PARTS = {"train": 500, "test": 100}
MOST_MEMBERS = 100
"""Limit on the number of files in an archive, which has four."""
SIZE = 32

# Part of the name of the processed file. Increase it when that file's contents change.
FORMAT = 1


def load(root: str | None, splits: Mapping[Split, Collection[str]]) -> LabelledImages:
    """Return all 60,000 images, (N, 3, 32, 32): 600 per class. In each class, those of the training part come first.

    root: cifar-100-python.tar.gz, the folder that contains it, or the unpacked archive. None: download it (161 MB) to
        the user's cache folder and verify it. The processed images are cached in the same folder.
    splits: the classes of each split, by their own name or the name of their superclass.

    Raises InputError if a file cannot be downloaded or read, is damaged, or is not the complete CIFAR-100.
    """
    source = _download() if root is None else find(root)
    state = digest(source, ["meta", *PARTS])
    stored = cached(cache_folder("cifar100") / f"cifar100-{state}-v{FORMAT}.npz", lambda: parse(source))
    split_of = {name: split for split, names in splits.items() for name in names}
    classes = [tuple(map(str, names)) for names in zip(stored["classes"], stored["superclasses"], strict=True)]
    for name, superclass in classes:
        if name not in split_of and superclass not in split_of:
            raise InputError(f"{source} is not CIFAR-100: no split has its class {name} of {superclass}")
    return LabelledImages(
        images=torch.from_numpy(stored["images"]),
        classes=tuple(name for name, _ in classes),
        counts=np.full(len(classes), sum(PARTS.values())),
        splits=named_splits(
            source,
            [(split_of[name] if name in split_of else split_of[superclass], name) for name, superclass in classes],
        ),
    )


def find(root: str) -> Path:
    """Return the path of the archive or of the folder with its three files. It is `root` itself or in `root`.

    Raises InputError if there is neither.
    """
    path = user_path(root)
    if not path.exists():
        raise InputError(f"data.root={root}: there is no such file or folder")
    for candidate in (path, path / FOLDER, path / ARCHIVE):
        if candidate.is_file() or (candidate / "meta").is_file():
            return candidate
    raise InputError(f"data.root={root}: neither {ARCHIVE} nor its folder {FOLDER} is there")


def parse(source: Path) -> dict[str, np.ndarray]:
    """Return the arrays to cache, by name.

    images: (N, 3, 32, 32) uint8, sorted by class. classes: (100,), name of each class. superclasses: (100,), name of
    each class's superclass.

    Raises InputError, naming the cause, if a file cannot be read or its contents are not those of CIFAR-100.
    """
    contents = _unpack(source)
    try:
        names, groups = (contents["meta"][key] for key in ("fine_label_names", "coarse_label_names"))
        parts = {part: _part(contents[part], count) for part, count in PARTS.items()}
        pixels, fine, coarse = map(np.concatenate, zip(*parts.values(), strict=True))
        pairs = np.unique(np.stack([fine, coarse]), axis=1)  # sorted by class; each class is in one superclass
        if pairs.shape[1] != len(names):
            raise ValueError(f"{pairs.shape[1]} pairs of class and superclass for {len(names)} classes")
        return {
            "images": pixels[fine.argsort(kind="stable")].reshape(-1, 3, SIZE, SIZE),
            "classes": np.array([pickles.text(name) for name in names]),
            "superclasses": np.array([pickles.text(groups[group]) for group in pairs[1]]),
        }
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"{source} is not CIFAR-100: {type(error).__name__}: {error}") from error


def _part(content: Mapping[str, Any], count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pixels (n, 3072), classes (n,) and superclasses (n,) of one part.

    Raises ValueError unless all images are there.
    """
    pixels, fine, coarse = (np.asarray(content[key]) for key in ("data", "fine_labels", "coarse_labels"))
    if pixels.shape != (CLASSES * count, 3 * SIZE * SIZE) or pixels.dtype != np.uint8:
        raise ValueError(f"pixels of shape {pixels.shape}, {pixels.dtype}")
    if not np.array_equal(np.sort(fine), np.repeat(np.arange(CLASSES), count)):
        raise ValueError(f"not {count} pictures of each of {CLASSES} classes")
    return pixels, fine, coarse


def _unpack(source: Path) -> dict[str, dict[str, Any]]:
    """Return the contents of the files "meta", "train" and "test", by file name."""
    names, found = {"meta", *PARTS}, {}
    try:
        if source.is_dir():
            for name in sorted(names):
                with open(source / name, "rb") as file:
                    found[name] = pickles.load(file, f"{source / name}")
        else:
            with tarfile.open(source) as archive:
                for number, member in enumerate(archive):
                    name = member.name.rpartition("/")[2]
                    if number >= MOST_MEMBERS or member.size > LARGEST_FILE:
                        raise InputError(f"{source} is not {ARCHIVE}: {member.name} is too large or one file too many")
                    stream = archive.extractfile(member) if member.isreg() and name in names else None
                    if stream is not None:
                        found[name] = pickles.load(stream, f"{source}: {member.name}")
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise InputError(f"{source} is not a complete {ARCHIVE}: {error}") from error
    if missing := names - set(found):
        raise InputError(f"{source} is not a complete {ARCHIVE}: it lacks {', '.join(sorted(missing))}")
    return found


def _download() -> Path:
    advice = f"Without a network, put {ARCHIVE} in a folder and set data.root=FOLDER; data=glyphs needs no download."
    return fetch(URL, MD5, cache_folder("cifar100"), advice)
