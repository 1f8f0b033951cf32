"""A run that is killed at any moment is resumed to the very result of the run that was never killed."""

import csv
import json
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import start

from innerloop.runs.record import read_checkpoint

SHORT = ("trainer.max_steps=600", "trainer.val_every=40", "trainer.val_episodes=40", "trainer.log_every=7")
SHORT = (*SHORT, "test.episodes=50", "trainer.threads=1", "trainer.accelerator=cpu", "logger=csv")
ACTING = ("data=navigation", "data.horizon=10", "data.shots=5", "data.meta_batch_size=4", "trainer.max_steps=200")
IMAGES = ("data=glyphs", "net.width=8", "data.queries=3", "data.meta_batch_size=4", "trainer.max_steps=200")
RUNS: dict[str, Sequence[str]] = {
    "maml": ("algo=maml",),
    "hypernet": ("algo=hypernet",),
    "hybrid": ("algo=hybrid",),
    "images": ("algo=maml", *IMAGES),
    "policy": ("algo=hybrid", *ACTING),
    "compiled": ("algo=maml", "algo.compile=true", "trainer.max_steps=3000", "trainer.val_every=200"),
}
KILLS = 5
"""For each of the runs."""
TIMES = {"train_seconds", "train_cpu_seconds", "steps_per_second", "peak_memory_mb"}


def process(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return start("train.py", *arguments, cwd=cwd)


def finish(*arguments: str, cwd: Path) -> float:
    """Run to the end; returns the seconds that it took."""
    began = time.monotonic()
    running = process(*arguments, cwd=cwd)
    _, err = running.communicate(timeout=240)
    assert running.returncode == 0, err
    return time.monotonic() - began


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def result(run_dir: Path) -> dict[str, Any]:
    found = json.loads((run_dir / "results.json").read_text())
    return {name: value for name, value in found.items() if name not in TIMES}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_is_resumed_to_the_same_bits(name: str, tmp_path: Path) -> None:
    arguments = (*SHORT, *RUNS[name], f"data.cache={tmp_path / 'glyphs'}" if name == "images" else "seed=0")
    whole = tmp_path / "whole"
    seconds = finish(*arguments, f"hydra.run.dir={whole}", cwd=tmp_path)
    wanted = read_checkpoint(whole / "checkpoints" / "last.ckpt")
    random_times = random.Random(f"killed {name}")
    for number in range(KILLS):
        run_dir = tmp_path / str(number)
        running = process(*arguments, f"hydra.run.dir={run_dir}", cwd=tmp_path)
        # From when the first checkpoint may be there to the end of the run, the test included.
        time.sleep(seconds * random_times.uniform(0.3, 1.0))
        running.send_signal(signal.SIGKILL)
        running.communicate()
        if not (run_dir / "config.yaml").exists():
            finish(*arguments, f"hydra.run.dir={run_dir}", cwd=tmp_path)
        elif not (run_dir / "results.json").exists():
            finish(f"resume={run_dir}", cwd=tmp_path)
        found = read_checkpoint(run_dir / "checkpoints" / "last.ckpt")
        assert found["global_step"] == wanted["global_step"]
        for key, weights in wanted["state_dict"].items():
            assert torch.equal(found["state_dict"][key], weights), f"kill {number}: {key}"
        assert result(run_dir) == result(whole), f"kill {number}"
        assert rows(run_dir) == rows(whole), f"kill {number}"
        assert (run_dir / "test_episodes.csv").read_bytes() == (whole / "test_episodes.csv").read_bytes()
