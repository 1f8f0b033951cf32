"""Names say what a sweep varied, whoever recorded what was typed, and never the seed."""

from pathlib import Path

import pytest

from innerloop.runs.naming import LONGEST, drawn_by_wandb, multirun_overrides, name_of, swept
from innerloop.sweeps.record import read_record


@pytest.mark.parametrize(
    ("typed", "job", "name"),
    [
        (["algo=maml,hybrid", "seed=0,1"], ["algo=hybrid", "seed=1"], ""),
        (["algo.inner_lr=0.1,0.2", "data.shots=5"], ["algo.inner_lr=0.2", "data.shots=5"], "algo.inner_lr=0.2"),
        (["algo.inner_lr=interval(0.01,0.1)"], ["algo.inner_lr=0.031734567"], "algo.inner_lr=0.03173"),
        (["algo.outer_lr=1e-5,1.5e-4"], ["algo.outer_lr=1.5e-4"], "algo.outer_lr=0.00015"),
        (["data.shots=range(1,4)", "trainer=cpu"], ["data.shots=3", "trainer=cpu"], "data.shots=3"),
        (
            ["trainer.max_steps=10,20", "net=mlp,linear"],
            ["trainer.max_steps=20", "net=mlp"],
            "trainer.max_steps=20 net=mlp",
        ),
        # One value for all, though it has commas.
        (["net.hidden=[40,40]", "logger=[csv,wandb]"], ["net.hidden=[40,40]", "logger=[csv,wandb]"], ""),
        (["net.hidden=[40,40],[80]"], ["net.hidden=[80]"], "net.hidden=[80]"),
        # A search's space is in its configuration, not typed.
        (["hparams_search=x"], ["algo.outer_lr=0.002"], "algo.outer_lr=0.002"),
        (
            ["logger=csv,wandb", "seed=1,2"],
            ["logger=csv", "logger.wandb.group=a", "resume=b", "traceback=true", "seed=2"],
            "",
        ),
    ],
)
def test_a_name_says_what_was_swept(typed: list[str], job: list[str], name: str) -> None:
    assert name_of("maml-sinusoid", swept(job, typed)) == f"maml-sinusoid {name}".strip()


def test_what_was_typed_is_read_from_the_sweeps_record_or_hydras(tmp_path: Path) -> None:
    assert multirun_overrides(tmp_path) == []
    (tmp_path / "multirun.yaml").write_text("hydra: {overrides: {task: ['seed=0,1']}}")
    assert multirun_overrides(tmp_path) == ["seed=0,1"]
    (tmp_path / "sweep.yaml").write_text("overrides: ['algo=maml,anil', 'data.shots=${seed}']\nkind: grid")
    assert read_record(tmp_path)["overrides"] == ["algo=maml,anil", "data.shots=${seed}"]


def test_what_wandb_drew_is_read_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn_by_wandb() == {}
    path = tmp_path / "config.yaml"
    path.write_text("wandb_version: 1\nalgo.inner_lr: {desc: null, value: 0.0123456}\nalgo.learn_lr: {value: 'null'}\n")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(path))
    assert name_of("maml-sinusoid", drawn_by_wandb()) == "maml-sinusoid algo.inner_lr=0.01235 algo.learn_lr=null"


def test_a_name_is_no_longer_than_wandb_takes() -> None:
    name = name_of("maml-sinusoid", {f"algo.key_{i}": str(i) for i in range(20)})
    assert len(name) == LONGEST
    assert name.startswith("maml-sinusoid algo.key_0=0 algo.key_1=1 ")
