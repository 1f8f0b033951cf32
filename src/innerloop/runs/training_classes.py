"""The names of the classes that a run's weights have seen in training, so that a test on these can say so."""

import json
import logging
from pathlib import Path

from omegaconf import DictConfig

from innerloop.datasets.layouts import without_split
from innerloop.devices.files import user_path
from innerloop.errors import InputError, some
from innerloop.runs.record import TRAINING_CLASSES
from innerloop.tasks.base import Tasks

log = logging.getLogger("innerloop")


def classes_seen(cfg: DictConfig, tasks: Tasks) -> list[str]:
    """Return the names of the classes that the weights see in training, here or before in the run `init_from`.

    Logs a warning if validation or test classes are among those of `init_from`. Raises InputError: see `read_classes`.
    """
    names = tasks.class_names("train")
    if cfg.get("init_from"):
        earlier = user_path(cfg.init_from) / TRAINING_CLASSES
        names = list(dict.fromkeys([*names, *read_classes(earlier)]))
        warn_of_training_classes(earlier, tasks)
    return names


def read_classes(path: Path) -> list[str]:
    """Return the recorded names; none if there is no such file. Raises InputError for one that was not written here."""
    try:
        names = json.loads(path.read_text()) if path.is_file() else []
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path} is no list of names")
    return names


def warn_of_training_classes(path: Path, tasks: Tasks) -> None:
    """Log a warning if classes that tasks are evaluated on were training classes of a run, which recorded them.

    path: the file of that record, if there is one.
    """
    known = set(map(without_split, read_classes(path)))
    for split in ("validation", "test"):
        names = list(map(without_split, tasks.class_names(split)))
        seen = sorted(known.intersection(names))
        if seen:
            log.warning(
                "%d of %d %s classes have the names of training classes of this run, so the result is no test on new "
                "classes: %s",
                len(seen),
                len(names),
                split,
                some(seen),
            )
