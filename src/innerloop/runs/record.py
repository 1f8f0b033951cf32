"""What a run directory records besides its configuration: environment, log, JSON files, checkpoints.

Light: torch is imported where it is used, because a sweep's parent process writes records without it.
"""

import hashlib
import io
import json
import logging
import math
import os
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

from omegaconf import DictConfig, ListConfig, OmegaConf

from innerloop.devices.files import write_whole, writing
from innerloop.errors import InputError

RESULTS, TRAINING_CLASSES = "results.json", "training_classes.json"


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


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all. Numbers that JSON does not have, NaN and infinity, become null.

    Raises WriteError if this fails.
    """
    write_whole(path, json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")


def write_config(path: Path, cfg: DictConfig | ListConfig) -> None:
    """Write a configuration as YAML, resolved, whole or not at all. Raises WriteError if this fails."""
    write_whole(path, OmegaConf.to_yaml(cfg, resolve=True))


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {name: _finite(value) for name, value in content.items()}
    return [_finite(value) for value in content] if isinstance(content, list | tuple) else content


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
        with writing(run_dir / "train.log"):
            run_dir.mkdir(parents=True, exist_ok=True)
            self.file = logging.FileHandler(run_dir / "train.log", encoding="utf-8")
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


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all, with its SHA-256 digest beside it.

    The digest file holds the digests of this checkpoint and of the one that it replaces. So whichever of the two is
    there when the process is killed between the writes, its digest is in the file. Raises WriteError if this fails.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getvalue()
    earlier = _digests(path)[-1:]
    write_whole(_digest_path(path), "".join(f"{digest}\n" for digest in (*earlier, hashlib.sha256(data).hexdigest())))
    write_whole(path, data)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, in the CPU's memory. Nothing in the file is run as code.

    Raises InputError if it is missing or broken, or is not what was written.
    """
    import torch

    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"there is no checkpoint {path}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    digests = _digests(path)
    if digests and hashlib.sha256(data).hexdigest() not in digests:
        raise InputError(f"{path} was damaged or changed after it was written: its SHA-256 digest is another one")
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        assert {"state_dict", "global_step"} <= set(found)
    # torch raises nearly anything for damaged bytes.
    except Exception as error:
        reason = " ".join(str(error).split("\n")[0].split())[:200]
        raise InputError(f"{path} is no whole checkpoint of innerloop's: {reason or type(error).__name__}") from error
    return found


def _digest_path(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.sha256")


def _digests(checkpoint: Path) -> list[str]:
    """Return the recorded digests of a checkpoint; none for one of an older version."""
    path = _digest_path(checkpoint)
    return path.read_text(errors="replace").split() if path.is_file() else []
