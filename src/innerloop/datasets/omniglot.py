"""Omniglot: 1623 handwritten characters of 50 alphabets, each drawn once by 20 people.

Lake, Salakhutdinov, Tenenbaum: Human-level concept learning through probabilistic program induction. Science, 2015.
Downloaded from the authors' repository (MIT licence), or read from a folder.
"""

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from innerloop.datasets.files import digest, fetch, listing, read
from innerloop.datasets.images import LabelledImages, cache_folder, cached, fixed_splits
from innerloop.datasets.pictures import decode
from innerloop.devices.files import user_path
from innerloop.episodes import InputError, Split

URL = "https://github.com/brendenlake/omniglot/raw/master/python/"
BACKGROUND, EVALUATION = "images_background", "images_evaluation"
MD5 = {BACKGROUND: "68d2efa1b9178cc56df9314c21c6e718", EVALUATION: "6b91aef0f799c5bb55b94e3f2daec811"}
CHARACTERS = {BACKGROUND: 964, EVALUATION: 659}
DRAWINGS = 20
SIZE = 28

# Number of training and validation characters in the character split. All others are test characters. Vinyals et al.
# (2016) and Finn et al. (2017) train on 1200 and test on 423. Here, 100 of the 1200 are used for validation.
TRAIN, VALIDATION = 1100, 100

# Validation alphabets of the alphabet split: the five smallest background alphabets, with 81 characters, as in
# Meta-Dataset (Triantafillou et al., 2020).
VALIDATION_ALPHABETS = (
    "Alphabet_of_the_Magi",
    "Blackfoot_(Canadian_Aboriginal_Syllabics)",
    "Inuktitut_(Canadian_Aboriginal_Syllabics)",
    "Ojibwe_(Canadian_Aboriginal_Syllabics)",
    "Tagalog",
)

# Part of the names of the processed files. Increase it when those files' contents change.
FORMAT = 1


def load(root: str | None = None, split: str = "characters") -> LabelledImages:
    """Return all 32,460 drawings, (N, 1, 28, 28), with ink 255 on background 0. Classes are "Alphabet/characterNN".

    root: a folder with images_background.zip and images_evaluation.zip, or with the unpacked archives. None: download
        both (14 MB) to the user's cache folder and verify them. The processed images are cached in the same folder.
    split: "characters": 1100 training, 100 validation and 423 test characters, whatever their alphabets. "alphabets":
        whole alphabets, with 883, 81 and 659 characters; the evaluation archive is the test split. Both are fixed and
        do not depend on a seed. Only whole alphabets are groups that Meta-Dataset's sampler draws from.

    Raises InputError if a file cannot be downloaded or read, is damaged, or is not the complete Omniglot, or if there
    is no such split.
    """
    if split not in ("characters", "alphabets"):
        raise InputError(f"data.split={split}: choose characters or alphabets")
    parts = [_images(name, _download(name) if root is None else find(root, name)) for name in (BACKGROUND, EVALUATION)]
    names, images = zip(*parts, strict=True)
    classes = (*names[0], *names[1])
    splits = fixed_splits(classes, TRAIN, VALIDATION) if split == "characters" else _alphabets(classes, len(names[0]))
    return LabelledImages(
        images=torch.from_numpy(np.concatenate(images)).unsqueeze(1),
        classes=classes,
        counts=np.full(len(classes), DRAWINGS),
        splits=splits,
        inverted=True,
        groups={part: by_alphabet(classes, ids) for part, ids in splits.items()} if split == "alphabets" else None,
    )


def by_alphabet(classes: tuple[str, ...], ids: np.ndarray) -> list[np.ndarray]:
    """Return the class ids of each alphabet. classes: all names, "Alphabet/characterNN"."""
    alphabets = np.array([classes[i].split("/")[0] for i in ids])
    return [ids[alphabets == alphabet] for alphabet in np.unique(alphabets)]


def find(root: str, archive: str) -> Path:
    """Return the folder `archive` or the file `archive`.zip in the folder `root`.

    Raises InputError if neither exists.
    """
    folder = user_path(root)
    if not folder.is_dir():
        raise InputError(f"data.root={root}: there is no such folder")
    if (folder / archive).is_dir():
        return folder / archive
    if (folder / f"{archive}.zip").is_file():
        return folder / f"{archive}.zip"
    raise InputError(f"data.root={root}: neither {archive}.zip nor a folder {archive} is there")


def parse(archive: str, source: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names and the drawings of all characters of one archive. Any number of characters is accepted.

    archive: its name. source: the zip file or the unpacked folder. The names are "Alphabet/characterNN", sorted. The
    drawings are (characters, drawings, 28, 28) uint8 with ink 255.
    Raises InputError for a file that cannot be read and for a character with too few or too many drawings. The message
    names it.
    """
    drawings: dict[str, dict[str, np.ndarray]] = {}
    # Paths in the zip file start with the folder `archive`. If it is unpacked, that folder is `source` itself.
    pattern = re.compile(rf"(?:{archive}/)?([^/]+/character\d+)/(\d+_\d+)\.png")
    found = [match for match in map(pattern.fullmatch, listing(source)) if match]
    for match, data in zip(found, read(source, [match[0] for match in found]), strict=True):
        drawings.setdefault(match[1], {})[match[2]] = _drawing(data, f"{source}: {match[0]}")
    if not drawings:
        raise InputError(
            f"{source} is not the {archive} part of Omniglot: it holds no {archive}/ALPHABET/characterNN/IIII_DD.png"
        )
    for name, images in drawings.items():
        if len(images) != DRAWINGS:
            raise InputError(f"{source}: {name} has {len(images)} drawings, there should be {DRAWINGS}")
    names = tuple(sorted(drawings))
    return names, np.stack([[image for _, image in sorted(drawings[name].items())] for name in names])


def _images(archive: str, source: Path) -> tuple[tuple[str, ...], np.ndarray]:
    def build() -> dict[str, np.ndarray]:
        names, images = parse(archive, source)
        if len(names) != CHARACTERS[archive]:
            raise InputError(f"{source} holds {len(names)} characters, there should be {CHARACTERS[archive]}")
        return {"names": np.array(names), "images": images}

    state = digest(source, [name for name in listing(source) if name.endswith(".png")])
    stored = cached(cache_folder("omniglot") / f"{archive}-{state}-v{FORMAT}.npz", build)
    return tuple(map(str, stored["names"])), stored["images"].reshape(-1, SIZE, SIZE)


def _drawing(data: bytes, origin: str) -> np.ndarray:
    image = decode(data, origin).convert("L")
    if image.size != (105, 105):
        raise InputError(f"{origin} is {image.size[0]}x{image.size[1]}, Omniglot's drawings are 105x105")
    return 255 - np.asarray(image.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def _download(archive: str) -> Path:
    advice = (
        f"Without a network, put {BACKGROUND}.zip and {EVALUATION}.zip in a folder and set data.root=FOLDER; "
        "data=glyphs needs no download."
    )
    return fetch(f"{URL}{archive}.zip", MD5[archive], cache_folder("omniglot"), advice)


def _alphabets(classes: tuple[str, ...], background: int) -> dict[Split, np.ndarray]:
    ids = np.arange(len(classes))
    held_out = np.array([name.split("/")[0] in VALIDATION_ALPHABETS for name in classes])
    return {
        "train": ids[(ids < background) & ~held_out],
        "validation": ids[(ids < background) & held_out],
        "test": ids[ids >= background],
    }
