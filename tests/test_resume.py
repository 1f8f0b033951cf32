"""Resumed runs: overrides of the run's own configuration, their effect and record, and what a crash left behind."""

import csv
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import SHORT, Here

from innerloop.devices import files
from innerloop.errors import WriteError
from innerloop.nets import MLP
from innerloop.runs.locks import LOCK, locked
from innerloop.runs.record import read_checkpoint, write_checkpoint
from innerloop.runs.tracking.metrics_file import read_rows

TINY = (*SHORT, "trainer.max_steps=4", "trainer.val_every=2", "trainer.log_every=1", "algo.schedule=constant")


@pytest.fixture(scope="module")
def trained(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("resume") / "run"
    train(*TINY, "logger=csv", "algo=hypernet", f"hydra.run.dir={run_dir}")
    return run_dir


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, elsewhere."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def config(run_dir: Path) -> dict[str, Any]:
    return yaml.safe_load((run_dir / "config.yaml").read_text())


def metrics(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def rates(run_dir: Path) -> list[float]:
    return [float(row["lr-Adam/pg1"]) for row in metrics(run_dir) if row["lr-Adam/pg1"]]


def test_overrides_have_their_effect_and_are_recorded(run: Path, train: Any) -> None:
    train(f"resume={run}", "trainer.max_steps=6", "algo.outer_lr=0.0002", "algo.generator_lr=0.01")
    assert config(run)["trainer"]["max_steps"] == 6
    assert config(run)["algo"]["outer_lr"] == 0.0002
    assert rates(run)[:4] == [0.001] * 4
    assert rates(run)[4:] == [0.0002] * 2
    assert json.loads((run / "results.json").read_text())["steps"] == 6
    overrides = yaml.safe_load((run / "overrides.yaml").read_text())
    assert overrides[-3:] == ["trainer.max_steps=6", "algo.outer_lr=0.0002", "algo.generator_lr=0.01"]
    assert "logger=csv" in overrides
    # The next one starts from what is recorded now, also after a move.
    moved = run.rename(run.with_name("moved"))
    train(f"resume={moved}", "trainer.max_steps=8")
    assert rates(moved)[4:] == [0.0002] * 4
    assert [int(row["step"]) for row in metrics(moved) if row["val/mse"]] == [1, 3, 5, 7]


def test_groups_can_be_overridden(run: Path, train: Any) -> None:
    train(f"resume={run}", "trainer=cpu", "logger=csv", "callbacks=early_stopping", "trainer.max_steps=6")
    found = config(run)
    assert found["trainer"]["max_steps"] == 6
    assert found["trainer"]["val_every"] == 2, "the file of the group sets only where the run trains"
    assert found["trainer"]["accelerator"] == "cpu"
    assert set(found["callbacks"]) == {"progress", "learning_rate", "inner_rates", "early_stopping"}


def test_without_a_change_nothing_changes(run: Path, train: Any) -> None:
    before = {name: (run / name).read_bytes() for name in ("config.yaml", "overrides.yaml")}
    weights = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    train(f"resume={run}")
    assert before == {name: (run / name).read_bytes() for name in before}
    after = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(torch.equal(w, after[name]) for name, w in weights.items())


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=1", "seed=1 cannot be set in a run that has begun with 0"),
        ("net.hidden=[3]", "net.hidden=[3] cannot be set in a run that has begun with [40, 40]"),
        ("algo.optimizer=sgd", "algo.optimizer=sgd cannot be set"),
        ("algo.init=hyperfan_in", "algo.init=hyperfan_in would have no effect"),
        ("algo.width=32", "does not fit"),
        ("data=multimodal", "data= cannot be chosen in a run that has begun: set single values, data.KEY=VALUE"),
        ("algo=maml", "algo= cannot be chosen in a run that has begun"),
        ("net=linear", "net= cannot be chosen in a run that has begun"),
        ("algo.inner_lr=0.1", "unknown key algo.inner_lr"),
        ("experiment=omniglot_5w1s_maml", "experiment"),
        ("trainer.max_stepps=9", "Did you mean trainer.max_steps?"),
    ],
)
def test_what_cannot_have_an_effect_is_refused(override: str, said: str, run: Path, here: Here) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    status, err = here("train.py", f"resume={run}", override)
    assert status == 1
    assert said in err
    assert "Traceback" not in err
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_the_initial_value_of_what_was_learned_is_refused(train: Any, here: Here, tmp_path: Path) -> None:
    train(*TINY, "logger=csv", "algo.learn_lr=tensor", f"hydra.run.dir={tmp_path / 'run'}")
    status, err = here("train.py", f"resume={tmp_path / 'run'}", "algo.inner_lr=0.5")
    assert status == 1
    assert "algo.inner_lr=0.5 would have no effect" in err
    status, err = here("evaluate.py", f"run={tmp_path / 'run'}", "algo.inner_lr=0.5")
    assert status == 1
    assert "algo.inner_lr=0.5 would have no effect" in err
    assert not (tmp_path / "run" / "evaluations").exists()
    assert here("evaluate.py", f"run={tmp_path / 'run'}", "algo.eval_inner_steps=2")[0] == 0


