"""Write the learner that `adapt.py` tries on tables from a run, with the command that trained it.

python train.py data=table_prior algo=hypernet algo.compile=false trainer.threads=1 hydra.run.dir=RUN
python -m innerloop.practice.ship RUN
"""

import io
import sys
from pathlib import Path

import torch
import yaml

from innerloop.devices.files import write_whole
from innerloop.errors import InputError
from innerloop.practice.prior import FILE, of_run
from innerloop.runs.load import load_run
from innerloop.tasks.table_prior import TablePrior


def main(arguments: list[str]) -> None:
    """Write the file that ships from a run on data=table_prior."""
    if len(arguments) != 1:
        sys.exit(f"usage: python -m innerloop.practice.ship RUN, got {len(arguments)} arguments")
    try:
        run = load_run(Path(arguments[0]))
    except InputError as error:
        sys.exit(f"innerloop.practice.ship: {error}")
    if not isinstance(run.tasks, TablePrior):
        sys.exit(f"innerloop.practice.ship: {run.path} was not trained on data=table_prior")
    given = yaml.safe_load((run.path / "overrides.yaml").read_text(encoding="utf-8"))
    written = io.BytesIO()
    torch.save(of_run(run, " ".join(["python train.py", *given])), written)
    write_whole(Path(__file__).with_name(FILE), written.getvalue())


if __name__ == "__main__":
    main(sys.argv[1:])
