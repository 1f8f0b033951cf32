"""The record of how every published number is made: train what is missing, then write the tables from the runs.

    python scripts/reproduce.py --set data.root=FOLDER --jobs 2          # all of it: hours
    python scripts/reproduce.py --only omniglot_5w1s/fomaml --dry-run    # the commands, without running them
    python scripts/reproduce.py --tables-only                            # results/*.csv and the pages, from the runs

A table is a file in scripts/tables/. A row of it is a command line and seeds, and each seed is a run in
runs/tables/TABLE/ROW_seedN. Finished runs are kept, interrupted ones are resumed. Each run has one thread. Ctrl-C lets
the running ones save their state, and the next call resumes them. The pages of `PAGES` get a table where they have
`<!-- table: NAME -->` … `<!-- end -->`. A row without a run says `not run`. `--tables`, `--results` and `--pages` name
other folders and pages, for tables of your own.
"""

import argparse
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from innerloop.errors import InputError  # noqa: E402
from innerloop.sweeps.table_pages import write_tables  # noqa: E402
from innerloop.sweeps.table_runs import run_all  # noqa: E402
from innerloop.sweeps.tables import jobs_of, read_tables, selected  # noqa: E402

PAGES = [path for path in sorted((ROOT / "docs").glob("*.md")) if "<!-- table: " in path.read_text(encoding="utf-8")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", action="extend", default=[], metavar="TABLE[/ROW]")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="for every run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "tables", help="where the runs are")
    parser.add_argument("--tables", type=Path, default=ROOT / "scripts" / "tables", help="the folder of the tables")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="the folder of the CSV files")
    parser.add_argument("--pages", type=Path, nargs="*", default=PAGES, help="pages with marked places")
    parser.add_argument("--dry-run", action="store_true", help="print the commands of what is missing")
    parser.add_argument("--tables-only", action="store_true", help="run nothing")
    options = parser.parse_args()
    tables = read_tables(options.tables)
    try:
        chosen = selected(tables, options.only)
    except InputError as error:
        parser.error(str(error))
    pairs = [(tables[name], row) for name, rows in chosen.items() for row in rows]
    jobs = [job for table, row in pairs for job in jobs_of(table, options.runs, row, options.set)]
    missing = [job for job in jobs if not job.is_finished]
    if options.dry_run:
        print("\n".join(shlex.join(["python", "train.py", *job.command()]) for job in missing))
        return 0
    try:
        problems = [] if options.tables_only else run_all(missing, options.jobs)
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    written = [tables[name] for name in chosen]
    problems += write_tables(written, options.runs, options.results, options.pages, list(tables))
    for problem in problems:
        print(f"reproduce.py: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
