"""What loggers are started with, without a network or an account."""

import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import wandb
from conftest import TINY, run

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


@pytest.fixture
def logged_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """W&B has a key, and reads the environment anew."""
    wandb.teardown()
    monkeypatch.setenv("WANDB_API_KEY", 40 * "x")
    yield monkeypatch
    monkeypatch.undo()
    wandb.teardown()


@contextmanager
def server(answering: bool) -> Iterator[str]:
    """The address of a server that takes connections and never answers, or of one that is not there."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if answering:
            listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("answering", [False, True])
def test_without_an_answer_auto_is_offline_and_says_so(
    answering: bool, asked: dict[str, Any], logged_in: pytest.MonkeyPatch, tmp_path: Path, caplog: Any
) -> None:
    logged_in.setattr(wandb_run, "PATIENCE", 1.0)
    with server(answering) as url, caplog.at_level(logging.WARNING, logger="innerloop"):
        logged_in.setenv("WANDB_BASE_URL", url)
        begin = time.monotonic()
        with pytest.raises(Asked):
            WandbRun(info(tmp_path), SETTINGS)
        assert time.monotonic() - begin < 5
        wandb.teardown()
        logged_in.delattr(wandb, "init")
        with pytest.raises(InputError, match=f"^W&B: no answer from {url}. Train without it: logger.wandb.mode=offl"):
            WandbRun(info(tmp_path), SETTINGS | {"mode": "online"})
    assert asked["mode"] == "offline"
    assert caplog.messages == [
        f"W&B: no answer from {url}, so this run is recorded offline; upload it later with wandb sync"
    ]


def test_a_server_that_fails_later_leaves_auto_what_is_left_of_ten_seconds(
    asked: dict[str, Any], logged_in: pytest.MonkeyPatch, tmp_path: Path, caplog: Any
) -> None:
    def init(mode: str, settings: Any, **options: Any) -> None:
        asked.setdefault("modes", []).append(mode)
        if mode == "online":
            asked["timeout"] = settings.init_timeout
            raise wandb.errors.CommError("timed out\nfor long")
        raise Asked

    logged_in.setattr(wandb, "init", init)
    logged_in.setattr(wandb_run, "answers", lambda url, seconds: seconds <= 5)
    with caplog.at_level(logging.WARNING, logger="innerloop"), pytest.raises(Asked):
        WandbRun(info(tmp_path), SETTINGS)
    assert asked["modes"] == ["online", "offline"]
    assert 1 <= asked["timeout"] <= 10
    assert caplog.messages == ["W&B: CommError: timed out for long; this run is recorded offline"]
    with pytest.raises(InputError, match=r"^W&B: timed out for long\. Train without it"):
        WandbRun(info(tmp_path), SETTINGS | {"mode": "online"})


def test_a_name_that_no_server_has_is_no_answer() -> None:
    assert not wandb_run.answers("http://nowhere.invalid", 3)
    assert not wandb_run.answers("nonsense", 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WANDB_MODE", "of"),
        ("WANDB_BASE_URL", "nonsense"),
        ("WANDB_API_KEY", "abc"),
        ("WANDB_INIT_TIMEOUT", "soon"),
        ("WANDB_SILENT", "perhaps"),
    ],
)
def test_a_damaged_variable_is_named(name: str, value: str, logged_in: pytest.MonkeyPatch, tmp_path: Path) -> None:
    logged_in.delenv("WANDB_MODE", raising=False)
    logged_in.setattr(wandb_run, "answers", lambda url, seconds: True)
    logged_in.setenv(name, value)
    short = name.removeprefix("WANDB_").lower()
    with pytest.raises(InputError, match=rf"^W&B: ({name} invalid|{short}: Input should be .*{value})") as caught:
        WandbRun(info(tmp_path), SETTINGS)
    assert "\n" not in str(caught.value)


def test_a_run_without_a_network_trains(tmp_path: Path) -> None:
    with server(answering=False) as url:
        environment = {"WANDB_MODE": "", "WANDB_API_KEY": 40 * "x", "WANDB_BASE_URL": url}
        _, err = run("train.py", *TINY, "hydra.run.dir=run", cwd=tmp_path, **environment)
    said = f"W&B: no answer from {url}, so this run is recorded offline"
    assert said in err
    assert said in (tmp_path / "run" / "train.log").read_text()
    assert (tmp_path / "run" / "results.json").exists()
    assert json.loads((tmp_path / "run" / "wandb.json").read_text())["mode"] == "offline"
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


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
