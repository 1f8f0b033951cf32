"""A person's own tables, read and turned into numbers: columns by name, missing values, categories."""

import hashlib
import logging
import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from innerloop.datasets.columns import advice, as_number, have_decimal_commas, is_marked
from innerloop.datasets.files import LARGEST_FILE
from innerloop.datasets.tables import TABLES, numbered, rows_of
from innerloop.devices.files import user_path
from innerloop.errors import InputError, some
from innerloop.practice.reading import Listing, Pictures, Skipped

log = logging.getLogger("innerloop")

MISSING = ("", "na", "n/a", "nan", "null", "none", "?", "-")
"""Cells, in any case, that say that a feature or an id is missing. A label is missing only if its cell is empty."""
COMMA_SEPARATORS = ";\t"
"""Separators of tables in which a comma may be the decimal mark."""
MOST_CATEGORIES, MOST_COLUMNS = 50, 2000
FITTED_ON = ("support", "support+query")


class Column(NamedTuple):
    """What a column becomes. categories: None for numbers; else one number for each, 1 where the cell is it.

    fill: in place of a missing number. mean, scale: of each of its numbers, which are standardised.
    """

    name: str
    categories: list[str] | None
    fill: float
    mean: list[float]
    scale: list[float]


class Table(NamedTuple):
    """A table as text. columns: name -> cells, stripped; None where they are empty. lines: that the rows begin in."""

    path: Path
    columns: dict[str, list[str | None]]
    lines: list[int]
    separator: str = ","

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.lines)

    def values(self, name: str) -> list[str | None]:
        """Return the cells of a column, None for those that say that the value is missing."""
        return [None if cell is None or cell.lower() in MISSING else cell for cell in self.columns[name]]

    def numbers(self, name: str) -> list[str | None]:
        """Return the same of a column that may be one of numbers, with points for its decimal commas.

        Raises InputError that names a cell if most cells are numbers and more than a tenth of them have other marks.
        """
        cells = self.values(name)
        present = [cell for cell in cells if cell is not None]
        if self.separator in COMMA_SEPARATORS and have_decimal_commas(present):
            return [cell and cell.replace(",", ".") for cell in cells]
        marked = sum(map(is_marked, present))
        if 10 * marked > len(present) < 2 * (marked + sum(_number(cell) is not None for cell in present)):
            line, cell = next((n, c) for n, c in zip(self.lines, cells, strict=True) if c and is_marked(c))
            raise InputError(
                f"{self.path}, line {line}: the column {name} holds {cell!r}{advice(cell)}, or leave it out"
            )
        return cells

    def commas(self, names: Sequence[str]) -> list[str]:
        """Return what is said of the columns, among these, whose comma is the decimal mark."""
        found = [name for name in names if self.numbers(name) != self.values(name)]
        if not found:
            return []
        cell = next(cell for cell in self.values(found[0]) if cell and "," in cell)
        return [f"the comma is the decimal mark in {some(found)}: {cell!r} is {cell.replace(',', '.')}"]


