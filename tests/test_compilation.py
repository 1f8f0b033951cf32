"""algo.compile=auto: long runs of small dense nets are compiled, the others are not, and the choice is kept."""

import logging
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, SHORT, Here
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import _inductor as inductor

from innerloop.errors import InputError
from innerloop.learners import MAML
from innerloop.nets import MLP
from innerloop.runs import compilation, schemas
from innerloop.runs.build import Parts, build
from innerloop.runs.compilation import LONG, LONG_OF_IMAGES, settle_compilation

NOWHERE = inductor.config.patch({"cpp.cxx": (None, "/nowhere/g++")})


def settled(*overrides: str) -> tuple[DictConfig, Parts]:
    schemas.register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", ["trainer.accelerator=cpu", *overrides])
    parts = build(cfg)
    settle_compilation(cfg, parts)
    return cfg, parts


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="innerloop")
    return caplog


def test_a_long_run_of_a_dense_net_is_compiled(said: pytest.LogCaptureFixture) -> None:
    cfg, parts = settled("algo=maml")
    assert cfg.trainer.max_steps >= LONG
    assert cfg.algo.compile is True
    assert parts.learner.engine.compile
    assert "compiled the meta-step in" in said.text


def test_a_run_on_images_is_compiled(said: pytest.LogCaptureFixture) -> None:
    cfg, parts = settled("algo=protonet", "data=glyphs", f"trainer.max_steps={LONG_OF_IMAGES}", "trainer.threads=1")
    assert cfg.algo.compile is True
    assert parts.learner.engine.compile
    assert "compiled the meta-step in" in said.text


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["algo=maml", f"trainer.max_steps={LONG - 1}"], "1,999 meta-batches are too few"),
        (["algo=hypernet"], "it is not small and simple"),
        (["algo=maml", "trainer.precision=64-true"], "32-true precision"),
        (["algo=maml", "trainer.devices=2"], "one process"),
        (["algo=maml", "algo.engine=loop"], "compile=true needs tasks of equal shape"),
        (["algo=maml", "data=glyphs", f"trainer.max_steps={LONG_OF_IMAGES - 1}"], None),
        (["algo=hypernet", "data=glyphs"], "cannot translate this learner (native_group_norm"),
        (["algo=maml", "algo.compile=false"], None),
    ],
)
def test_others_stay_eager_and_say_why(
    overrides: list[str], reason: str | None, said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inductor, "compile", None)
    cfg, parts = settled(*overrides)
    assert cfg.algo.compile is False
    assert not parts.learner.engine.compile
    assert ("the meta-step is not compiled: " in said.text) == (reason is not None)
    assert (reason or "") in said.text


def test_without_a_compiler_auto_stays_eager(said: pytest.LogCaptureFixture) -> None:
    with NOWHERE:
        cfg, _ = settled("algo=maml")
    assert cfg.algo.compile is False
    assert "the meta-step is not compiled: compile=true needs a working torch.compile" in said.text


def test_without_a_compiler_true_is_refused_before_anything_is_written(here: Here, tmp_path: Path) -> None:
    with NOWHERE:
        status, err = here("train.py", *SHORT, "algo.compile=true", "hydra.run.dir=run")
    assert status == 1
    assert "/nowhere/g++" in err.strip().splitlines()[-1]
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_stays_what_it_was(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "LONG", 1)
    assert here("train.py", *SHORT, "logger=csv", "hydra.run.dir=run")[0] == 0
    recorded = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert recorded["algo"]["compile"] is True
    monkeypatch.setattr(compilation, "LONG", 10**9)
    assert here("train.py", "resume=run", "trainer.max_steps=6")[0] == 0
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["algo"]["compile"] is True


def test_only_known_values_are_taken() -> None:
    with pytest.raises(InputError, match="compile must be true, false or auto, got soon"):
        MAML(MLP(1, [4], 1), lambda net, weights, samples: samples.y.sum(), compile="soon")
