"""The record of a sweep: its command line, and what identifies it.

sweep.yaml   the command line, and a grid's jobs
conf/        the configuration files as they were at the start
<job>/       a run directory; it ends with results.json, error.json or pruned.json
finished     exists when all is done
.lock        is held by the process that runs the sweep and, in a run directory, the job
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from innerloop.errors import InputError

RECORD, CONF, FINISHED = "sweep.yaml", "conf", "finished"

# What may change when a sweep is continued: who runs the jobs, how many at a time, how many in all.
LAUNCHER = ("launcher", "hydra/launcher", "hydra.launcher")
FREE = (*LAUNCHER, "hydra.sweeper.n_jobs", "hydra.sweeper.n_trials")


def read_record(directory: Path) -> dict[str, Any]:
    """Return the content of a sweep's sweep.yaml. Raises InputError if it is broken."""
    path = directory / RECORD
    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict) or not isinstance(found.get("overrides"), list):
        raise InputError(f"{path} is no record of a sweep")
    return found


def key_of(override: str) -> str:
    """Return the key of an override as it is typed."""
    return override.partition("=")[0].lstrip("+~")


def is_free(override: str) -> bool:
    """Return True if the override may change when a sweep is continued."""
    return any(key_of(override) == name or key_of(override).startswith(f"{name}.") for name in FREE)


def identity(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that identify a sweep, sorted: the order in which they are typed does not matter."""
    return sorted(a for a in overrides if not is_free(a))


def refuse_another(directory: Path, asked: Sequence[str]) -> None:
    """Raise InputError if the sweep in a directory is not the one that these overrides identify."""
    recorded = read_record(directory)["overrides"]
    if identity(asked) != identity(recorded):
        raise InputError(
            f"sweep={directory} is the sweep of: {' '.join(a for a in recorded if not is_free(a))}. "
            "Give its directory alone to continue it, or give another directory"
        )


def quoted(value: object) -> str:
    """Return a string in the quotes from which Hydra reads it back, whatever is in it."""
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"
