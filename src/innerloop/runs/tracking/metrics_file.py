"""The logger of metrics.csv, which every run has."""

import csv
import logging
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

log = logging.getLogger("innerloop")


class MetricsFile(CSVLogger):
    """Write metrics.csv in the run directory, a row whenever something is logged.

    A resumed run keeps the rows before the step of its checkpoint. Lightning's own logger would delete the file.
    """

    def __init__(self, run_dir: Path, resumed_at: int = 0) -> None:
        super().__init__(run_dir.parent, name=run_dir.name, version="", flush_logs_every_n_steps=1)
        path = run_dir / "metrics.csv"
        rows: list[dict[str, Any]] = []
        if path.is_file() and resumed_at:
            rows = read_rows(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Experiment logs directory")
            writer = self.experiment
        if isinstance(writer, ExperimentWriter):  # other ranks have a dummy
            writer.metrics = [row for row in rows if int(row["step"]) < resumed_at]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the whole rows of a metrics.csv, whatever a crash or a full disk left of the file.

    A row that is cut or has no step is left out, with a warning, and so is every row of a file without a header.
    """
    text = path.read_text(errors="replace").replace("\0", "")
    whole = text[: text.rfind("\n") + 1]  # of a last line that was cut, the numbers may be cut too
    lines = list(csv.reader(whole.splitlines()))
    header = lines[0] if lines else []
    rows = [dict(zip(header, line, strict=True)) for line in lines[1:] if len(line) == len(header)]
    rows = [{name: cell for name, cell in row.items() if cell} for row in rows if row.get("step", "").isdecimal()]
    lost = max(len(text.splitlines()) - 1, 0 if text else 1) - len(rows)
    if lost or not header:
        log.warning("%s is damaged: %d of its rows are left out", path, lost)
    return rows
