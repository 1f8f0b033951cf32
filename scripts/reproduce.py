"""The record of how every published number is made: trains what is missing, then writes the tables from the runs.

    python scripts/reproduce.py --set data.root=FOLDER --jobs 2          # all of it: hours
    python scripts/reproduce.py --only omniglot_5w1s/fomaml --dry-run    # the commands, without running them
    python scripts/reproduce.py --tables-only                            # results/*.csv and the pages, from the runs

A table is a file in scripts/tables/; a row of it is a command line and seeds, and each seed a run in
runs/tables/TABLE/ROW_seedN. Finished runs are kept, interrupted ones go on where they stopped. Each run has one thread.
Ctrl-C lets the runs at hand save their state, from which the next call goes on. README.md and results/README.md get a
table where they say `<!-- table: NAME -->` … `<!-- end -->`. A row without a run says `not run`.
"""

import argparse
import csv
import fcntl
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import yaml
from compare import (
    TITLES,
    ComparisonError,
    Run,
    ci95,
    per_episode,
    read,
    recorded_overrides,
    require_same_episodes,
    settings_of,
    short,
    summary,
    typed,
)

ROOT = Path(__file__).resolve().parents[1]
TABLES, RESULTS = ROOT / "scripts" / "tables", ROOT / "results"
PAGES = (ROOT / "README.md", RESULTS / "README.md")
EVERY_RUN = ("trainer.threads=1", "logger=csv")
NOT_RUN = "not run"

