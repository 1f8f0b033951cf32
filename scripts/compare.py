"""Compare runs on the test episodes that they share: python scripts/compare.py RUN [RUN ...].

Runs of the same configuration apart from the seed form one row: the mean over seeds and episodes with its 95 %
interval, the median, CPU seconds. The paired difference to the first row, episode by episode, is more precise than
overlapping intervals suggest. Intervals are over test episodes (each episode first averaged over the seeds): they
compare these trained models. Whether one algorithm trains better ones than another is in `over seeds`, Student's
interval of the differences between runs of the same seed. `seed spread` is the standard deviation of the seeds' means.
Runs that were tested on different episodes are refused. `--markdown` prints the table for a README.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from innerloop.errors import InputError
from innerloop.runs.compare import comparison, in_columns, in_markdown, read_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run directories; the first one's row is the reference")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    try:
        table = comparison([read_run(path) for path in options.runs])
    except InputError as error:
        parser.error(str(error))
    print(in_markdown(table) if options.markdown else in_columns(table))


if __name__ == "__main__":
    main()
