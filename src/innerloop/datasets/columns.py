"""Columns of a large text table, read by name in blocks of rows, so that memory stays bounded."""

import csv
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from innerloop.datasets.files import lines_of
from innerloop.datasets.tables import SEPARATORS
from innerloop.episodes import InputError

BLOCK = 20_000
"""Number of rows that are read at a time."""
UNIT = "\x1f"
"""The control character that stands for a separator of several characters while a line is split."""


class Block(NamedTuple):
    """Some rows. line: the number in the file of the first of them. columns: the cells of each wanted column."""

    line: int
    columns: list[tuple[str, ...]]


class TextTable:
    """A text file with one row a line, and the names of its columns in the first line.

    separator: between cells; None: a comma, semicolon, tab or bar, whichever is most frequent in the first line. It may
        be longer than one character, such as "::".
    header: whether the first line has names. Without, the columns are named "1", "2", ….
    Raises InputError for a file that cannot be read, is empty, or is no text.
    """

    def __init__(self, path: Path, separator: str | None = None, header: bool = True) -> None:
        if separator == "":
            raise InputError("the separator is empty: leave it out, or give a character")
        with lines_of(path) as lines:
            first = next((line for line in lines if line.strip()), "")
        if not first:
            raise InputError(f"{path} is empty")
        self.path, self.header, self.separator = path, header, separator or max(SEPARATORS, key=first.count)
        cells = next(self._reader([first]))
        self.names = [cell.strip() for cell in cells] if header else [str(i + 1) for i in range(len(cells))]

    def require(self, names: Sequence[str]) -> None:
        """Raise InputError for a name that not exactly one column has."""
        for name in names:
            if self.names.count(name) != 1:
                found = "two columns" if name in self.names else "no column"
                listed = ", ".join(self.names[:10]) + (", …" if len(self.names) > 10 else "")
                raise InputError(f"{self.path} has {found} {name}; its columns are {listed}")

    def blocks(self, wanted: Sequence[str]) -> Iterator[Block]:
        """Yield blocks of the cells of these columns. Empty lines are left out.

        Raises InputError for a column that is not there, and for a row with more or fewer cells than the first line.
        """
        self.require(wanted)
        places, width = [self.names.index(name) for name in wanted], len(self.names)
        with lines_of(self.path) as lines:
            reader = self._reader(lines)
            try:
                if self.header:
                    next(row for row in reader if row)
                while rows := list(itertools.islice(reader, BLOCK)):
                    line = reader.line_num - len(rows) + 1
                    if any(len(row) != width for row in rows):
                        rows = self._whole(rows, line)
                    if rows:
                        columns = list(zip(*rows, strict=True))
                        yield Block(line, [columns[place] for place in places])
            except csv.Error as error:
                raise InputError(f"{self.path}, line {reader.line_num}: {error}") from error

    def _whole(self, rows: list[list[str]], line: int) -> list[list[str]]:
        for i, row in enumerate(rows):
            if row and len(row) != len(self.names):
                raise InputError(
                    f"{self.path}, line {line + i}: {len(row)} cells, and the first line has {len(self.names)} (they "
                    f"are separated by {self.separator!r})"
                )
        return [row for row in rows if row]

    def _reader(self, lines: Iterator[str] | list[str]) -> Any:
        if len(self.separator) > 1:
            lines = (line.replace(self.separator, UNIT) for line in lines)
        delimiter = self.separator if len(self.separator) == 1 else UNIT
        return csv.reader(lines, delimiter=delimiter, skipinitialspace=True)


def as_number(cell: str) -> float | None:
    """Return the finite number that a cell holds; None if it holds none."""
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in cell else None


def numbers_of(path: Path, name: str, cells: Sequence[str], line: int) -> np.ndarray:
    """Return cells of a column as float64.

    line: of the first of them. Raises InputError that names the line of the first that holds no finite number.
    """
    try:
        numbers = np.fromiter(map(float, cells), np.float64, len(cells))
    except ValueError:
        numbers = np.array([np.nan])
    if not np.isfinite(numbers).all() or "_" in "".join(cells):
        i = next(i for i, cell in enumerate(cells) if as_number(cell) is None)
        raise InputError(f"{path}, line {line + i}: {name} is {cells[i]!r}, which is no number")
    return numbers
