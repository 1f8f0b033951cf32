"""scripts/compare.py against numbers worked by hand."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]


def make_run(path: Path, algo: str, seed: int, values: list[float], **changes: Any) -> Path:
    """A finished run; changes: dotted keys of its configuration, with __ for the dot."""
    path.mkdir()
    config: dict[str, Any] = {"algo": {"name": algo, "inner_lr": 0.1}, "data": {"name": "toy", "shots": 5}}
    config |= {"test": {"seed": 0}, "seed": seed, "trainer": {"max_steps": 10}}
    for key, value in changes.items():
        group, _, name = key.partition("__")
        config[group][name] = value
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "overrides.yaml").write_text(yaml.safe_dump([f"algo={algo}", f"seed={seed}", "algo.k=1"]))
    results = {"algo": algo, "data": "toy", "seed": seed, "steps": 10, "train_cpu_seconds": 4.0 + seed}
    results["test"] = {"step": 1, "episodes": len(values), "mse": {}}
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
    c0, c1 = make_run(tmp_path / "c0", "c", 0, [2.0, 4.0, 6.0]), make_run(tmp_path / "c1", "c", 1, [4.0, 4.0, 7.0])
    rows, _ = compare(a0, a1, b, c0, c1)
    # Episodes averaged over the seeds: 2, 3, 4, so mean 3, sd 1; the seeds' means are 2 and 4, so their sd is 1.4142.
    assert rows[0] == [
        "a",
        "toy",
        "algo.k=1",
        "10",
        "0,1",
        "1,1",
        "3.0000 ± 1.1316",
        "1.4142",
        "3.0000",
        "4",
        "",
        "",
    ]
    # Differences 1, 1, 3: mean 5/3, sd 1.1547, half-width 1.96 * 1.1547 / sqrt(3) = 1.3067.
    assert rows[1] == [
        "b",
        "toy",
        "algo.k=1",
        "10",
        "0",
        "1",
        "4.6667 ± 2.3556",
        "",
        "4.0000",
        "4",
        "+1.6667 ± 1.3067",
        "",
    ]
    # The seeds' differences are 4 - 2 and 5 - 4: mean 1.5, sd .7071, half-width 12.7062 * .7071 / sqrt(2) = 6.3531.
    assert rows[2][-2:] == ["+1.5000 ± 0.9800", "± 6.3531"]


def test_runs_that_do_not_pair_are_refused(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a", "a", 0, [1.0, 2.0]), make_run(tmp_path / "b", "b", 0, [1.0, 2.0, 3.0])
    assert "different episodes: test.episodes 2 and 3" in compare(a, b, status=2)[1]
    assert "no finished run" in compare(tmp_path, status=2)[1]
    c = make_run(tmp_path / "c", "b", 0, [1.0, 2.0], data__shots=1, test__seed=7)
    assert "different episodes: data.shots 5 and 1, test.seed 0 and 7" in compare(a, c, status=2)[1]


def test_what_only_training_depends_on_pairs(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", "a", 0, [1.0, 2.0], data__meta_batch_size=16, data__train_queries=5)
    b = make_run(tmp_path / "b", "a", 0, [2.0, 3.0], data__meta_batch_size=32, data__train_queries=15)
    rows, _ = compare(a, b)
    # And runs of different configurations are no seeds of one another.
    assert [row[6] for row in rows] == ["1.5000 ± 0.9800", "2.5000 ± 0.9800"]
    assert rows[1][-2] == "+1.0000 ± 0.0000"


def test_runs_of_an_older_version_pair_with_those_of_today(tmp_path: Path) -> None:
    """They lack keys whose values they had, and some keys had other names."""
    older = make_run(tmp_path / "older", "a", 0, [1.0, 2.0], data__class_folders="outermost", data__ways=5)
    today = {"data__split": "classes", "data__augment": [], "data__test_ways": None}
    newer = make_run(tmp_path / "newer", "b", 0, [2.0, 3.0], data__class_level=1, data__ways=5, **today)
    other = make_run(tmp_path / "other", "c", 0, [2.0, 3.0], data__class_level=1, data__ways=20, data__test_ways=5)
    assert len(compare(older, newer, other)[0]) == 3
    same = make_run(tmp_path / "same", "b", 0, [2.0, 3.0], data__split="same", data__class_level=1, data__ways=5)
    assert "different episodes: data.split None and same" in compare(older, same, status=2)[1]


def test_seeds_of_two_sweeps_are_one_row(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a", "a", 0, [1.0, 2.0]), make_run(tmp_path / "b", "a", 1, [2.0, 3.0])
    for path in (a, b):
        config = yaml.safe_load((path / "config.yaml").read_text())
        (path / "config.yaml").write_text(yaml.safe_dump(config | {"sweep": f"runs/sweeps/{path.name}"}))
    rows, _ = compare(a, b)
    assert [row[4] for row in rows] == ["0,1"]
