"""The table of a sweep as text: for a terminal, in Markdown, as a CSV file."""

import csv
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from innerloop.runs.compare import TITLES, short
from innerloop.runs.compare import in_markdown as cells_in_markdown
from innerloop.runs.report.style import ERRORS
from innerloop.sweeps.read import silent_for
from innerloop.sweeps.report import Report, table_rows
from innerloop.sweeps.rows import STATES, ReadJob, brief

MOST = 10
"""The largest number of failed or running runs that are listed."""

# Column -> the two lines of its head in the table. Empty columns are left out.
SHOWN = {
    **{state: ("", "done" if state == "finished" else state) for state in STATES},
    "validation": ("validation", "METRIC"),
    "test": ("test", "METRIC"),
    "test_over_seeds_ci95": ("± over", "seeds"),
    "test_over_episodes_ci95": ("± over", "episodes"),
    "difference": ("paired", "difference"),
    "difference_over_seeds_ci95": ("± over", "seeds"),
    "difference_over_episodes_ci95": ("± over", "episodes"),
}

Rows = Sequence[Mapping[str, Any]]
"""Rows of `innerloop.sweeps.report.numbers`."""


@dataclass
class Table:
    """head: two lines for each column. body: the cells of each row.

    keys: the number of columns, on the left, that name a row. test, differences: the first column of each.
    """

    head: list[tuple[str, str]]
    body: list[list[str]]
    keys: int
    test: int
    differences: int


def in_markdown(report: Report) -> str:
    """Return caption and table for a README."""
    rows = table_rows(report)
    made = table(report, rows)
    head = [f"{above} {name}".strip() for above, name in made.head]
    return "\n\n".join([" ".join(caption(report, rows)[1:]), cells_in_markdown([head, *made.body])])


def in_text(report: Report) -> str:
    """Return caption, table and remarks for a terminal."""
    width = shutil.get_terminal_size((100, 24)).columns
    rows = table_rows(report)
    where, *meaning = caption(report, rows)
    folded = [textwrap.fill(m, width, break_on_hyphens=False, break_long_words=False) for m in meaning]
    shown = aligned(table(report, rows), width) if rows else "no run has recorded its overrides yet"
    return "\n\n".join(filter(None, ["\n".join([where, *folded]), shown, remarks(report, rows)]))


def write_csv(path: Path, rows: Rows) -> None:
    """Write rows of numbers as a CSV file, numbers to six digits."""
    path.parent.mkdir(exist_ok=True, parents=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)


def cell(value: Any) -> str:
    """Return a cell of a CSV file: numbers to six digits, a list's equal values once, True as *."""
    if value is None:
        return ""
    if value is True:
        return "*"
    if isinstance(value, list | tuple):
        return " ".join(map(str, dict.fromkeys(value) if len(set(value)) == 1 else value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def table(report: Report, rows: Rows) -> Table:
    """Return the table of these rows."""
    metrics = {str(m): TITLES.get(str(m), str(m)) for r in rows if (m := r["metric"])}
    unit = next(iter(metrics.values())) if len(metrics) == 1 else ""
    keys = report.sweep.headings or {"row": "row"}
    names = [name for name in SHOWN if any(shown(r, name) for r in rows)]
    head = [("", heading) for heading in keys.values()] + [("", "metric")] * (len(metrics) > 1)
    head += [(SHOWN[name][0], SHOWN[name][1].replace("METRIC", unit)) for name in names]
    body = []
    for r in rows:
        cells = [brief(r[key]) for key in keys]
        cells[-1] += " *" if r["best"] else ""
        cells += [metrics.get(r["metric"], "")] * (len(metrics) > 1)
        body.append([*cells, *(shown(r, name) for name in names)])
    test, differing = (
        len(head) - sum(n.startswith(start) for n in names) for start in (("test", "difference"), "difference")
    )
    return Table(head, body, len(keys), test, differing)


def shown(row: Mapping[str, Any], column: str) -> str:
    """Return a cell of the table: accuracies in percent, other metrics to three digits."""
    value, metric = row[column], row["metric"]
    if column == "validation" and value is None and row["reached_step"]:
        return f"({short(row['reached_validation'], metric)} at {row['reached_step']:,})"
    if value is None or column in STATES:
        return cell(value)
    return ("± " if column.endswith("_ci95") else "") + short(value, metric, signed=column == "difference")


def aligned(table: Table, width: int) -> str:
    """Return text in columns. If it is too wide it is cut into blocks of columns, and each block names its rows."""
    lines = [[above for above, _ in table.head], [name for _, name in table.head], *table.body]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.head))]
    named, end = range(table.keys), len(widths)

    def fits(block: range) -> bool:
        return sum(widths[i] + 2 for i in [*named, *block]) - 2 <= width

    for breaks in ([], [table.differences], [table.test], [table.test, table.differences]):
        edges = sorted({table.keys, *breaks, end})
        blocks = [range(*edge) for edge in pairwise(edges)]
        if all(map(fits, blocks)):
            break
    drawn = []
    for block in blocks:
        cells = [
            [*(line[i].ljust(widths[i]) for i in named), *(line[i].rjust(widths[i]) for i in block)] for line in lines
        ]
        drawn.append("\n".join("  ".join(line).rstrip() for line in cells))
    return "\n\n".join(drawn)


