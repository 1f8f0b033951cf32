"""What an offline W&B run holds: its place in a sweep, axes, histograms, tables, artifacts, and how it ended."""

import base64
import csv
import hashlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TINY
from offline import OfflineRun, offline_runs

from innerloop.learners import MetaLearner

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def sweep(train: Any) -> dict[tuple[float, int], Path]:
    """Four runs, (inner rate, seed) -> run directory."""
    swept = ("algo.inner_lr=0.01,0.02", "seed=0,1")
    logging = ("logger=[csv,wandb]", "logger.wandb.tags=[mine]", "logger.wandb.artifacts=true")
    train("-m", "algo=meta_sgd", *swept, *TINY, *logging, "logger.wandb.histograms_every=4")
    found = [path.parent for path in Path().resolve().glob("runs/sweeps/*/*/config.yaml")]
    recorded = {run_dir: yaml.safe_load((run_dir / "config.yaml").read_text()) for run_dir in found}
    return {(cfg["algo"]["inner_lr"], cfg["seed"]): run_dir for run_dir, cfg in recorded.items()}


def the_run(run_dir: Path) -> OfflineRun:
    (offline,) = offline_runs(run_dir)
    return offline


@pytest.fixture(scope="module")
def one(sweep: dict[tuple[float, int], Path]) -> tuple[Path, OfflineRun]:
    return sweep[0.02, 1], the_run(sweep[0.02, 1])


def test_runs_of_a_sweep_share_a_group_and_say_what_was_swept(sweep: dict[tuple[float, int], Path]) -> None:
    assert set(sweep) == {(0.01, 0), (0.01, 1), (0.02, 0), (0.02, 1)}
    for (rate, _), run_dir in sweep.items():
        (record,) = the_run(run_dir).records("run")
        assert record["display_name"] == f"meta_sgd-sinusoid algo.inner_lr={rate}"
        assert record["run_group"] == run_dir.parent.name
        assert record["job_type"] == "train"
        assert record["tags"] == ["meta_sgd", "sinusoid", "mlp", "mine"]


def test_configuration_is_the_recorded_one_with_the_code_version(one: tuple[Path, OfflineRun]) -> None:
    run_dir, offline = one
    expected = yaml.safe_load((run_dir / "config.yaml").read_text())
    environment = json.loads((run_dir / "environment.json").read_text())
    version = {name: environment[name] for name in ("git_commit", "git_dirty")}
    assert expected["trainer"].pop("extra") == {}, "what is empty is left out by W&B"
    assert {k: v for k, v in offline.summary["config"].items() if not k.startswith("_")} == expected | version


def test_the_axis_is_the_meta_batch(one: tuple[Path, OfflineRun]) -> None:
    run_dir, offline = one
    metrics = {m.get("name", m.get("glob_name")): m for m in offline.records("metric")}
    assert metrics["*"]["step_metric"] == "trainer/global_step"
    assert metrics["adaptation/mse_mean"]["step_metric"] == "adaptation/step"
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("train/loss", "train/gradient_norm", "val/mse", "inner_lr/head.bias", "lr-Adam"):
        expected = {int(row["step"]): float(row[name]) for row in rows if row[name]}
        assert len(expected) == (2 if name.startswith("val") else 4)
        seen = {h["trainer/global_step"]: h[name] for h in offline.history if name in h}
        assert seen == pytest.approx(expected), name


def test_adaptation_curve_is_that_of_the_results(one: tuple[Path, OfflineRun]) -> None:
    run_dir, offline = one
    by_step = json.loads((run_dir / "results.json").read_text())["test"]["by_step"]
    seen = [(h["adaptation/step"], h["adaptation/mse_mean"]) for h in offline.history if "adaptation/step" in h]
    assert seen == [(row["step"], row["mse"]["mean"]) for row in by_step]


def test_inner_rates_are_those_that_were_learned(one: tuple[Path, OfflineRun]) -> None:
    run_dir, offline = one
    saved = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
    rates = {k.removeprefix("adaptation.rates.").replace("/", "."): v for k, v in saved.items() if ".rates." in k}
    assert len(rates) == 6
    last = {name: value for h in offline.history for name, value in h.items() if name.startswith("inner_lr/")}
    assert last == pytest.approx({f"inner_lr/{name}": rate.mean().item() for name, rate in rates.items()})
    # Learned: they have left where they began.
    assert min(abs(value - 0.02) for value in last.values()) > 1e-5


