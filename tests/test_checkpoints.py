"""Checkpoints of a run whose directory was moved or copied."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
from conftest import Here

# With SGD at an outer rate of 1, sine waves get worse after the first step.
WORSE = (
    "algo=maml",
    "algo.optimizer=sgd",
    "algo.outer_lr=1",
    "algo.schedule=constant",
    "trainer=cpu",
    "trainer.threads=1",
    "trainer.val_every=1",
    "trainer.val_episodes=20",
    "test.episodes=3",
    "logger=csv",
)


@pytest.mark.parametrize("moved", [False, True])
def test_a_moved_run_keeps_its_best_weights(moved: bool, here: Here) -> None:
    assert here("train.py", *WORSE, "trainer.max_steps=1", "hydra.run.dir=run")[0] == 0
    run_dir = Path("run")
    if moved:
        shutil.copytree(run_dir, "below/copy")
        shutil.rmtree(run_dir)
        run_dir = Path("below/copy")
    best = (run_dir / "checkpoints" / "best.ckpt").read_bytes()
    assert here("train.py", f"resume={run_dir}", "trainer.max_steps=3")[0] == 0
    with (run_dir / "metrics.csv").open(newline="") as file:
        values = [float(row["val/mse"]) for row in csv.DictReader(file) if row["val/mse"]]
    assert len(values) == 3
    assert min(values) == values[0]
    assert (run_dir / "checkpoints" / "best.ckpt").read_bytes() == best
    last = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=False)
    assert last["global_step"] == 3
    assert not Path("run").exists() or not moved