class Dropping(MLP):
    """Has dropout before its head."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.nn.functional.dropout(self.body(x), 0.3, self.training))


def test_a_resumed_run_draws_the_dropout_of_an_uninterrupted_one(train: Any, tmp_path: Path) -> None:
    """Whatever is logged, too: the two runs log at other steps."""
    words = (*TINY, "trainer.log_every=4", "logger=csv", "algo=maml", "net._target_=test_resume.Dropping")

    def last(run_dir: Path, *arguments: str) -> dict[str, torch.Tensor]:
        train("allow=[test_resume]", *arguments)
        return read_checkpoint(run_dir / "checkpoints" / "last.ckpt")["state_dict"]

    first, whole = tmp_path / "first", tmp_path / "whole"
    half = last(first, *words, "trainer.max_steps=2", f"hydra.run.dir={first}")
    resumed = last(first, f"resume={first}", "trainer.max_steps=4")
    uninterrupted = last(whole, *words, f"hydra.run.dir={whole}")
    assert all(torch.equal(w, resumed[name]) for name, w in uninterrupted.items())
    assert not all(torch.equal(w, resumed[name]) for name, w in half.items())


def test_a_resumed_run_on_images_is_compiled_again_and_has_the_same_bits(train: Any, tmp_path: Path) -> None:
    images = ("algo=maml", "data=glyphs", "net.width=8", "data.queries=2", "algo.compile=true")
    words = (*TINY, "trainer.log_every=2", "logger=csv", *images)

    def last(run_dir: Path, *arguments: str) -> dict[str, torch.Tensor]:
        train(*arguments)
        return read_checkpoint(run_dir / "checkpoints" / "last.ckpt")["state_dict"]

    first, whole = tmp_path / "first", tmp_path / "whole"
    last(first, *words, "trainer.max_steps=2", f"hydra.run.dir={first}")
    resumed = last(first, f"resume={first}", "trainer.max_steps=4")
    uninterrupted = last(whole, *words, f"hydra.run.dir={whole}")
    assert all(torch.equal(w, resumed[name]) for name, w in uninterrupted.items())


def test_a_second_process_is_refused(run: Path, here: Here) -> None:
    with locked(run / LOCK):
        status, err = here("train.py", f"resume={run}", "trainer.max_steps=6")
    assert status == 1
    assert "is a run that another process is training" in err
    assert config(run)["trainer"]["max_steps"] == 4
    assert here("train.py", f"resume={run}", "trainer.max_steps=6")[0] == 0


def test_a_relative_data_root_is_recorded_absolute_and_may_move(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for c in range(10):
        (tmp_path / "old" / f"c{c}").mkdir(parents=True)
        for i in range(4):
            Image.new("L", (8, 8), 20 * c + i).save(tmp_path / "old" / f"c{c}" / f"{i}.png")
    small = ("data.size=8", "data.ways=2", "data.queries=2", "data.train_queries=2", "net.width=4", "algo=protonet")
    run_dir = tmp_path / "run"
    relative = os.path.relpath(tmp_path / "old")
    train(*TINY, "logger=csv", "data=folder", f"data.root={relative}", *small, f"hydra.run.dir={run_dir}")
    assert config(run_dir)["data"]["root"] == str(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    train(f"resume={run_dir}", f"data.root={tmp_path / 'new'}", "trainer.max_steps=6")
    assert config(run_dir)["data"]["root"] == str(tmp_path / "new")


# What a crash leaves.

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda text: b"",
    "cut": lambda text: text[:-7],
    "half a header": lambda text: b"epoch,lr-Ad\n0,1\n",
    "noise": lambda text: bytes(range(256)) * 3,
    "a partial row": lambda text: text + b"0,0.0",
    "zeros": lambda text: text + bytes(100),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_metrics_file_is_no_reason_not_to_resume(damage: str, run: Path, train: Any) -> None:
    path = run / "metrics.csv"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    train(f"resume={run}", "trainer.max_steps=6")
    steps = [int(row["step"]) for row in metrics(run) if row["val/mse"]]
    assert steps[-1] == 5
    assert steps == sorted(set(steps))
    if damage in ("cut", "empty", "noise", "half a header"):
        assert "metrics.csv is damaged" in (run / "train.log").read_text()


def test_whole_rows_of_a_damaged_file_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,a\n0,1\n1,2\n2,")
    assert read_rows(path) == [{"step": "0", "a": "1"}, {"step": "1", "a": "2"}]


def test_without_its_last_checkpoint_a_run_is_resumed_from_the_best(run: Path, train: Any) -> None:
    (run / "checkpoints" / "last.ckpt").unlink()
    step = read_checkpoint(run / "checkpoints" / "best.ckpt")["global_step"]
    train(f"resume={run}", "trainer.max_steps=8")
    assert "last.ckpt is missing, so the run is resumed from the earlier state" in (run / "train.log").read_text()
    assert [int(row["step"]) for row in metrics(run) if row["val/mse"]] == [*range(1, step, 2), *range(step + 1, 8, 2)]


# Writes that fail.


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    files.write_whole(path, "before")
    for name in ("fsync", "open"):

        def fail(*_: Any, **__: Any) -> Any:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(files.os if name == "fsync" else files.Path, name, fail)
            with pytest.raises(WriteError, match=r"file cannot be written: No space left on device"):
                files.write_whole(path, "after")
        assert path.read_text() == "before"
        assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("number", range(3))
def test_killed_between_its_writes_a_checkpoint_is_readable(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digest is written before the checkpoint. Whichever the kill comes after, what is there can be read."""
    path, content = tmp_path / "last.ckpt", {"state_dict": {}, "global_step": 1}
    write_checkpoint(path, content)
    write_checkpoint(path, content | {"global_step": 2})
    writes = 0
    whole = os.replace

    def replace(self: Path, target: Path) -> Path:
        nonlocal writes
        if writes == number:
            raise KeyboardInterrupt
        writes += 1
        whole(self, target)
        return target

    monkeypatch.setattr(Path, "replace", replace)
    if number < 2:
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(path, content | {"global_step": 3})
    else:
        write_checkpoint(path, content | {"global_step": 3})
    assert read_checkpoint(path)["global_step"] == (3 if number == 2 else 2)


