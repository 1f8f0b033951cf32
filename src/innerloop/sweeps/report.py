"""The table of a sweep as data: its rows in order, what each is compared with, and the numbers of each."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from innerloop.errors import InputError
from innerloop.runs.compare import FinishedRun, command_of, differences, summary
from innerloop.sweeps.read import ReadSweep
from innerloop.sweeps.record import packages
from innerloop.sweeps.rows import STATES, Row, brief


@dataclass
class Report:
    """The rows of a sweep in order. references: the row that each is compared with.

    best: the best row of each group of rows that were tested on the same episodes. notes: what was left out, and why.
    """

    sweep: ReadSweep
    rows: list[Row]
    references: list[Row | None]
    best: list[Row]
    notes: list[str]


def report(sweep: ReadSweep, against: str | None = None) -> Report:
    """Return the report of a sweep. Rows of a search are sorted by their validation value.

    against: names the row that differences are taken to, such as "algo=maml"; if it names a row for each of several
        groups that were tested on different episodes, each group is compared with its own. None: the first row.
    Raises InputError if `against` names no row, or several that were tested on the same episodes.
    """
    rows = sweep.rows
    if sweep.study:
        rows = sorted(rows, key=lambda row: -row.worth)
    named = [row for row in rows if matches(row, sweep, against)] if against is not None else rows[:1]
    if rows and not named:
        raise InputError(f"{against!r} is no row of this sweep; there are: {'; '.join(r.name for r in rows)}")
    notes = [note for row in rows for note in row.notes]
    groups = by_episodes(rows)
    references: dict[int, Row] = {}
    for group in groups:
        chosen = [row for row in group if row in named]
        if len(chosen) > 1:
            raise InputError(f"{against!r} is more than one row: {'; '.join(row.name for row in chosen)}")
        references |= {id(row): chosen[0] for row in group if chosen}
        if not chosen:
            notes.append(no_difference(group, named))
    best = [max(group, key=lambda row: row.worth) for group in groups]
    return Report(sweep, rows, [references.get(id(row)) for row in rows], best, notes)


def matches(row: Row, sweep: ReadSweep, against: str) -> bool:
    """Return True if a row has every KEY=VALUE of a text, with whole keys or with those in the table's head."""
    try:
        asked = shlex.split(against)
    except ValueError:  # a single quotation mark
        asked = [against]
    known = {
        f"{key}={v}"
        for k, value in row.settings.items()
        for key in (k, sweep.headings[k])
        for v in (value, brief(value))
    }
    return against == row.name or set(asked) <= known


def by_episodes(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows with finished runs in groups that were tested on the same episodes."""
    groups: list[list[Row]] = []
    for row in (row for row in rows if row.runs):
        for group in groups:
            if not differences(group[0].runs[0], row.runs[0]):
                group.append(row)
                break
        else:
            groups.append([row])
    return groups


def no_difference(group: Sequence[Row], named: Sequence[Row]) -> str:
    """Return in one line why the rows of a group are not compared."""
    finished = [row for row in named if row.runs]
    if not finished:
        return f"no differences yet: {named[0].name} has no finished run"
    why = differences(finished[0].runs[0], group[0].runs[0])
    more = f" and {len(group) - 1} more" if len(group) > 1 else ""
    return (
        f"no difference for {group[0].name}{more}: tested on other episodes than {finished[0].name} "
        f"({', '.join(why[:2])}{', …' if len(why) > 2 else ''})"
    )


def table_rows(found: Report) -> list[dict[str, Any]]:
    """Return the numbers of every row: see `numbers`."""
    best = [row.name for row in found.best if row.worth > -math.inf]
    pairs = zip(found.rows, found.references, strict=True)
    return [numbers(row, reference, found.sweep, row.name in best) for row, reference in pairs]


def numbers(row: Row, reference: Row | None, sweep: ReadSweep, is_best: bool) -> dict[str, Any]:
    """Return the columns of a row; None where there is no value.

    row: its name. Then the value of every swept key as typed, the number of jobs in each state, and:
    metric; best: True for the best by validation. validation, test: means over seeds, and for the test over episodes.
    test_median. *_over_seeds_ci95, *_over_episodes_ci95: half-widths of 95 % intervals, Student's over the seeds' means
    and normal over test episodes, each first averaged over the seeds. difference: paired, to the row `to`, over the
    seeds that both have finished. reached_step, reached_validation: of a row without finished runs. seeds: of the
    finished runs. command: makes this row again.
    """
    s: dict[str, Any] = summary(row.runs, None) if row.runs else {}
    if reference:
        compared = summary(*paired(row.runs, reference.runs))
        s |= {name: value for name, value in compared.items() if name.startswith("difference")}
    reached = None if row.runs else row.reached
    return {
        "row": row.name,
        **{key: row.settings.get(key, "") for key in sweep.keys},
        **{state: row.count(state) or None for state in STATES},
        "metric": row.metric,
        "best": is_best or None,
        "validation": float(row.validations.mean()) if row.runs else None,
        "validation_over_seeds_ci95": row.validation_ci95,
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


def paired(
    runs: Sequence[FinishedRun], reference: Sequence[FinishedRun]
) -> tuple[Sequence[FinishedRun], Sequence[FinishedRun]]:
    """Return the runs of the seeds that both rows have finished; all runs of both, if there is no such seed."""
    common = {run.results["seed"] for run in runs} & {run.results["seed"] for run in reference}
    if not common:
        return runs, reference
    first, second = ([run for run in each if run.results["seed"] in common] for each in (runs, reference))
    return first, second


def command(row: Row, sweep: ReadSweep) -> str:
    """Return the command that makes a row again, with all its seeds, finished or not."""
    overrides = row.jobs[0].overrides
    assert overrides is not None
    seeds = [o.partition("=")[2] for job in row.jobs for o in job.overrides or () if o.startswith("seed=")]
    finished = [run.results["seed"] for run in row.runs]
    if sweep.allowed and not packages(overrides):
        overrides = [*overrides, f"allow=[{','.join(sweep.allowed)}]"]
    return command_of(overrides, list(dict.fromkeys(map(int, seeds or finished or [0]))), sweep.flags)
