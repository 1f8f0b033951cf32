"""What is said of a person's own tables: rows that are not independent, columns and labels that deserve doubt."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from innerloop.datasets.columns import as_number
from innerloop.datasets.layouts import alike
from innerloop.errors import some
from innerloop.practice.reading import Pictures
from innerloop.practice.tables import MISSING, Rows, Table, TableForm, read
from innerloop.practice.validation import joined_groups

log = logging.getLogger("innerloop")

RARELY_EQUAL = 0.1
"""Share of pairs of rows that agree in a column of numbers, below which it has many values."""
BY_CHANCE, FEW_PATTERNS = 3, 4
"""How many times as many pairs of rows are equal as by chance, and rows are there for each different one, in copies."""
EXACT = 2**53
"""Size of a number from which on others have the same float64."""
MOST_NUMBERS = 20
"""Number of classes that are numbers above which they may be a quantity."""
LINES = 5
"""Number of lines about rows that were set aside."""


def one_spelling(labels: Sequence[str | None], classes: Sequence[str]) -> list[str | None]:
    """Return the labels, in the spelling of the classes: 0 and 0.0 are one class of numbers, True and TRUE are one.

    Of several classes that are one, the first counts.
    """
    of_numbers = all(as_number(name) is not None for name in classes)

    def key(name: str) -> Any:
        number = as_number(name) if of_numbers else None
        if number is not None and abs(number) < EXACT:
            return number
        return name.lower() if name.lower() in ("true", "false") else name

    known: dict[Any, str] = {}
    for name in classes:
        known.setdefault(key(name), name)
    return [label if label is None else known.get(key(label), label) for label in labels]


def labels_of_new(labels: Sequence[str | None], classes: Sequence[str]) -> tuple[list[str | None], list[str]]:
    """Return the labels of new rows in the spelling of the classes, and warnings of those that are none.

    A word for a missing value is a label only if it is a class.
    """
    found = [
        label if label in classes or (label or "").lower() not in MISSING else None
        for label in one_spelling(labels, classes)
    ]
    given = Counter(label for label in found if label is not None)
    others = [label for label in given if label not in classes]
    said = [alike([label, *classes]) for label in others if alike([label, *classes]) != alike(classes)]
    lines = [f"Labels of new rows are no class, but look like one: {some(said, 3)}."] if said else []
    if given and len(others) == len(given):
        lines.append(f"No label of the new rows is a class, so nothing is evaluated: {some(map(repr, others))}.")
    return found, lines


def new_rows(form: TableForm, path: Path, classes: Sequence[str]) -> tuple[Pictures, list[str]]:
    """Return the rows of a table that are to be predicted, and warnings of their labels and categories, logged too."""
    table = read(path)
    warnings = list[str]()
    if form.label in table.columns:
        table.columns[form.label], warnings = labels_of_new(table.columns[form.label], classes)
    rows = form.read(table).usable
    for line in form.said_of(table):
        log.info("%s: %s", table.path, line)
    warnings += unseen(form, table)
    for line in warnings:
        log.warning("%s", line)
    return rows, warnings


def quantities(labels: Sequence[str], classes: Sequence[str], label: str) -> list[str]:
    """Return a warning if the classes are numbers, and so many that the label may be a quantity."""
    numbers = all(as_number(name) is not None for name in classes)
    if numbers and (len(classes) > MOST_NUMBERS or 2 * len(classes) > len(labels)):
        return [
            f"The label {label} looks like a quantity, with {len(classes)} different numbers in {len(labels)} rows, "
            "and is taken for classes: make a few of it, such as low and high."
        ]
    return []


def doubts_of_labels(labels: Sequence[str | None], classes: Sequence[str]) -> list[str]:
    """Return remarks on classes whose name is a word for a missing value."""
    words = [
        f"{name} ({n} rows)" for name, n in Counter(labels).items() if name in classes and str(name).lower() in MISSING
    ]
    return [f"the label {some(words)} is a class: leave the cell empty if it is missing"] if words else []


def unseen(form: TableForm, table: Table) -> list[str]:
    """Return for each column of categories how many cells have one that the form does not have."""
    found = []
    for c in form.columns:
        if c.categories is None:
            continue
        others = _others(table.values(c.name), c.categories)
        if others:
            found.append(_said_of_others(c.name, others))
    return found


def unlabelled_only(form: TableForm, support: Table, query: Table) -> list[str]:
    """Return the same of a form that was fitted on new rows as well: categories that the labelled rows do not have."""
    found = []
    for c in form.columns:
        if c.categories is None or c.name not in query.columns:
            continue
        others = _others(query.values(c.name), [cell for cell in support.values(c.name) if cell is not None])
        if others:
            found.append(_said_of_others(c.name, others))
    return found


def _others(cells: Sequence[str | None], known: Sequence[str]) -> Counter[str]:
    words = {"true", "false"} & {name.lower() for name in known}
    return Counter(c for c in cells if c is not None and c not in {*known} and c.lower() not in words)


def _said_of_others(name: str, others: Counter[str]) -> str:
    listed = some(map(repr, others))
    return f"The column {name} has values that the labelled rows do not have, in {others.total()} new rows: {listed}."


def set_aside(rows: Rows, labels: Sequence[str | None]) -> list[str]:
    """Return how many rows of which class were set aside for text in a column of numbers, the most first."""
    totals, found = Counter(labels), dict[tuple[str, str], Counter[str]]()
    for i, (column, cell) in rows.aside.items():
        if (label := labels[i]) is not None:
            found.setdefault((label, column), Counter())[cell] += 1
    ordered = sorted(found.items(), key=lambda item: -item[1].total())
    lines = [
        f"{cells.total()} of {totals[label]} rows of class {label} were set aside: column {column} holds "
        f"{some((repr(cell[:40]) for cell, _ in cells.most_common()), 3)}."
        for (label, column), cells in ordered[:LINES]
    ]
    more = len(ordered) - LINES
    return [*lines, f"So were rows of {more} more pairs of class and column."] if more > 0 else lines


def counters(form: TableForm, table: Table) -> list[str]:
    """Return a warning for each column of numbers that counts the rows from 0 or 1."""
    found = []
    for c in form.columns:
        if c.categories is None and table.rows > 2:
            numbers = [None if cell is None else as_number(cell) for cell in table.numbers(c.name)]
            if numbers in (list(range(table.rows)), list(range(1, table.rows + 1))):
                found.append(
                    f"The column {c.name} counts the rows. If the rows are sorted, it says the label, and means "
                    f"nothing for new ones: leave it out, or set id={c.name}."
                )
    return found


def leaks(table: Table, form: TableForm) -> list[str]:
    """Return a warning for each column that says the label: each value goes with one class, and each class with one."""
    found, labels = [], table.columns[form.label]
    if table.rows < 2 * len(set(labels)):
        return []
    for c in form.columns:
        pairs = set(zip(table.values(c.name), labels, strict=True))
        if len(pairs) == len({value for value, _ in pairs}) == len({label for _, label in pairs}):
            found.append(f"The column {c.name} says the label in other words. Is it known for new rows?")
    return found


def groups_of(rows: Pictures, ids: Sequence[str | None], form: TableForm) -> tuple[Tensor | None, list[str], list[str]]:
    """Return what must be left out together, (n,) numbers of groups, remarks and warnings; None if each row is alone.

    Rows of one id are a group, and so are rows that are copies of each other.
    ids: of the rows, None where there is none.
    """
    twins = _twins(rows)
    several = {name for name, n in Counter(ids).items() if name is not None and n > 1}
    copies = _are_copies(rows, twins, form)
    remarks, warnings = list[str](), _contradictions(rows, twins) if copies else []
    if copies:
        extra = sum(len(members) - 1 for members in twins)
        equal = "1 row equals" if extra == 1 else f"{extra} rows equal"
        remarks.append(f"{equal} another row in all columns that are used; they are left out together, and count each")
    if several:
        people = len({*ids}) - (None in ids) + sum(name is None for name in ids)
        remarks.append(
            f"{len(rows.files)} rows have {people} ids; rows of one id are left out together, but the intervals count "
            "rows, so they are narrower than intervals over ids"
        )
    if not copies and not several:
        return None, remarks, warnings
    places: dict[str, list[int]] = {}
    for i, name in enumerate(ids):
        if name in several:
            places.setdefault(str(name), []).append(i)
    sets = [*places.values(), *(twins if copies else [])]
    pairs = [(members[0], i) for members in sets for i in members]
    return joined_groups(pairs, len(rows.files)), remarks, warnings


def _twins(rows: Pictures) -> list[list[int]]:
    """Return the places of rows that are equal in all columns that are used, at least two each."""
    places: dict[bytes, list[int]] = {}
    for i, digest in enumerate(rows.digests):
        places.setdefault(digest, []).append(i)
    return [members for members in places.values() if len(members) > 1]


def _are_copies(rows: Pictures, twins: list[list[int]], form: TableForm) -> bool:
    """Return True unless rows may well be equal because each column has a few values only.

    They are taken for copies if a column of numbers has many values, or if more rows are equal than would be by chance
    in columns that are independent, and these are no few patterns.
    """
    if not twins:
        return False
    n, ends = len(rows.files), np.cumsum([len(c.mean) for c in form.columns])
    columns = np.split(rows.x.numpy(), ends[:-1], axis=1)
    counts = [np.unique(column, axis=0, return_counts=True)[1] for column in columns]
    shares = [float((k * (k - 1)).sum() / (n * (n - 1))) for k in counts]  # of pairs of rows that agree
    if any(share < RARELY_EQUAL for share, c in zip(shares, form.columns, strict=True) if c.categories is None):
        return True
    equal = sum(len(members) * (len(members) - 1) for members in twins)
    return FEW_PATTERNS * len({*rows.digests}) > n and equal > BY_CHANCE * n * (n - 1) * float(np.prod(shares))


def _contradictions(rows: Pictures, twins: list[list[int]]) -> list[str]:
    """Return a warning that names equal rows of different classes."""
    found = [members for members in twins if len({rows.labels[i] for i in members}) > 1]
    listed = some((" and ".join(rows.files[i] for i in members[:3]) for members in found), 3)
    return [f"Rows are equal in all columns that are used and have different labels: {listed}."] if found else []
