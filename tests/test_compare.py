"""scripts/compare.py against numbers worked by hand."""

import csv
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def make_run(path: Path, algo: str, seed: int, values: list[float]) -> Path:
    path.mkdir()
    results = {"algo": algo, "data": "toy", "seed": seed, "steps": 10, "train_cpu_seconds": 4.0 + seed}
    results["test"] = {"step": 1, "mse": {}}
    (path / "results.json").write_text(json.dumps(results))
    with (path / "test_episodes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["episode", "step", "mse"])
        for episode, value in enumerate(values):
            writer.writerows([[episode, "unadapted", 99.0], [episode, 0, 50.0], [episode, 1, value]])
    return path


def compare(*runs: Path, status: int = 0) -> tuple[list[list[str]], str]:
    command = [sys.executable, str(ROOT / "scripts" / "compare.py"), "--markdown", *map(str, runs)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()]
    return lines[2:], done.stderr


def test_hand_worked_table(tmp_path: Path) -> None:
    a0, a1 = make_run(tmp_path / "a0", "a", 0, [1.0, 2.0, 3.0]), make_run(tmp_path / "a1", "a", 1, [3.0, 4.0, 5.0])
    b = make_run(tmp_path / "b", "b", 0, [3.0, 4.0, 7.0])
    rows, _ = compare(a0, a1, b)
    # Episodes averaged over the seeds: 2, 3, 4, so mean 3, sd 1; the seeds' means are 2 and 4, so their sd is 1.4142.
    assert rows[0] == ["a", "toy", "10", "0,1", "1,1", "3.0000 ± 1.1316", "1.4142", "3.0000", "4", ""]
    # Differences 1, 1, 3: mean 5/3, sd 1.1547, half-width 1.96 * 1.1547 / sqrt(3) = 1.3067.
    assert rows[1] == ["b", "toy", "10", "0", "1", "4.6667 ± 2.3556", "", "4.0000", "4", "+1.6667 ± 1.3067"]


def test_runs_that_do_not_pair_are_refused(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a", "a", 0, [1.0, 2.0]), make_run(tmp_path / "b", "b", 0, [1.0, 2.0, 3.0])
    assert "different numbers of episodes" in compare(a, b, status=2)[1]
    assert "no finished run" in compare(tmp_path, status=2)[1]
