"""One job of a sweep: what its directory says of it, the lock that it holds, how it ends. Light, as sweep.py is."""

import fcntl
import json
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from innerloop.errors import InputError, Pruned, Stopped
from innerloop.record import RESULTS, write_json

LOCK, ERROR, PRUNED = ".lock", "error.json", "pruned.json"


@contextmanager
def locked(path: Path, refusal: str | None = None) -> Iterator[None]:
    """Holds a lock that dies with the process. Waits for it; with a refusal, raises InputError saying that instead."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except BlockingIOError:
            raise InputError(str(refusal)) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def holder(path: Path) -> int | None:
    """The id of the process that holds a lock. It only looks: nobody is refused meanwhile who looks as well."""
    if not path.exists():
        return None
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(file.read() or 0)
    return None


@dataclass(frozen=True)
class Job:
    """A run of a sweep: its number, the name of its directory, what it overrides."""

    number: int
    directory: str
    overrides: Sequence[str]


def as_job(run_dir: Path, work: Callable[[], float]) -> float | None:
    """A sweep's job: does what is not done yet and records how it ended. Returns the value, None if there is none.

    A process that an earlier, killed sweep has left at work in the same directory is waited for.
    """
    with locked(run_dir / LOCK):
        if (run_dir / RESULTS).exists():
            return value_of(run_dir)
        (run_dir / ERROR).unlink(missing_ok=True)
        try:
            return work()
        except Stopped as stopped:
            # Launchers take exceptions for failed jobs, and go on with the next one.
            raise KeyboardInterrupt(str(stopped)) from stopped
        except Pruned as pruned:
            write_json(run_dir / PRUNED, {"step": pruned.step, "value": pruned.value, "metric": pruned.metric})
        except Exception as error:
            write_error(run_dir, error)
    return None


def write_error(run_dir: Path, error: BaseException) -> None:
    """Records how a job failed."""
    run_dir.mkdir(parents=True, exist_ok=True)
    line = " ".join(str(error).split())
    trace = traceback.format_exception(error)
    write_json(run_dir / ERROR, {"type": type(error).__name__, "error": line, "traceback": "".join(trace)})


def value_of(run_dir: Path) -> float:
    """The headline metric on the validation tasks of a finished run."""
    results = json.loads((run_dir / RESULTS).read_text())
    return results["validation"][results["metric"]]["mean"]
