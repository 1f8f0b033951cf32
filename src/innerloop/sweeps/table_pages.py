"""Tables of published numbers, written from their finished runs: CSV files, and Markdown in pages."""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from innerloop.errors import InputError
from innerloop.runs.compare import (
    TITLES,
    FinishedRun,
    ci95,
    command_of,
    in_markdown,
    per_episode,
    require_same_episodes,
    settings_of,
    short,
    summary,
)
from innerloop.sweeps.tables import EVERY_RUN, TableSpec, finished
from innerloop.sweeps.text import write_csv

NOT_RUN = "not run"

# Column of the CSV files -> its heading on the pages.
SHOWN = {
    "mean": "",  # the metric's title
    "median": "median",
    "difference": "paired difference",
    "difference_over_seeds_ci95": "over seeds",
    "seeds": "seeds",
    "seed_spread": "seed spread",
    "test_step": "test steps",
    "steps": "meta-batches",
    "parameters": "parameters",
    "cpu_seconds_per_1000": "CPU s / 1,000",
    "peak_memory_mb": "peak MB",
    "test_episodes": "test episodes",
    "norm": "norm",
    "queries": "queries",
    "published": "published",
}
# Columns that stand in the line above the table if all rows agree.
HOISTED = ("steps", "seeds", "test_step", "test_episodes", "norm", "queries")


def write_tables(
    tables: Sequence[TableSpec], runs: Path, results: Path, pages: Sequence[Path], known: Sequence[str]
) -> list[str]:
    """Write the CSV files of tables, and the tables on the pages. Returns a message for each that was not written.

    runs: the folder with the runs. results: the folder of the CSV files. known: the names that pages may mark.
    """
    written, problems = {}, []
    for table in tables:
        try:
            path = results / f"{table.name}.csv"
            rows = csv_rows(table, runs)
            if path.exists() and all(row["mean"] == NOT_RUN for row in rows):
                raise InputError(f"there is no finished run in {runs / table.name}, so {path} is kept as it is")
            write_csv(path, rows)
            written[table.name] = markdown(table, path)
        except InputError as error:
            problems.append(f"{table.name}: {error}")
    for page in pages:
        before = page.read_text()
        after = rewritten(before, written, known)
        if after != before:
            page.write_text(after)
    return problems


def csv_rows(table: TableSpec, runs: Path) -> list[dict[str, Any]]:
    """Return the rows of a table's CSV file.

    Raises InputError if runs were tested on different episodes, or trained with other overrides than the row's.
    """
    groups = {row: finished(table, runs, row) for row in table.rows}
    require_same_episodes([run for group in groups.values() for run in group])
    return [numbers(table, row, group, groups[table.reference]) for row, group in groups.items()]


def numbers(
    table: TableSpec, row: str, group: Sequence[FinishedRun], reference: Sequence[FinishedRun]
) -> dict[str, Any]:
    """Return a row of a CSV file from its finished runs. reference: the finished runs that it is compared with."""
    overrides = group[0].overrides if group else [*table.overrides(row), *EVERY_RUN]
    seeds = [run.results["seed"] for run in group] or table.rows[row].seeds
    s: dict[str, Any] = summary(group, reference) if group else {}
    first = group[0].results if group else {}
    cells: dict[str, Any] = {
        "row": row,
        "set": table.rows[row].set,
        "algo": next((o.partition("=")[2] for o in reversed(overrides) if o.startswith("algo=")), ""),
        "settings": settings_of(overrides),
        "seeds": seeds if group else None,
        "metric": group[0].metric if group else None,
        "mean": s["mean"] if group else NOT_RUN,
    }
    cells |= {name: s.get(name) for name in ("ci95", "median", "seed_spread", "test_step")}
    cells |= {name: first["test"][name]["mean"] if group else None for name in table.beside}
    for step in table.curve:
        values = per_episode(group, step) if group and step < len(first["test"]["by_step"]) else None
        cells |= {f"after_{step}": None if values is None else float(values.mean())}
        cells |= {f"after_{step}_ci95": None if values is None else ci95(values)}
    cells |= {name: s.get(name) for name in ("difference", "difference_ci95", "difference_over_seeds_ci95")}
    cells |= {"steps": first.get("steps"), "parameters": first.get("parameters")}
    for name, clock in (("cpu_seconds_per_1000", "train_cpu_seconds"), ("wall_seconds_per_1000", "train_seconds")):
        each = [1000 * run.results[clock] / run.results["steps"] for run in group if run.results["steps"]]
        cells[name] = float(np.mean(each)) if each else None
    cells["peak_memory_mb"] = max((run.results["peak_memory_mb"] for run in group), default=None)
    cells |= {"norm": norm_mode(first), "queries": first.get("queries")}
    cells |= {"test_episodes": first["test"]["episodes"] if group else None}
    return cells | {"published": table.rows[row].published, "command": public_command(overrides, seeds)}


