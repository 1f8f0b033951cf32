"""innerloop.load: a run loaded again, from another place, adapted and evaluated to the recorded numbers."""

import csv
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, TINY

import innerloop
from innerloop.episodes import Samples, weights_of
from innerloop.errors import InputError
from innerloop.learners import MAML
from innerloop.nets import MLP
from innerloop.tasks import Sinusoid

ALGORITHMS = sorted(path.stem for path in (ROOT / "conf" / "algo").glob("*.yaml"))
# Prototypes need classes, and norms to modulate need convolutions. The others take sine waves, which cost less.
IMAGES = ("protonet", "proto_maml", "cnaps", "simple_cnaps")
FAST = (*TINY, "trainer.max_steps=2", "trainer.val_every=2", "trainer.precision=64-true", "logger=csv")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("glyphs")


@pytest.fixture(scope="module")
def runs(train: Any, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Returns the run directory of an algorithm, trained when it is first asked for."""
    folder = tmp_path_factory.mktemp("trained")

    def run(algo: str, *extra: str, name: str = "") -> Path:
        run_dir = folder / (name or algo)
        if not run_dir.exists():
            glyphs = ("data=glyphs", f"data.cache={cache}", "net.width=4", "data.queries=3", "data.train_queries=2")
            data = glyphs if algo in IMAGES or "glyphs" in extra else ("data=sinusoid",)
            train(f"algo={algo}", *data, *FAST, *(e for e in extra if e != "glyphs"), f"hydra.run.dir={run_dir}")
        return run_dir

    return run


def recorded_values(run_dir: Path, metric: str, step: int) -> list[float]:
    with (run_dir / "test_episodes.csv").open(newline="") as file:
        return [float(row[metric]) for row in csv.DictReader(file) if row["step"] == str(step)]


def assert_predicts_what_was_recorded(run: innerloop.Run) -> None:
    metric = run.tasks.metric
    for i, expected in enumerate(recorded_values(run.path, metric, run.step)):
        episode = run.data.episode("test", i)
        y = run.predict(run.adapt(episode.support), episode.query.x)
        if metric == "mse":
            found = (y - episode.query.y).square().mean().item()
        else:
            found = (y.argmax(-1) == episode.query.y).double().mean().item()
        assert found == pytest.approx(expected, rel=1e-9)  # float64: the order of additions is another


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_learner_is_loaded_and_predicts_what_was_recorded(algo: str, runs: Any) -> None:
    run = innerloop.load(runs(algo))
    assert run.config["algo"]["name"] == algo
    assert run.results == json.loads((run.path / "results.json").read_text())
    assert not run.learner.training
    found = run.evaluate()
    assert found["test"] == run.results["test"], "to the last digit"
    assert found["validation"] == run.results["validation"]
    assert {name: found[name] for name in ("algo", "data", "net", "parameters", "norm", "transductive")} == {
        name: run.results[name] for name in ("algo", "data", "net", "parameters", "norm", "transductive")
    }
    assert_predicts_what_was_recorded(run)


@pytest.mark.parametrize(
    ("algo", "settings"),
    [
        ("maml", ["algo.transductive=false"]),
        ("maml_pp", ["algo.running_statistics=true"]),
        ("hybrid", ["data.min_ways=2", "data.shots=2", "data.min_shots=1", "algo.writes=head"]),
        ("maml", ["test.steps=validation"]),
    ],
)
def test_predictions_know_the_support_set_and_the_step(algo: str, settings: list[str], runs: Any) -> None:
    run = innerloop.load(runs(algo, "glyphs", *settings, name=re.sub(r"\W", "_", "-".join([algo, *settings]))))
    assert run.evaluate()["test"] == run.results["test"]
    assert_predicts_what_was_recorded(run)


def test_it_works_moved_from_another_directory_and_without_hydra(runs: Any, tmp_path: Path) -> None:
    """In a new process, in another working directory, with the run directory moved, as in a notebook elsewhere."""
    moved = tmp_path / "of a friend" / "my run"
    shutil.copytree(runs("hybrid"), moved)
    code = (
        "import sys, json, innerloop\n"
        "assert 'torch' not in sys.modules, 'the door itself is light'\n"
        f"run = innerloop.load({str(moved)!r})\n"
        "weights = run.adapt(run.data.episode('test', 0).support)\n"
        "print(json.dumps([run.evaluate()['test'], sorted(weights)]))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    test, names = json.loads(done.stdout)
    assert test == json.loads((moved / "results.json").read_text())["test"]
    assert names == sorted(weights_of(innerloop.load(moved).learner.net))
    assert sorted(path.name for path in moved.iterdir()) == sorted(path.name for path in runs("hybrid").iterdir())


def test_steps_checkpoints_and_more_episodes(runs: Any) -> None:
    run = innerloop.load(str(runs("maml")), checkpoint="last")
    support = run.data.episode("test", 0).support
    start = run.adapt(support, steps=0)
    assert all(torch.equal(w, start[name]) for name, w in weights_of(run.learner.net).items())
    after = run.adapt(support, steps=3)
    assert (after.step, after.support.x.shape) == (3, support.x.shape)
    assert not torch.equal(after["head.weight"], start["head.weight"])
    assert not any(w.requires_grad for w in after.values())
    with pytest.raises(InputError, match="steps must be from 0 to 10"):
        run.adapt(support, steps=11)
    longer = run.evaluate(episodes=9)
    assert longer["test"]["episodes"] == 9
    assert run.evaluate(steps="validation")["test"]["step"] in range(11)
    float32 = Samples(support.x.float(), support.y.float())
    assert run.adapt(float32)["head.weight"].dtype == torch.float64, "in the learner's own precision"
    arrays = run.adapt((support.x.numpy().astype(np.float32), support.y.numpy().astype(np.float32)))  # type: ignore
    for name, w in run.adapt(float32).items():
        assert torch.equal(arrays[name], w)
    assert torch.equal(run.predict(arrays, support.x.numpy()), run.predict(arrays, support.x))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="give tensors or arrays of numbers, got list"):
        run.predict(arrays, [[1.0]])  # type: ignore[arg-type]


def test_evaluation_on_other_data(runs: Any) -> None:
    run = innerloop.load(runs("maml"))
    fewer = run.evaluate(data={"shots": 3})
    assert fewer["test"]["mse"] != run.results["test"]["mse"]
    assert run.tasks.shots == 10, "the loaded run itself stays as it is"
    family = run.evaluate(data=Sinusoid(shots=3, queries=10))
    assert family["test"] == fewer["test"]
    assert family["data"] == "Sinusoid"
    with pytest.raises(InputError, match=r"unknown key data\.shot\. Did you mean data\.shots\?"):
        run.evaluate(data={"shot": 3})


def test_data_that_lie_elsewhere_on_this_machine(runs: Any, cache: Path, tmp_path: Path) -> None:
    away = tmp_path / "run"
    shutil.copytree(runs("protonet"), away)
    config = yaml.safe_load((away / "config.yaml").read_text())
    config["data"]["cache"] = "/proc/nowhere"
    (away / "config.yaml").write_text(yaml.safe_dump(config))
    run = innerloop.load(away, data={"cache": str(cache)})
    assert run.config["data"]["cache"] == str(cache)
    assert run.evaluate()["test"] == run.results["test"]


def test_the_process_stays_as_it_was(runs: Any) -> None:
    torch.manual_seed(5)
    states = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate(), torch.get_num_threads())  # noqa: NPY002
    run = innerloop.load(runs("maml"))
    run.evaluate(episodes=2)
    now = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate(), torch.get_num_threads())  # noqa: NPY002
    assert torch.equal(states[0], now[0])
    assert states[1:] == now[1:]


def test_what_cannot_be_loaded_says_so(runs: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no run directory: it has no config\.yaml"):
        innerloop.load(tmp_path)
    with pytest.raises(InputError, match=r"there is no checkpoint .*best3\.ckpt"):
        innerloop.load(runs("maml"), checkpoint="best3")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(runs("maml"), unfinished)
    (unfinished / "results.json").unlink()
    run = innerloop.load(unfinished)
    assert run.step == 10
    with pytest.raises(InputError, match=r"is not finished: it has no results\.json"):
        _ = run.results


def test_what_lightning_users_type_first(runs: Any) -> None:
    path = runs("maml") / "checkpoints" / "best.ckpt"
    with pytest.raises(
        InputError, match=r"a checkpoint holds neither the net nor the loss: use innerloop\.load"
    ) as error:
        MAML.load_from_checkpoint(path)
    assert "\n" not in str(error.value)
    tasks = Sinusoid()
    learner = MAML.load_from_checkpoint(path, net=MLP(1, [40, 40], 1).double(), loss=tasks.loss, inner_lr=0.02)
    expected = innerloop.load(runs("maml")).learner
    assert isinstance(learner, MAML)
    assert learner.adaptation.inner_lr == 0.02
    for name, w in weights_of(learner.net).items():
        assert torch.equal(w, weights_of(expected.net)[name])
