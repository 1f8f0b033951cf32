"""Ratings that users gave to items: any table of them, the MovieLens collections, and synthetic ones."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from innerloop.datasets.columns import Lines, TextTable, advice, as_number, numbers_of
from innerloop.devices.files import user_path
from innerloop.episodes import InputError

USER_BITS, ITEM_BITS, VALUE_BITS = 25, 23, 16
"""How a rating is packed into one number of 64 bits while a file is read: user, item, and which of the values."""
PIECE = 2**17
"""Number of ratings that are computed with at a time."""
DUPLICATES = ("error", "first", "last")


@dataclass(frozen=True, eq=False)
class RatingTable:
    """Ratings sorted by user and then by item.

    users, items: their names in the file. first: (users + 1,) int64, user u has the ratings first[u] to
    first[u + 1] - 1. item: (n,) int32, numbers of items. rating: (n,) float32. time: (n,) float64, or None.
    scale: the lowest and highest rating that is possible.
    """

    users: tuple[str, ...]
    items: tuple[str, ...]
    first: np.ndarray
    item: np.ndarray
    rating: np.ndarray
    scale: tuple[float, float]
    time: np.ndarray | None = None

    @property
    def counts(self) -> np.ndarray:
        """Number of ratings of each user, (users,)."""
        return np.diff(self.first)


class MovieLens(NamedTuple):
    """A collection of GroupLens. counts: of ratings, users and rated items. lowest: rating of its scale."""

    file: str
    counts: tuple[int, int, int]
    separator: str
    columns: Sequence[str]
    lowest: float


NUMBERED = ("1", "2", "3", "4")
COLLECTIONS = {
    "ml-100k": MovieLens("u.data", (100_000, 943, 1682), "\t", NUMBERED, 1.0),
    "ml-1m": MovieLens("ratings.dat", (1_000_209, 6040, 3706), "::", NUMBERED, 1.0),
    "ml-latest-small": MovieLens(
        "ratings.csv", (100_836, 610, 9724), ",", ("userId", "movieId", "rating", "timestamp"), 0.5
    ),
}


def load(
    root: str | None = None,
    user: str = "user",
    item: str = "item",
    rating: str = "rating",
    time: str | None = None,
    separator: str | None = None,
    header: bool = True,
    scale: Sequence[float] | None = None,
    duplicates: str = "error",
) -> RatingTable:
    """Return the ratings of a table, a text file with a row for each.

    root: the file. user, item, rating, time: the names of its columns; without a header "1", "2", …. Users and items
        may be any text, in any order. time: a number, for tasks whose support are a user's first ratings; None: not
        read. separator: see `TextTable`.
    scale: the lowest and highest rating that is possible; None: those of the file.
    duplicates: what to do where a user rated an item twice: "error", or take the "first" or "last" in the file.

    A file is read within twice its size of memory: see `Packer`. Raises InputError that names file, line and column
    for what is no rating.
    """
    if duplicates not in DUPLICATES:
        raise InputError(f"data.duplicates={duplicates}: choose one of {', '.join(DUPLICATES)}")
    if root is None:
        raise InputError("data.root must be given: a file with a row for each rating, of columns user, item and rating")
    if scale is not None and not (len(scale) == 2 and scale[0] < scale[1]):
        raise InputError(f"data.scale must be the lowest and the highest rating, such as [1,5], got {list(scale)}")
    table = TextTable(user_path(root), separator, header)
    names = [user, item, rating, *([time] if time is not None else [])]
    if len(set(names)) < len(names):
        raise InputError(f"data.user, item, rating and time must be different columns, got {', '.join(names)}")
    packer = Packer(table.path, names, None if scale is None else (scale[0], scale[1]))
    for block in table.blocks(names):
        packer.add(block.lines, *block.columns)
    return packer.table(duplicates)


def movielens(root: str | None = None, time: bool = False) -> RatingTable:
    """Return the ratings of ml-100k, ml-1m or ml-latest-small, the user's own copy: they may not be redistributed.

    root: the collection's unpacked folder, or its file u.data, ratings.dat or ratings.csv. time: whether to read times.
    Raises InputError unless the numbers of ratings, users and items are the collection's.
    """
    advice = (
        "download ml-100k.zip, ml-1m.zip or ml-latest-small.zip from https://grouplens.org/datasets/movielens/, unpack "
        "it and set data.root to its folder"
    )
    if root is None:
        raise InputError(f"data.root must be given: {advice}")
    path = user_path(root)
    known = {c.file: (name, c) for name, c in COLLECTIONS.items()}
    if path.is_dir():
        path = next((path / file for file in known if (path / file).is_file()), path)
    if path.name not in known:
        raise InputError(f"{path} is none of {', '.join(known)} and has none in it: {advice}")
    name, collection = known[path.name]
    user, item, rating, timestamp = collection.columns
    header = collection.columns is not NUMBERED
    moment, scale = timestamp if time else None, (collection.lowest, 5.0)
    found = load(str(path), user, item, rating, moment, collection.separator, header, scale)
    counts = len(found.rating), len(found.users), len(found.items)
    if counts != collection.counts:
        said = [f"{r:,} ratings of {u:,} users and {i:,} items" for r, u, i in (counts, collection.counts)]
        raise InputError(f"{path} has {said[0]}, and {name} has {said[1]}: {advice}, or read it by data=ratings")
    return found


def synthetic(
    users: int = 400, items: int = 200, rank: int = 2, rated: float = 0.2, noise: float = 0.5, generator_seed: int = 0
) -> RatingTable:
    """Return ratings on a scale of 1 to 5 by a latent-factor model, r = 3.5 + b_i + b_u + w_u·v_i + noise, rounded.

    b_i and b_u have the standard deviation 0.4, w_u·v_i 0.7, and the noise `noise`. Each user rated each item with the
    probability `rated`, whatever the rating would be, and the other items not.

    Raises InputError for sizes that are not above zero and a share that is none.
    """
    for name, size in {"users": users, "items": items, "rank": rank}.items():
        if size < 1:
            raise InputError(f"{name} must be above zero, got {size}")
    if not 0 < rated <= 1 or not noise >= 0:
        raise InputError(f"rated must be above 0 and at most 1, and noise not negative, got {rated} and {noise}")
    rng = np.random.default_rng([generator_seed, users, items, rank])
    v, w = rng.standard_normal((items, rank)), rng.standard_normal((users, rank))
    biases = 0.4 * rng.standard_normal(items) + 0.4 * rng.standard_normal((users, 1))
    exact = 3.5 + biases + 0.7 / rank**0.5 * w @ v.T + noise * rng.standard_normal((users, items))
    chosen = rng.random((users, items)) < rated
    first = np.concatenate([[0], np.cumsum(chosen.sum(1))]).astype(np.int64)
    rating = exact.round().clip(1, 5)[chosen].astype(np.float32)
    names = tuple(map(str, range(users))), tuple(map(str, range(items)))
    return RatingTable(*names, first, np.nonzero(chosen)[1].astype(np.int32), rating, (1.0, 5.0))


class Packer:
    """Ratings as they are read, each packed into 8 bytes, 16 with its time, and sorted at the end.

    A user, an item and one of the different values are numbers of 25, 23 and 16 bits. While they are sorted, a rating
    takes 22 bytes, 35 with its time. So a file takes less than twice its size if its rows have 13 bytes or more, 20
    with times, and each user has several. The arrays grow in place: freed parts of a list would stay with the process.

    path, names: of the file and its columns, for messages. scale: see `load`.
    """

    def __init__(self, path: Path, names: Sequence[str], scale: tuple[float, float] | None) -> None:
        self.path, self.names, self.scale = path, names, scale
        self.users: dict[str, int] = {}
        self.items: dict[str, int] = {}
        self.values: dict[str, int] = {}
        self.numbers: list[float] = []
        self.packed, self.times = array("Q"), array("d")

    def add(
        self,
        lines: Lines,
        users: Sequence[str],
        items: Sequence[str],
        values: Sequence[str],
        *time: Sequence[str],
    ) -> None:
        """Add rows. lines: of each. Raises InputError for an empty name and for what is no rating or time."""
        named = [tuple(map(str.strip, cells)) for cells in (users, items)]
        for name, column in zip(self.names, named, strict=False):
            if "" in column:
                raise InputError(f"{self.path}, line {lines[column.index('')]}: {name} is empty")
        before = len(self.values)
        u, i, v = (
            _numbered(known, cells)
            for known, cells in ((self.users, named[0]), (self.items, named[1]), (self.values, values))
        )
        self.numbers += [self._number(cell, lines, values) for cell in list(self.values)[before:]]
        sizes = (self.users, USER_BITS, "users"), (self.items, ITEM_BITS, "items"), (self.values, VALUE_BITS, "ratings")
        for known, bits, what in sizes:
            if len(known) > 2**bits:
                raise InputError(f"{self.path} has more than {2**bits:,} different {what}, which is too many")
        packed = u << np.uint64(ITEM_BITS + VALUE_BITS) | i << np.uint64(VALUE_BITS) | v
        self.packed.frombytes(packed.tobytes())
        for cells in time:
            self.times.frombytes(numbers_of(self.path, self.names[3], cells, lines).tobytes())

    def _number(self, cell: str, lines: Lines, cells: Sequence[str]) -> float:
        place = f"{self.path}, line {lines[cells.index(cell)]}: {self.names[2]}"
        number = as_number(cell)
        if number is None:
            raise InputError(f"{place} is {cell!r}, which is no number{advice(cell)}")
        if self.scale is not None and not self.scale[0] <= number <= self.scale[1]:
            raise InputError(f"{place} is {cell}, outside of the scale from {self.scale[0]:g} to {self.scale[1]:g}")
        return number

    def table(self, duplicates: str) -> RatingTable:
        """Return all ratings. Raises InputError if there are none, or if a user rated an item twice and may not."""
        if not self.packed:
            raise InputError(f"{self.path} has no rows below the names of its columns")
        numbers = np.array(self.numbers)
        if numbers.min() == numbers.max():
            raise InputError(f"{self.path}: all ratings are {numbers[0]:g}, so there is nothing to predict")
        packed, self.packed = np.frombuffer(self.packed, np.uint64), array("Q")
        time, self.times = np.frombuffer(self.times) if self.times else None, array("d")
        users, items = (sorted(known, key=lambda name: (len(name), name)) for known in (self.users, self.items))
        user_rank, item_rank = (_ranks(known, names) for known, names in ((self.users, users), (self.items, items)))
        value_bits, item_bits = np.uint64(VALUE_BITS), np.uint64(ITEM_BITS)
        item_mask, value_mask = np.uint64(2**ITEM_BITS - 1), np.uint64(2**VALUE_BITS - 1)
        value = np.empty(len(packed), np.uint16)
        for part, to_value in zip(_pieces(packed), _pieces(value), strict=True):  # values are not sorted by
            to_value[:] = part & value_mask
            part >>= value_bits
            part[:] = user_rank[part >> item_bits] << item_bits | item_rank[part & item_mask]
        order = np.argsort(packed, kind="stable")
        packed.sort()
        value, time = value[order], None if time is None else time[order]
        del order
        twice = np.flatnonzero(packed[1:] == packed[:-1])
        if len(twice):
            u, i = users[packed[twice[0]] >> item_bits], items[packed[twice[0]] & item_mask]
            if duplicates == "error":
                raise InputError(
                    f"{self.path}: {len(twice):,} ratings are of an item that the same user had rated, the first by "
                    f"{self.names[0]} {u} of {self.names[1]} {i}; data.duplicates=last takes the last one in the file"
                )
            kept = np.ones(len(packed), bool)
            kept[twice if duplicates == "last" else twice + 1] = False
            packed, value, time = packed[kept], value[kept], None if time is None else time[kept]
        first = np.searchsorted(packed, np.arange(len(users) + 1, dtype=np.uint64) << item_bits)
        item, rating = np.empty(len(packed), np.int32), numbers.astype(np.float32)[value]
        for part, to_item in zip(_pieces(packed), _pieces(item), strict=True):
            to_item[:] = part & item_mask
        scale = self.scale or (float(rating.min()), float(rating.max()))
        return RatingTable(tuple(users), tuple(items), first.astype(np.int64), item, rating, scale, time)


def _numbered(known: dict[str, int], cells: Sequence[str]) -> np.ndarray:
    """Return each cell's number. New ones get the next numbers."""
    if not known.keys() >= set(cells):
        for cell in dict.fromkeys(cells):
            known.setdefault(cell, len(known))
    return np.fromiter(map(known.__getitem__, cells), np.uint64, len(cells))


def _ranks(known: dict[str, int], names: Sequence[str]) -> np.ndarray:
    """Return number in the order of the file -> number in the order of the names."""
    ranks = np.empty(len(names), np.uint64)
    ranks[[known[name] for name in names]] = np.arange(len(names), dtype=np.uint64)
    return ranks


def _pieces(values: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(values), PIECE):
        yield values[start : start + PIECE]
