"""One job of a sweep: what its directory says of it, the lock that it holds, how it ends. Light, as sweep.py is."""

import json
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from innerloop.errors import Pruned, Stopped
from innerloop.locks import locked
from innerloop.record import RESULTS, write_json

LOCK, ERROR, PRUNED = ".lock", "error.json", "pruned.json"


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
