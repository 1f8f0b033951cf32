"""Weights & Biases."""

import json
import logging
import os
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import wandb
import yaml
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from innerloop.errors import InputError
from innerloop.runs.tracking.tracker import Closing, RunInfo, Tracker, exit_code, one_line

log = logging.getLogger("innerloop")

RECORD = "wandb.json"
DATA_DIR = "WANDB_DATA_DIR"
DRAWN = "WANDB_SWEEP_PARAM_PATH"  # the file with what the agent of a W&B sweep drew for this run
STEP = "trainer/global_step"
LONGEST_TABLE = 1000
PATIENCE = 10.0
"""Seconds that a run waits for W&B's server before it starts offline or, if it must be online, gives up."""


class WandbRun(WandbLogger, Tracker):
    """A W&B run that belongs to this run directory. A resumed run continues its W&B run.

    settings: see `WandbConfig`. Mode "auto" is online if W&B has a key and its server answers, else offline, and never
    asks for input. The environment variable WANDB_MODE, if set, decides in place of "auto".
    Raises InputError if W&B is to be online and cannot be, or refuses a setting or an environment variable.
    """

    def __init__(self, info: RunInfo, settings: Mapping[str, Any]) -> None:
        _leave_groups_to_config(info)
        before = info.recorded(RECORD)
        # A job of a sweep that is resumed by itself keeps its name and its group.
        name = settings["name"] or before.get("name") or info.label.name
        group = settings["group"] or before.get("group") or info.label.group
        self._own_data_dir = False
        try:
            run, mode = self._start(
                settings["mode"],
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
            )
        except BaseException as error:
            self._forget_data_dir()
            if not isinstance(error, wandb.errors.Error | ValueError):
                raise
            raise InputError(
                f"W&B: {_reason(error)}. Train without it: logger.wandb.mode=offline, or logger=csv"
            ) from error
        info.record(RECORD, {"id": run.id, "project": settings["project"], "mode": mode, "name": name, "group": group})
        # Lightning defines these for runs that it starts itself, but WandbLogger(offline=True) would set the mode of
        # every later run of this process.
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        super().__init__(experiment=run)
        self.histograms_every = settings["histograms_every"]
        self._artifacts, self._directory = settings["artifacts"], info.directory

    def _start(self, wanted: str, **kwargs: Any) -> tuple[Any, str]:
        """Return W&B's run and its mode."""
        deadline = time.monotonic() + PATIENCE
        # Silent, because a login that reports itself asks the server for the user's name.
        url = wandb.setup(settings=wandb.Settings(silent=True)).settings.base_url
        mode = os.environ.get("WANDB_MODE", "auto") if wanted == "auto" else wanted
        automatic = mode == "auto"
        if automatic:
            mode = "online" if wandb.login(prompt=False, verify=False) else "offline"
            if mode == "offline":
                log.info("W&B: not logged in, so this run is recorded offline; upload it later with wandb sync")
        if mode == "online" and not answers(url, PATIENCE / 2):
            if not automatic:
                raise InputError(f"no answer from {url}")
            mode = "offline"
            log.warning("W&B: no answer from %s, so this run is recorded offline; upload it later with wandb sync", url)
        if mode == "online" and automatic:
            try:
                return self._init(mode, init_timeout=max(1.0, deadline - time.monotonic()), **kwargs), mode
            except wandb.errors.CommError as error:
                if isinstance(error, wandb.errors.AuthenticationError):
                    raise
                mode = "offline"
                log.warning("W&B: %s; this run is recorded offline", one_line(error))
        return self._init(mode, **kwargs), mode

    def _init(self, mode: Any, init_timeout: float | None = None, **kwargs: Any) -> Any:
        self._own_data_dir = mode == "offline" and DATA_DIR not in os.environ
        if self._own_data_dir:
            # Tables and artifacts wait for `wandb sync` beside the run, not in the user's home directory.
            os.environ[DATA_DIR] = str((kwargs["dir"] / "wandb").resolve())
        settings = wandb.Settings(silent=True, console="off")
        if init_timeout is not None:
            settings.init_timeout = init_timeout
        return wandb.init(mode=mode, settings=settings, **kwargs)

    def log_histograms(self, values: Mapping[str, Tensor], step: int) -> None:
        """Log the distribution of each tensor's entries."""
        histograms = {
            name: wandb.Histogram(np_histogram=numpy.histogram(value.cpu().double().numpy(), bins=64))
            for name, value in values.items()
        }
        self.experiment.log({**histograms, STEP: step})

    def log_closing(self, closing: Closing) -> None:
        """Log summary, tables, plots, the adaptation curve over an axis of its own and, if configured, artifacts."""
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
                # In the history as well, because a chart finds only what was logged.
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
        with results.new_file("results.json") as file:  # the run directory gets its own when everything else is done
            json.dump(closing.results, file, indent=1)
        results.add_file(str(directory / "test_episodes.csv"))
        for artifact in (model, results):
            run.log_artifact(artifact)

    def end(self, error: BaseException | None) -> None:
        """Finish the W&B run. Otherwise the next job of a multirun would continue it."""
        if error is not None:
            self.experiment.summary["ended"] = one_line(error)
        self.experiment.finish(exit_code=exit_code(error))
        self._forget_data_dir()

    def _forget_data_dir(self) -> None:
        if self._own_data_dir:
            del os.environ[DATA_DIR]
            self._own_data_dir = False


def answers(url: str, seconds: float) -> bool:
    """Return True if a server answers at this address within so many seconds, whatever it answers."""
    found: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(url, timeout=seconds):
                found.append(True)
        except urllib.error.HTTPError:
            found.append(True)
        except urllib.error.URLError as error:
            found.append(isinstance(error.reason, ssl.SSLError))  # W&B has certificates of its own
        except (OSError, ValueError):
            found.append(False)

    # In a thread, because no time limit applies to looking up a name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return any(found)


def _reason(error: Exception) -> str:
    """Return in one line what W&B says of a setting, which may come from a WANDB_* environment variable."""
    details = getattr(error, "errors", None)  # of pydantic, which W&B checks its settings with
    if callable(details):
        found = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}" for e in details()]
        return f"{'; '.join(found)} (a setting of logger.wandb, or an environment variable WANDB_…)"[:300]
    return " ".join(str(error).split())[:300]


def _leave_groups_to_config(info: RunInfo) -> None:
    """Hide whole groups that a W&B sweep draws, such as algo=maml, from W&B.

    Otherwise the drawn word would replace the group's configuration in W&B's config.
    """
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
