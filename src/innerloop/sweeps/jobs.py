"""One job of a sweep: its directory, the lock that its process holds, and how it ended.

Light: torch is imported where a job trains.
"""

import json
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from innerloop.errors import Pruned, Stopped
from innerloop.runs.command import USER_ERRORS, explain
from innerloop.runs.locks import LOCK, locked
from innerloop.runs.record import RESULTS, write_json

ERROR, PRUNED = "error.json", "pruned.json"


@dataclass(frozen=True)
class Job:
    """A run of a sweep: its number, the name of its directory, and its overrides."""

    number: int
    directory: str
    overrides: Sequence[str]


def train_job(cfg: DictConfig) -> float | None:
    """Train one job of a sweep: the task function of Hydra's application in a sweep.

    A job that was interrupted is resumed. Returns the metric on the validation tasks, or None if the job failed or was
    pruned, which its directory records.
    """
    from innerloop.runs.callbacks import Pruning
    from innerloop.runs.naming import label
    from innerloop.runs.schemas import task_family
    from innerloop.runs.tracking import Label
    from innerloop.runs.train import train
    from innerloop.sweeps.record import read_record
    from innerloop.sweeps.study import trial_report

    run_dir, directory = Path(HydraConfig.get().runtime.output_dir), Path(cfg.sweep)

    def work() -> float:
        report = trial_report(directory, run_dir)
        pruning = [Pruning(f"val/{task_family(cfg).metric}", report)] if report else []
        return train(cfg, Label(*label(cfg, read_record(directory)["overrides"])), pruning)

    return as_job(run_dir, work)


def as_job(run_dir: Path, work: Callable[[], float]) -> float | None:
    """Do the work of a job unless it is done, and record how it ended. Returns its value, None if there is none.

    If a process of an earlier, killed sweep still works in the directory, it is waited for.
    """
    with locked(run_dir / LOCK):
        if (run_dir / RESULTS).exists():
            return value_of(run_dir)
        (run_dir / ERROR).unlink(missing_ok=True)
        try:
            return work()
        except Stopped as stopped:
            # Launchers take an Exception for a failed job, and would start the next one.
            raise KeyboardInterrupt(str(stopped)) from stopped
        except Pruned as pruned:
            write_json(run_dir / PRUNED, {"step": pruned.step, "value": pruned.value, "metric": pruned.metric})
        except Exception as error:
            write_error(run_dir, error)
    return None


def write_error(run_dir: Path, error: BaseException) -> None:
    """Record how a job failed."""
    run_dir.mkdir(parents=True, exist_ok=True)
    line = " ".join((explain(error) if isinstance(error, USER_ERRORS) else str(error)).split())
    trace = traceback.format_exception(error)
    write_json(run_dir / ERROR, {"type": type(error).__name__, "error": line, "traceback": "".join(trace)})


def value_of(run_dir: Path) -> float:
    """Return the metric on the validation tasks of a finished run."""
    results = json.loads((run_dir / RESULTS).read_text())
    return results["validation"][results["metric"]]["mean"]
