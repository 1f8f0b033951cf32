"""A person's own pictures, read. What cannot be used is set aside with a reason."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from innerloop.backbones.store import picture_digest
from innerloop.datasets.files import reader
from innerloop.datasets.pictures import picture
from innerloop.errors import InputError

Embed = Callable[[Iterator[np.ndarray], int], Tensor]
"""embed(pictures, about their number) -> x, (n, …). A picture is (channels, size, size) uint8."""
THUMBNAIL = 96
"""Pixels of the small copies that a report shows."""
LEAST = 8
"""Pixels of the shorter side of a picture, below which it shows nothing."""


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
    given: labels that the source has, also of files that cannot be used. individuals: what each picture is of, empty
    if no table says so. label: name of the table's column of labels. warnings: what its user must know, in sentences.
    """

    source: Path
    files: list[str]
    labels: list[str | None]
    skipped: list[Skipped]
    given: frozenset[str] = frozenset()
    individuals: list[str | None] = field(default_factory=list)
    label: str | None = None
    warnings: list[str] = field(default_factory=list)

    def only(self, chosen: Sequence[int]) -> "Listing":
        """Return some of the files, by their numbers, and nothing that was set aside."""
        individuals = [self.individuals[i] for i in chosen] if self.individuals else []
        files, labels = [self.files[i] for i in chosen], [self.labels[i] for i in chosen]
        return Listing(self.source, files, labels, [], individuals=individuals, label=self.label)


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures that were read.

    listing: their files and labels, and the files that were set aside. x: (n, …), what the prepared pictures were
    turned into. thumbnails: (n, channels, 96, 96) uint8, upright and not inverted. digests: of the prepared pictures.
    several: paths of pictures with several pages or frames, of which the first is used.
    """

    listing: Listing
    x: Tensor
    thumbnails: Tensor
    digests: list[bytes]
    several: list[str] = field(default_factory=list)

    @property
    def files(self) -> list[str]:
        """Paths of the pictures."""
        return self.listing.files

    @property
    def labels(self) -> list[str | None]:
        """Label of each picture, None where there is none."""
        return self.listing.labels


def read_all(listing: Listing, preparation: Preparation, embed: Embed, workers: int) -> Pictures:
    """Return the pictures that can be read, decoded by some threads; perhaps none.

    embed: turns prepared pictures into x.
    """
    skipped, used, small, digests = list(listing.skipped), list[int](), list[Tensor](), list[bytes]()
    several = set[str]()

    def usable() -> Iterator[np.ndarray]:
        for i, found in enumerate(_decoded(listing, preparation, workers, several)):
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
    thumbnails = torch.stack(small) if small else torch.empty(0)
    return Pictures(found, x, thumbnails, digests, sorted(several.intersection(found.files)))


def _decoded(listing: Listing, preparation: Preparation, workers: int, several: set[str]) -> Iterator[np.ndarray | str]:
    """Yield for each file the prepared picture, or why there is none. several: see `picture`."""
    with ExitStack() as stack:
        content = stack.enter_context(reader(listing.source))
        pool = stack.enter_context(ThreadPoolExecutor(max(workers, 1)))
        # zipfile reads under a lock of its own; the decoding is what takes time.
        waiting: deque[Future[np.ndarray | str]] = deque()
        try:
            for name in listing.files:
                waiting.append(pool.submit(_one, content, listing.source, name, preparation, several))
                if len(waiting) > 4 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _one(
    content: Callable[[str], bytes], source: Path, name: str, preparation: Preparation, several: set[str]
) -> np.ndarray | str:
    try:
        found = picture(content(name), name, preparation.size, preparation.channels, LEAST, several)
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
    digests = [pictures.digests[i] for i in kept]
    return Pictures(listing, pictures.x[kept], pictures.thumbnails[kept], digests, pictures.several)
