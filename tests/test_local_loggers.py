"""Loggers beside W&B: any number at once, TensorBoard's event files and MLflow's local store, each read back."""

import csv
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from innerloop.errors import InputError
from innerloop.learners import MetaLearner
from innerloop.runs import schemas
from innerloop.runs.config import logger_settings

schemas.register()


def without(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"needs {package}")


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ([], {"wandb"}),
        (["logger=csv"], set()),
        (["logger=wandb"], {"wandb"}),
        (["logger=[csv,wandb]"], {"wandb"}),
        (["logger=[wandb,csv]"], {"wandb"}),
        (["logger=[tensorboard,mlflow]"], {"tensorboard", "mlflow"}),
        (["logger=[mlflow,wandb,tensorboard]", "logger.wandb.group=mine"], {"wandb", "tensorboard", "mlflow"}),
    ],
)
def test_any_loggers_together(chosen: list[str], expected: set[str]) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", chosen)
    assert {name for name, settings in logger_settings(cfg).items() if settings is not None} == expected


def test_a_run_from_before_there_were_these_settings_is_resumed() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", [])
    old = OmegaConf.create({"logger": {"wandb": {**cfg.logger.wandb}}})
    del old.logger.wandb["artifacts"], old.logger.wandb["histograms_every"]
    found = logger_settings(old)
    assert (found["wandb"]["artifacts"], found["wandb"]["histograms_every"]) == (False, None)
    assert (found["tensorboard"], found["mlflow"]) == (None, None)


def validated(run_dir: Path) -> dict[int, float]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): float(row["val/mse"]) for row in csv.DictReader(file) if row["val/mse"]}


def fails_at(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    update = MetaLearner._update

    def breaks(self: MetaLearner, optimizer: Any, step: int, *rest: Any, **named: Any) -> None:
        if step == at:
            raise InputError("enough")
        update(self, optimizer, step, *rest, **named)

    monkeypatch.setattr(MetaLearner, "_update", breaks)


@without("tensorboard")
def test_tensorboard_reads_what_was_logged(train: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train("algo=meta_sgd", *TINY, "logger=tensorboard", "logger.tensorboard.histograms_every=4", "hydra.run.dir=tb")
    train("resume=tb", "trainer.max_steps=12")
    events = EventAccumulator("tb/tensorboard", size_guidance={"histograms": 0})  # 0: all
    events.Reload()
    seen = {e.step: e.value for e in events.Scalars("val/mse")}
    assert list(seen) == [3, 7, 11]
    assert seen == pytest.approx(validated(Path("tb")), rel=1e-6)
    assert [e.step for e in events.Histograms("gradients/net.head.weight")] == [3, 7, 11]
    assert events.Histograms("inner_rates/head.weight")[0].histogram_value.num == 40
    by_step = json.loads(Path("tb/results.json").read_text())["test"]["by_step"]
    curve = [e.value for e in events.Scalars("adaptation/mse_mean")]
    assert curve[-len(by_step) :] == pytest.approx([row["mse"]["mean"] for row in by_step], rel=1e-6)
    assert not Path("tb/wandb").exists()


@without("mlflow")
def test_mlflow_reads_what_was_logged(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    train("-m", "algo.inner_lr=0.01,0.02", *TINY, "logger=mlflow", "logger.mlflow.uri=file:store")
    (resumed,) = Path().glob("runs/sweeps/*/0_*")
    train(f"resume={resumed}", "trainer.max_steps=12")
    client = MlflowClient("file:store")
    (experiment,) = [e for e in client.search_experiments() if e.name == "innerloop"]
    found = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert set(found) == {"maml-sinusoid algo.inner_lr=0.01", "maml-sinusoid algo.inner_lr=0.02"}
    run = found["maml-sinusoid algo.inner_lr=0.01"]
    assert run.info.status == "FINISHED"
    assert run.data.tags["group"] == resumed.parent.name
    assert (run.data.params["algo/inner_lr"], run.data.params["seed"]) == ("0.01", "0")
    history = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "val/mse")}
    assert list(history) == [3, 7, 11]
    assert history == pytest.approx(validated(resumed))
    results = json.loads((resumed / "results.json").read_text())
    assert run.data.metrics["test/mse"] == pytest.approx(results["test"]["mse"]["mean"])
    assert {a.path for a in client.list_artifacts(run.info.run_id)} == {"plots", "results.json"}


@without("mlflow")
def test_mlflow_marks_a_run_that_failed(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    fails_at(monkeypatch, 6)
    with pytest.raises(SystemExit, match="1"):
        train(*TINY, "logger=mlflow", "logger.mlflow.uri=file:failed", "hydra.run.dir=failed_run")
    client = MlflowClient("file:failed")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert (run.info.status, run.data.tags["ended"]) == ("FAILED", "InputError: enough")
    assert "val/mse" in run.data.metrics
    assert os.environ["MLFLOW_ALLOW_FILE_STORE"] == "true"


@without("mlflow")
def test_mlflow_names_a_store_that_is_none(train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        train(*TINY, "logger=mlflow", "logger.mlflow.uri=nowhere://x", "hydra.run.dir=none")
    err = capsys.readouterr().err
    assert "logger.mlflow.uri=nowhere://x" in err
    assert "Traceback" not in err
