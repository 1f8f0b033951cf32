"""A person's own tables, read and turned into numbers: columns by name, missing values, categories."""

import hashlib
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from innerloop.datasets.tables import TABLES, cells
from innerloop.devices.files import user_path
from innerloop.errors import InputError, some
from innerloop.practice.reading import Listing, Pictures, Skipped

MISSING = ("", "na", "n/a", "nan", "null", "none", "?", "-")
"""Cells, in any case, that say that a value is missing."""
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
    """A table as text. columns: name -> cells, stripped; None where the value is missing."""

    path: Path
    columns: dict[str, list[str | None]]
    rows: int


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

    def read(self, source: "Path | Table", labelled: bool = False) -> Pictures:
        """Return the rows of a table that can be used. Columns are found by name, further ones are not read.

        labelled: whether rows without a label are set aside. Raises InputError that names columns that are missing.
        """
        table = source if isinstance(source, Table) else read(source)
        absent = [name for name in (c.name for c in self.columns) if name not in table.columns]
        if absent:
            raise InputError(f"{table.path} has no column {some(absent)}, only {some(table.columns, 10)}")
        names = _names(table, self.id)
        labels = table.columns.get(self.label, [None] * table.rows)
        skipped, kept, found = list[Skipped](), list[int](), list[list[float]]()
        for i in range(table.rows):
            values = self._numbers(table, i)
            reason = values if isinstance(values, str) else "has no label" if labelled and labels[i] is None else None
            if reason is not None:
                skipped.append(Skipped(names[i], reason))
            else:
                assert not isinstance(values, str)
                kept.append(i)
                found.append(values)
        digests = [hashlib.sha256(np.array(row).tobytes()).digest() for row in found]
        listing = Listing(table.path.parent, [names[i] for i in kept], [labels[i] for i in kept], skipped)
        x = torch.tensor(found, dtype=torch.float64).reshape(len(found), -1).float()
        return Pictures(listing, x, torch.empty(0), digests)

    def _numbers(self, table: Table, i: int) -> list[float] | str:
        """Return the standardised numbers of a row, or why it cannot be used."""
        row = list[float]()
        for c in self.columns:
            cell = table.columns[c.name][i]
            if c.categories is not None:
                raw = [float(value == (cell or "")) for value in c.categories]
            else:
                number = c.fill if cell is None else _number(cell)
                if number is None:
                    return f"column {c.name} holds {(cell or '')[:40]!r}, which is no number"
                raw = [number]
            row += [(value - m) / s for value, m, s in zip(raw, c.mean, c.scale, strict=True)]
        return row


def is_table(path: "Path | str") -> bool:
    """Return True if the name of a path is that of a table."""
    return Path(path).suffix.lower() in TABLES


def read(path: Path) -> Table:
    """Return a table whose first line names its columns.

    Raises InputError for a file that cannot be read, names that are empty or there twice, and rows that are too long.
    """
    path = user_path(path)
    rows = cells(path)
    names = [unicodedata.normalize("NFC", name.strip()) for name in rows[0][1]] if rows else []
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        what = f"two columns {twice[0]}" if twice[0] else "columns without a name"
        raise InputError(f"{path} has {what}: give each column a name of its own")
    if len(names) > MOST_COLUMNS:
        raise InputError(f"{path} has {len(names):,} columns, and at most {MOST_COLUMNS:,} are possible")
    body = [(n, row) for n, row in rows[1:] if any(map(str.strip, row))]
    if not body:
        raise InputError(f"{path} has no rows below the names of its columns")
    odd = next(((n, len(row)) for n, row in body if len(row) != len(names)), None)
    if odd:
        raise InputError(f"{path}, line {odd[0]}: it has {odd[1]} cells, and there are {len(names)} columns")
    columns = {name: [_cell(row[j]) for _, row in body] for j, name in enumerate(names)}
    return Table(path, columns, len(body))


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
        given = support.columns[name] + (query.columns.get(name, []) if query is not None else [])
        column = _fitted(name, given, support.columns[name])
        if isinstance(column, str):
            remarks.append(f"the column {name} is not used: {column}")
        else:
            columns.append(column)
    if not columns:
        raise InputError(
            f"{support.path} has no column that says anything: {'; '.join(remarks[:3]) or 'only the label'}"
        )
    return TableForm(columns, label, id, FITTED_ON[query is not None]), remarks


def leaks(table: Table, form: TableForm) -> list[str]:
    """Return the columns that are the label in other words: each value goes with one class, and each class with one."""
    found, labels = [], table.columns[form.label]
    if table.rows < 2 * len(set(labels)):
        return []
    for c in form.columns:
        pairs = set(zip(table.columns[c.name], labels, strict=True))
        if len(pairs) == len({value for value, _ in pairs}) == len({label for _, label in pairs}):
            found.append(c.name)
    return found


def _fitted(name: str, cells: Sequence[str | None], of_support: Sequence[str | None]) -> Column | str:
    """Return a column by scikit-learn's transformers, or why it is not used."""
    impute, preprocessing = _sklearn()
    present = [cell for cell in of_support if cell is not None]
    if not present:
        return "it is empty"
    if 2 * sum(_number(cell) is not None for cell in present) > len(present):
        numbers = [math.nan if cell is None else _number(cell) for cell in cells]
        raw = np.array([[n] for n in numbers if n is not None])
        imputer = impute.SimpleImputer(strategy="median").fit(raw)
        scaler = preprocessing.StandardScaler().fit(imputer.transform(raw))
        if not scaler.var_[0] > 1e-12 * (1 + scaler.mean_[0] ** 2):
            return "it is the same in all rows"
        return Column(name, None, float(imputer.statistics_[0]), scaler.mean_.tolist(), scaler.scale_.tolist())
    text = np.array([[cell or ""] for cell in cells], object)
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


def _cell(text: str) -> str | None:
    text = unicodedata.normalize("NFC", text.strip())
    return None if text.lower() in MISSING else text


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) and abs(value) < 1e30 else None


def _names(table: Table, id: str | None) -> list[str]:
    """Return what rows are called: the cells of the column id, or their numbers."""
    if id is None:
        return [f"row {i + 1}" for i in range(table.rows)]
    if id not in table.columns:
        raise InputError(f"{table.path} has no column {id}, only {some(table.columns, 10)}")
    names = [cell or f"row {i + 1}" for i, cell in enumerate(table.columns[id])]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{table.path}: two rows have the {id} {twice[:60]}")
    return names
