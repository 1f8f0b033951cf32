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


@contextmanager
def recorded(run_dir: Path, first: bool = True) -> Iterator[None]:
    """Send innerloop's messages and Lightning's warnings to the terminal and to train.log.

    first: whether this process is the first rank of the run. The other ranks are silent.
    """
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # otherwise each rank says that it has joined
    if not first:
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [logging.StreamHandler(), logging.FileHandler(run_dir / "train.log")]
    loggers = [logging.getLogger(name) for name in ("innerloop", "lightning.pytorch", "py.warnings")]
    logging.captureWarnings(True)
    for logger in loggers:
        logger.propagate = False
        logger.setLevel(logging.INFO if logger.name == "innerloop" else logging.WARNING)
        for handler in handlers:
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
            logger.addHandler(handler)
    try:
        yield
    except BaseException as error:
        logging.getLogger("innerloop").debug("ended by %r", error)
        with (run_dir / "train.log").open("a") as file:
            print(f"{type(error).__name__}: {error}", file=file)
        raise
    finally:
        logging.captureWarnings(False)
        for logger in loggers:
            for handler in handlers:
                logger.removeHandler(handler)
        handlers[1].close()


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
