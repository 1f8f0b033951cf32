"""Write the learner that adapt.py tries on tables from a run on data=table_prior.

    python train.py data=table_prior algo=hypernet algo.compile=false trainer.threads=1 hydra.run.dir=RUN
    python scripts/table_learner.py RUN

It writes src/innerloop/practice/tables.pt, tensors and plain containers, with the command that trained the run.
"""

import sys
from pathlib import Path

import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from innerloop.practice.prior import FILE, of_run  # noqa: E402
from innerloop.runs.load import load_run  # noqa: E402

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: table_learner.py RUN, got {len(sys.argv) - 1} arguments")
    run = load_run(Path(sys.argv[1]))
    given = yaml.safe_load((run.path / "overrides.yaml").read_text(encoding="utf-8"))
    command = " ".join(["python train.py", *given])
    torch.save(of_run(run, command), ROOT / "src" / "innerloop" / "practice" / FILE)
