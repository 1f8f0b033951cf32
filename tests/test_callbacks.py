"""conf/callbacks: what early stopping and weight averaging do to a run, one's own callbacks, and mistakes."""

import csv
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT, TINY
from lightning import Callback, LightningModule, Trainer

import innerloop
from innerloop.runs.command import Reported

SHORT = (*TINY, "logger=csv", "data=sinusoid", "algo=maml")


class Spy(Callback):
    """Writes the meta-parameters after each outer update to a file, as a user's own callback may."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        known = torch.load(self.file) if self.file.exists() else {}
        known[trainer.global_step] = {name: p.detach().clone() for name, p in pl_module.named_parameters()}
        torch.save(known, self.file)


def results(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "results.json").read_text())


def validations(run_dir: Path) -> list[float]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [float(row["val/mse"]) for row in csv.DictReader(file) if row["val/mse"]]


def refused(train: Any, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(Reported) as end:
        train(*SHORT, *arguments)
    assert end.value.code == 1
    return capsys.readouterr().err.strip()


def test_early_stopping_ends_training_and_tests_the_best_weights(train: Any, tmp_path: Path) -> None:
    stops = ("callbacks=early_stopping", "callbacks.early_stopping.patience=2", "trainer.max_steps=400")
    # A rate at which nothing changes: the first validation stays the best.
    train(*SHORT, *stops, "trainer.val_every=4", "algo.outer_lr=1e-12", f"hydra.run.dir={tmp_path / 'run'}")
    found = results(tmp_path / "run")
    assert found["steps"] == 12, "the first validation, and two that are no better"
    assert len(validations(tmp_path / "run")) == 3
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["callbacks"]
    assert config["early_stopping"]["monitor"] == "val/mse"
    assert config["early_stopping"]["mode"] == "min"
    assert set(config) == {"progress", "learning_rate", "inner_rates", "early_stopping"}, "the default ones stay"
    assert innerloop.load(tmp_path / "run").evaluate()["test"] == found["test"]
    assert (tmp_path / "run" / "plots" / "learning_curve.png").exists()


def test_early_stopping_knows_that_higher_accuracies_are_better(train: Any, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    stops = ("callbacks=early_stopping", "callbacks.early_stopping.patience=1", "trainer.max_steps=8")
    train(*TINY, "logger=csv", "data=hyperplane", "algo=maml", *stops, f"hydra.run.dir={run_dir}")
    config = yaml.safe_load((run_dir / "config.yaml").read_text())["callbacks"]["early_stopping"]
    assert (config["monitor"], config["mode"]) == ("val/accuracy", "max")


def averaged(seen: dict[int, dict[str, torch.Tensor]], steps: range) -> dict[str, torch.Tensor]:
    return {name: torch.stack([seen[step][name] for step in steps]).mean(0) for name in seen[steps[0]]}


def spied(train: Any, run_dir: Path, *arguments: str) -> dict[int, dict[str, torch.Tensor]]:
    file = run_dir.with_suffix(".pt")
    spy = ("allow=[test_callbacks]", "+callbacks.spy._target_=test_callbacks.Spy", f"+callbacks.spy.file={file}")
    train(*SHORT, "trainer.val_every=8", *spy, *arguments, f"hydra.run.dir={run_dir}")
    return torch.load(file)


def test_swa_validates_saves_and_tests_the_mean_of_the_last_updates(train: Any, tmp_path: Path) -> None:
    seen = spied(train, tmp_path / "run", "callbacks=swa", "callbacks.swa.start=0.5")
    plain = spied(train, tmp_path / "plain")
    assert all(torch.equal(seen[8][n], w) for n, w in plain[8].items()), "averaging does not change training"
    run = innerloop.load(tmp_path / "run")
    expected = averaged(seen, range(5, 9))
    for name, p in run.learner.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-6, atol=1e-7)
        assert not torch.equal(p, seen[8][name])
    found = run.evaluate()
    assert found["test"] == run.results["test"]
    assert found["validation"]["mse"]["mean"] == pytest.approx(validations(tmp_path / "run")[-1], rel=1e-6)
    assert run.results["test"] != results(tmp_path / "plain")["test"]


def test_before_it_starts_swa_is_the_latest_and_a_resumed_run_is_the_uninterrupted_one(
    train: Any, tmp_path: Path
) -> None:
    swa = ("callbacks=[early_stopping,swa]", "callbacks.swa.start=0.7", "trainer.val_every=2", "algo.schedule=constant")
    train(*SHORT, *swa, f"hydra.run.dir={tmp_path / 'whole'}")
    plain = tmp_path / "plain"
    train(*SHORT, "trainer.val_every=2", "algo.schedule=constant", f"hydra.run.dir={plain}")
    assert validations(tmp_path / "whole")[:2] == validations(plain)[:2]
    assert validations(tmp_path / "whole")[3] != validations(plain)[3]
    # max_steps decides when averaging starts, so the first part is cut short by its signal to stop, not by its length.
    stop = (
        "allow=[test_callbacks]",
        "+callbacks.stop._target_=test_callbacks.StopsOnce",
        f"+callbacks.stop.file={tmp_path / 'stopped'}",
    )
    with pytest.raises(Reported) as end:
        train(*SHORT, *swa, *stop, f"hydra.run.dir={tmp_path / 'parts'}")
    assert end.value.code == 130
    train(f"resume={tmp_path / 'parts'}", stop[0])
    assert results(tmp_path / "parts")["test"] == results(tmp_path / "whole")["test"]


def test_a_finished_run_with_early_stopping_is_trained_longer(train: Any, tmp_path: Path) -> None:
    train(*SHORT, "callbacks=early_stopping", f"hydra.run.dir={tmp_path / 'run'}")
    before = results(tmp_path / "run")["steps"]
    train(f"resume={tmp_path / 'run'}", f"trainer.max_steps={before + 4}")
    assert results(tmp_path / "run")["steps"] == before + 4


class StopsOnce(Callback):
    """Asks the process to end in the seventh outer update, once."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 6 and not self.file.exists():
            self.file.touch()
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)


