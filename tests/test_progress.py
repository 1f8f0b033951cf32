"""What a person sees while a run trains."""

import io
import logging
import re
import sys

import pytest
import torch
from conftest import loader, quiet, regression_batch, squared
from lightning import Trainer

from innerloop.learners import MAML
from innerloop.nets import MLP
from innerloop.runs.callbacks.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def train(steps: int, fail: bool = False) -> Trainer:
    quiet()
    torch.manual_seed(0)
    learner = MAML(
        MLP(3, [5], 1), squared, lambda net, weights, samples: {"mse": squared(net, weights, samples)}, inner_lr=0.1
    )
    batches = [regression_batch(tasks=2, shots=4, queries=4, seed=s) for s in range(3)]
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        callbacks=[Progress("mse")],
    )
    if fail:
        batches[-1].query.y.fill_(float("nan"))
    trainer.fit(learner, loader(batches), loader(batches[:1]))
    return trainer


def test_lines_where_there_is_no_terminal(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level(logging.INFO, logger="innerloop"):
        trainer = train(6)
    lines = [record.getMessage() for record in caplog.records if record.name == "innerloop"]
    assert len(lines) == 2  # two validations, and training is over before ten seconds are
    step, train_mse, val_mse = re.match(
        r"step (\d+)/6  train/mse (\S+)  val/mse (\S+)  \S+ steps/s  eta", lines[1]
    ).groups()  # type: ignore[union-attr]
    assert int(step) == 6
    assert float(train_mse) == pytest.approx(trainer.callback_metrics["train/mse"].item(), rel=1e-3)
    assert float(val_mse) == pytest.approx(trainer.callback_metrics["val/mse"].item(), rel=1e-3)


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with caplog.at_level(logging.INFO, logger="innerloop"):
        train(6)
    assert "6/6" in terminal.getvalue()
    assert "val/mse" in terminal.getvalue()
    assert not [r for r in caplog.records if r.name == "innerloop"]


def test_bar_closes_when_training_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(RuntimeError, match="diverged"):
        train(6, fail=True)
    assert terminal.getvalue().endswith("\n")
