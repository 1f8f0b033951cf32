"""Columns of a large text table, read by name in blocks of rows, so that memory stays bounded."""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from innerloop.datasets.tables import numbered, rows_of
from innerloop.episodes import InputError
from innerloop.errors import some

BLOCK = 20_000
"""Number of rows that are read at a time."""
MARKED = re.compile(r"[+\-\u2212]?(\d+([.,]\d+)?|[.,]\d+|\d{1,3}([.,'\u2019\s]\d{3})+([.,]\d+)?)([eE][+-]?\d+)?\s*%?")
COMMA = re.compile(r"[+-]?(\d+(,\d+)?|,\d+)([eE][+-]?\d+)?")
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")


class Block(NamedTuple):
    """Some rows. lines: the lines of the file that they begin in. columns: the cells of each wanted column."""

    lines: "Lines"
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
        with rows_of(path, separator) as (self.separator, rows, _):
            cells = next(rows)
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
        first = int(self.header)
        with rows_of(self.path, self.separator) as (_, reader, _):
            rows = itertools.islice(filter(None, reader), first, None)
            while block := list(itertools.islice(rows, BLOCK)):
                lines = Lines(self, first)
                if {*map(len, block)} != {width}:
                    i = next(i for i, row in enumerate(block) if len(row) != width)
                    raise InputError(
                        f"{self.path}, line {lines[i]}: {len(block[i])} cells, and the first line has {width} (they "
                        f"are separated by {self.separator!r})"
                    )
                columns = list(zip(*block, strict=True))
                yield Block(lines, [columns[place] for place in places])
                first += len(block)


@dataclass(frozen=True)
class Lines:
    """The lines that rows begin in: lines[i] is that of row `first + i` of the table, whose names are a row, too.

    They are found by reading the table again, because counting them costs as much as reading, and only messages need
    them.
    """

    table: TextTable
    first: int

    def __getitem__(self, i: int) -> int:
        with rows_of(self.table.path, self.table.separator) as (_, rows, before):
            return next(itertools.islice(numbered(rows, before), self.first + i, None))[0]


def as_number(cell: str) -> float | None:
    """Return the finite number that a cell holds; None if it holds none."""
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in cell else None


def is_marked(cell: str) -> bool:
    """Return True for a number with a decimal comma, a percent sign, a thousands mark or a typographic minus."""
    return as_number(cell) is None and MARKED.fullmatch(cell.strip()) is not None


def advice(cell: str) -> str:
    """Return the end of a message about a cell that is no number: how to write it if it is a marked one, or ""."""
    return "; write numbers with a point and without %, thousands marks and the like" if is_marked(cell) else ""


def have_decimal_commas(cells: Sequence[str]) -> bool:
    """Return True if all cells are whole numbers or have a comma for the decimal mark, and one has.

    It is False where the comma may be a thousands mark: 1,500 beside 900.
    """
    if not all(map(COMMA.fullmatch, cells)):
        return False
    commas = [cell for cell in cells if "," in cell]
    return bool(commas) and (len(commas) == len(cells) or not all(map(THOUSANDS.fullmatch, commas)))


def numbers_of(path: Path, name: str, cells: Sequence[str], lines: Lines) -> np.ndarray:
    """Return cells of a column as float64.

    lines: of each of them. Raises InputError that names the line of the first that holds no finite number.
    """
    try:
        numbers = np.fromiter(map(float, cells), np.float64, len(cells))
    except ValueError:
        numbers = np.array([np.nan])
    if not np.isfinite(numbers).all() or "_" in "".join(cells):
        i = next(i for i, cell in enumerate(cells) if as_number(cell) is None)
        raise InputError(f"{path}, line {lines[i]}: {name} is {cells[i]!r}, which is no number{advice(cells[i])}")
    return numbers
