"""Where a run's numbers go: metrics.csv always, and Weights & Biases."""

import csv
import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from matplotlib.figure import Figure

from innerloop.errors import InputError

log = logging.getLogger("innerloop")

WANDB_MODES = ("auto", "online", "offline", "disabled")
WANDB_RECORD = "wandb.json"


class MetricsFile(CSVLogger):
    """metrics.csv in the run directory, a row whenever something was logged.

    A resumed run keeps the rows before its checkpoint's step: Lightning's own logger would delete the file.
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
        if isinstance(writer, ExperimentWriter):  # on other ranks it is a dummy
            writer.metrics = [row for row in rows if int(row["step"]) < resumed_at]


def wandb_logger(run_dir: Path, config: dict[str, Any], settings: dict[str, Any]) -> WandbLogger:
    """A W&B run of this run directory's own; a resumed run goes on in the W&B run that it had.

    mode "auto" is online where W&B has a key, else offline; it never asks. WANDB_MODE, if set, decides instead.
    Raises InputError for an unknown mode or where W&B cannot be reached.
    """
    import wandb

    mode = settings["mode"]
    if mode not in WANDB_MODES:
        raise InputError(f"logger.wandb.mode={mode}: choose one of {', '.join(WANDB_MODES)}")
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False, verify=False) else "offline")
    record = run_dir / WANDB_RECORD
    before = json.loads(record.read_text()) if record.is_file() else {}
    algo, data = config["algo"]["name"], config["data"]["name"]
    try:
        run = wandb.init(
            project=settings["project"],
            entity=settings["entity"],
            name=settings["name"] or f"{algo}-{data}",
            group=settings["group"],
            tags=[algo, data, *settings["tags"]],
            id=before.get("id"),
            resume="allow" if before else None,
            config=config,
            dir=run_dir,
            mode=mode,
            settings=wandb.Settings(silent=True, console="off"),
        )
    except wandb.errors.Error as error:
        raise InputError(f"W&B: {error}. Train without it: logger.wandb.mode=offline, or logger=csv") from error
    record.write_text(json.dumps({"id": run.id, "project": settings["project"], "mode": mode}) + "\n")
    # Not WandbLogger(offline=True), which would set the mode for every later run of this process.
    return WandbLogger(experiment=run)


def log_final(loggers: list[Logger], flat: dict[str, Any], rows: list[dict], figures: dict[str, Figure]) -> None:
    """Sends the closing numbers, the plots and the adaptation curve to the loggers that can show them.

    flat: name -> number, for the summary. rows: one dict of numbers for each inner step. figures: name -> figure.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            run = logger.experiment
            columns = list(rows[0])
            table = wandb.Table(columns=columns, data=[[row[c] for c in columns] for row in rows])
            images = {f"plots/{name}": wandb.Image(figure) for name, figure in figures.items()}
            run.log({"test/by_step": table, **images, "trainer/global_step": flat["steps"]})
            run.summary.update(flat)


def finish(loggers: list[Logger], exit_code: int) -> None:
    """Closes the W&B run: without it the next job of a multirun would go on in the same one."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish(exit_code=exit_code)
