"""The logger of metrics.csv, which every run has."""

import csv
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter


class MetricsFile(CSVLogger):
    """Write metrics.csv in the run directory, a row whenever something is logged.

    A resumed run keeps the rows before the step of its checkpoint. Lightning's own logger would delete the file.
    """

    def __init__(self, run_dir: Path, resumed_at: int = 0) -> None:
        super().__init__(run_dir.parent, name=run_dir.name, version="", flush_logs_every_n_steps=1)
        path = run_dir / "metrics.csv"
        rows: list[dict[str, Any]] = []
        if path.is_file() and resumed_at:
            with path.open(newline="") as file:
                rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Experiment logs directory")
            writer = self.experiment
        if isinstance(writer, ExperimentWriter):  # other ranks have a dummy
            writer.metrics = [row for row in rows if int(row["step"]) < resumed_at]
