"""Test runs on other data, source -> target: python scripts/transfer.py RUN … --to leaves "omniglot data.root=FOLDER".

All rows of a target are tested on the same episodes: raw inputs, random features, a frozen pre-trained net, each run.
Tests go to --out, and finished ones are kept. See docs/transfer.md.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from innerloop.errors import InputError
from innerloop.runs.compare import in_columns, in_markdown
from innerloop.runs.schemas import ADAPT
from innerloop.sweeps.transfer import transfer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--to", nargs="+", required=True, metavar="DATA", help='such as "leaves data.root=leaves.zip"')
    parser.add_argument("--adapt", nargs="+", default=["inner", "finetune"], choices=ADAPT)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of rows with gradient steps")
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--backbone", default="efficientnet_lite0", help="none: without the row of a frozen net")
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--jobs", type=int, default=1, help="tests at a time")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--tables-only", action="store_true", help="test nothing")
    for name in ("--csv", "--figure"):
        parser.add_argument(name, type=Path, metavar="FILE")
    try:
        lines, said = transfer(**(options := vars(parser.parse_args())))
    except InputError as error:
        sys.exit(f"transfer.py: {error}")
    print((in_markdown if options["markdown"] else in_columns)(lines), *said, sep="\n")


if __name__ == "__main__":
    main()
