"""Names say what a sweep varied, whoever recorded what was typed, and never the seed."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from innerloop.naming import LONGEST, label, swept, typed_overrides


@pytest.mark.parametrize(
    ("typed", "job", "expected"),
    [
        (["algo=maml,hybrid", "seed=0,1"], ["algo=hybrid", "seed=1"], []),
        (["algo.inner_lr=0.1,0.2", "data.shots=5"], ["algo.inner_lr=0.2", "data.shots=5"], ["algo.inner_lr=0.2"]),
        (["algo.inner_lr=interval(0.01,0.1)"], ["algo.inner_lr=0.0317"], ["algo.inner_lr=0.0317"]),
        (["data.shots=range(1,4)", "trainer=cpu"], ["data.shots=3", "trainer=cpu"], ["data.shots=3"]),
        (["trainer.max_steps=10,20", "net=mlp,linear"], ["trainer.max_steps=20", "net=mlp"], None),
        # One value for all, though it has commas.
        (["net.hidden=[40,40]", "logger=[csv,wandb]"], ["net.hidden=[40,40]", "logger=[csv,wandb]"], []),
        (["net.hidden=[40,40],[80]"], ["net.hidden=[80]"], ["net.hidden=[80]"]),
        # A search's space is in its configuration, not typed.
        (["hparams_search=x"], ["algo.outer_lr=0.002"], ["algo.outer_lr=0.002"]),
        (
            ["logger=csv,wandb", "hydra.verbose=true"],
            ["logger=csv", "logger.wandb.group=a", "resume=b", "debug=true"],
            [],
        ),
    ],
)
def test_what_was_swept(typed: list[str], job: list[str], expected: list[str] | None) -> None:
    assert swept(job, typed) == (job if expected is None else expected)


def test_what_was_typed_is_read_from_the_sweeps_record_or_hydras(tmp_path: Path) -> None:
    assert typed_overrides(tmp_path) == []
    (tmp_path / "multirun.yaml").write_text("hydra: {overrides: {task: ['seed=0,1']}}")
    assert typed_overrides(tmp_path) == ["seed=0,1"]
    (tmp_path / "sweep.yaml").write_text("overrides: ['algo=maml,anil']\nkind: grid")
    assert typed_overrides(tmp_path) == ["algo=maml,anil"]


def test_a_name_is_no_longer_than_wandb_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    job = [f"algo.key_{i}={i}" for i in range(20)]
    hydra = OmegaConf.create({"mode": "RUN", "overrides": {"task": job}})
    monkeypatch.setattr("innerloop.naming.HydraConfig.get", lambda: hydra)
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    name, group = label(OmegaConf.create({"algo": {"name": "maml"}, "data": {"name": "sinusoid"}}))
    assert (len(name), group) == (LONGEST, "abc")
    assert name.startswith("maml-sinusoid algo.key_0=0 algo.key_1=1 ")
