"""Reads a sweep, finished or running: python scripts/summarize.py SWEEP.

One row a configuration, its seeds together. `test` is the mean over seeds and test episodes. Of the 95 % intervals
`over seeds` is Student's, of the seeds' means: what another seed would give. `over episodes` is that of the episodes,
each first averaged over the seeds: what other test episodes would give these trained models. Differences are paired,
episode by episode and seed by seed, to the row that `--against "algo=maml"` names, by default the first; where it names
one row for each of several kinds of test episodes, each is compared with its own. The best row is the best on
*validation* tasks; the number to report is its test's. A run that is not finished shows its last validation value, in
brackets. Searches with Optuna are sorted by validation value and show the importances of what was searched.

`--csv FILE` writes all numbers to six digits (accuracies as fractions), `--markdown` prints the table for a README, and
the plots go to SWEEP/summary, or where `--plots DIR` says.
"""

import argparse
import math
import shlex
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from compare import TITLES, Run, differences, short, summary, typed  # noqa: E402
from reproduce import text, write_csv  # noqa: E402
from sweep_jobs import STATES, Job, Row, Sweep, SweepError, brief, read_sweep, validation_ci95  # noqa: E402
from sweep_plots import draw  # noqa: E402

from innerloop.drawing import ERRORS  # noqa: E402

MOST = 10  # of failed or running runs are listed

# Column of the CSV file -> the two lines of its head in the table. Empty columns are left out.
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


@dataclass
class Report:
    """The rows of a sweep in order, what each is compared with, the best of each kind of test episodes, and remarks."""

    sweep: Sweep
    rows: list[Row]
    references: list[Row | None]
    best: list[Row]
    notes: list[str]


@dataclass
class Table:
    """head: two lines for each column; body: the cells of each row.

    keys: how many columns, on the left, name a row; test, differences: the first column of the numbers of each.
    """

    head: list[tuple[str, str]]
    body: list[list[str]]
    keys: int
    test: int
    differences: int


# What is compared with what.


def report(sweep: Sweep, against: str | None) -> Report:
    """Raises SweepError if `against` names no row, or several that were tested on the same episodes."""
    rows = sweep.rows
    if sweep.study:
        rows = sorted(rows, key=lambda row: -row.worth)
    named = [row for row in rows if matches(row, sweep, against)] if against is not None else rows[:1]
    if rows and not named:
        raise SweepError(f"--against {against!r} is no row of this sweep; there are: {'; '.join(r.name for r in rows)}")
    notes = [note for row in rows for note in row.notes]
    kinds = by_episodes(rows)
    references: dict[int, Row] = {}
    for kind in kinds:
        of_kind = [row for row in kind if row in named]
        if len(of_kind) > 1:
            raise SweepError(f"--against {against!r} is more than one row: {'; '.join(row.name for row in of_kind)}")
        references |= {id(row): of_kind[0] for row in kind if of_kind}
        if not of_kind:
            notes.append(no_difference(kind, named))
    best = [max(kind, key=lambda row: row.worth) for kind in kinds]
    return Report(sweep, rows, [references.get(id(row)) for row in rows], best, notes)


def matches(row: Row, sweep: Sweep, against: str) -> bool:
    """Whether a row has all KEY=VALUE of this text, keys whole or as in the table's head."""
    try:
        asked = shlex.split(against)
    except ValueError:  # a quote alone
        asked = [against]
    told = {
        f"{key}={v}"
        for k, value in row.settings.items()
        for key in (k, sweep.headings[k])
        for v in (value, brief(value))
    }
    return against == row.name or set(asked) <= told