@pytest.mark.parametrize("number", range(12))
def test_a_write_that_fails_ends_in_one_line_and_loses_no_checkpoint(
    number: int, run: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"]
    written: list[str] = []
    whole = files.write_whole

    def write(path: Path, content: bytes | str) -> None:
        if len(written) == number:
            written.append("failed")
            path.with_name(f".{path.name}.1.tmp").write_bytes(b"half")
            raise WriteError(f"{path} cannot be written: No space left on device")
        written.append(path.name)
        whole(path, content)

    monkeypatch.setattr("innerloop.runs.record.write_whole", write)
    status, err = here("train.py", f"resume={run}", "trainer.max_steps=8")
    monkeypatch.undo()
    if "failed" not in written:
        pytest.skip(f"a run has {len(written)} writes")
    assert status == 1
    assert "cannot be written: No space left on device" in err.strip().splitlines()[-1]
    assert "Traceback" not in err
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] >= before
    assert read_checkpoint(run / "checkpoints" / "best.ckpt")
    if number % 4 == 0:  # each takes seconds
        assert here("train.py", f"resume={run}", "trainer.max_steps=8")[0] == 0
        assert json.loads((run / "results.json").read_text())["steps"] == 8


def test_an_evaluation_on_training_classes_says_so(
    train: Any, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    splits = {"train": "abcd", "validation": "efg", "test": "hij"}
    for split, names in splits.items():
        for number, name in enumerate(names):
            (tmp_path / "old" / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("L", (8, 8), 20 * number + i).save(tmp_path / "old" / split / name / f"{i}.png")
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    (tmp_path / "new" / "train" / "a").rename(tmp_path / "new" / "test" / "a")
    (tmp_path / "new" / "test" / "h").rename(tmp_path / "new" / "train" / "h")
    small = ("data.size=8", "data.ways=2", "data.queries=2", "data.train_queries=2", "net.width=4", "algo=protonet")
    run_dir = tmp_path / "run"
    train(*TINY, "logger=csv", "data=folder", f"data.root={tmp_path / 'old'}", *small, f"hydra.run.dir={run_dir}")
    said = "have the names of training classes of this run"
    assert said not in here("evaluate.py", f"run={run_dir}")[1]
    err = here("evaluate.py", f"run={run_dir}", f"data.root={tmp_path / 'new'}")[1]
    assert f"1 of 3 test classes {said}" in err
    assert "validation classes have" not in err
