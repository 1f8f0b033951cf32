"""What loggers are started with, without a network or an account."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import wandb

from innerloop.errors import InputError
from innerloop.runs.tracking import Label, MetricsFile, RunInfo, check_loggers, wandb_run
from innerloop.runs.tracking.wandb_run import WandbRun

SETTINGS = {
    "mode": "auto",
    "project": "innerloop",
    "entity": None,
    "name": None,
    "group": None,
    "tags": ["mine"],
    "artifacts": False,
    "histograms_every": None,
}
CONFIG = {"algo": {"name": "maml"}, "data": {"name": "sinusoid"}, "net": {"name": "mlp"}}


def info(directory: Path) -> RunInfo:
    return RunInfo(directory, CONFIG, Label("maml-sinusoid shots=5", "sweep"))


class Asked(Exception):
    """wandb.init was reached."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def init(**options: Any) -> None:
        seen.update(options)
        raise Asked

    monkeypatch.setattr(wandb, "init", init)
    for name in ("WANDB_MODE", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    return seen


@pytest.mark.parametrize(("logged_in", "mode"), [(True, "online"), (False, "offline")])
def test_auto_is_online_only_where_logged_in(
    logged_in: bool, mode: str, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def login(prompt: bool = True, verify: bool = True) -> bool:
        assert not prompt, "a run must never wait for an answer"
        return logged_in

    monkeypatch.setattr(wandb, "login", login)
    monkeypatch.setattr(wandb_run, "answers", lambda url, seconds: True)
    with pytest.raises(Asked):
        WandbRun(info(tmp_path), SETTINGS)
    assert asked["mode"] == mode
    assert asked["config"] == CONFIG | {"git_commit": None, "git_dirty": None}
    assert asked["id"] is None


def test_environment_decides_where_it_speaks(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(Asked):
        WandbRun(info(tmp_path), SETTINGS)
    assert asked["mode"] == "disabled"


def test_a_resumed_run_keeps_its_wandb_run(asked: dict[str, Any], tmp_path: Path) -> None:
    record = {"id": "abc123", "project": "innerloop", "mode": "offline", "name": "first", "group": "old"}
    (tmp_path / "wandb.json").write_text(json.dumps(record))
    with pytest.raises(Asked):
        WandbRun(info(tmp_path), {**SETTINGS, "mode": "offline"})
    assert (asked["id"], asked["name"], asked["group"]) == ("abc123", "first", "old")
    assert "WANDB_DATA_DIR" not in os.environ


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, ("maml-sinusoid shots=5", "sweep")), ({"name": "mine", "group": "ours"}, ("mine", "ours"))],
)
def test_name_and_group_are_the_sweeps_unless_given(
    given: dict[str, str], expected: tuple[str, str], asked: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(Asked):
        WandbRun(info(tmp_path), SETTINGS | {"mode": "offline"} | given)
    assert (asked["name"], asked["group"]) == expected
    assert asked["tags"] == ["maml", "sinusoid", "mlp", "mine"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"wandb": {**SETTINGS, "mode": "cloud"}}, "logger.wandb.mode=cloud: choose one of auto, online, offline"),
        ({"wandb": {**SETTINGS, "histograms_every": -1}}, "logger.wandb.histograms_every must not be negative, got -1"),
        ({"tensorboard": {"histograms_every": 0}}, "logger=tensorboard needs the package tensorboard: pip install"),
        ({"mlflow": {}}, "logger=mlflow needs the package mlflow: pip install mlflow"),
    ],
)
def test_loggers_that_cannot_be(settings: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=re.escape(said)):
        check_loggers(settings)
    check_loggers({"wandb": {**SETTINGS, "histograms_every": 0}, "tensorboard": None, "mlflow": None})


def test_resumed_metrics_keep_what_came_before_the_checkpoint(tmp_path: Path) -> None:
    first = MetricsFile(tmp_path)
    for step in (1, 3, 5, 7):
        first.log_metrics({"train/loss": float(step)}, step)
    again = MetricsFile(tmp_path, resumed_at=5)
    again.log_metrics({"train/loss": 50.0, "val/mse": 0.5}, 5)
    again.save()
    lines = (tmp_path / "metrics.csv").read_text().split()
    assert lines == ["step,train/loss,val/mse", "1,1.0,", "3,3.0,", "5,50.0,0.5"]
