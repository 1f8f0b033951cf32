"""Tables of pictures: a CSV file with a column of files and perhaps columns of labels and splits."""

import csv
import itertools
import unicodedata
from pathlib import Path
from typing import NamedTuple

from innerloop.datasets.files import LARGEST_FILE, lines_of
from innerloop.episodes import InputError

FILES = ("file", "filename", "file_name", "filepath", "file_path", "path", "image", "image_path", "picture", "img")
LABELS = ("label", "class", "class_name", "category", "species", "diagnosis", "target", "y")
SPLITS = ("split", "subset", "set", "partition")
"""Names of the columns, in any case, the first of each that a table has."""
TABLES = (".csv", ".tsv", ".txt")
"""Suffixes of tables."""
SEPARATORS = ",;\t|"
LONGEST, LONGEST_LABEL = 4096, 255
"""Characters of the longest path of a file, and of the longest label: as long as a folder's name may be."""


class Row(NamedTuple):
    """One picture. file: as written, with forward slashes. label, split: None if empty or without a column.

    A label is in Unicode's composed form (NFC), whichever the table has.
    """

    file: str
    label: str | None
    split: str | None


def read_table(path: Path, labelled: bool = True) -> list[Row]:
    """Return the rows of a table whose first line names its columns: see FILES, LABELS and SPLITS.

    Cells are separated by commas, semicolons, tabs or bars, whichever is most frequent in the first line. The text is
    UTF-8, or UTF-16 with a byte order mark.
    labelled: whether a column of labels must be there.
    Raises InputError for a file that cannot be read, a missing column, and a table without rows.
    """
    rows = cells(path)
    names = [name.strip().lower() for name in rows[0]] if rows else []
    columns = [next((names.index(n) for n in known if n in names), None) for known in (FILES, LABELS, SPLITS)]
    for column, what, known, needed in zip(columns, ("file", "label"), (FILES, LABELS), (True, labelled), strict=False):
        if needed and column is None:
            listed = ", ".join(filter(None, names[:10])) or "none"
            raise InputError(f"{path} has no column {what} (or {', '.join(known[1:])}), only {listed}")

    def cell(row: list[str], column: int | None) -> str | None:
        return row[column].strip() or None if column is not None and column < len(row) else None

    found = [[cell(row, column) for column in columns] for row in rows[1:] if any(map(str.strip, row))]
    if not found:
        raise InputError(f"{path} has no rows below the names of its columns")
    for row in found:
        for content, what, longest in zip(
            row, ("file", "label", "split"), (LONGEST, *[LONGEST_LABEL] * 2), strict=True
        ):
            if content and (len(content) > longest or len(content.splitlines()) > 1):
                raise InputError(
                    f"{path}: the {what} {content[:40]!r}… has a line break or more than {longest:,} characters: is a "
                    "quotation mark not closed?"
                )
    return [
        Row((file or "").replace("\\", "/"), label and unicodedata.normalize("NFC", label), split)
        for file, label, split in found
    ]


def written(folder: Path, file: str) -> str:
    """Return a table's path of a file in the form of Unicode that the file's name has on disk, if it is there.

    macOS and some archives decompose letters such as é, and tables are typed with whole ones.
    """
    forms = (file, *(unicodedata.normalize(form, file) for form in ("NFC", "NFD")))
    return next((form for form in dict.fromkeys(forms) if _is_there(folder / form)), file)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or holds a NUL character
        return False


def cells(path: Path) -> list[list[str]]:
    """Return the cells of a table, row by row; the first row has the names of the columns: see `read_table`."""
    with lines_of(path, LARGEST_FILE) as lines:
        first = next((line for line in lines if line.strip()), "")
        given = first.strip().lower().removeprefix("sep=")
        if given != first.strip().lower() and len(given) == 1:  # Excel's own first line
            lines, separator = itertools.dropwhile(lambda line: not line.strip("\r\n"), lines), given
        else:
            lines, separator = itertools.chain([first], lines), max(SEPARATORS, key=first.count)
        try:
            return list(csv.reader(lines, delimiter=separator, skipinitialspace=True))
        except csv.Error as error:
            raise InputError(f"{path} is no table: {error}") from error
