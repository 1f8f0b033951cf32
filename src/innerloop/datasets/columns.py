"""Columns of a large text table, read by name in blocks of rows, so that memory stays bounded."""

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from innerloop.datasets.tables import rows_of
from innerloop.episodes import InputError
from innerloop.errors import some

BLOCK = 20_000
"""Number of rows that are read at a time."""


class Block(NamedTuple):
    """Some rows. lines: the numbers of the lines that they begin in. columns: the cells of each wanted column."""

    lines: tuple[int, ...]
    columns: list[tuple[str, ...]]


class TextTable:
    """A text file with one row a line, and the names of its columns in the first line.

    separator: between cells, such as "::"; None: see `rows_of`.
    header: whether the first line has names. Without, the columns are named "1", "2", ….
    Raises InputError for a file that cannot be read, is empty, or is no text.
    """

    def __init__(self, path: Path, separator: str | None = None, header: bool = True) -> None:
        if separator == "":
            raise InputError("the separator is empty: leave it out, or give a character")
        with rows_of(path, separator) as (self.separator, rows):
            cells = next(rows)[1]
        if not cells:
            raise InputError(f"{path} is empty")
        self.path, self.header = path, header
        self.names = [cell.strip() for cell in cells] if header else [str(i + 1) for i in range(len(cells))]

    def require(self, names: Sequence[str]) -> None:
        """Raise InputError for a name that not exactly one column has."""
        for name in names:
            if self.names.count(name) != 1:
                found = "two columns" if name in self.names else "no column"
                raise InputError(f"{self.path} has {found} {name}; its columns are {some(self.names, 10)}")

    def blocks(self, wanted: Sequence[str]) -> Iterator[Block]:
        """Yield blocks of the cells of these columns. Empty lines are left out.

        Raises InputError for a column that is not there, and for a row with more or fewer cells than the first line.
        """
        self.require(wanted)
        places, width = [self.names.index(name) for name in wanted], len(self.names)
        with rows_of(self.path, self.separator) as (_, found):
            rows = (row for row in found if row[1])
            if self.header:
                next(rows)
            while block := list(itertools.islice(rows, BLOCK)):
                lines, cells = zip(*block, strict=True)
                if any(len(row) != width for row in cells):
                    line, odd = next((line, row) for line, row in block if len(row) != width)
                    raise InputError(
                        f"{self.path}, line {line}: {len(odd)} cells, and the first line has {width} (they "
                        f"are separated by {self.separator!r})"
                    )
                columns = list(zip(*cells, strict=True))
                yield Block(lines, [columns[place] for place in places])


def as_number(cell: str) -> float | None:
    """Return the finite number that a cell holds; None if it holds none."""
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in cell else None


def numbers_of(path: Path, name: str, cells: Sequence[str], lines: Sequence[int]) -> np.ndarray:
    """Return cells of a column as float64.

    lines: of each of them. Raises InputError that names the line of the first that holds no finite number.
    """
    try:
        numbers = np.fromiter(map(float, cells), np.float64, len(cells))
    except ValueError:
        numbers = np.array([np.nan])
    if not np.isfinite(numbers).all() or "_" in "".join(cells):
        i = next(i for i, cell in enumerate(cells) if as_number(cell) is None)
        raise InputError(f"{path}, line {lines[i]}: {name} is {cells[i]!r}, which is no number")
    return numbers
