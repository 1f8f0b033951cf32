"""A grid that is given more values runs only the jobs that it lacks."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY, Here

from innerloop.sweeps import summary
from innerloop.sweeps.record import extends

SMALL = (*TINY, "logger=csv")


def times(sweep: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in sweep.glob("*/results.json")}


def test_a_finished_grid_is_extended(train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = tmp_path / "sweep"
    train("-m", "algo=maml,hypernet", "seed=0", *SMALL, f"sweep={sweep}")
    before = times(sweep)
    assert len(before) == 2
    capsys.readouterr()
    train("-m", f"sweep={sweep}", "seed=0,1")
    assert "4 of 4 runs are done" in capsys.readouterr().out
    after = times(sweep)
    assert {name: after[name] for name in before} == before, "finished jobs ran again"
    assert set(after) - set(before) == {"2_maml-sinusoid_seed1", "3_hypernet-sinusoid_seed1"}
    new = sweep / "2_maml-sinusoid_seed1"
    assert (sweep / "finished").exists()
    assert [row["seeds"] for row in summary(sweep)] == [[0, 1], [0, 1]]
    # From now on this is the sweep: its directory alone continues it, and the whole command is the same sweep.
    train("-m", f"sweep={sweep}")
    train("-m", "seed=0,1", "algo=maml,hypernet", *SMALL, f"sweep={sweep}")
    assert times(sweep) == after
    train("algo=maml", "seed=1", *SMALL, f"hydra.run.dir={tmp_path / 'alone'}")
    added, alone = (json.loads((path / "results.json").read_text())["test"] for path in (new, tmp_path / "alone"))
    assert added == alone
    assert len(yaml.safe_load((sweep / "sweep.yaml").read_text())["jobs"]) == 4


@pytest.mark.parametrize("asked", ["seed=1,2", "algo=hypernet,hybrid", "algo.outer_lr=0.1", "trainer.max_steps=9"])
def test_what_is_no_extension_is_refused(asked: str, train: Any, here: Here, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (sweep / "conf").mkdir()
    record = {"overrides": ["algo=maml", "seed=0,1", *SMALL], "kind": "grid", "jobs": [], "directories": []}
    (sweep / "sweep.yaml").write_text(yaml.safe_dump(record))
    status, err = here("train.py", "-m", f"sweep={sweep}", asked)
    assert status == 1
    assert "is the sweep of: algo=maml seed=0,1" in err
    assert "Traceback" not in err


def test_extends() -> None:
    recorded = ["algo=maml,hypernet", "seed=range(3)", "algo.outer_lr=0.01", "launcher=basic"]
    assert extends(recorded, ["seed=0,1,2,3"])
    assert extends(recorded, ["algo=maml,hypernet,hybrid", "seed=range(5)", "launcher=joblib"])
    assert extends(recorded, ["algo.outer_lr=0.01,0.02"])
    assert not extends(recorded, ["seed=0,1"])
    assert not extends(recorded, ["algo.outer_lr=0.02"])
    assert not extends(recorded, ["data=glyphs"])
