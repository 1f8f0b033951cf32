"""Write the learner that adapt.py tries on tables from a run on data=table_prior.

    python train.py data=table_prior algo=hypernet algo.compile=false trainer.threads=1 hydra.run.dir=RUN
    python scripts/table_learner.py RUN "THE COMMAND THAT TRAINED IT"

It writes src/innerloop/practice/tables.pt, tensors and plain containers; the command is kept in it.
"""

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from innerloop.practice.prior import FILE, of_run  # noqa: E402
from innerloop.runs.load import load_run  # noqa: E402

if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: table_learner.py RUN COMMAND, got {len(sys.argv) - 1} arguments")
    torch.save(of_run(load_run(Path(sys.argv[1])), sys.argv[2]), ROOT / "src" / "innerloop" / "practice" / FILE)
