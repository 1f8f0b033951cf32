"""The choice of W&B's mode, without a network or an account."""

from pathlib import Path
from typing import Any

import pytest
import wandb

from innerloop.errors import InputError
from innerloop.tracking import MetricsFile, wandb_logger

SETTINGS = {"mode": "auto", "project": "innerloop", "entity": None, "name": None, "group": None, "tags": []}
CONFIG = {"algo": {"name": "maml"}, "data": {"name": "sinusoid"}}


class Asked(Exception):
    """wandb.init was reached."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def init(**options: Any) -> None:
        seen.update(options)
        raise Asked

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return seen


@pytest.mark.parametrize(("logged_in", "mode"), [(True, "online"), (False, "offline")])
def test_auto_is_online_only_where_logged_in(
    logged_in: bool, mode: str, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def login(prompt: bool = True, verify: bool = True) -> bool:
        assert not prompt, "a run must never wait for an answer"
        return logged_in

    monkeypatch.setattr(wandb, "login", login)
    with pytest.raises(Asked):
        wandb_logger(tmp_path, CONFIG, SETTINGS)
    assert asked["mode"] == mode
    assert asked["config"] == CONFIG
    assert asked["id"] is None


def test_environment_decides_where_it_speaks(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(Asked):
        wandb_logger(tmp_path, CONFIG, SETTINGS)
    assert asked["mode"] == "disabled"


def test_a_resumed_run_keeps_its_wandb_run(asked: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "wandb.json").write_text('{"id": "abc123", "project": "innerloop", "mode": "offline"}')
    with pytest.raises(Asked):
        wandb_logger(tmp_path, CONFIG, {**SETTINGS, "mode": "offline"})
    assert asked["id"] == "abc123"


def test_unknown_mode(asked: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="auto, online, offline, disabled"):
        wandb_logger(tmp_path, CONFIG, {**SETTINGS, "mode": "cloud"})
    assert not asked


def test_resumed_metrics_keep_what_came_before_the_checkpoint(tmp_path: Path) -> None:
    first = MetricsFile(tmp_path)
    for step in (1, 3, 5, 7):
        first.log_metrics({"train/loss": float(step)}, step)
    again = MetricsFile(tmp_path, resumed_at=5)
    again.log_metrics({"train/loss": 50.0, "val/mse": 0.5}, 5)
    again.save()
    lines = (tmp_path / "metrics.csv").read_text().split()
    assert lines == ["step,train/loss,val/mse", "1,1.0,", "3,3.0,", "5,50.0,0.5"]
