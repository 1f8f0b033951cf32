"""Grids and searches that may be killed, their jobs, and reading a sweep.

Importing this package imports nothing else: a sweep's parent process does without torch.
"""

from pathlib import Path
from typing import Any


def summary(directory: str | Path, against: str | None = None) -> list[dict[str, Any]]:
    """Return the table of a sweep, finished or running: one row per configuration, its seeds together.

    The columns are described in `innerloop.sweeps.report.numbers`. Errors and accuracies are numbers, accuracies as
    fractions, and None where there is no value yet.

    against: the row that differences are taken to, such as "algo=maml". None: the first row.
    Raises InputError if the directory holds no sweep, or `against` names no row.
    """
    from innerloop.sweeps.read import read_sweep
    from innerloop.sweeps.report import report, table_rows

    return table_rows(report(read_sweep(Path(directory)), against))
