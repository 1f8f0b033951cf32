"""Any key of a configuration with any odd value either trains to finite numbers or is refused in one line."""

import functools
import json
import math
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from conftest import Here
from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from innerloop.runs import schemas, train

schemas.register()
ROOT = Path(__file__).resolve().parents[1]
ALGOS = sorted(path.stem for path in (ROOT / "conf" / "algo").glob("*.yaml"))
DATA = ("sinusoid", "multimodal", "hyperplane")
SMALL = (
    "trainer.max_steps=2",
    "trainer.val_every=1",
    "trainer.val_episodes=2",
    "test.episodes=2",
    "trainer.threads=1",
    "trainer.accelerator=cpu",
    "logger=csv",
    "data.meta_batch_size=2",
    "hydra.run.dir=run",
)
VALUES = (
    *("inf", "-inf", "nan", "null", "-1", "0", "1", "2", "0.5", "1e30", "1e-30", "99999999999999999999", "true"),
    *("''", "abc", "'a b'", "../x", "[]", "[1]", "[a,b]", "{}", "{a:1}", "'${seed}'", "???"),
)
SLOW_ONES = {"trainer.max_steps", "trainer.val_episodes", "test.episodes", "data.num_workers", "trainer.threads"}
"""Keys for which a huge number is possible and takes long."""


def dotted(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from dotted(value, f"{key}.")
        elif not key.startswith(("resume", "sweep", "traceback")):
            yield key


@functools.cache
def keys_of(*choice: str) -> list[str]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return list(dotted(OmegaConf.to_container(compose("train", list(choice)))))  # type: ignore[arg-type]


@st.composite
def commands(draw: Any) -> list[str]:
    choice = [f"algo={draw(st.sampled_from(ALGOS))}", f"data={draw(st.sampled_from(DATA))}"]
    key = draw(st.sampled_from(keys_of(*choice)))
    possible = [v for v in VALUES if not (key in SLOW_ONES and len(v) > 10)]
    return [*choice, *SMALL, f"{key}={draw(st.sampled_from(possible))}"]


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check(command: list[str], here: Here, directory: Path) -> None:
    run_dir = directory / "run"
    shutil.rmtree(run_dir, ignore_errors=True)
    GlobalHydra.instance().clear()
    begin = time.process_time()
    with at_most(300):
        status, err = here("train.py", *command)
    took = time.process_time() - begin
    last = (err.strip().splitlines() or [""])[-1]
    if status == 0:
        results = json.loads((run_dir / "results.json").read_text())
        mean = results["test"][results["metric"]]["mean"]
        assert (mean is not None and math.isfinite(mean)) or "not a number" in err
    else:
        assert "Traceback" not in err
        assert took < 5 or "diverged" in last, "a refusal takes long"
        assert last.startswith("train.py: ")
        assert not run_dir.exists() or "diverged" in last, "a refused run leaves something behind"


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "save_figures", lambda *arguments: {})  # takes half of a run as short as these


PART = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)


@pytest.mark.parametrize("part", range(5))
def test_odd_values(part: int, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Composing takes most of a case, and Hydra composes once more to see whether it is a sweep. The slow test lets it.
    monkeypatch.setattr(Hydra, "get_mode", lambda *arguments, **named: RunMode.RUN)

    @seed(part)
    @PART
    @given(command=commands())
    def each(command: list[str]) -> None:
        check(command, here, tmp_path)

    each()


# The compiler itself uses what torch has deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(command=commands())
def test_many_odd_values(command: list[str], here: Here, tmp_path: Path) -> None:
    check(command, here, tmp_path)
