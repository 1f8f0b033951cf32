"""conf/debug and trainer.extra: short runs that look for faults, and further arguments of Lightning's Trainer."""

import csv
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, TINY, randomise, regression_batch, squared
from hydra import compose, initialize_config_dir

import innerloop
from innerloop.datamodule import EpisodeDataModule
from innerloop.episodes import tasks_of, weights_of
from innerloop.learners import MAML, Hybrid
from innerloop.nets import MLP
from innerloop.runs import schemas
from innerloop.runs.build import build
from innerloop.runs.callbacks.debugging import diagnose
from innerloop.runs.command import Reported
from innerloop.tasks import Sinusoid

schemas.register()
SMALL = ("trainer=cpu", "trainer.threads=1", "data.meta_batch_size=2")


def results(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "results.json").read_text())


def column(run_dir: Path, name: str) -> list[float]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def refused(train: Any, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(Reported):
        train(*arguments)
    return capsys.readouterr().err.strip()


def test_fast_is_short_and_has_no_loggers(train: Any) -> None:
    train("algo=hybrid", "debug=fast", "trainer=cpu")
    (run_dir,) = Path("runs/debug/hybrid-sinusoid").iterdir()
    assert not Path("runs/hybrid-sinusoid").exists(), "kept apart from other runs"
    assert (results(run_dir)["steps"], results(run_dir)["test"]["episodes"]) == (4, 8)
    assert not list(run_dir.glob("wandb*"))
    assert len(column(run_dir, "val/mse")) == 2


def test_overfit_trains_on_one_meta_batch_until_its_loss_has_fallen(train: Any, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    train("algo=maml", "debug=overfit", *SMALL, "trainer.max_steps=60", f"hydra.run.dir={run_dir}")
    losses = column(run_dir, "train/loss")
    assert losses[-1] < 0.8 * losses[0]
    assert losses == sorted(losses, reverse=True), "the loss of one meta-batch, not of ever new ones"
    assert "the training loss fell from" in (run_dir / "train.log").read_text()


def test_overfit_fails_where_nothing_is_learned(train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    still = ("algo.optimizer=sgd", "algo.outer_lr=1e-30", "trainer.max_steps=4", f"hydra.run.dir={tmp_path / 'run'}")
    err = refused(train, capsys, "algo=maml", "debug=overfit", *SMALL, *still)
    assert "the loss did not fall on the same meta-batches: " in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize(("period", "expected"), [(None, [0, 1, 2, 3, 4]), (1, [0] * 5), (2, [0, 1, 0, 1, 0])])
@pytest.mark.parametrize("workers", [0, 2])
def test_meta_batches_repeat_after_so_many(period: int | None, expected: list[int], workers: int) -> None:
    tasks = Sinusoid(shots=2, queries=1)
    data = EpisodeDataModule(tasks, 3, num_workers=workers, overfit_batches=period)
    all_new = EpisodeDataModule(tasks, 3)
    batches = [all_new.meta_batch("train", range(3 * t, 3 * t + 3)) for t in range(5)]
    for found, t in zip(islice(data.train_dataloader(), 5), expected, strict=True):
        assert torch.equal(found.support.x, batches[t].support.x)


@pytest.mark.parametrize(("profiler", "said"), [("simple", "run_training_batch"), ("advanced", "cumtime")])
def test_profiler_reports_in_the_run_directory(profiler: str, said: str, train: Any, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    short = ("trainer.max_steps=4", "trainer.val_every=2", "trainer.val_episodes=2", "test.episodes=4")
    train("algo=maml", "debug=profiler", f"trainer.profiler={profiler}", *SMALL, *short, f"hydra.run.dir={run_dir}")
    assert said in (run_dir / "fit-profile.txt").read_text()
    assert results(run_dir)["steps"] == 4


def test_anomaly_logs_what_happens_in_the_inner_loop(train: Any, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    plain = ("algo.inner_steps=2", "trainer.max_steps=2", "trainer.val_every=2")
    train("algo=maml", "debug=anomaly", *SMALL, *plain, f"hydra.run.dir={run_dir}")
    names = [f"inner/{what}_{k}" for what in ("loss", "gradient_norm") for k in range(3)]
    names += ["inner/update_ratio_1", "inner/update_ratio_2"]
    logged = {name: column(run_dir, name) for name in names}
    assert {len(values) for values in logged.values()} == {2}, "every step"
    # The first step, again from the start: theta is the seed's, and the meta-batch the stream's first.
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        parts = build(compose("train", ["algo=maml", *SMALL, "algo.inner_steps=2"]))
    batch = parts.data.meta_batch("train", range(2))
    each = [by_hand(parts.learner, task.support, steps=2) for task in tasks_of(batch)]
    for name in names:
        mean = sum(found[name.removeprefix("inner/")] for found in each) / len(each)
        assert logged[name][0] == pytest.approx(mean, rel=1e-4), name


def by_hand(learner: Any, support: Any, steps: int) -> dict[str, float]:
    """Plain gradient descent on the support loss, by autograd."""
    found: dict[str, float] = {}
    weights = {name: w.detach() for name, w in weights_of(learner.net).items()}
    for k in range(steps + 1):
        leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
        loss = learner.loss(learner.net, leaves, support)
        slope = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        norm, size = (float(sum(t.square().sum() for t in each.values())) ** 0.5 for each in (slope, weights))
        found |= {f"loss_{k}": loss.item(), f"gradient_norm_{k}": norm}
        found[f"update_ratio_{k + 1}"] = learner.adaptation.inner_lr * norm / size
        weights = {name: w - learner.adaptation.inner_lr * slope[name] for name, w in weights.items()}
    return found


def test_the_diagnostics_of_a_hybrid_start_from_the_generated_weights(float64: None) -> None:
    learner = Hybrid(MLP(3, [5], 1), squared, inner_lr=0.1, inner_steps=1, eval_inner_steps=4)
    randomise(learner)
    (task, _) = tasks_of(regression_batch(2, 4, 2))
    found = diagnose(learner, task)
    start = learner.generate(learner.net, weights_of(learner.net), task.support)
    assert found["loss_0"].item() == pytest.approx(squared(learner.net, start, task.support).item())
    assert set(found) == {"loss_0", "loss_1", "gradient_norm_0", "gradient_norm_1", "update_ratio_1"}


class Broken(MLP):
    """A net whose gradient is not a number, though its output is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y + (y * 0).sqrt() * 0


def test_anomaly_names_the_operation_whose_gradient_is_no_number(train: Any, tmp_path: Path) -> None:
    net = ("net._target_=test_debug.Broken", "allow=[test_debug]", f"hydra.run.dir={tmp_path / 'run'}")
    # In the inner loop the gradient is torch.func's under vmap; a loop asks autograd itself.
    with pytest.raises(RuntimeError, match="'SqrtBackward0' returned nan values"):
        train("algo=maml", "debug=anomaly", *SMALL, *net, "algo.engine=loop", "~callbacks.inner_diagnostics")


def test_further_arguments_reach_the_trainer(train: Any, tmp_path: Path) -> None:
    fewer = ("+trainer.extra.limit_val_batches=1", "+trainer.extra.limit_test_batches=1")
    run_dir = tmp_path / "run"
    sizes = ("trainer.val_episodes=20", "test.episodes=30", "algo.engine=loop")
    train("algo=maml", *TINY, *sizes, "logger=csv", *fewer, f"hydra.run.dir={run_dir}")
    found = results(run_dir)
    assert (found["validation"]["episodes"], found["test"]["episodes"]) == (2, 2), "as many as were evaluated"
    with (run_dir / "test_episodes.csv").open(newline="") as file:
        assert {row["episode"] for row in csv.DictReader(file)} == {"0", "1"}
    assert innerloop.load(run_dir).evaluate()["test"] == found["test"]


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("+trainer.extra.limit_val_batch=5", "unknown key trainer.extra.limit_val_batch. Did you mean"),
        ("+trainer.extra.limit_val_batches=many", "trainer.extra.limit_val_batches=many"),
        ("+trainer.extra.detect_anomaly=7x", "trainer.extra.detect_anomaly=7x"),
        ("+trainer.extra.max_steps=5", "trainer.extra.max_steps cannot be set: use trainer.max_steps"),
        ("+trainer.extra.gradient_clip_val=1", "cannot be set: use algo.outer_clip"),
        ("+trainer.extra.enable_checkpointing=false", "need checkpoints"),
        ("+trainer.extra.limit_val_batches=-3", "trainer.extra: "),
        ("trainer.profiler=quick", "trainer.profiler=quick: choose one of null, simple, advanced, pytorch"),
        ("trainer.overfit_batches=0", "trainer.overfit_batches must be above zero, got 0"),
        ("debug=quick", "debug/quick"),
        ("debug=true", "debug=true: debug chooses a configuration, so it takes the name of a file in conf/debug"),
    ],
)
def test_mistakes_end_in_one_line(
    argument: str, said: str, train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    err = refused(train, capsys, "algo=maml", *TINY, "logger=csv", argument, f"hydra.run.dir={tmp_path / 'run'}")
    assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "debug").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_says_how_to_use_it(path: Path) -> None:
    assert f"#   python train.py algo=maml debug={path.stem}" in path.read_text()


def test_a_learner_without_an_inner_loop_has_one_point(float64: None) -> None:
    learner = MAML(MLP(3, [5], 1), squared, inner_lr=0.1, inner_steps=0)
    (task, _) = tasks_of(regression_batch(2, 4, 2))
    assert set(diagnose(learner, task)) == {"loss_0", "gradient_norm_0"}
