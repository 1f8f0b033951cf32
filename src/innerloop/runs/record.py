"""What a run directory records besides its configuration: environment, log, JSON files, checkpoints.

Light: torch is imported where it is used, because a sweep's parent process writes records without it.
"""

import json
import logging
import os
import pickle
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import distributions
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from innerloop.errors import InputError

RESULTS = "results.json"


def environment() -> dict[str, Any]:
    """Return how and where a run is made: command, git commit, versions of all installed packages, machine."""
    import torch

    root = Path(__file__).resolve().parents[3]

    def git(*command: str) -> str | None:
        try:
            return subprocess.run(["git", "-C", root, *command], capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return None

    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    packages = {d.name: d.version for d in distributions()}
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git_commit": commit.strip() if commit else None,
        "git_dirty": bool(changes) if changes is not None else None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": dict(sorted(packages.items())),
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(content, indent=1) + "\n")
    draft.replace(path)


class Messages:
    """Where the messages of a run go: innerloop's own, and Lightning's and Python's warnings."""

    def __init__(self) -> None:
        self.loggers = [logging.getLogger(name) for name in ("innerloop", "lightning.pytorch", "py.warnings")]
        self.held = MemoryHandler(capacity=10_000)
        self.file: logging.FileHandler | None = None

    def add(self, handler: logging.Handler) -> None:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        for logger in self.loggers:
            logger.addHandler(handler)

    def remove(self, handler: logging.Handler) -> None:
        for logger in self.loggers:
            logger.removeHandler(handler)
        handler.close()

    def write_to(self, run_dir: Path) -> None:
        """Write all messages to train.log in a run directory, those of before included."""
        run_dir.mkdir(parents=True, exist_ok=True)
        self.file = logging.FileHandler(run_dir / "train.log")
        self.add(self.file)
        self.held.setTarget(self.file)
        self.remove(self.held)


@contextmanager
def messages(first: bool = True) -> Iterator[Messages]:
    """Send messages to the terminal and, once there is a run directory, to its train.log: see `Messages.write_to`.

    first: whether this process is the first rank of the run. The other ranks are silent.
    """
    found = Messages()
    changed = [*found.loggers, logging.getLogger("lightning.fabric")]
    before = [(logger, logger.level, logger.propagate) for logger in changed]
    changed[-1].setLevel(logging.WARNING)  # otherwise each rank says that it has joined
    try:
        with _to_handlers(found) if first else _silent():
            yield found
    finally:
        for logger, level, propagate in before:
            logger.setLevel(level)
            logger.propagate = propagate


@contextmanager
def _silent() -> Iterator[None]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _to_handlers(found: Messages) -> Iterator[None]:
    logging.captureWarnings(True)
    for logger in found.loggers:
        logger.propagate = False
        logger.setLevel(logging.INFO if logger.name == "innerloop" else logging.WARNING)
    terminal = logging.StreamHandler()
    found.add(terminal)
    found.add(found.held)
    try:
        yield
    except BaseException as error:
        if found.file is not None:
            found.file.emit(logging.makeLogRecord({"msg": f"{type(error).__name__}: {error}"}))
        raise
    finally:
        logging.captureWarnings(False)
        for handler in (terminal, found.held, found.file):
            if handler is not None:
                found.remove(handler)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint. Raises InputError if it is missing or broken."""
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=False)
        assert {"state_dict", "global_step"} <= set(found)
    except FileNotFoundError as error:
        raise InputError(f"there is no checkpoint {path}") from error
    except (OSError, EOFError, RuntimeError, TypeError, AssertionError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} is no whole checkpoint: {str(error).splitlines()[:1]}") from error
    return found