def by_episodes(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows with finished runs, those together that were tested on the same episodes."""
    kinds: list[list[Row]] = []
    for row in (row for row in rows if row.runs):
        for kind in kinds:
            if not differences(kind[0].runs[0], row.runs[0]):
                kind.append(row)
                break
        else:
            kinds.append([row])
    return kinds


def no_difference(kind: Sequence[Row], named: Sequence[Row]) -> str:
    """Why rows are not compared, in one line."""
    finished = [row for row in named if row.runs]
    if not finished:
        return f"no differences yet: {named[0].name} has no finished run"
    why = differences(finished[0].runs[0], kind[0].runs[0])
    more = f" and {len(kind) - 1} more" if len(kind) > 1 else ""
    return (
        f"no difference for {kind[0].name}{more}: tested on other episodes than {finished[0].name} "
        f"({', '.join(why[:2])}{', …' if len(why) > 2 else ''})"
    )


# Numbers.


def numbers(row: Row, reference: Row | None, sweep: Sweep, is_best: bool) -> dict[str, str]:
    """A row of the CSV file."""
    s: dict[str, Any] = summary(row.runs, None) if row.runs else {}
    if reference:
        compared = summary(*paired(row.runs, reference.runs))
        s |= {name: value for name, value in compared.items() if name.startswith("difference")}
    reached = None if row.runs else row.reached
    cells: dict[str, Any] = {"row": row.name}
    cells |= {key: row.settings.get(key, "") for key in sweep.keys}
    cells |= {state: row.count(state) or None for state in STATES}
    cells |= {
        "metric": row.metric,
        "best": "*" if is_best else None,
        "validation": float(row.validations.mean()) if row.runs else None,
        "validation_over_seeds_ci95": validation_ci95(row),
        "test": s.get("mean"),
        "test_over_seeds_ci95": s.get("over_seeds_ci95"),
        "test_over_episodes_ci95": s.get("ci95"),
        "test_median": s.get("median"),
        "difference": s.get("difference"),
        "difference_over_seeds_ci95": s.get("difference_over_seeds_ci95"),
        "difference_over_episodes_ci95": s.get("difference_ci95"),
        "to": reference.name if reference and s.get("difference") is not None else None,
        "reached_step": reached[0] if reached else None,
        "reached_validation": reached[1] if reached else None,
        "seeds": s.get("seeds"),
        "command": command(row, sweep),
    }
    return {name: text(value) for name, value in cells.items()}


def paired(runs: Sequence[Run], reference: Sequence[Run]) -> tuple[Sequence[Run], Sequence[Run]]:
    """The runs of the seeds that both rows have finished; all of both, if there is no such seed."""
    of_both = {run.results["seed"] for run in runs} & {run.results["seed"] for run in reference}
    if not of_both:
        return runs, reference
    first, second = ([run for run in each if run.results["seed"] in of_both] for each in (runs, reference))
    return first, second


def command(row: Row, sweep: Sweep) -> str:
    """What a person types to get this row again: all its seeds, be they finished or not."""
    overrides = row.jobs[0].overrides
    assert overrides is not None
    seeds = [o.partition("=")[2] for job in row.jobs for o in job.overrides or () if o.startswith("seed=")]
    finished = [run.results["seed"] for run in row.runs]
    return typed(overrides, list(dict.fromkeys(map(int, seeds or finished or [0]))), sweep.flags)


# Text.


def table(report: Report, rows: Sequence[Mapping[str, str]]) -> Table:
    """The table, from the rows of the CSV file alone."""
    metrics = {r["metric"]: TITLES.get(r["metric"], r["metric"]) for r in rows if r["metric"]}
    unit = next(iter(metrics.values())) if len(metrics) == 1 else ""
    keys = report.sweep.headings or {"row": "row"}
    names = [name for name in SHOWN if any(shown(r, name) for r in rows)]
    head = [("", heading) for heading in keys.values()] + [("", "metric")] * (len(metrics) > 1)
    head += [(SHOWN[name][0], SHOWN[name][1].replace("METRIC", unit)) for name in names]
    body = []
    for r in rows:
        told = [brief(r[key]) for key in keys]
        told[-1] += f" {r['best']}" if r["best"] else ""
        told += [metrics.get(r["metric"], "")] * (len(metrics) > 1)
        body.append([*told, *(shown(r, name) for name in names)])
    test, differing = (
        len(head) - sum(n.startswith(of) for n in names) for of in (("test", "difference"), "difference")
    )
    return Table(head, body, len(keys), test, differing)


def shown(row: Mapping[str, str], column: str) -> str:
    """A cell of the table: accuracies in percent, other metrics to three digits."""
    value, metric = row[column], row["metric"]
    if column == "validation" and not value and row["reached_step"]:
        return f"({short(float(row['reached_validation']), metric)} at {int(row['reached_step']):,})"
    if not value or column in STATES:
        return value
    return ("± " if column.endswith("_ci95") else "") + short(float(value), metric, signed=column == "difference")


def aligned(table: Table, width: int) -> str:
    """Text in columns; where they do not fit in the width, some stand below, and each row is named once more."""
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


def markdown(table: Table) -> str:
    head = [f"{above} {name}".strip() for above, name in table.head]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *table.body])


def caption(report: Report, rows: Sequence[Mapping[str, str]]) -> list[str]:
    """What has to be known to read the table, a paragraph each."""
    jobs = report.sweep.jobs
    counts = ", ".join(f"{n} {state}" for state in STATES if (n := sum(job.state == state for job in jobs)))
    found = [f"{report.sweep.directory}: {len(jobs)} run{'s' * (len(jobs) > 1)}, {counts}"]
    finished = [row for row in report.rows if row.runs]
    if not finished:
        return found
    episodes = sorted({row.runs[0].results["test"]["episodes"] for row in finished})
    metrics = dict.fromkeys(r["metric"] for r in rows if r["metric"])
    better = [f"{named(m)}: {'lower' if m in ERRORS else 'higher'} is better" for m in metrics]
    said = f"Mean over seeds and {' or '.join(f'{n:,}' for n in episodes)} test episodes ({', '.join(better)}). "
    said += "± is 95 %: over seeds Student's t of the seeds' means, over episodes normal."
    compared = list(dict.fromkeys(r["to"] for r in rows if r["to"]))
    if compared:
        said += f" Differences are paired, on the same episodes, to {'; '.join(compared)}."
    found.append(said)
    found.append("* is the best by the validation value, which alone chose it; report its test value.")
    return found


def in_markdown(report: Report, rows: Sequence[Mapping[str, str]]) -> str:
    return "\n\n".join([" ".join(caption(report, rows)[1:]), markdown(table(report, rows))])


def in_text(report: Report, rows: Sequence[Mapping[str, str]]) -> str:
    width = shutil.get_terminal_size((100, 24)).columns
    where, *meaning = caption(report, rows)
    folded = [textwrap.fill(m, width, break_on_hyphens=False, break_long_words=False) for m in meaning]
    shown = aligned(table(report, rows), width) if rows else "no run has recorded yet what it was told"
    return "\n\n".join(filter(None, ["\n".join([where, *folded]), shown, closing(report, rows)]))


def closing(report: Report, rows: Sequence[Mapping[str, str]]) -> str:
    """Remarks, failed and unfinished runs, importances, and how to run the best again."""
    listed = [*report.notes]
    for state in ("failed", "stopped", "running"):
        told = [f"{state}: {job.name}{about(job)}" for job in report.sweep.jobs if job.state == state]
        listed += told[:MOST] + ([f"{state}: and {len(told) - MOST} more"] if len(told) > MOST else [])
    paragraphs = [listed]
    if study := report.sweep.study:
        shares = [f"  {share:6.1%}  {key}" for key, share in study.importances.items()]
        paragraphs.append([study.about_importances, *shares])
    for row in (row for row in rows if row["best"]):
        validation, test = (worded(float(row[name]), row["metric"]) for name in ("validation", "test"))
        found = f"best by validation: {row['row']} ({validation} in validation, {test} in the test)"
        paragraphs.append([found, f"  {row['command']}"])
    return "\n\n".join("\n".join(lines) for lines in paragraphs if lines)


def about(job: Job) -> str:
    """What there is to say of an unfinished or failed run."""
    reached = f" after {job.reached[0]:,} meta-batches, {worded(job.reached[1], job.metric)}" if job.reached else ""
    if job.state == "failed":
        return f"{reached}: {job.error}"
    silent = f", last written {job.silent_for:.0f} s ago" if job.state == "running" and job.directory else ""
    return f"{reached}{silent}"


def named(metric: str | None) -> str:
    return TITLES.get(metric, metric).partition(",")[0] if metric else "value"


def worded(value: float, metric: str | None) -> str:
    """Such as "MSE .120" or "accuracy 97.10 %"."""
    return f"{named(metric)} {short(value, str(metric))}{' %' if metric == 'accuracy' else ''}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, metavar="SWEEP", help="a sweep's directory")
    parser.add_argument("--against", metavar="ROW", help='what differences are taken to, such as "algo=maml"')
    parser.add_argument("--markdown", action="store_true", help="print a table for a README")
    parser.add_argument("--csv", type=Path, metavar="FILE")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="where the plots go, by default SWEEP/summary")
    options = parser.parse_args(argv)
    try:
        found = report(read_sweep(options.sweep), options.against)
    except SweepError as error:
        sys.exit(f"summarize.py: {error}")
    best = [row.name for row in found.best if row.worth > -math.inf]
    pairs = zip(found.rows, found.references, strict=True)
    rows = [numbers(row, to, found.sweep, row.name in best) for row, to in pairs]
    print(in_markdown(found, rows) if options.markdown else in_text(found, rows))
    if options.csv and rows:
        write_csv(options.csv, rows)
    folder = options.plots or options.sweep / "summary"
    drawn = draw(found.sweep, found.rows, folder)
    if not options.markdown:
        print(f"\nplots: {', '.join(str(folder / name) for name in drawn) or 'none yet: nothing was validated'}")


if __name__ == "__main__":
    main()
