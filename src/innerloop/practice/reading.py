"""A person's own pictures, found and read. What cannot be used is set aside with a reason."""

import posixpath
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from innerloop.backbones.store import picture_digest
from innerloop.datasets.files import entries, reader
from innerloop.datasets.layouts import split_of, tables_in
from innerloop.datasets.pictures import PICTURES, picture
from innerloop.datasets.tables import TABLES, is_file, read_table, written
from innerloop.devices.files import user_path
from innerloop.errors import InputError

Embed = Callable[[Iterator[np.ndarray], int], Tensor]
"""embed(pictures, about their number) -> x, (n, …). A picture is (channels, size, size) uint8."""
THUMBNAIL = 96
"""Pixels of the small copies that a report shows."""


class Skipped(NamedTuple):
    """A file that is not used, and why."""

    file: str
    reason: str


class Preparation(NamedTuple):
    """How pictures are read: size x size pixels, 1 or 3 channels, and whether light and dark are exchanged."""

    size: int
    channels: int
    inverted: bool = False


@dataclass(frozen=True)
class Listing:
    """Files that may be pictures, sorted by path.

    source: a folder or a zip file that the paths are relative to. labels: one for each path, None where there is none.
    given: labels that the source has, also of files that cannot be used.
    """

    source: Path
    files: list[str]
    labels: list[str | None]
    skipped: list[Skipped]
    given: frozenset[str] = frozenset()

    def only(self, chosen: Sequence[int]) -> "Listing":
        """Return some of the files, by their numbers, and nothing that was set aside."""
        return Listing(self.source, [self.files[i] for i in chosen], [self.labels[i] for i in chosen], [])


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures that were read.

    listing: their files and labels, and the files that were set aside. x: (n, …), what the prepared pictures were
    turned into. thumbnails: (n, channels, 96, 96) uint8, upright and not inverted. digests: of the prepared pictures.
    """

    listing: Listing
    x: Tensor
    thumbnails: Tensor
    digests: list[bytes]

    @property
    def files(self) -> list[str]:
        """Paths of the pictures."""
        return self.listing.files

    @property
    def labels(self) -> list[str | None]:
        """Label of each picture, None where there is none."""
        return self.listing.labels


def find(source: Path, labelled: bool) -> Listing:
    """Return the pictures of a folder, a zip file, a table or a single file.

    The label of a picture in a folder is the outermost folder that it is in; common parent folders are skipped. A table
    has a column of files, relative to the table, and one of labels: see `innerloop.datasets.tables`. A folder or zip
    file of labelled pictures may hold one table of them instead of class folders.

    labelled: whether pictures without a label are set aside. Raises InputError if nothing is there.
    """
    source = user_path(source)
    try:
        is_folder, exists = source.is_dir(), source.exists()
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror}") from error
    if not exists:
        raise InputError(f"{source}: there is no such folder or file")
    if not is_folder and source.suffix.lower() in TABLES:
        return _from_table(source.parent, source.name, labelled, [])
    if not is_folder and not source.is_file():
        raise InputError(f"{source} is no file but a pipe, a socket or a device")
    if not is_folder and source.suffix.lower() != ".zip":
        if labelled:
            raise InputError(
                f"{source}: labelled pictures are a folder or zip file with a folder for each class, or a CSV"
            )
        return Listing(source.parent, [source.name], [None], [])
    names, refused = entries(source)
    if labelled and (tables := tables_in(source, names)):
        if len(tables) > 1:
            raise InputError(f"{source} holds several tables, {', '.join(tables)}: give one of them")
        return _from_table(source, tables[0], labelled, [name for name in names if name.lower().endswith(PICTURES)])
    skipped = [Skipped(name, reason) for name, reason in refused.items()]
    pictures = []
    for name in names:
        if name.lower().endswith(PICTURES):
            pictures.append(name)
        elif not name.endswith("/"):
            skipped.append(Skipped(name, "is of no picture format that is known"))
    inner = _common_folder(pictures)
    labels = [_outermost(name.removeprefix(inner)) for name in pictures]
    if labelled:
        refuse_splits(sorted({label for label in labels if label is not None}))
    given = frozenset(_outermost(n.removeprefix(inner)) or "" for n in (*names, *refused) if n.startswith(inner)) - {""}
    listing = Listing(source, pictures, labels, skipped, given)
    return _without_unlabelled(listing, "is in no class folder") if labelled else listing


def _from_table(source: Path, table: str, labelled: bool, pictures: list[str]) -> Listing:
    """pictures: those of the source, if it was given: a row may then name a file without its folders."""
    hint = "; for a table of numbers give label=COLUMN"
    rows, folder = read_table(source / table, labelled, hint), posixpath.dirname(table)
    there, by_name = set(pictures), dict[str, list[str]]()
    is_there = there.__contains__ if pictures else lambda file: is_file(source / file)
    for name in pictures:
        by_name.setdefault(posixpath.basename(name), []).append(name)
    found: dict[str, set[str | None]] = {}
    skipped: list[Skipped] = []
    for row in rows:
        if row.file:
            file = written(posixpath.normpath(posixpath.join(folder, row.file)), is_there)
            places = by_name.get(posixpath.basename(file), []) if file not in there else []
            found.setdefault(places[0] if len(places) == 1 else file, set()).add(row.label)
        else:
            skipped.append(Skipped(f"{table} (label {row.label})", "its row names no file"))
    files, labels = list[str](), list[str | None]()
    for file, given in sorted(found.items()):
        if len(given) > 1:
            listed = ", ".join(sorted(map(str, given)))
            skipped.append(Skipped(file, f"has several labels in {table}: {listed}"))
        else:
            files.append(file)
            labels.append(next(iter(given)))
    skipped += [Skipped(name, f"is not in {table}") for name in pictures if name not in found]
    listing = Listing(source, files, labels, skipped, frozenset(row.label for row in rows if row.label))
    return _without_unlabelled(listing, "has no label") if labelled else listing


def _without_unlabelled(listing: Listing, reason: str) -> Listing:
    kept = [i for i, label in enumerate(listing.labels) if label is not None]
    bare = [Skipped(f, reason) for f, label in zip(listing.files, listing.labels, strict=True) if label is None]
    files, labels = [listing.files[i] for i in kept], [listing.labels[i] for i in kept]
    return Listing(listing.source, files, labels, [*listing.skipped, *bare], listing.given)


def _outermost(name: str) -> str | None:
    folder, inside, _ = name.partition("/")
    return unicodedata.normalize("NFC", folder) if inside else None


def _common_folder(names: list[str]) -> str:
    """Return the folder, such as "a/b/", that holds all pictures and has several folders or pictures of its own."""
    inner = ""
    while names:
        rest = {name.removeprefix(inner).partition("/")[0] for name in names}
        if len(rest) > 1 or not all("/" in name.removeprefix(inner).partition("/")[2] for name in names):
            break
        inner += f"{rest.pop()}/"
    return inner


def refuse_splits(labels: list[str]) -> None:
    """Raise InputError if the classes are called like splits, such as train and test: one level too high was given."""
    if len(labels) > 1 and all(map(split_of, labels)):
        raise InputError(
            f"the folders {', '.join(labels)} are named like splits and not like classes: give one of them"
        )


def read_all(listing: Listing, preparation: Preparation, embed: Embed, workers: int) -> Pictures:
    """Return the pictures that can be read, decoded by some threads; perhaps none.

    embed: turns prepared pictures into x.
    """
    skipped, used, small, digests = list(listing.skipped), list[int](), list[Tensor](), list[bytes]()

    def usable() -> Iterator[np.ndarray]:
        for i, found in enumerate(_decoded(listing, preparation, workers)):
            if isinstance(found, str):
                skipped.append(Skipped(listing.files[i], found))
                continue
            used.append(i)
            digests.append(picture_digest(found))
            small.append(thumbnail(255 - found if preparation.inverted else found))
            yield found

    stream = usable()
    first = next(stream, None)
    x = torch.empty(0) if first is None else embed(chain([first], stream), len(listing.files))
    found = listing.only(used)
    found.skipped.extend(sorted(skipped))
    return Pictures(found, x, torch.stack(small) if small else torch.empty(0), digests)


def _decoded(listing: Listing, preparation: Preparation, workers: int) -> Iterator[np.ndarray | str]:
    """Yield for each file the prepared picture, or why there is none."""
    with ExitStack() as stack:
        content = stack.enter_context(reader(listing.source))
        pool = stack.enter_context(ThreadPoolExecutor(max(workers, 1)))
        # zipfile reads under a lock of its own; the decoding is what takes time.
        waiting: deque[Future[np.ndarray | str]] = deque()
        try:
            for name in listing.files:
                waiting.append(pool.submit(_one, content, listing.source, name, preparation))
                if len(waiting) > 4 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _one(content: Callable[[str], bytes], source: Path, name: str, preparation: Preparation) -> np.ndarray | str:
    try:
        found = picture(content(name), name, preparation.size, preparation.channels)
    except InputError as error:
        return str(error).removeprefix(f"{source / name} ").removeprefix(f"{source}: ").removeprefix(f"{name} ")
    return np.ascontiguousarray(255 - found if preparation.inverted else found)


def thumbnail(image: np.ndarray) -> Tensor:
    """Return a small copy of a picture: (channels, h, w) uint8 -> (channels, 96, 96) uint8."""
    x = torch.from_numpy(np.array(image)).float()[None]
    return F.interpolate(x, (THUMBNAIL, THUMBNAIL), mode="bilinear", antialias=True)[0].round().to(torch.uint8)


def without_twins(pictures: Pictures) -> Pictures:
    """Set aside pictures that are there twice: all of them if their labels differ, all but the first otherwise."""
    places: dict[bytes, list[int]] = {}
    for i, digest in enumerate(pictures.digests):
        places.setdefault(digest, []).append(i)
    skipped, kept = list(pictures.listing.skipped), list[int]()
    for members in places.values():
        names = [pictures.files[i] for i in members]
        if len({pictures.labels[i] for i in members}) > 1:
            for name in names:
                others = ", ".join(other for other in names if other != name)
                skipped.append(Skipped(name, f"is the same picture as {others}, of another class"))
        else:
            kept.append(members[0])
            skipped += [Skipped(name, f"is the same picture as {names[0]}") for name in names[1:]]
    kept.sort()
    listing = pictures.listing.only(kept)
    listing.skipped.extend(sorted(skipped))
    return Pictures(listing, pictures.x[kept], pictures.thumbnails[kept], [pictures.digests[i] for i in kept])