def test_one_of_the_default_ones_can_be_left_out(
    train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(*SHORT, "callbacks.learning_rate=null", "callbacks.progress=null", f"hydra.run.dir={tmp_path / 'run'}")
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert "lr-Adam" not in header
    assert "steps/s" not in (tmp_path / "run" / "train.log").read_text()
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["callbacks=early_stoping"], ["callbacks/early_stoping", "early_stopping", "swa"]),
        (
            ["callbacks=early_stopping", "+callbacks.early_stopping.patiense=3"],
            ["unknown key callbacks.early_stopping.patiense", "Did you mean callbacks.early_stopping.patience?"],
        ),
        (["callbacks=early_stopping", "callbacks.early_stopping.patience=long"], ["patience=long"]),
        (["callbacks=early_stopping", "callbacks.early_stopping.mode=best"], ["callbacks.early_stopping: ", "best"]),
        (["callbacks=swa", "callbacks.swa.start=1.5"], ["must be at least 0 and below 1, got 1.5"]),
        (["+callbacks.mine._target_=nowhere.Callback"], ["classes of nowhere are not allowed", "allow=[nowhere]"]),
        (["+callbacks.mine._target_=nowhere.Callback", "allow=[nowhere]"], ["nowhere.Callback: there is no"]),
        (["+callbacks.mine._target_=innerloop.nets.MLP"], ["callbacks.mine"]),
        (["+callbacks.mine._target_=innerloop.tasks.Sinusoid"], ["_target_=innerloop.tasks.Sinusoid is no Callback"]),
        (["+callbacks.mine.patience=3"], ["callbacks.mine must be a configuration with a _target_"]),
        (
            ["+callbacks.bar._target_=lightning.pytorch.callbacks.TQDMProgressBar"],
            ["two progress bars", "callbacks.progress=null"],
        ),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(
    arguments: list[str], said: list[str], train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    err = refused(train, capsys, *arguments, f"hydra.run.dir={tmp_path / 'run'}")
    assert all(part in err for part in said), err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "callbacks").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_says_how_to_use_it(path: Path) -> None:
    head = path.read_text()
    assert head.startswith("#")
    assert path.stem == "default" or f"#   python train.py algo=maml callbacks={path.stem}" in head


def test_evaluation_takes_no_callbacks(train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = tmp_path / "run"
    train(*SHORT, "callbacks=early_stopping", f"hydra.run.dir={run_dir}")
    monkeypatch.setattr(sys, "argv", ["evaluate.py", f"run={run_dir}", f"hydra.run.dir={tmp_path / 'again'}"])
    runpy.run_path(str(ROOT / "evaluate.py"), run_name="__main__")
    assert results(tmp_path / "again")["test"] == results(run_dir)["test"]
