"""The record of a sweep: its command line, and what identifies it.

sweep.yaml   the command line, and a grid's jobs
conf/        the configuration files as they were at the start
<job>/       a run directory; it ends with results.json, error.json or pruned.json
finished     exists when all is done
.lock        is held by the process that runs the sweep and, in a run directory, the job
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from innerloop.errors import InputError

RECORD, CONF, FINISHED = "sweep.yaml", "conf", "finished"

# What may change when a sweep is continued: who runs the jobs, how many at a time, how many in all, and whose classes
# they may use, which is never taken from a record that may be somebody else's.
LAUNCHER = ("launcher", "hydra/launcher", "hydra.launcher")
FREE = (*LAUNCHER, "hydra.sweeper.n_jobs", "hydra.sweeper.n_trials", "allow")


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


def packages(overrides: Sequence[str]) -> list[str]:
    """Return the packages that `allow=[…]` among these overrides allows."""
    values = [a.partition("=")[2] for a in overrides if key_of(a) == "allow"]
    return [name for name in re.split(r"[^\w.]+", " ".join(values)) if name]


def is_free(override: str) -> bool:
    """Return True if the override may change when a sweep is continued."""
    return any(key_of(override) == name or key_of(override).startswith(f"{name}.") for name in FREE)


def identity(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that identify a sweep, sorted: the order in which they are typed does not matter."""
    return sorted(a for a in overrides if not is_free(a))


def refuse_another(directory: Path, asked: Sequence[str]) -> None:
    """Raise InputError if these overrides neither identify the sweep in a directory nor extend it, if it is a grid."""
    record = read_record(directory)
    recorded = record["overrides"]
    if identity(asked) == identity(recorded) or (record.get("kind") == "grid" and extends(recorded, asked)):
        return
    raise InputError(
        f"sweep={directory} is the sweep of: {' '.join(a for a in recorded if not is_free(a))}. "
        "Give its directory alone to continue it, with more values of what it varies to extend it, such as "
        "seed=0,1,2,3, or give another directory"
    )


def extends(recorded: Sequence[str], asked: Sequence[str]) -> bool:
    """Return True if each override asked for has the recorded values of its key, and perhaps more of them.

    Keys that are not asked for keep their values.
    """
    known = {key_of(a): choices(a) for a in recorded if not is_free(a)}
    wanted = {key_of(a): choices(a) for a in asked if not is_free(a)}
    return set(wanted) <= set(known) and all(set(known[key]) <= set(values) for key, values in wanted.items())


def choices(override: str) -> list[str]:
    """Return the values of an override, several if it is swept over them."""
    (parsed,) = OverridesParser.create().parse_overrides([override])
    if parsed.is_delete():
        return [override]
    if not parsed.is_sweep_override():
        return [str(parsed.get_value_element_as_str())]
    if not parsed.is_discrete_sweep():
        return [override]
    return [str(value) for value in parsed.sweep_string_iterator()]


def quoted(value: object) -> str:
    """Return a string in the quotes from which Hydra reads it back, whatever is in it."""
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"
