"""Tables of pictures: a CSV file with a column of files and perhaps columns of labels and splits."""

import csv
import itertools
import math
import re
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from innerloop.datasets.files import LARGEST_FILE, lines_of
from innerloop.episodes import InputError
from innerloop.errors import some

FILES = ("file", "filename", "file_name", "filepath", "file_path", "path", "image", "image_path", "picture", "img")
LABELS = ("label", "class", "class_name", "category", "species", "diagnosis", "target", "y")
SPLITS = ("split", "subset", "set", "partition")
"""Names of the columns, in any case, the first of each that a table has."""
TABLES = (".csv", ".tsv", ".txt")
"""Suffixes of tables."""
SEPARATORS = ",;\t|"
UNIT = "\x1f"
"""The control character that stands for a separator of several characters while a line is split."""
LONGEST, LONGEST_LABEL = 4096, 255
"""Characters of the longest path of a file, and of the longest label: as long as a folder's name may be."""


class Row(NamedTuple):
    """One picture. file: as written, with forward slashes. label, split: None if empty or without a column.

    A label is in Unicode's composed form (NFC), whichever the table has.
    """

    file: str
    label: str | None
    split: str | None


def read_table(path: Path, labelled: bool = True, hint: str = "") -> list[Row]:
    """Return the rows of a table whose first line names its columns: see FILES, LABELS and SPLITS.

    Cells are separated by commas, semicolons, tabs or bars, whichever is most frequent in the first line. The text is
    UTF-8, or UTF-16 with a byte order mark. The table may be in a zip file, as pictures.zip/labels.csv.
    labelled: whether a column of labels must be there. hint: end of the message if there is no column of files.
    Raises InputError for a file that cannot be read, a column that is missing or there twice, and a table without rows.
    """
    rows = cells(path)
    names = [name.strip().lower() for name in rows[0][1]] if rows else []
    columns = [next((names.index(n) for n in known if n in names), None) for known in (FILES, LABELS, SPLITS)]
    for column, what, known, needed in zip(columns, ("file", "label"), (FILES, LABELS), (True, labelled), strict=False):
        if needed and column is None:
            listed = some(filter(None, names), 10) or "none"
            raise InputError(
                f"{path} has no column {what} (or {', '.join(known[1:])}), only {listed}" + hint * (what == "file")
            )
    for column in columns:
        if column is not None and names.count(names[column]) > 1:
            raise InputError(f"{path} has two columns {names[column]}: which of them is meant?")

    def cell(row: list[str], column: int | None) -> str | None:
        return row[column].strip() or None if column is not None and column < len(row) else None

    body = [(line, row) for line, row in rows[1:] if any(map(str.strip, row))]
    found = [[cell(row, column) for column in columns] for _, row in body]
    if not found:
        raise InputError(f"{path} has no rows below the names of its columns")
    for (line, _), row in zip(body, found, strict=True):
        for content, what, longest in zip(
            row, ("file", "label", "split"), (LONGEST, *[LONGEST_LABEL] * 2), strict=True
        ):
            if content and (len(content) > longest or len(content.splitlines()) > 1):
                raise InputError(
                    f"{path}, line {line}: the {what} {content[:40]!r}… has a line break or more than {longest:,} "
                    "characters: is a quotation mark not closed?"
                )
    return [
        Row((file or "").replace("\\", "/"), label and unicodedata.normalize("NFC", label), split)
        for file, label, split in found
    ]


def written(file: str, is_there: Callable[[str], bool]) -> str:
    """Return a table's path of a file in the form of Unicode that the file's name has on disk, if it is there.

    macOS and some archives decompose letters such as é, and tables are typed with whole ones.
    """
    forms = (file, *(unicodedata.normalize(form, file) for form in ("NFC", "NFD")))
    return next(filter(is_there, dict.fromkeys(forms)), file)


def is_file(path: Path) -> bool:
    """Return True for a file that is there."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a NUL character
        return False


def cells(path: Path) -> list[tuple[int, list[str]]]:
    """Return the rows of a table, the first of which has the names of the columns: see `numbered` and `read_table`."""
    with rows_of(path, largest=LARGEST_FILE) as (_, rows, before):
        return list(numbered(rows, before))


@contextmanager
def rows_of(path: Path, separator: str | None = None, largest: float = math.inf) -> Iterator[tuple[str, Any, int]]:
    """Open a text table and return its separator, the csv.reader of its rows, and the number of lines before them.

    An empty line is an empty row; those before the first row are left out.

    separator: between cells, of any length; None: the one in a first line `sep=;`, as Excel writes it, or else a comma,
        semicolon, tab or bar, whichever is most frequent in the first row.
    Raises InputError, also while rows are read, for a file that cannot be read, is larger than `largest` bytes, or is
    no table.
    """
    with lines_of(path, largest) as lines:
        some_text = ((n, line) for n, line in enumerate(lines, 1) if line.strip())
        begin, first = next(some_text, (1, ""))
        if stated := re.fullmatch(r"sep=(.)\s*", first, re.IGNORECASE):
            separator = separator or stated[1]
            begin, first = next(some_text, (1, ""))
        separator = separator or max(SEPARATORS, key=first.count)
        lines = itertools.chain([first], lines)
        if len(separator) > 1:
            lines = (line.replace(separator, UNIT) for line in lines)
        rows = csv.reader(lines, delimiter=separator if len(separator) == 1 else UNIT, skipinitialspace=True)
        try:
            yield separator, rows, begin - 1
        except csv.Error as error:
            raise InputError(f"{path}, line {begin - 1 + rows.line_num}, is no table: {error}") from error


def numbered(rows: Any, before: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the line that a row begins in, counted from 1, and its cells. rows, before: of `rows_of`."""
    line = before + 1
    for row in rows:
        if row:
            yield line, row
        line = before + rows.line_num + 1
