"""Tasks in one file of rows: arrays or a table with a column that says which task a row belongs to."""

import logging
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from innerloop.datasets.columns import TextTable, advice, as_number, is_marked, numbers_of
from innerloop.datasets.files import BROKEN_ZIP, opened
from innerloop.datasets.images import named_splits, splits_by_name
from innerloop.datasets.layouts import SPLIT_NAMES
from innerloop.devices.files import user_path
from innerloop.episodes import SPLITS, InputError, Split
from innerloop.errors import some

log = logging.getLogger("innerloop")

KINDS = ("auto", "regression", "classification")
PARTS = ("support", "query")
FEW_VALUES = 10
"""Number of different whole targets, written with a point, up to which they may be classes."""
LARGEST = 8 * 2**30
"""Bytes of the largest array that is read."""


@dataclass(frozen=True, eq=False)
class TaskTable:
    """Rows of many tasks, sorted by task and then by their own values, so that the order in the file is of no effect.

    tasks: their names. first: (tasks + 1,) int64, task t has the rows first[t] to first[t + 1] - 1.
    x: (n, *features) float32. y: (n, targets) float32, or (n,) int64 numbers of classes.
    classes: the names of the classes; none if the targets are real.
    splits: task numbers of each split. in_support: (n,) bool, where support and query are fixed; else None.
    """

    tasks: tuple[str, ...]
    first: np.ndarray
    x: np.ndarray
    y: np.ndarray
    classes: tuple[str, ...]
    splits: Mapping[Split, np.ndarray]
    in_support: np.ndarray | None = None


def load(
    root: str | None = None,
    task: str = "task",
    target: Sequence[str] = ("y",),
    features: Sequence[str] | None = None,
    split: str | None = None,
    part: str | None = None,
    kind: str = "auto",
    separator: str | None = None,
    train_fraction: float = 0.64,
    validation_fraction: float = 0.16,
) -> TaskTable:
    """Return the tasks of an .npz file of arrays, a .parquet file, or a text table with names in its first line.

    root: the file. task, split, part: names of the columns, or arrays, with a row's task; with its split, train,
        validation or test; and with support or query. Without split, tasks are divided by their names, into these
        fractions; without part, support and query are drawn anew for each episode.
    target: columns with the targets. features: columns with the inputs, None: all others. An .npz file has one array
        for each, x (n, *features) in place of the features; the first of `target` is its y.
    kind: "regression", "classification", or by the type of the targets: text, whole numbers without a point (or of an
        integer type), and booleans are classes; 1.0 is a number to regress.

    Raises InputError that names file, column and row for what is missing or no number. Warns of a feature that equals
    the target.
    """
    if kind not in KINDS:
        raise InputError(f"data.kind={kind}: choose one of {', '.join(KINDS)}")
    if root is None:
        raise InputError("data.root must be given: an .npz, .csv or .parquet file with a row for each point of a task")
    path = user_path(root)
    read = {".npz": _arrays, ".parquet": _parquet}.get(path.suffix.lower(), _text)
    wanted: Wanted = {
        "task": [task],
        "split": [] if split is None else [split],
        "part": [] if part is None else [part],
        "target": list(target),
    }
    columns, x, names = read(path, wanted, features, separator)
    n = len(x)
    if n == 0:
        raise InputError(f"{path} has no rows")
    y, classes = _targets(path, columns["target"], kind)
    _warn_of_leaks(path, x, y, names)
    row_task = np.array([str(cell) for cell in columns["task"][0]])
    if "" in row_task:
        raise InputError(f"{path}: {task} is empty in row {int(np.argmax(row_task == '')) + 1}")
    in_support = _parts(path, part, columns["part"])
    keys = [*y.reshape(n, -1).T, *x.reshape(n, -1).T, *([] if in_support is None else [~in_support]), row_task]
    order = np.lexsort(keys)
    tasks, first = np.unique(row_task[order], return_index=True)
    splits = _splits(path, split, columns["split"], row_task, tasks, train_fraction, validation_fraction)
    return TaskTable(
        tuple(map(str, tasks)),
        np.append(first, n).astype(np.int64),
        x[order],
        y[order],
        classes,
        splits,
        None if in_support is None else in_support[order],
    )


Columns = dict[str, list[Any]]
Wanted = Mapping[str, Sequence[str]]


def _text(
    path: Path, wanted: Wanted, features: Sequence[str] | None, separator: str | None
) -> tuple[Columns, np.ndarray, list[str]]:
    """Return the wanted columns as lists of text, the features as numbers, and the features' names."""
    table = TextTable(path, separator)
    of = {kind: list(names) for kind, names in wanted.items()}
    special = [name for names in of.values() for name in names]
    table.require(special)
    names = _without_index(path, table.names, special) if features is None else list(features)
    if not names:
        raise InputError(f"{path} has no columns of features beside {', '.join(special)}")
    cells: list[list[str]] = [[] for _ in special]
    numbers: list[np.ndarray] = []
    for block in table.blocks([*special, *names]):
        for known, column in zip(cells, block.columns, strict=False):
            known += [cell.strip() for cell in column]
        columns = block.columns[len(special) :]
        of_names = [numbers_of(path, n, c, block.lines) for n, c in zip(names, columns, strict=True)]
        numbers.append(np.stack(of_names, 1).astype(np.float32))
    named = dict(zip(special, cells, strict=True))
    found = {kind: [named[name] for name in kinds] for kind, kinds in of.items()}
    return found, np.concatenate(numbers) if numbers else np.empty((0, len(names)), np.float32), names


