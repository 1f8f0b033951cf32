"""Where a run's numbers go: metrics.csv always, and what the logger group names."""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import Logger

from innerloop.errors import InputError
from innerloop.ranks import is_first
from innerloop.tracking.metrics_file import MetricsFile as MetricsFile
from innerloop.tracking.tracker import Closing as Closing
from innerloop.tracking.tracker import Label as Label
from innerloop.tracking.tracker import RunInfo as RunInfo
from innerloop.tracking.tracker import Tracker as Tracker

WANDB_MODES = ("auto", "online", "offline", "disabled")
# logger -> the packages that one of must be installed; the first is the one to install.
NEEDED = {"tensorboard": ("tensorboard", "tensorboardX"), "mlflow": ("mlflow",)}

# logger -> its module and class, in the order in which they start.
TRACKERS = {
    "wandb": ("wandb_run", "WandbRun"),
    "tensorboard": ("local", "TensorBoardRun"),
    "mlflow": ("local", "MLFlowRun"),
}

Settings = Mapping[str, Mapping[str, Any] | None]


def check_loggers(settings: Settings) -> None:
    """InputError for a choice that is none, or a logger whose package is not installed."""
    for name, of_logger in settings.items():
        if of_logger is None:
            continue
        packages = NEEDED.get(name, ())
        if packages and not any(importlib.util.find_spec(package) for package in packages):
            raise InputError(f"logger={name} needs the package {packages[0]}: pip install {packages[0]}")
        every = of_logger.get("histograms_every")
        if every is not None and every < 0:
            raise InputError(f"logger.{name}.histograms_every must not be negative, got {every}; 0: no histograms")
        if name == "wandb" and of_logger["mode"] not in WANDB_MODES:
            raise InputError(f"logger.wandb.mode={of_logger['mode']}: choose one of {', '.join(WANDB_MODES)}")


def make_loggers(info: RunInfo, settings: Settings) -> list[Logger]:
    """metrics.csv and, on the first rank, a tracker for each logger that has settings.

    Their packages are imported only where they are asked for.
    """
    loggers: list[Logger] = [MetricsFile(info.directory, info.resumed_at)]
    wanted = settings if is_first() else {}
    try:
        for name, (module, tracker) in TRACKERS.items():
            if (of_logger := wanted.get(name)) is not None:
                kind = getattr(importlib.import_module(f"innerloop.tracking.{module}"), tracker)
                loggers.append(kind(info, of_logger))
    except BaseException as error:
        end(loggers, error)
        raise
    return loggers


def trackers(loggers: Sequence[Logger]) -> list[Tracker]:
    """Those that are more than a file of numbers."""
    return [logger for logger in loggers if isinstance(logger, Tracker)]


def end(loggers: Sequence[Logger], error: BaseException | None) -> None:
    """Closes the runs of all trackers, as failed where an error ended them."""
    for tracker in trackers(loggers):
        tracker.end(error)