@dataclass(frozen=True)
class TableForm:
    """rows of a table -> x, (n, numbers). label, id: names of their columns, id is None where there is none."""

    columns: list[Column]
    label: str
    id: str | None
    fitted_on: str = "support"
    backbone: None = None

    @property
    def name(self) -> str:
        """What x is."""
        numbers = sum(column.categories is None for column in self.columns)
        kinds = f"{numbers} columns of numbers and {len(self.columns) - numbers} of categories"
        return f"{kinds}, standardised by {self.fitted_on.replace('+', ' and ')}"

    def state(self) -> dict[str, Any]:
        """Return what `restored` needs, in plain containers."""
        return {
            "columns": [list(column) for column in self.columns],
            "label": self.label,
            "id": self.id,
            "fitted_on": self.fitted_on,
        }

    @classmethod
    def restored(cls, state: dict[str, Any]) -> "TableForm":
        """Return the form of a state. Raises InputError for what is none."""
        columns = [Column(*values) for values in state["columns"]]
        for c in columns:
            sizes = {len(c.mean), len(c.scale), 1 if c.categories is None else len(c.categories)}
            numbers = [c.fill, *c.mean, *c.scale]
            if len(sizes) > 1 or not all(math.isfinite(n) for n in numbers) or not all(n > 0 for n in c.scale):
                raise InputError(f"the column {c.name} of the adapted model is not what an adaptation writes")
        texts = [state["label"], state["fitted_on"], *([] if state["id"] is None else [state["id"]])]
        if not all(isinstance(value, str) for value in [*texts, *(c.name for c in columns)]):
            raise InputError("the columns of the adapted model have names that are no text")
        return cls(columns, state["label"], state["id"], state["fitted_on"])

    def said_of(self, table: Table) -> list[str]:
        """Return what is said of how the numbers of a table are read."""
        return table.commas([c.name for c in self.columns if c.categories is None])

    def read(self, table: Table, labelled: bool = False) -> "Rows":
        """Return the rows of a table that can be used. Columns are found by name, further ones are not read.

        labelled: whether rows without a label are set aside. Raises InputError that names columns that are missing.
        """
        absent = [name for name in (c.name for c in self.columns) if name not in table.columns]
        if absent:
            raise InputError(f"{table.path} has no column {some(absent)}, only {some(table.columns, 10)}")
        names = _names(table, self.id)
        labels = table.columns.get(self.label, [None] * table.rows)
        used = [table.values(c.name) if c.categories is not None else table.numbers(c.name) for c in self.columns]
        skipped, kept, found, aside = list[Skipped](), list[int](), list[list[float]](), dict[int, tuple[str, str]]()
        for i, cells in enumerate(zip(*used, strict=True)):
            values = self._numbers(cells)
            if isinstance(values, tuple):
                aside[i] = values
                reason = f"column {values[0]} holds {values[1][:40]!r}, which is no number{advice(values[1])}"
                skipped.append(Skipped(names[i], reason))
            elif labelled and labels[i] is None:
                skipped.append(Skipped(names[i], "has no label"))
            else:
                kept.append(i)
                found.append(values)
        digests = [hashlib.sha256(np.array(row).tobytes()).digest() for row in found]
        given = frozenset(label for label in labels if label is not None)
        listing = Listing(table.path.parent, [names[i] for i in kept], [labels[i] for i in kept], skipped, given)
        x = torch.tensor(found, dtype=torch.float64).reshape(len(found), -1).float()
        return Rows(Pictures(listing, x, torch.empty(0), digests), kept, aside)

    def _numbers(self, cells: Sequence[str | None]) -> list[float] | tuple[str, str]:
        """Return the standardised numbers of a row, or the column and the cell that it cannot be used for."""
        row = list[float]()
        for c, cell in zip(self.columns, cells, strict=True):
            if c.categories is not None:
                raw = [float(_category(value) == _category(cell or "")) for value in c.categories]
            else:
                number = c.fill if cell is None else _number(cell)
                if number is None:
                    return c.name, cell or ""
                raw = [number]
            row += [(value - m) / s for value, m, s in zip(raw, c.mean, c.scale, strict=True)]
        return row


class Rows(NamedTuple):
    """Rows that were read. usable: those that can be used. kept: their places in the table.

    aside: place of each row with text in a column of numbers -> that column and its cell.
    """

    usable: Pictures
    kept: list[int]
    aside: dict[int, tuple[str, str]]


def is_table(path: "Path | str") -> bool:
    """Return True if the name of a path is that of a table."""
    return Path(path).suffix.lower() in TABLES


def read(path: Path) -> Table:
    """Return a table whose first line names its columns. A first column without a name, an index, is left out.

    Raises InputError for a file that cannot be read, names that are empty or there twice, and rows that are too long.
    """
    path = user_path(path)
    with rows_of(path, largest=LARGEST_FILE) as (separator, reader, before):
        rows = list(numbered(reader, before))
    names = [unicodedata.normalize("NFC", name.strip()) for name in rows[0][1]] if rows else []
    body = [(n, row) for n, row in rows[1:] if any(map(str.strip, row))]
    odd = next(((n, len(row)) for n, row in body if len(row) != len(names)), None)
    # Spreadsheets write empty columns at the right, too.
    empty = {
        j for j, name in enumerate(names) if not name and not any("".join(row[j : j + 1]).strip() for _, row in body)
    }
    if len(names) > 1 and not names[0] and body:
        log.warning("%s: its first column has no name, as an index has none, and is left out", path)
        empty.add(0)
    named = [name for j, name in enumerate(names) if j not in empty]
    twice = sorted({name for name in named if not name or named.count(name) > 1})
    if twice:
        what = f"two columns {twice[0]}" if twice[0] else "columns without a name"
        raise InputError(f"{path} has {what}: give each column a name of its own")
    if len(names) > MOST_COLUMNS:
        raise InputError(f"{path} has {len(names):,} columns, and at most {MOST_COLUMNS:,} are possible")
    if not body:
        raise InputError(f"{path} has no rows below the names of its columns")
    if odd:
        raise InputError(f"{path}, line {odd[0]}: it has {odd[1]} cells, and there are {len(names)} columns")
    places = [j for j in range(len(names)) if j not in empty]
    columns = {names[j]: [unicodedata.normalize("NFC", row[j].strip()) or None for _, row in body] for j in places}
    return Table(path, columns, [n for n, _ in body], separator)