def test_histograms_come_at_their_interval_and_count_every_entry(one: tuple[Path, OfflineRun]) -> None:
    run_dir, offline = one
    saved = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
    rows = [h for h in offline.history if any(name.startswith("gradients/") for name in h)]
    assert [h["trainer/global_step"] for h in rows] == [3, 7]
    for row in rows:
        for name, value in saved.items():
            if value.numel() > 1:
                assert sum(row[f"gradients/{name.replace('/', '.')}.values"]) == value.numel()
    # After the last update: the rates as they were saved.
    for name, value in saved.items():
        if ".rates." in name and value.numel() > 1:
            key = f"inner_rates/{name.removeprefix('adaptation.rates.').replace('/', '.')}"
            assert sum(rows[-1][f"{key}.values"]) == value.numel()
            bins = rows[-1][f"{key}.bins"]
            assert (bins[0], bins[-1]) == pytest.approx((value.min().item(), value.max().item()))


def test_table_of_episodes_is_the_file_of_episodes(one: tuple[Path, OfflineRun]) -> None:
    run_dir, offline = one
    entry = offline.summary["summary"]["test/episodes"]
    table = json.loads((offline.directory / "files" / entry["path"]).read_text())
    assert table["columns"] == ["episode", "unadapted/mse", "mse"]
    reported = str(json.loads((run_dir / "results.json").read_text())["test"]["step"])
    with (run_dir / "test_episodes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [
        [int(a["episode"]), float(a["mse"]), float(b["mse"])]
        for a, b in zip(
            [r for r in rows if r["step"] == "unadapted"], [r for r in rows if r["step"] == reported], strict=True
        )
    ]
    assert table["data"] == expected
    assert len(expected) == 6


def test_artifacts_are_the_files_of_the_run(one: tuple[Path, OfflineRun]) -> None:
    run_dir, offline = one
    found = {a["type"]: a for a in offline.records("artifact") if a["type"] != "run_table"}
    assert set(found) == {"model", "results"}
    files = {
        kind: {f["path"]: (f["digest"], Path(f["local_path"])) for f in artifact["manifest"]["contents"]}
        for kind, artifact in found.items()
    }
    assert {kind: set(content) for kind, content in files.items()} == {
        "model": {"best.ckpt"},
        "results": {"results.json", "test_episodes.csv"},
    }
    for digest, name, path in (
        (files["model"]["best.ckpt"][0], "best.ckpt", run_dir / "checkpoints" / "best.ckpt"),
        (files["results"]["test_episodes.csv"][0], "test_episodes.csv", run_dir / "test_episodes.csv"),
    ):
        assert digest == base64.b64encode(hashlib.md5(path.read_bytes()).digest()).decode(), name
    results = json.loads((run_dir / "results.json").read_text())
    assert json.loads(files["results"]["results.json"][1].read_text()) == results
    assert json.loads(found["model"]["metadata"])["validation/mse"] == results["validation"]["mse"]["mean"]
    # What `wandb sync` will need is all below the run directory.
    waiting = [f["local_path"] for a in offline.records("artifact") for f in a["manifest"]["contents"]]
    assert all(Path(path).is_relative_to(run_dir) for path in waiting)
    assert "WANDB_DATA_DIR" not in os.environ


@pytest.mark.skipif(importlib.util.find_spec("wandb_workspaces") is None, reason="needs wandb-workspaces")
def test_the_dashboard_shows_what_a_run_wrote(one: tuple[Path, OfflineRun], tmp_path: Path) -> None:
    file = tmp_path / "dashboard.json"
    # In a process of its own: the package's own warnings are none of ours.
    command = [sys.executable, str(ROOT / "scripts" / "wandb_dashboard.py"), "--dry-run", str(file)]
    subprocess.run(command, check=True, timeout=240)
    sections = json.loads(file.read_text())["spec"]["section"]["panelBankConfig"]["sections"]
    assert [s["name"] for s in sections] == [
        "Learning",
        "Adaptation curve",
        "Comparison by algorithm",
        "Inner rates",
        "Parallel coordinates",
    ]
    _, offline = one
    logged = {name for row in offline.history for name in row}
    logged |= {name.removesuffix("._type") for name in logged}
    summary, cfg = offline.summary["summary"], offline.summary["config"]
    seen = []
    for kind, name in refers_to([panel["config"] for s in sections for panel in s["panels"]]):
        seen.append(kind)
        if kind == "metric":
            assert name in logged, name
        elif kind == "summary":
            assert name in summary, name
        elif kind == "regex":
            assert any(re.fullmatch(name, other) for other in logged), name
        else:
            group, value, *path = name.split(".")
            assert value == "value"
            assert path[0] in cfg[group], name
    assert len(seen) > 25
    assert set(seen) == {"metric", "summary", "config", "regex"}


