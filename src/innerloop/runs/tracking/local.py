"""Trackers that keep everything in local files: TensorBoard and MLflow."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger
from torch import Tensor

from innerloop.errors import InputError
from innerloop.runs.locks import locked
from innerloop.runs.tracking.tracker import Closing, RunInfo, Tracker, exit_code, one_line


class TensorBoardRun(TensorBoardLogger, Tracker):
    """Write event files to tensorboard/ in the run directory. settings: see `TensorBoardConfig`."""

    def __init__(self, info: RunInfo, settings: Mapping[str, Any]) -> None:
        super().__init__(
            info.directory,
            name="",
            version="tensorboard",
            default_hp_metric=False,
            purge_step=info.resumed_at or None,  # drops what a killed run logged after its last checkpoint
        )
        self.histograms_every = settings["histograms_every"]
        self._config = info.with_version()

    def log_histograms(self, values: Mapping[str, Tensor], step: int) -> None:
        """Log the distribution of each tensor's entries."""
        for name, value in values.items():
            self.experiment.add_histogram(name, value, step)

    def log_closing(self, closing: Closing) -> None:
        """Log the configuration with the results (tab HPARAMS), the adaptation curve over inner steps, and plots."""
        step = closing.results["steps"]
        self.log_hyperparams(self._config, {k: v for k, v in closing.numbers().items() if "/" in k})
        for row in closing.by_step:
            for name, value in row.items():
                if name != "step":
                    self.experiment.add_scalar(f"adaptation/{name}", value, int(row["step"]))
        for name, figure in closing.figures.items():
            self.experiment.add_figure(f"plots/{name}", figure, step, close=False)

    def end(self, error: BaseException | None) -> None:
        """Close the event file."""
        if error is not None:
            self.experiment.add_text("ended", one_line(error))
        self.experiment.close()


MLFLOW_RECORD = "mlflow.json"


@contextmanager
def _locked_store(uri: str) -> Iterator[None]:
    """Hold the lock of a store in a folder, because jobs that start together would each create the experiment."""
    if not uri.startswith("file:"):
        yield
        return
    # MLflow (3.17) recommends a database and refuses a file store unless this variable allows it.
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    folder = Path(uri.removeprefix("file:"))
    with locked(folder / ".lock"):
        yield


class MLFlowRun(MLFlowLogger, Tracker):
    """A run in an MLflow store, by default in local files. settings: see `MLFlowConfig`.

    A resumed run continues its MLflow run.
    """

    def __init__(self, info: RunInfo, settings: Mapping[str, Any]) -> None:
        from mlflow.exceptions import MlflowException  # here, because TensorBoard needs this module without the package

        uri, experiment = settings["uri"], settings["experiment"]
        before = info.recorded(MLFLOW_RECORD)
        algo, data, net = info.tags()
        tags = {"algo": algo, "data": data, "net": net, "group": info.label.group or "", "run_dir": str(info.directory)}
        try:
            with _locked_store(uri):
                super().__init__(experiment, info.label.name, uri, tags, run_id=before.get("run_id"))
                self.client, run = self.experiment, self.run_id
        except (MlflowException, ImportError, OSError) as error:
            raise InputError(f"logger.mlflow.uri={uri}: {' '.join(str(error).split())}") from error
        assert run is not None
        self._run: str = run
        if before:
            self.client.update_run(run, status="RUNNING")
        else:
            self.log_hyperparams(info.with_version())
        info.record(MLFLOW_RECORD, {"run_id": run, "uri": uri, "experiment": experiment})

    def log_histograms(self, values: Mapping[str, Tensor], step: int) -> None:
        """Do nothing: MLflow has no histograms."""

    def log_closing(self, closing: Closing) -> None:
        """Log the results, results.json, the adaptation curve over inner steps, and plots."""
        self.log_metrics(closing.numbers(), int(closing.results["steps"]))
        for row in closing.by_step:
            self.log_metrics({f"adaptation/{k}": v for k, v in row.items() if k != "step"}, int(row["step"]))
        self.client.log_dict(self._run, dict(closing.results), "results.json")
        for name, figure in closing.figures.items():
            self.client.log_figure(self._run, figure, f"plots/{name}.png")

    def end(self, error: BaseException | None) -> None:
        """Mark the run as finished, killed or failed."""
        if error is not None:
            self.client.set_tag(self._run, "ended", one_line(error))
        self.client.set_terminated(self._run, {0: "FINISHED", 130: "KILLED"}.get(exit_code(error), "FAILED"))
