"""Build a W&B workspace for a project of runs: python scripts/wandb_dashboard.py --entity ME --project innerloop.

Sections: learning, adaptation curve, comparison by algorithm, inner rates, parallel coordinates. `--metric accuracy`
is for classification. `--dry-run FILE` writes the workspace's JSON (-: to the terminal) and needs no account. Needs
`pip install -e ".[dashboard]"`.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from innerloop.runs.tracking.workspace import to_json, workspace


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entity", help="the W&B user or team", default="")
    parser.add_argument("--project", help="the W&B project", default="innerloop")
    parser.add_argument("--metric", choices=("mse", "accuracy"), default="mse", help="what the runs report")
    parser.add_argument("--dry-run", metavar="FILE", help="write the JSON there and upload nothing; -: print it")
    options = parser.parse_args()
    if not options.entity and not options.dry_run:
        parser.error("--entity is needed, or --dry-run FILE")
    try:
        made = workspace(options.entity, options.project, options.metric)
    except ModuleNotFoundError as error:
        print(f"{Path(__file__).name}: {error}: pip install wandb-workspaces", file=sys.stderr)
        return 1
    if options.dry_run is None:
        import wandb

        try:
            print(made.save().url)
        except (wandb.errors.Error, ValueError) as error:
            print(f"{Path(__file__).name}: W&B: {' '.join(str(error).split())}", file=sys.stderr)
            return 1
        return 0
    text = json.dumps(to_json(made), indent=1) + "\n"
    if options.dry_run == "-":
        print(text, end="")
    else:
        Path(options.dry_run).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
