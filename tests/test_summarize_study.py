"""scripts/summarize.py: searches, and what is no sweep."""

import re
import sys
from pathlib import Path

import pytest
from made_sweeps import (
    Capsys,
    begun,
    refused,
    search,
    summarized,
    two_algorithms,
)

from innerloop.sweeps.rows import STATES


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return two_algorithms(tmp_path)


def test_a_search_is_sorted_by_validation_and_says_what_matters(tmp_path: Path, capsys: Capsys) -> None:
    rows = summarized(search(tmp_path / "s", 20))
    values = [float(row["validation"]) for row in rows if row["validation"]]
    assert values == sorted(values)
    assert len(values) == 20
    assert rows[0]["best"] == "*"
    assert [sum(int(row[s] or 0) for row in rows) for s in STATES] == [20, 1, 0, 1, 1, 0]
    assert [row["failed"] for row in rows if row["algo.inner_lr"] == "0.77"] == ["1"]
    out = capsys.readouterr().out
    assert "24 runs, 20 finished, 1 running, 1 failed, 1 pruned, 1 waiting\n" in out
    about, rate, steps = out[out.index("importances") :].splitlines()[:3]
    assert "best 25% of 20 finished trials (PED-ANOVA" in about
    assert rate.split()[1] == "algo.inner_lr"
    assert float(rate.split()[0].strip("%")) + float(steps.split()[0].strip("%")) == pytest.approx(100, abs=0.1)
    assert float(rate.split()[0].strip("%")) > 60
    # The best of the study is the best of the table, and its command has its exact values.
    (command,) = re.findall(r"^  (python train\.py .*)$", out, re.M)
    assert f"algo.inner_lr={rows[0]['algo.inner_lr']} " in command
    assert float(rows[0]["algo.inner_lr"]) == pytest.approx(0.01, rel=1e-9)


def test_few_trials_have_no_importances(tmp_path: Path, capsys: Capsys) -> None:
    summarized(search(tmp_path / "s", 3))
    assert "importances need 5 finished trials, there are 3" in capsys.readouterr().out


@pytest.mark.parametrize("tables", [False, True])
def test_a_search_that_just_began(tables: bool, tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    begun(tmp_path, 0, ["algo.inner_lr=0.1"])
    (tmp_path / "study.db").touch()
    if tables:
        optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'study.db'}").engine.dispose()
    before = (tmp_path / "study.db").read_bytes()
    assert [row["running"] for row in summarized(tmp_path)] == ["1"]
    assert (tmp_path / "study.db").read_bytes() == before, "who reads a search does not write its study"


def test_a_study_without_optuna_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(tmp_path, 0, ["algo.inner_lr=0.1"])
    (tmp_path / "study.db").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert 'pip install -e ".[sweep]"' in refused(tmp_path)


# What is no sweep.


def test_what_is_no_sweep_is_refused_in_one_line(tmp_path: Path, sweep: Path) -> None:
    assert "is no directory" in refused(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "is no sweep" in refused(tmp_path / "empty")
    assert "is no sweep" in refused(sweep / "0_maml-toy_seed0")