# Column of the CSV files -> its name on the pages, where it is shown. Those below the line above the table, if all
# rows agree.
SHOWN = {
    "mean": "",  # the metric
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
HOISTED = ("steps", "seeds", "test_step", "test_episodes", "norm", "queries")


@dataclass(frozen=True)
class Row:
    """A row of a table. set: its own overrides; published: what the literature has for it, as it stands there."""

    set: str
    seeds: Sequence[int] = (0,)
    published: str = ""


@dataclass(frozen=True)
class Table:
    """every: overrides of every row. reference: the row that differences are taken to. curve: inner steps to show."""

    name: str
    every: str
    rows: Mapping[str, Row]
    reference: str
    curve: Sequence[int] = field(default_factory=list)

    def overrides(self, row: str) -> list[str]:
        return [*shlex.split(self.every), *shlex.split(self.rows[row].set)]


@dataclass(frozen=True)
class Job:
    """One run of a table. label: what messages call it; overrides: what it is to be trained with."""

    label: str
    directory: Path
    overrides: Sequence[str]

    @property
    def is_finished(self) -> bool:
        return (self.directory / "results.json").exists()

    @property
    def is_begun(self) -> bool:
        return (self.directory / "config.yaml").exists()

    def command(self) -> list[str]:
        """The arguments of train.py: those of a new run, or of one that goes on."""
        return [f"resume={self.directory}"] if self.is_begun else [*self.overrides, f"hydra.run.dir={self.directory}"]

    def check(self) -> None:
        """Raises ComparisonError if the directory's run was begun with other settings than these overrides."""
        if not self.is_begun:
            return
        recorded = recorded_overrides(self.directory)
        config = yaml.safe_load((self.directory / "config.yaml").read_text())
        lacking = [o for o in self.overrides if o not in recorded and not holds(o, config)]
        if lacking:
            raise ComparisonError(
                f"{self.directory} was begun without {' '.join(lacking)}: move it away, to run it anew"
            )


def holds(override: str, config: Any) -> bool:
    """Whether a configuration has the value of KEY=VALUE, whoever set it."""
    key, _, value = override.partition("=")
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config is not None and config == yaml.safe_load(value)


def read_tables(folder: Path) -> dict[str, Table]:
    """All tables by name. Raises TypeError for a key that is not known."""
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        content = yaml.safe_load(path.read_text())
        rows = {name: Row(**row) for name, row in content.pop("rows").items()}
        found[path.stem] = Table(path.stem, rows=rows, **content)
    return found


def jobs_of(table: Table, runs: Path, row: str, extra: Sequence[str] = ()) -> list[Job]:
    """The runs of one row, a seed each. extra: overrides of every run; data.root, where the row's data have one."""
    overrides = table.overrides(row)
    data = next(o.partition("=")[2] for o in reversed(overrides) if o.startswith("data="))
    known = yaml.safe_load((ROOT / "conf" / "data" / f"{data}.yaml").read_text())
    extra = [o for o in extra if not o.startswith("data.root=") or "root" in known]
    return [
        Job(
            f"{table.name}/{row} seed {seed}",
            runs / table.name / f"{row}_seed{seed}",
            [*overrides, f"seed={seed}", *EVERY_RUN, *extra],
        )
        for seed in table.rows[row].seeds
    ]


def finished(table: Table, runs: Path, row: str) -> list[Run]:
    """The finished runs of a row. Raises ComparisonError, see `Job.check`."""
    jobs = [job for job in jobs_of(table, runs, row) if job.is_finished]
    for job in jobs:
        job.check()
    return [read(job.directory) for job in jobs]


# Running.


def start(job: Job) -> tuple[subprocess.Popen[bytes], TextIO]:
    """Trains a job in a process of its own, its output in a file beside its directory.

    Raises ComparisonError if another process is training it, or for what `Job.check` finds.
    """
    job.check()
    job.directory.parent.mkdir(parents=True, exist_ok=True)
    log = Path(f"{job.directory}.log").open("a")  # noqa: SIM115, it stays open as long as the run
    try:
        # Held by whoever has the file open: the run itself too, should this process be killed.
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.close()
        raise ComparisonError("another process is training it") from None
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *job.command()],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # a Ctrl-C reaches it through `stop` alone: a second one would lose the state
    )
    return process, log


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Asks runs to save their state and end, and waits for it; a second Ctrl-C kills them."""
    try:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
    finally:
        for process in processes:
            process.kill()


def run_all(jobs: Sequence[Job], at_once: int) -> list[str]:
    """Trains all jobs, `at_once` together, in order. Returns what went wrong, a message each."""
    waiting, failed = list(jobs), []
    running: dict[subprocess.Popen[bytes], tuple[Job, float, TextIO]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                print(f"{job.label}: {'goes on' if job.is_begun else 'starts'}, {len(waiting)} waiting", flush=True)
                try:
                    process, log = start(job)
                    running[process] = (job, time.monotonic(), log)
                except ComparisonError as error:
                    failed.append(f"{job.label}: {error}")
            for process in [p for p in running if p.poll() is not None]:
                job, since, log = running.pop(process)
                log.close()
                if process.returncode == 0:
                    print(f"{job.label}: done in {time.monotonic() - since:.0f} s", flush=True)
                else:
                    failed.append(f"{job.label} failed, see {job.directory}.log")
                    print(failed[-1], flush=True)
            time.sleep(0.1)
    finally:
        if running:
            print(f"stopping {len(running)} runs, which save their state; again: at once", flush=True)
            stop(list(running))
    return failed


# Writing.


def csv_rows(table: Table, runs: Path) -> list[dict[str, str]]:
    """One dict a row of the table, the columns of its CSV file.

    Raises ComparisonError if runs were tested on different episodes, or trained with other overrides than the row's.
    """
    of_row = {row: finished(table, runs, row) for row in table.rows}
    require_same_episodes([run for group in of_row.values() for run in group])
    return [numbers(table, row, group, of_row[table.reference]) for row, group in of_row.items()]


def numbers(table: Table, row: str, group: Sequence[Run], reference: Sequence[Run]) -> dict[str, str]:
    """A row of the CSV file. reference: the finished runs that it is compared with."""
    overrides = group[0].overrides if group else [*table.overrides(row), *EVERY_RUN]
    seeds = [run.results["seed"] for run in group] or table.rows[row].seeds
    cells: dict[str, Any] = {
        "row": row,
        "set": table.rows[row].set,
        "algo": next((o.partition("=")[2] for o in reversed(overrides) if o.startswith("algo=")), ""),
        "settings": settings_of(overrides),
        "seeds": None,
        "metric": None,
        "mean": NOT_RUN,
    }
    s: dict[str, Any] = summary(group, reference) if group else {}
    first = group[0].results if group else {}
    cells |= {"metric": group[0].metric, "seeds": seeds} if group else {}
    cells |= {name: s.get(name) for name in ("ci95", "median", "seed_spread", "test_step")}
    cells |= {"mean": s["mean"]} if group else {}
    for step in table.curve:
        values = per_episode(group, step) if group and step < len(first["test"]["by_step"]) else None
        cells |= {f"after_{step}": None if values is None else values.mean()}
        cells |= {f"after_{step}_ci95": None if values is None else ci95(values)}
    cells |= {name: s.get(name) for name in ("difference", "difference_ci95", "difference_over_seeds_ci95")}
    cells |= {"steps": first.get("steps"), "parameters": first.get("parameters")}
    for name, clock in (("cpu_seconds_per_1000", "train_cpu_seconds"), ("wall_seconds_per_1000", "train_seconds")):
        each = [1000 * run.results[clock] / run.results["steps"] for run in group]
        cells[name] = np.mean(each) if each else None
    peaks = [run.results["peak_memory_mb"] for run in group]
    cells["peak_memory_mb"] = max(peaks) if peaks else None
    cells |= {"norm": norm_mode(first), "queries": first.get("queries")}
    cells |= {"test_episodes": first["test"]["episodes"] if group else None}
    cells |= {"published": table.rows[row].published, "command": command_of(overrides, seeds)}
    return {name: text(value) for name, value in cells.items()}


def norm_mode(results: Mapping[str, Any]) -> str:
    """Such as "batch (transductive)"; empty for a net without norms."""
    norm = results.get("norm")
    return f"{norm} (transductive)" if results.get("transductive") else norm or ""


def command_of(overrides: Sequence[str], seeds: Sequence[int]) -> str:
    """What a person types to get these runs; folders of this machine are FOLDER."""
    return typed([re.sub(r"=[/~].*", "=FOLDER", o) for o in overrides], seeds)


def text(value: Any) -> str:
    """A cell of a CSV file: numbers to six digits, equal ones of a list once."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return " ".join(map(str, dict.fromkeys(value) if len(set(value)) == 1 else value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def write_csv(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def markdown(table: Table, path: Path) -> str:
    """The table of a page, from nothing but its CSV file and the table's common overrides."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    metric = next((r["metric"] for r in rows if r["metric"]), "metric")
    run = [r for r in rows if r["mean"] != NOT_RUN]
    columns = SHOWN | {"mean": TITLES.get(metric, metric)}
    if metric != "mse":
        del columns["median"]
    for name in rows[0]:
        if re.fullmatch(r"after_\d+", name):
            columns[name] = name.replace("_", " ")
    hoisted = [c for c in HOISTED if len({r[c] for r in run}) == 1 and run[0][c]]
    names = [c for c in columns if c not in hoisted and any(r[c] for r in rows)]
    lines = [[f"`{r['set']}`", *(cell(r, c, metric) for c in names)] for r in rows]
    facts = [f"{columns[c]} {cell(run[0], c, metric)}" for c in hoisted]
    facts.append(f"differences to `{table.rows[table.reference].set}` on the same episodes, ± over those")
    if "difference_over_seeds_ci95" in names:
        facts.append("over seeds: the differences' t interval, seed by seed")
    made = f"`python train.py {table.every} {' '.join(EVERY_RUN)}` and what the row says"
    made += f"; all by `python scripts/reproduce.py --only {table.name}`"
    head = [["", *(columns[c] for c in names)], ["---"] * (len(names) + 1)]
    return "\n".join([f"{'; '.join(facts)}: {made}", "", *("| " + " | ".join(line) + " |" for line in head + lines)])


def cell(row: Mapping[str, str], column: str, metric: str) -> str:
    """One cell of a page: accuracies in percent, other metrics to three digits, with their intervals."""
    value = row[column]
    if not value or value == NOT_RUN:
        return value
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
    """A page with these tables (name -> markdown) between their markers. Raises ValueError for an unknown marker."""
    pattern = re.compile(r"(<!-- table: (\S+) -->\n)((?:(?!<!--).)*?)(<!-- end -->)", re.S)
    marks = re.findall(r"<!-- table: (\S+) -->", page)
    wrong = [name for name in marks if name not in known]
    if wrong or len(pattern.findall(page)) != len(marks):
        raise ValueError(f"markers of unknown tables {wrong}, or a marker without its <!-- end -->")
    return pattern.sub(lambda m: m[1] + (tables[m[2]] + "\n" if m[2] in tables else m[3]) + m[4], page)


def write_tables(tables: Sequence[Table], runs: Path, known: Sequence[str]) -> list[str]:
    """Writes results/*.csv and the tables of the pages. Returns what could not be written, a message each."""
    written, problems = {}, []
    for table in tables:
        try:
            write_csv(RESULTS / f"{table.name}.csv", csv_rows(table, runs))
            written[table.name] = markdown(table, RESULTS / f"{table.name}.csv")
        except ComparisonError as error:
            problems.append(f"{table.name}: {error}")
    for page in PAGES:
        before = page.read_text()
        after = rewritten(before, written, known)
        if after != before:
            page.write_text(after)
    return problems


def selected(tables: Mapping[str, Table], only: Sequence[str]) -> dict[str, list[str]]:
    """Table -> rows that `--only TABLE[/ROW]` names; all without it. Raises KeyError naming what there is."""
    chosen: dict[str, list[str]] = {}
    for name in only or tables:
        table, _, row = name.partition("/")
        if table not in tables:
            raise KeyError(f"there is no table {table}; choose from {', '.join(tables)}")
        if row and row not in tables[table].rows:
            raise KeyError(f"{table} has no row {row}; choose from {', '.join(tables[table].rows)}")
        chosen.setdefault(table, []).extend([row] if row else tables[table].rows)
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", action="extend", default=[], metavar="TABLE[/ROW]")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="for every run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "tables", help="where the runs are")
    parser.add_argument("--dry-run", action="store_true", help="print the commands of what is missing")
    parser.add_argument("--tables-only", action="store_true", help="run nothing")
    options = parser.parse_args(argv)
    tables = read_tables(TABLES)
    try:
        chosen = selected(tables, options.only)
    except KeyError as error:
        parser.error(error.args[0])
    pairs = [(tables[name], row) for name, rows in chosen.items() for row in rows]
    jobs = [job for table, row in pairs for job in jobs_of(table, options.runs, row, options.set)]
    missing = [job for job in jobs if not job.is_finished]
    if options.dry_run:
        print("\n".join(shlex.join(["python", "train.py", *job.command()]) for job in missing))
        return 0
    problems = []
    if not options.tables_only:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        try:
            problems += run_all(missing, options.jobs)
        except KeyboardInterrupt:
            print("interrupted; the same command goes on", file=sys.stderr)
            return 130
    problems += write_tables([tables[name] for name in chosen], options.runs, list(tables))
    for problem in problems:
        print(f"reproduce.py: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
