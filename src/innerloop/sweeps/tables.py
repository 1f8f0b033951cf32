"""Tables of published numbers: which runs each row is made of.

A table is a YAML file with the overrides of all its rows and those of each row. Every seed of a row is a run in a
directory of its own, FOLDER/<table>/<row>_seed<seed>; with several test sets there is one for each,
FOLDER/<table>/<row>_fold<number>_seed<seed>.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from innerloop.errors import InputError
from innerloop.runs.compare import FinishedRun, read_run, recorded_overrides
from innerloop.runs.config import CONFIG
from innerloop.runs.record import RESULTS

CHECKOUT = Path(__file__).resolve().parents[3]
"""The checkout of the project, whose train.py makes the runs."""
EVERY_RUN = ("trainer.threads=1", "logger=csv")
"""Overrides of every run of every table."""


BEGINS_WITH = "init_from=row:"
"""Start of an override of a row whose runs begin with those of another row of the table, seed by seed."""


@dataclass(frozen=True)
class TableRow:
    """A row of a table. set: its own overrides. published: the number in the literature, as it is printed there."""

    set: str
    seeds: Sequence[int] = (0,)
    published: str = ""


@dataclass(frozen=True)
class TableSpec:
    """A table. every: overrides of every row. reference: the row that differences are taken to.

    curve: numbers of inner steps whose metric has a column of its own.
    also: further metrics with a column, and "unadapted" for the metric before any adaptation.
    folds: overrides, each of which makes another test set, such as data.fold=0. A row then has a run of every seed for
        each of them, and its numbers are over the episodes of all.
    """

    name: str
    every: str
    rows: Mapping[str, TableRow]
    reference: str
    curve: Sequence[int] = field(default_factory=list)
    also: Sequence[str] = field(default_factory=list)
    folds: Sequence[str] = field(default_factory=list)

    def overrides(self, row: str) -> list[str]:
        """Return the overrides of a row."""
        return [*shlex.split(self.every), *shlex.split(self.rows[row].set)]


@dataclass(frozen=True)
class TableJob:
    """One run of a table. label: its name in messages. overrides: what it is trained with. script: what runs it.

    after: the directory of the run that it begins with, which must be finished.
    """

    label: str
    directory: Path
    overrides: Sequence[str]
    script: str = "train.py"
    after: Path | None = None

    @property
    def is_finished(self) -> bool:
        return (self.directory / RESULTS).exists()

    @property
    def is_begun(self) -> bool:
        return (self.directory / CONFIG).exists()

    def command(self) -> list[str]:
        """Return the arguments of train.py that start or resume the run."""
        return [f"resume={self.directory}"] if self.is_begun else [*self.overrides, f"hydra.run.dir={self.directory}"]

    def check(self) -> None:
        """Raise InputError if the run in the directory was started without one of these overrides, or cannot start
        because the one that it begins with is not finished.
        """
        if not self.is_begun:
            if self.after is not None and not (self.after / RESULTS).exists():
                raise InputError(f"it begins with {self.after}, which is not finished")
            return
        recorded = recorded_overrides(self.directory)
        config = yaml.safe_load((self.directory / CONFIG).read_text())
        missing = [o for o in self.overrides if o not in recorded and not holds(o, config)]
        if missing:
            raise InputError(
                f"{self.directory} was started without {' '.join(missing)}: move it elsewhere to train it again"
            )


def holds(override: str, config: Any) -> bool:
    """Return True if a configuration has the value of KEY=VALUE, whether it was typed or a default."""
    key, _, value = override.partition("=")
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config is not None and config == yaml.safe_load(value)


def read_tables(folder: Path) -> dict[str, TableSpec]:
    """Return all tables of a folder by name. Raises TypeError for an unknown key."""
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        content = yaml.safe_load(path.read_text())
        rows = {name: TableRow(**row) for name, row in content.pop("rows").items()}
        found[path.stem] = TableSpec(path.stem, rows=rows, **content)
    return found


def selected(tables: Mapping[str, TableSpec], only: Sequence[str]) -> dict[str, list[str]]:
    """Return table -> rows of the names TABLE or TABLE/ROW; everything if there are no names.

    Raises InputError that lists what there is, for an unknown name.
    """
    chosen: dict[str, list[str]] = {}
    for name in only or tables:
        table, _, row = name.partition("/")
        if table not in tables:
            raise InputError(f"there is no table {table}; choose from {', '.join(tables)}")
        if row and row not in tables[table].rows:
            raise InputError(f"{table} has no row {row}; choose from {', '.join(tables[table].rows)}")
        chosen.setdefault(table, []).extend([row] if row else tables[table].rows)
    return chosen


def jobs_of(table: TableSpec, runs: Path, row: str, extra: Sequence[str] = ()) -> list[TableJob]:
    """Return the runs of a row, one per seed.

    extra: overrides of every run. data.root and data.roots.SOURCE are left out where the row's data have none.
    """
    overrides = table.overrides(row)
    data = next(o.partition("=")[2] for o in reversed(overrides) if o.startswith("data="))
    known = yaml.safe_load((CHECKOUT / "conf" / "data" / f"{data}.yaml").read_text())
    extra = [o for o in extra if not o.startswith(("data.root=", "data.roots.")) or re.split("[.=]", o)[1] in known]
    first = next((o.removeprefix(BEGINS_WITH) for o in overrides if o.startswith(BEGINS_WITH)), None)
    overrides = [o for o in overrides if not o.startswith(BEGINS_WITH)]
    folds = [(f"_fold{i}", [fold]) for i, fold in enumerate(table.folds)] or [("", [])]
    jobs = []
    for seed in table.rows[row].seeds:
        for name, fold in folds:
            after = runs / table.name / f"{first}{name}_seed{seed}" if first else None
            begins = [f"init_from={after}"] if after else []
            own = [*overrides, *begins, *fold, f"seed={seed}", *EVERY_RUN, *extra]
            label = f"{table.name}/{row}{name} seed {seed}"
            jobs.append(TableJob(label, runs / table.name / f"{row}{name}_seed{seed}", own, after=after))
    return jobs


@dataclass(frozen=True)
class FoldedRun(FinishedRun):
    """Finished runs of one seed on several test sets, as one run that was tested on all their episodes."""

    parts: Sequence[FinishedRun] = ()

    def values(self, step: int | str | None = None, metric: str | None = None) -> np.ndarray:
        return np.concatenate([part.values(step, metric) for part in self.parts])

    def episodes(self) -> dict[str, Any]:
        return {f"{i} {key}": value for i, part in enumerate(self.parts) for key, value in part.episodes().items()}


def folded(parts: Sequence[FinishedRun]) -> FoldedRun:
    """Return runs on several test sets as one. Its times are means over the runs, its memory is the largest."""
    first, results = parts[0], dict(parts[0].results)
    results["test"] = results["test"] | {"episodes": sum(run.results["test"]["episodes"] for run in parts)}
    for clock in ("train_cpu_seconds", "train_seconds"):
        results[clock] = float(np.mean([run.results[clock] for run in parts]))
    results["peak_memory_mb"] = max(run.results["peak_memory_mb"] for run in parts)
    return FoldedRun(first.path, results, first.config, first.overrides, parts)


def finished(table: TableSpec, runs: Path, row: str) -> list[FinishedRun]:
    """Return the finished runs of a row, those of all folds as one. Raises InputError: see `TableJob.check`."""
    jobs, found = jobs_of(table, runs, row), []
    size = len(table.folds) or 1
    for start in range(0, len(jobs), size):
        parts = jobs[start : start + size]
        if all(job.is_finished for job in parts):
            for job in parts:
                job.check()
            each = [read_run(job.directory) for job in parts]
            found.append(folded(each) if table.folds else each[0])
    return found
