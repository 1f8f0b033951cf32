"""Sweeps made for the tests of scripts/summarize.py, and ways to look at what it makes of them."""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import run_script
from matplotlib.figure import Figure
from test_compare import make_run

from innerloop.sweeps import figures
from innerloop.sweeps.read import read_sweep
from innerloop.sweeps.report import report

COMMON = ("logger=csv", "trainer.max_steps=40")


def finished(
    sweep: Path,
    number: int,
    overrides: Sequence[str],
    values: Sequence[float],
    validation: float,
    metric: str = "mse",
    **changes: Any,
) -> Path:
    """A finished job. values: of its test episodes; changes: of its configuration, see `make_run`."""
    told = dict(o.partition("=")[::2] for o in overrides)
    algo, seed = told.get("algo", "maml"), int(told.get("seed", 0))
    path = make_run(sweep / f"{number}_{algo}-toy_seed{seed}", algo, seed, list(values), **changes)
    results = json.loads((path / "results.json").read_text())
    results["validation"] = {"step": 1, "episodes": 4, metric: {"mean": validation, "ci95": 0.5}}
    results["test"][metric] = results["test"].pop("mse")
    (path / "results.json").write_text(json.dumps(results))
    episodes = path / "test_episodes.csv"
    episodes.write_text(episodes.read_text().replace("mse", metric))
    record(path, overrides)
    return path


def begun(sweep: Path, number: int, overrides: Sequence[str], curve: Sequence[tuple[int, float]] = ()) -> Path:
    """A job that has validated so far: (meta-batches, value)."""
    path = sweep / f"{number}_job"
    path.mkdir()
    (path / "config.yaml").write_text("algo: {name: any}\n")
    record(path, overrides)
    write_curve(path, curve)
    return path


def record(path: Path, overrides: Sequence[str]) -> None:
    """Its own record names the sweep and its launcher, too."""
    (path / "overrides.yaml").write_text(yaml.safe_dump([*overrides, *COMMON, "launcher=joblib", "sweep='/a/sweep'"]))
    (path / "environment.json").write_text("{}")


def write_curve(path: Path, curve: Sequence[tuple[int, float]], metric: str = "mse") -> None:
    """metrics.csv as Lightning writes it: steps from 0, training and validation in rows of their own."""
    lines = [f"epoch,step,train/loss,val/{metric}"]
    for step, value in curve:
        lines += [f"0,{step - 1},3.5,", f"0,{step - 1},,{value}"]
    (path / "metrics.csv").write_bytes(("\r\n".join(lines) + "\r\n").encode())


def two_algorithms(tmp_path: Path) -> Path:
    """Two algorithms with three seeds each. By validation the second is the better one, by test the first."""
    values = {
        ("maml", 0): ([1.0, 2.0, 3.0], 0.9),
        ("maml", 1): ([3.0, 4.0, 5.0], 1.1),
        ("maml", 2): ([2.0, 6.0, 4.0], 1.0),
        ("hypernet", 0): ([2.0, 3.0, 4.0], 0.5),
        ("hypernet", 1): ([5.0, 5.0, 8.0], 0.3),
        ("hypernet", 2): ([3.0, 7.0, 8.0], 0.4),
    }
    folder = tmp_path / "sweep"
    folder.mkdir()
    for number, ((algo, seed), (test, validation)) in enumerate(values.items()):
        path = finished(folder, number, [f"algo={algo}", f"seed={seed}"], test, validation)
        write_curve(path, [(10, 4.0 + seed), (20, 2.0 + validation)])
    return folder


Capsys = pytest.CaptureFixture[str]


def summarized(folder: Path, *flags: str) -> list[dict[str, str]]:
    """The rows of the CSV file."""
    out = folder.parent / "out.csv"
    run_script("summarize", folder, "--csv", out, *flags)
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


def refused(folder: Path, *flags: str) -> str:
    """The one line that the command ends with, at status 1: sys.exit prints a text and ends with it."""
    with pytest.raises(SystemExit) as end:
        run_script("summarize", folder, *flags)
    assert isinstance(end.value.code, str)
    assert "\n" not in end.value.code
    return end.value.code


def figure_of(kind: str, folder: Path) -> Figure:
    """bars, curves or parallel, of a sweep whose rows all have one metric."""
    found = read_sweep(folder)
    rows = report(found).rows
    metric = str(rows[0].metric)
    return figures.parallel(found, rows, metric) if kind == "parallel" else getattr(figures, kind)(rows, metric)


def search(folder: Path, finished_trials: int) -> Path:
    """A search over algo.inner_lr, which decides, and algo.inner_steps, which does not; a trial in each other state."""
    optuna = pytest.importorskip("optuna")
    state, create = optuna.trial.TrialState, optuna.trial.create_trial
    space = {
        "algo.inner_lr": optuna.distributions.FloatDistribution(1e-4, 1.0, log=True),
        "algo.inner_steps": optuna.distributions.IntDistribution(1, 5),
    }
    folder.mkdir(exist_ok=True)
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'study.db'}")
    study = optuna.create_study(storage=storage, study_name="study", direction="minimize")
    for n in range(finished_trials + 2):
        params = {
            "algo.inner_lr": float(10 ** -(4 * (n * 7 % finished_trials) / finished_trials)),
            "algo.inner_steps": 1 + n % 5,
        }
        value = abs(math.log10(params["algo.inner_lr"]) + 2) + 0.5
        told = [f"{key}={value}" for key, value in params.items()] + ["data=toy"]
        if n < finished_trials:
            directory = finished(folder, n, told, [value, value + 1], value)
            write_curve(directory, [(10, value + 1), (20, value)])
            end = {"value": value}
        else:
            directory = begun(folder, n, [o if "steps" not in o else "algo.inner_steps=9" for o in told], [(10, 7.0)])
            end = {"state": state.PRUNED if n == finished_trials else state.RUNNING}
            if n == finished_trials:
                (directory / "pruned.json").write_text(json.dumps({"step": 10, "value": 7.0}))
        study.add_trial(create(params=params, distributions=space, user_attrs={"directory": directory.name}, **end))
    study.add_trial(
        create(
            state=state.FAIL,
            params={"algo.inner_lr": 0.77, "algo.inner_steps": 8},
            distributions=space | {"algo.inner_steps": optuna.distributions.IntDistribution(1, 9)},
        )
    )
    study.enqueue_trial({"algo.inner_lr": 0.5})
    storage.remove_session()
    storage.engine.dispose()
    return folder