def form_of(support: Table, label: str, id: str | None, query: Table | None = None) -> tuple[TableForm, list[str]]:
    """Return the form of a table's columns, and remarks on columns that are not used.

    query: unlabelled rows that medians, means and scales are fitted on as well. Labels are never looked at. A column is
    one of numbers if more than half of its cells are.
    Raises InputError if label or id is no column, or no other is left.
    """
    for what, name in (("label", label), ("id", id)):
        if name is not None and name not in support.columns:
            raise InputError(f"{what}={name}: {support.path} has no such column, only {some(support.columns, 10)}")
    if id == label:
        raise InputError(f"label and id are both {label}: these are two columns")
    columns, remarks = [], []
    for name in support.columns:
        if name in (label, id):
            continue
        own = support.numbers(name)
        others = [] if query is None or name not in query.columns else query.values(name)
        if others and is_of_numbers(own):
            assert query is not None
            others = query.numbers(name)
        column = _fitted(name, own + others, own)
        if isinstance(column, str):
            remarks.append(f"the column {name} is not used: {column}")
        else:
            columns.append(column)
    if not columns:
        raise InputError(
            f"{support.path} has no column that says anything: {'; '.join(remarks[:3]) or 'only the label'}"
        )
    return TableForm(columns, label, id, FITTED_ON[query is not None]), remarks


def is_of_numbers(cells: Sequence[str | None]) -> bool:
    """Return True if more than half of the cells of a column, apart from missing ones, are numbers."""
    present = [cell for cell in cells if cell is not None]
    return 2 * sum(_number(cell) is not None for cell in present) > len(present)


def _fitted(name: str, cells: Sequence[str | None], of_support: Sequence[str | None]) -> Column | str:
    """Return a column by scikit-learn's transformers, or why it is not used."""
    impute, preprocessing = _sklearn()
    present = [cell for cell in of_support if cell is not None]
    if not present:
        return "it is empty"
    if is_of_numbers(of_support):
        numbers = [math.nan if cell is None else _number(cell) for cell in cells]
        raw = np.array([[n] for n in numbers if n is not None])
        imputer = impute.SimpleImputer(strategy="median").fit(raw)
        scaler = preprocessing.StandardScaler().fit(imputer.transform(raw))
        if not scaler.var_[0] > 1e-12 * (1 + scaler.mean_[0] ** 2):
            return "it is the same in all rows"
        return Column(name, None, float(imputer.statistics_[0]), scaler.mean_.tolist(), scaler.scale_.tolist())
    text = np.array([[_category(cell or "")] for cell in cells], object)
    encoder = preprocessing.OneHotEncoder(handle_unknown="ignore").fit(text)
    categories = encoder.categories_[0].tolist()
    if len(categories) > min(MOST_CATEGORIES, max(len(present) // 2, 2)):
        return f"it has {len(categories)} different texts in {len(cells)} rows"
    if len(categories) < 2:
        return "it is the same in all rows"
    scaler = preprocessing.StandardScaler().fit(encoder.transform(text).toarray())
    return Column(name, categories, 0.0, scaler.mean_.tolist(), scaler.scale_.tolist())


def _sklearn() -> tuple[Any, Any]:
    try:
        from sklearn import impute, preprocessing
    except ImportError as error:
        raise InputError('tables need scikit-learn: pip install "innerloop[tables]"') from error
    return impute, preprocessing


def _category(text: str) -> str:
    """Return the text of a category. Programs write True, TRUE and true for the same."""
    return text.lower() if text.lower() in ("true", "false") else text


def _number(cell: str) -> float | None:
    value = as_number(cell)
    return value if value is not None and abs(value) < 1e30 else None


def _names(table: Table, id: str | None) -> list[str]:
    """Return what rows are called: the cells of the column id, with the line where several rows have it, or numbers."""
    if id is None:
        return [f"row {i + 1}" for i in range(table.rows)]
    if id not in table.columns:
        raise InputError(f"{table.path} has no column {id}, only {some(table.columns, 10)}")
    ids = table.values(id)
    counts, found = Counter(ids), list[str]()
    for i, (cell, line) in enumerate(zip(ids, table.lines, strict=True)):
        found.append(f"row {i + 1}" if cell is None else cell if counts[cell] == 1 else f"{cell} (line {line})")
    return found