def caption(report: Report, rows: Rows) -> list[str]:
    """Return what a reader of the table has to know, in paragraphs."""
    jobs = report.sweep.jobs
    counts = ", ".join(f"{n} {state}" for state in STATES if (n := sum(job.state == state for job in jobs)))
    found = [f"{report.sweep.directory}: {len(jobs)} run{'s' * (len(jobs) > 1)}, {counts}"]
    finished = [row for row in report.rows if row.runs]
    if not finished:
        return found
    episodes = sorted({row.runs[0].results["test"]["episodes"] for row in finished})
    metrics = dict.fromkeys(r["metric"] for r in rows if r["metric"])
    better = [f"{named(m)}: {'lower' if m in ERRORS else 'higher'} is better" for m in metrics]
    meaning = f"Mean over seeds and {' or '.join(f'{n:,}' for n in episodes)} test episodes ({', '.join(better)}). "
    meaning += "± is 95 %: over seeds Student's t of the seeds' means, over episodes normal."
    compared = list(dict.fromkeys(r["to"] for r in rows if r["to"]))
    if compared:
        meaning += f" Differences are paired, on the same episodes, to {'; '.join(compared)}."
    found.append(meaning)
    found.append("* is the best by the validation value, which alone chose it; report its test value.")
    return found


def remarks(report: Report, rows: Rows) -> str:
    """Return notes, failed and unfinished runs, importances, and the commands that make the best rows again."""
    listed = [*report.notes]
    for state in ("failed", "stopped", "running"):
        jobs = [f"{state}: {job.name}{about(job)}" for job in report.sweep.jobs if job.state == state]
        listed += jobs[:MOST] + ([f"{state}: and {len(jobs) - MOST} more"] if len(jobs) > MOST else [])
    paragraphs = [listed]
    if study := report.sweep.study:
        shares = [f"  {share:6.1%}  {key}" for key, share in study.importances.items()]
        paragraphs.append([study.about_importances, *shares])
    for row in (row for row in rows if row["best"]):
        validation, test = (with_unit(row[name], row["metric"]) for name in ("validation", "test"))
        found = f"best by validation: {row['row']} ({validation} in validation, {test} in the test)"
        paragraphs.append([found, f"  {row['command']}"])
    return "\n\n".join("\n".join(lines) for lines in paragraphs if lines)


def about(job: ReadJob) -> str:
    """Return what is known of an unfinished or failed run."""
    reached = f" after {job.reached[0]:,} meta-batches, {with_unit(job.reached[1], job.metric)}" if job.reached else ""
    if job.state == "failed":
        return f"{reached}: {job.error}"
    silent = f", last written {silent_for(job):.0f} s ago" if job.state == "running" and job.directory else ""
    return f"{reached}{silent}"


def named(metric: str | None) -> str:
    """Return the name of a metric without its unit."""
    return TITLES.get(metric, metric).partition(",")[0] if metric else "value"


def with_unit(value: float, metric: str | None) -> str:
    """Return a value such as "MSE .120" or "accuracy 97.10 %"."""
    return f"{named(metric)} {short(value, str(metric))}{' %' if metric == 'accuracy' else ''}"