def norm_mode(results: Mapping[str, Any]) -> str:
    """Return a norm such as "batch (transductive)"; empty for a net without norms."""
    norm = results.get("norm")
    return f"{norm} (transductive)" if results.get("transductive") else norm or ""


def public_command(overrides: Sequence[str], seeds: Sequence[int]) -> str:
    """Return the command that makes runs, with FOLDER in place of this machine's folders."""
    return command_of([re.sub(r"=[/~].*", "=FOLDER", o) for o in overrides], seeds)


def markdown(table: TableSpec, path: Path) -> str:
    """Return a page's table, made from its CSV file and the table's common overrides alone."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    metric = next((r["metric"] for r in rows if r["metric"]), "metric")
    run = [r for r in rows if r["mean"] != NOT_RUN]
    columns = SHOWN | {"mean": TITLES.get(metric, metric)} | {name: name for name in table.beside}
    if metric != "mse":
        del columns["median"]
    for name in rows[0]:
        if re.fullmatch(r"after_\d+", name):
            columns[name] = name.replace("_", " ")
    hoisted = [c for c in HOISTED if len({r[c] for r in run}) == 1 and run[0][c]]
    names = [c for c in columns if c not in hoisted and any(r[c] for r in rows)]
    facts = [f"{columns[c]} {page_cell(run[0], c, metric)}" for c in hoisted]
    facts.append(f"differences to `{table.rows[table.reference].set}` on the same episodes, ± over those")
    if "difference_over_seeds_ci95" in names:
        facts.append("over seeds: the differences' t interval, seed by seed")
    made = f"`python train.py {table.every} {' '.join(EVERY_RUN)}` and what the row says"
    made += f"; all by `python scripts/reproduce.py --only {table.name}`"
    lines = [[f"`{r['set']}`", *(page_cell(r, c, metric) for c in names)] for r in rows]
    return "\n".join([f"{'; '.join(facts)}: {made}", "", in_markdown([["", *(columns[c] for c in names)], *lines])])


def page_cell(row: Mapping[str, str], column: str, metric: str) -> str:
    """Return a cell of a page: accuracies in percent, other metrics to three digits, with their intervals."""
    value = row[column]
    if not value or value == NOT_RUN:
        return value
    if column not in SHOWN and not column.startswith("after_"):
        return short(float(value), metric)
    if column in ("mean", "median", "difference", "seed_spread") or column.startswith("after_"):
        shown = short(float(value), metric, signed=column == "difference")
        beside = row.get("ci95" if column == "mean" else f"{column}_ci95")
        return f"{shown} ± {short(float(beside), metric)}" if beside else shown
    if column in ("steps", "parameters", "test_episodes", "peak_memory_mb"):
        return f"{float(value):,.0f}"
    if column == "difference_over_seeds_ci95":
        return f"± {short(float(value), metric)}"
    if column == "cpu_seconds_per_1000":
        return f"{float(value):.3g}"
    return value.replace(" ", ", ") if column in ("seeds", "test_step") else value


def rewritten(page: str, tables: Mapping[str, str], known: Sequence[str]) -> str:
    """Return a page with these tables (name -> Markdown) between their markers.

    Raises InputError for a marker of an unknown table, and for one without its end.
    """
    pattern = re.compile(r"(<!-- table: (\S+) -->\n)((?:(?!<!--).)*?)(<!-- end -->)", re.S)
    marks = re.findall(r"<!-- table: (\S+) -->", page)
    wrong = [name for name in marks if name not in known]
    if wrong or len(pattern.findall(page)) != len(marks):
        raise InputError(f"markers of unknown tables {wrong}, or a marker without its <!-- end -->")
    return pattern.sub(lambda m: m[1] + (tables[m[2]] + "\n" if m[2] in tables else m[3]) + m[4], page)
