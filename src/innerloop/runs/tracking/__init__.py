"""Where a run's numbers go: always to metrics.csv, and to the loggers that the configuration names."""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import Logger

from innerloop.devices.ranks import is_first
from innerloop.errors import InputError
from innerloop.runs.tracking.metrics_file import MetricsFile as MetricsFile
from innerloop.runs.tracking.tracker import Closing as Closing
from innerloop.runs.tracking.tracker import Label as Label
from innerloop.runs.tracking.tracker import RunInfo as RunInfo
from innerloop.runs.tracking.tracker import Tracker as Tracker

WANDB_MODES = ("auto", "online", "offline", "disabled")
# Logger -> packages, one of which it needs. The first one is what the message says to install.
PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "mlflow": ("mlflow",)}

# Logger -> its module and class, in the order in which they start.
TRACKERS = {
    "wandb": ("wandb_run", "WandbRun"),
    "tensorboard": ("local", "TensorBoardRun"),
    "mlflow": ("local", "MLFlowRun"),
}

Settings = Mapping[str, Mapping[str, Any] | None]
"""Logger -> its settings, None if it is not used."""


def check_loggers(settings: Settings) -> None:
    """Raise InputError for a value that is not possible, or a logger whose package is not installed."""
    for name, chosen in settings.items():
        if chosen is None:
            continue
        packages = PACKAGES.get(name, ())
        if packages and not any(importlib.util.find_spec(package) for package in packages):
            raise InputError(f"logger={name} needs the package {packages[0]}: pip install {packages[0]}")
        every = chosen.get("histograms_every")
        if every is not None and every < 0:
            raise InputError(f"logger.{name}.histograms_every must not be negative, got {every}; 0: no histograms")
        if name == "wandb" and chosen["mode"] not in WANDB_MODES:
            raise InputError(f"logger.wandb.mode={chosen['mode']}: choose one of {', '.join(WANDB_MODES)}")


def make_loggers(info: RunInfo, settings: Settings) -> list[Logger]:
    """Return the logger of metrics.csv and, on the first rank, a tracker for each logger that has settings.

    A tracker's package is imported only if the tracker is used.
    """
    loggers: list[Logger] = [MetricsFile(info.directory, info.resumed_at)]
    wanted = settings if is_first() else {}
    try:
        for name, (module, tracker) in TRACKERS.items():
            if (chosen := wanted.get(name)) is not None:
                kind = getattr(importlib.import_module(f"innerloop.runs.tracking.{module}"), tracker)
                loggers.append(kind(info, chosen))
    except BaseException as error:
        end_loggers(loggers, error)
        raise
    return loggers


def trackers(loggers: Sequence[Logger]) -> list[Tracker]:
    """Return the loggers that are trackers."""
    return [logger for logger in loggers if isinstance(logger, Tracker)]


def end_loggers(loggers: Sequence[Logger], error: BaseException | None) -> None:
    """End the runs of all trackers, as failed if an error ended the run."""
    for tracker in trackers(loggers):
        tracker.end(error)