def _without_index(path: Path, names: Sequence[str], special: Sequence[str]) -> list[str]:
    """Return the names of the features: of all other columns, without an index as pandas and R write it."""
    index = [name for i, name in enumerate(names) if (i == 0 and not name) or name.startswith("__index_level_")]
    if index:
        log.warning("%s: the column %s is an index, and is left out", path, index[0] or "without a name")
    return [name for name in names if name not in special and name not in index]


def _arrays(
    path: Path, wanted: Wanted, features: Sequence[str] | None, separator: str | None
) -> tuple[Columns, np.ndarray, list[str]]:
    """Return the same of an .npz file, whose arrays are read one by one and never unpickled."""
    x_name = features[0] if features else "x"
    names = [x_name, *(name for kind in wanted.values() for name in kind)]
    with opened(path) as file:
        if not zipfile.is_zipfile(file):
            raise InputError(f"{path} is no .npz file of arrays, as numpy.savez writes it")
        file.seek(0)
        arrays = _stored(path, file, names)
    x, n = arrays[x_name], len(arrays[x_name]) if arrays[x_name].ndim else 0
    for name, array in arrays.items():
        if array.ndim == 0 or len(array) != n:
            raise InputError(f"{path}: {name} has the shape {array.shape}, and {x_name} has {n} rows")
        if array.dtype.kind in "fc" and not np.isfinite(array).all():
            row = int(np.argmax(~np.isfinite(array.reshape(n, -1)).all(1)))
            raise InputError(f"{path}: {name} is not finite in row {row + 1}")
    if x.dtype.kind not in "fiub" or x.ndim < 2:
        raise InputError(f"{path}: {x_name} must be numbers of shape (n, *features), got {x.shape}, {x.dtype}")
    found: Columns = {k: [c for name in names for c in _columns(arrays[name])] for k, names in wanted.items()}
    return found, x.astype(np.float32), [f"{x_name} {i + 1}" for i in range(int(np.prod(x.shape[1:])))]


