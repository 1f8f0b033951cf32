"""Read a sweep, finished or running: python scripts/summarize.py SWEEP.

One row per configuration, its seeds together. `test` is the mean over seeds and test episodes. There are two kinds of
95 % intervals: `over seeds` is Student's, of the seeds' means, and says what another seed would give; `over episodes`
is that of the episodes, each first averaged over the seeds, and says what other test episodes would give these trained
models. Differences are paired, episode by episode and seed by seed, to the row that `--against "algo=maml"` names, by
default the first; if it names one row for each of several kinds of test episodes, each is compared with its own. The
best row is the best on *validation* tasks; report its test value. A run that is not finished shows its last validation
value, in brackets. Searches by Optuna are sorted by validation value and show the importances of what was searched.

`--csv FILE` writes all numbers to six digits (accuracies as fractions), `--markdown` prints the table for a README, and
the plots go to SWEEP/summary, or where `--plots DIR` says. In Python: `innerloop.sweeps.summary(SWEEP)`.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from innerloop.errors import InputError
from innerloop.sweeps.figures import draw
from innerloop.sweeps.read import read_sweep
from innerloop.sweeps.report import report, table_rows
from innerloop.sweeps.text import in_markdown, in_text, write_csv


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, metavar="SWEEP", help="a sweep's directory")
    parser.add_argument("--against", metavar="ROW", help='what differences are taken to, such as "algo=maml"')
    parser.add_argument("--markdown", action="store_true", help="print a table for a README")
    parser.add_argument("--csv", type=Path, metavar="FILE")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="where the plots go, by default SWEEP/summary")
    options = parser.parse_args()
    try:
        found = report(read_sweep(options.sweep), options.against)
    except InputError as error:
        sys.exit(f"summarize.py: {error}")
    print(in_markdown(found) if options.markdown else in_text(found))
    if options.csv and found.rows:
        write_csv(options.csv, table_rows(found))
    folder = options.plots or options.sweep / "summary"
    drawn = draw(found.sweep, found.rows, folder)
    if not options.markdown:
        print(f"\nplots: {', '.join(str(folder / name) for name in drawn) or 'none yet: nothing was validated'}")


if __name__ == "__main__":
    main()