def refers_to(panels: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """(metric, summary, config or regex; its name) of everything that the panels of a workspace refer to."""
    for panel in panels:
        for key in ("metrics", "mediaKeys"):
            yield from (("metric", name) for name in panel.get(key, []))
        if "groupBy" in panel:
            yield "config", panel["groupBy"]
        if "metricRegex" in panel:
            yield "regex", panel["metricRegex"]
        if "targetKey" in panel:
            yield "summary", panel["targetKey"]
        axes = [panel.get("xAxis"), panel.get("yAxis"), *(c["accessor"] for c in panel.get("columns", []))]
        for axis in filter(None, axes):
            kind, colon, name = axis.partition(":")
            yield (kind, name) if colon else ("metric", axis)


def test_system_metrics_are_recorded(one: tuple[Path, OfflineRun]) -> None:
    assert any(stats["item"]["proc.memory.rssMB"] > 100 for stats in one[1].records("stats"))


def test_a_run_of_a_sweep_resumed_alone_keeps_name_and_group(sweep: dict[tuple[float, int], Path], train: Any) -> None:
    run_dir = sweep[0.01, 0]
    train(f"resume={run_dir}", "trainer.max_steps=12", "logger.wandb.artifacts=false")
    first, second = offline_runs(run_dir)
    (before,), (after,) = first.records("run"), second.records("run")
    for name in ("run_id", "display_name", "run_group", "job_type", "tags"):
        assert after[name] == before[name], name
    assert [h["trainer/global_step"] for h in second.history if "val/mse" in h] == [11]
    # Artifacts are for whoever asks for them.
    assert {a["type"] for a in second.records("artifact")} == {"run_table"}


def test_a_single_run_has_no_group_and_its_table_of_episodes_an_end(
    train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("innerloop.runs.tracking.wandb_run.LONGEST_TABLE", 4)
    train("algo=hypernet", *TINY, "hydra.run.dir=single")
    offline = the_run(Path("single"))
    (record,) = offline.records("run")
    assert record["display_name"] == "hypernet-sinusoid"
    assert "run_group" not in record
    assert offline.summary["summary"]["test/episodes"]["nrows"] == 4


def start(*arguments: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """train.py in a process of its own, tiny and offline."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {"WANDB_MODE": "offline"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *TINY, *arguments],
        cwd=cwd,
        env=clean | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def test_a_run_of_a_wandb_sweep(tmp_path: Path) -> None:
    drawn = {"algo": "anil", "data.shots": 5, "seed": 3}
    path = tmp_path / "drawn.yaml"
    path.write_text(yaml.safe_dump({k: {"desc": None, "value": v} for k, v in drawn.items()}))
    agent = {"WANDB_SWEEP_ID": "abc", "WANDB_RUN_ID": "drawn1", "WANDB_SWEEP_PARAM_PATH": str(path)}
    command = [f"{k}={v}" for k, v in drawn.items()]
    process = start("logger=wandb", *command, "hydra.run.dir=run", cwd=tmp_path, **agent)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    offline = the_run(tmp_path / "run")
    (record,) = offline.records("run")
    assert (record["run_id"], record["run_group"], record["sweep_id"]) == ("drawn1", "abc", "abc")
    assert record["display_name"] == "anil-sinusoid data.shots=5"
    # W&B's own idea of the configuration is algo: "anil".
    assert offline.summary["config"]["algo"]["only"] == "head"
    assert offline.summary["config"]["data.shots"] == 5


def test_a_crash_is_a_failed_run_whose_history_reads(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    update = MetaLearner._update

    def breaks(self: MetaLearner, optimizer: Any, step: int, *rest: Any, **named: Any) -> None:
        if step == 6:
            raise RuntimeError("the disk\nis full")
        update(self, optimizer, step, *rest, **named)

    monkeypatch.setattr(MetaLearner, "_update", breaks)
    with pytest.raises(RuntimeError, match="the disk"):
        train(*TINY, "hydra.run.dir=crashed")
    offline = the_run(Path("crashed"))
    assert (offline.summary["state"], offline.summary["exit_code"]) == ("failed", 1)
    assert offline.summary["summary"]["ended"] == "RuntimeError: the disk is full"
    assert [h["trainer/global_step"] for h in offline.history if "train/loss" in h] == [1, 3, 5]
    assert "test/mse" not in offline.summary["summary"]


def test_a_diverged_run_is_a_failed_run(train: Any) -> None:
    with pytest.raises(SystemExit, match="1"):
        train(*TINY, "algo.inner_lr=1e12", "algo.inner_steps=5", "hydra.run.dir=diverged")
    offline = the_run(Path("diverged"))
    assert offline.summary["exit_code"] == 1
    assert offline.summary["summary"]["ended"].startswith("DivergedError: ")


def test_ctrl_c_ends_a_run_with_its_history(tmp_path: Path) -> None:
    process = start("trainer.max_steps=100000", "hydra.run.dir=run", cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to W&B's own process too
    process.communicate(timeout=120)
    assert process.returncode == 130
    offline = the_run(tmp_path / "run")
    assert offline.summary["exit_code"] == 130
    assert offline.summary["summary"]["ended"].startswith("Stopped: stopped after step ")
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=False)["global_step"]
    steps = [h["trainer/global_step"] for h in offline.history if "train/loss" in h]
    assert steps == list(range(1, saved, 2)), "every row up to the step that was saved"