def _stored(path: Path, file: IO[bytes], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the arrays of these names. Raises InputError if one is missing, broken, too large, or of objects."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            sizes = {info.filename.removesuffix(".npy"): info.file_size for info in stored.zip.infolist()}
            for name in names:
                if name not in sizes:
                    raise InputError(f"{path} has no array {name}; it has {', '.join(sizes) or 'none'}")
                if sizes[name] > LARGEST:
                    raise InputError(f"{path}: {name} has {sizes[name]:,} bytes, above the limit of {LARGEST:,}")
            return {name: stored[name] for name in names}
    except InputError:
        raise
    except (ValueError, EOFError, KeyError, MemoryError, *BROKEN_ZIP) as error:
        if "allow_pickle" in str(error):
            raise InputError(f"{path} has arrays of objects, which are not read: save numbers or text") from error
        raise InputError(f"{path} is broken: {error}") from error


def _columns(array: np.ndarray) -> list[np.ndarray]:
    return list(array.reshape(len(array), -1).T)


def _parquet(
    path: Path, wanted: Wanted, features: Sequence[str] | None, separator: str | None
) -> tuple[Columns, np.ndarray, list[str]]:
    """Return the same of a .parquet file."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f'{path} needs pyarrow: pip install "innerloop[parquet]", or save it as CSV') from error
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from error
    special = [name for names in wanted.values() for name in names]
    names = _without_index(path, table.column_names, special) if features is None else list(features)
    for name in [*special, *names]:
        if table.column_names.count(name) != 1:
            raise InputError(f"{path} has no column {name}; its columns are {some(table.column_names, 10)}")
    plain = {name: table.column(name).to_numpy() for name in [*special, *names]}
    for name, column in plain.items():
        row = _first_missing(column, table.column(name).null_count)
        if row is not None:
            raise InputError(f"{path}: {name} is empty in row {row + 1}")
        if name in names and (column.dtype.kind not in "fiub" or not np.isfinite(column.astype(np.float64)).all()):
            raise InputError(f"{path}: {name} has something that is no number; its type is {column.dtype}")
    x = np.stack([plain[name] for name in names], 1).astype(np.float32)
    return {kind: [plain[name] for name in kinds] for kind, kinds in wanted.items()}, x, names


def _first_missing(column: np.ndarray, nulls: int) -> int | None:
    """Return the first row of a column of a .parquet file that is null or NaN; None if there is none."""
    if column.dtype.kind == "f":
        missing = np.isnan(column)
    elif nulls:
        missing = np.array([cell is None or cell != cell for cell in column])
    else:
        return None
    return int(np.argmax(missing)) if missing.any() else None


def _targets(path: Path, columns: Sequence[Any], kind: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the targets, as float32 (n, targets) or as numbers of classes (n,), and the classes."""
    first, chosen = columns[0], kind
    texts = [str(cell) for cell in first] if len(columns) == 1 else []
    if kind == "auto":
        typed = np.asarray(first).dtype.kind
        marked = next((i for i, text in enumerate(texts) if is_marked(text)), None)
        if marked is not None and 2 * sum(map(is_marked, texts)) > len(texts):
            raise InputError(f"{path}: the target of row {marked + 1} is {texts[marked]!r}{advice(texts[marked])}")
        names = typed in "OUS" and all(text.lstrip("+-").isdigit() or as_number(text) is None for text in texts)
        kind = "classification" if len(columns) == 1 and (typed in "iub" or names) else "regression"
    if kind == "regression":
        numbers = [[as_number(str(cell)) for cell in column] for column in columns]
        for column in numbers:
            if None in column:
                row = column.index(None)
                hint = advice(str(columns[numbers.index(column)][row])) or "; kind=classification?"
                raise InputError(f"{path}: the target of row {row + 1} is no number{hint}")
        y = np.array(numbers, np.float32).T
        if chosen == "auto" and (few := np.unique(y)).size <= FEW_VALUES and np.array_equal(few, few.round()):
            listed = some(map(str, few.tolist()))
            log.warning(
                "%s: the targets %s are numbers to regress; data.kind=classification makes them classes", path, listed
            )
        return y, ()
    if len(columns) > 1:
        raise InputError(f"data.target names {len(columns)} columns, and a class is in one: kind=classification")
    empty = [i for i, text in enumerate(texts) if text.strip() in ("", "nan", "None")]
    if empty:
        raise InputError(f"{path}: the target of row {empty[0] + 1} is missing")
    classes = sorted(set(texts), key=lambda name: (len(name), name))
    if len(classes) < 2:
        raise InputError(f"{path}: all targets are {classes[0]}, and there is nothing to tell apart from one class")
    number = {name: i for i, name in enumerate(classes)}
    return np.array([number[text] for text in texts], np.int64), tuple(classes)


def _warn_of_leaks(path: Path, x: np.ndarray, y: np.ndarray, names: Sequence[str]) -> None:
    """Log a warning for each feature from which the target can be read off: it equals it, or it has a value a class."""
    flat = x.reshape(len(x), -1)
    for name, column in zip(names, flat.T, strict=True):
        if y.ndim == 2:
            equal = any(np.array_equal(column, target) for target in y.T) and np.ptp(column) > 0
        else:
            pairs = np.unique(np.stack([column, y]), axis=1)
            values, of_classes = (len(np.unique(row)) for row in pairs)
            equal = pairs.shape[1] == values == of_classes
        if equal:
            log.warning(
                "%s: %s equals the target in every row; is it known before? Leave it out of data.features", path, name
            )


def _parts(path: Path, name: str | None, columns: Sequence[Any]) -> np.ndarray | None:
    """Return whether each row is in the support of its task, None if that is drawn."""
    if not columns:
        return None
    cells = [str(cell).strip().lower() for cell in columns[0]]
    wrong = next((i for i, cell in enumerate(cells) if cell not in PARTS), None)
    if wrong is not None:
        raise InputError(f"{path}: {name} of row {wrong + 1} is {cells[wrong]!r}; it must be support or query")
    return np.array([cell == "support" for cell in cells])


def _splits(
    path: Path,
    name: str | None,
    columns: Sequence[Any],
    row_task: np.ndarray,
    tasks: np.ndarray,
    train: float,
    validation: float,
) -> Mapping[Split, np.ndarray]:
    """Return the task numbers of each split. Raises InputError if a split has no task, or a task is in two splits."""
    if columns:
        cells = [str(cell).strip().lower() for cell in columns[0]]
        wrong = next((i for i, cell in enumerate(cells) if cell not in SPLIT_NAMES), None)
        if wrong is not None:
            raise InputError(
                f"{path}: {name} of row {wrong + 1} is {cells[wrong]!r}; it must be one of {', '.join(SPLITS)}"
            )
        pairs = sorted({(task, SPLIT_NAMES[cell]) for task, cell in zip(row_task.tolist(), cells, strict=True)})
        splits = named_splits(path, [(split, task) for task, split in pairs])
    else:
        if min(train, validation) < 0 or train + validation > 1:
            raise InputError(
                f"data.train_fraction={train} and data.validation_fraction={validation} must leave something of 1"
            )
        splits = splits_by_name([str(task) for task in tasks], train, validation, 1)
    for split in SPLITS:
        if not len(splits[split]):
            raise InputError(f"{path} has {len(tasks)} tasks, none of them for {split}; each split needs one")
    return splits
