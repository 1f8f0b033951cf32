"""Weights & Biases."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import wandb
import yaml
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from innerloop.errors import InputError
from innerloop.tracking.tracker import Closing, RunInfo, Tracker, exit_code, last_words

RECORD = "wandb.json"
DATA_DIR = "WANDB_DATA_DIR"
DRAWN = "WANDB_SWEEP_PARAM_PATH"  # what the agent of a W&B sweep drew for this run
STEP = "trainer/global_step"
LONGEST_TABLE = 1000


class WandbRun(WandbLogger, Tracker):
    """A W&B run of this run directory's own; a resumed run goes on in the W&B run that it had.

    settings: `WandbConfig`. mode "auto" is online where W&B has a key, else offline; it never asks. WANDB_MODE, if set,
    decides instead. Raises InputError where W&B cannot be reached.
    """

    def __init__(self, info: RunInfo, settings: Mapping[str, Any]) -> None:
        _leave_groups_to_config(info)
        mode = settings["mode"]
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False, verify=False) else "offline")
        before = info.recorded(RECORD)
        # A run of a sweep that is resumed alone keeps its place in the sweep.
        name = settings["name"] or before.get("name") or info.label.name
        group = settings["group"] or before.get("group") or info.label.group
        # Tables and artifacts wait for `wandb sync` beside the run, not in the home directory of whoever trained.
        self._own_data_dir = mode == "offline" and DATA_DIR not in os.environ
        if self._own_data_dir:
            os.environ[DATA_DIR] = str((info.directory / "wandb").resolve())
        try:
            run = wandb.init(
                project=settings["project"],
                entity=settings["entity"],
                name=name,
                group=group,
                job_type="train",
                tags=[*info.tags(), *settings["tags"]],
                id=before.get("id"),
                resume="allow" if before else None,
                config=info.with_version(),
                dir=info.directory,
                mode=mode,
                settings=wandb.Settings(silent=True, console="off"),
            )
        except BaseException as error:
            self._forget_data_dir()
            if not isinstance(error, wandb.errors.Error):
                raise
            raise InputError(f"W&B: {error}. Train without it: logger.wandb.mode=offline, or logger=csv") from error
        info.record(RECORD, {"id": run.id, "project": settings["project"], "mode": mode, "name": name, "group": group})
        # Lightning would do so for a run that it started itself, but WandbLogger(offline=True) would set the mode for
        # every later run of this process.
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        super().__init__(experiment=run)
        self.histograms_every = settings["histograms_every"]
        self._artifacts, self._directory = settings["artifacts"], info.directory

    def log_histograms(self, values: Mapping[str, Tensor], step: int) -> None:
        """The distribution of each tensor's entries."""
        histograms = {
            name: wandb.Histogram(np_histogram=numpy.histogram(value.cpu().double().numpy(), bins=64))
            for name, value in values.items()
        }
        self.experiment.log({**histograms, STEP: step})

    def log_closing(self, closing: Closing) -> None:
        """Summary, tables, plots, the adaptation curve over its own axis and, if asked for, artifacts."""
        run = self.experiment
        for name in closing.by_step[0]:
            run.define_metric(f"adaptation/{name}", step_metric="adaptation/step")
        for row in closing.by_step:
            run.log({f"adaptation/{name}": value for name, value in row.items()})
        run.log(
            {
                "test/by_step": _table(closing.by_step),
                "test/episodes": _table(closing.episodes[:LONGEST_TABLE]),
                **{f"plots/{name}": wandb.Image(figure) for name, figure in closing.figures.items()},
                # In the history as well: a chart finds only what was logged.
                **{name: value for name, value in closing.numbers().items() if "/" in name},
                STEP: closing.summary["steps"],
            }
        )
        run.summary.update(dict(closing.summary))
        if self._artifacts:
            self._log_artifacts(closing)

    def _log_artifacts(self, closing: Closing) -> None:
        run, directory = self.experiment, self._directory
        model = wandb.Artifact(f"model-{run.id}", "model", metadata=dict(closing.summary))
        model.add_file(str(directory / "checkpoints" / "best.ckpt"))
        results = wandb.Artifact(f"results-{run.id}", "results", metadata=dict(closing.summary))
        with results.new_file("results.json") as file:  # the run directory gets its own last of all, when all is done
            json.dump(closing.results, file, indent=1)
        results.add_file(str(directory / "test_episodes.csv"))
        for artifact in (model, results):
            run.log_artifact(artifact)

    def end(self, error: BaseException | None) -> None:
        """Closes the W&B run: without it the next job of a multirun would go on in the same one."""
        if error is not None:
            self.experiment.summary["ended"] = last_words(error)
        self.experiment.finish(exit_code=exit_code(error))
        self._forget_data_dir()

    def _forget_data_dir(self) -> None:
        if self._own_data_dir:
            del os.environ[DATA_DIR]


def _leave_groups_to_config(info: RunInfo) -> None:
    """Where a W&B sweep draws a whole group, such as algo=maml, its word would replace the group's configuration."""
    path = os.environ.get(DRAWN)
    if path is not None:
        drawn = yaml.safe_load(Path(path).read_text())
        kept = {name: value for name, value in drawn.items() if not isinstance(info.config.get(name), dict)}
        rest = info.directory / "wandb_sweep.yaml"
        rest.write_text(yaml.safe_dump(kept))
        os.environ[DRAWN] = str(rest.resolve())


def _table(rows: Any) -> wandb.Table:
    columns = list(rows[0])
    return wandb.Table(columns=columns, data=[[row[c] for c in columns] for row in rows])
