"""Tables of pictures: a CSV file with a column of files and perhaps columns of labels and splits."""

import csv
import itertools
import logging
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from innerloop.datasets.files import LARGEST_FILE, lines_of
from innerloop.datasets.pictures import PICTURES
from innerloop.episodes import InputError
from innerloop.errors import some

log = logging.getLogger("innerloop")

FILES = ("file", "filename", "file_name", "filepath", "file_path", "path", "image", "image_path", "picture", "img")
LABELS = ("label", "class", "class_name", "category", "species", "diagnosis", "target", "y")
SPLITS = ("split", "subset", "set", "partition")
INDIVIDUALS = ("individual", "patient", "subject", "specimen", "plant", "group")
"""Names of the columns, in any case, the first of each that a table has; of labels, see `read_table`."""
TABLES = (".csv", ".tsv", ".txt")
"""Suffixes of tables."""
SEPARATORS = ",;\t|"
UNIT = "\x1f"
"""The control character that stands for a separator of several characters while a line is split."""
LONGEST, LONGEST_LABEL = 4096, 255
"""Characters of the longest path of a file, and of the longest label: as long as a folder's name may be."""


class Row(NamedTuple):
    """One picture. file: as written, with forward slashes. Others: None if empty or without a column.

    A label is in Unicode's composed form (NFC), whichever the table has. individual: what the picture is of.
    """

    file: str
    label: str | None
    split: str | None
    individual: str | None = None


class PictureTable(NamedTuple):
    """The rows of a table of pictures, and the names of its columns of labels and individuals, None without one."""

    rows: list[Row]
    label: str | None
    individual: str | None


def read_table(path: Path, labelled: bool = True, label: str | None = None, hint: str = "") -> PictureTable:
    """Return a table whose first line names its columns: see FILES, LABELS, SPLITS and INDIVIDUALS.

    Cells are separated by commas, semicolons, tabs or bars, whichever is most frequent in the first line. The text is
    UTF-8, or UTF-16 with a byte order mark. The table may be in a zip file, as pictures.zip/labels.csv.
    labelled: whether a column of labels must be there. label: its name; None: the column of LABELS. hint: end of the
        message if there is no column of files.
    Raises InputError for a file that cannot be read, a column that is missing or there twice, several columns that may
    be the label, a row with another number of cells, and a table without rows.
    """
    rows = cells(path)
    names = [name.strip() for name in rows[0][1]] if rows else []
    body = [(line, row) for line, row in rows[1:] if any(map(str.strip, row))]
    file = _column(names, FILES)
    if file is None:
        listed = some(filter(None, names), 10) or "none"
        raise InputError(f"{path} has no column file (or {', '.join(FILES[1:])}), only {listed}{hint}")
    of_label = _label_column(path, names, [row for _, row in body], labelled, label)
    individual = _column(names, [name for name in INDIVIDUALS if of_label is None or name != names[of_label].lower()])
    columns = (file, of_label, _column(names, SPLITS), individual)
    lower = [name.lower() for name in names]
    for column in columns:
        if column is not None and lower.count(lower[column]) > 1:
            raise InputError(f"{path} has two columns {lower[column]}: which of them is meant?")
    if not body:
        raise InputError(f"{path} has no rows below the names of its columns")
    found = []
    for line, row in body:
        values = [_cell(row, column) for column in columns]
        _check_row(f"{path}, line {line}", values, len(row), len(names))
        found.append(Row((values[0] or "").replace("\\", "/"), _composed(values[1]), values[2], _composed(values[3])))
    named = [None if column is None else names[column] for column in columns]
    return PictureTable(found, named[1], named[3])


def names_pictures(path: Path, label: str | None = None, beside_folders: bool = False) -> bool:
    """Return whether a table can be read, has rows, and has columns of files and of labels.

    label: name of the latter; None: one of LABELS. beside_folders: whether it lies beside folders that may be classes:
    a column y is then no label.
    """
    try:
        rows = cells(path)
    except InputError:
        return False
    names = [name.strip() for name in rows[0][1]] if rows else []
    if len(rows) < 2 or _column(names, FILES) is None:
        return False
    if label is not None:
        return _column(names, [label.strip().lower()]) is not None
    labels = [names[i].lower() for i in _label_columns(names)]
    return bool(labels) and not (beside_folders and labels == ["y"])


def is_of_pictures(path: Path) -> bool:
    """Return whether a table can be read and has a column of files, most of which are named like pictures."""
    try:
        rows = cells(path)
    except InputError:
        return False
    column = _column([name.strip() for name in rows[0][1]], FILES) if rows else None
    files = [cell.lower() for _, row in rows[1:] if (cell := _cell(row, column))]
    return 2 * sum(name.endswith(PICTURES) for name in files) > len(files)


def _column(names: Sequence[str], known: Sequence[str]) -> int | None:
    """Return the place of the first of the known names, in any case; None if there is none."""
    lower = [name.lower() for name in names]
    return next((lower.index(name) for name in known if name in lower), None)


def _label_columns(names: Sequence[str]) -> list[int]:
    """Return the places of the columns that may be the label. One called label is; y beside x is a coordinate."""
    lower = [name.lower() for name in names]
    found = [lower.index(name) for name in LABELS if name in lower and not (name == "y" and "x" in lower)]
    return found[:1] if "label" in lower else found


def _label_column(path: Path, names: list[str], rows: list[list[str]], labelled: bool, label: str | None) -> int | None:
    if label is not None and (column := _column(names, [label.strip().lower()])) is not None:
        return names.index(label) if label in names else column
    found, listed = _label_columns(names), some(filter(None, names), 10) or "none"
    if label is not None and labelled:
        raise InputError(f"label={label}: {path} has no such column, only {listed}")
    if not found and labelled:
        raise InputError(f"{path} has no column label (or {', '.join(LABELS[1:])}), only {listed}")
    values = [[_cell(row, column) for row in rows] for column in found]
    # Numbers and names of the same classes are one label; a family and a species are two.
    if any(not len(set(zip(values[0], v, strict=True))) == len(set(values[0])) == len(set(v)) for v in values[1:]):
        among = ", ".join(names[column] for column in found)
        if labelled:
            raise InputError(
                f"{path} has several columns that may be the label, {among}: give adapt.py label=COLUMN, or name the "
                "right one label"
            )
        log.warning("%s has several columns that may be the label, %s: none is used", path, among)
        return None
    return found[0] if found else None


def _cell(row: list[str], column: int | None) -> str | None:
    return row[column].strip() or None if column is not None and column < len(row) else None


def _composed(text: str | None) -> str | None:
    return text and unicodedata.normalize("NFC", text)


def _check_row(place: str, values: Sequence[str | None], size: int, columns: int) -> None:
    """Raise InputError for a row with texts that can be none, or another number of cells than there are columns."""
    kinds = (("file", LONGEST), ("label", LONGEST_LABEL), ("split", LONGEST_LABEL), ("individual", LONGEST_LABEL))
    for content, (what, longest) in zip(values, kinds, strict=True):
        if content and (len(content) > longest or len(content.splitlines()) > 1):
            raise InputError(
                f"{place}: the {what} {content[:40]!r}… has a line break or more than {longest:,} characters: is a "
                "quotation mark not closed?"
            )
    if size != columns:
        raise InputError(f"{place}: it has {size} cells, and there are {columns} columns")


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
