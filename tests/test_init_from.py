"""init_from: training begins with the weights of another run's net, and the run then needs that one no more."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Here

from innerloop.errors import InputError
from innerloop.runs.record import read_checkpoint
from innerloop.runs.training_classes import read_classes


@pytest.fixture(scope="module")
def first(train: Any, glyphs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run on drawn characters, and the overrides of others on the same."""
    run_dir = tmp_path_factory.mktemp("first") / "run"
    few = ["data=glyphs", f"data.cache={glyphs}", "net.width=4", "data.queries=3", "data.train_queries=2", *TINY]
    train("algo=protonet", *few, "logger=csv", f"hydra.run.dir={run_dir}")
    return run_dir, [*few, "logger=csv"]


@pytest.fixture(scope="module")
def waves(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("waves") / "run"
    train("data=sinusoid", *TINY, "logger=csv", f"hydra.run.dir={run_dir}")
    return run_dir


def net_of(run_dir: Path, checkpoint: str = "best") -> dict[str, torch.Tensor]:
    state = read_checkpoint(run_dir / "checkpoints" / f"{checkpoint}.ckpt")["state_dict"]
    return {name: w for name, w in state.items() if name.startswith("net.")}


def test_without_training_it_is_that_run(first: tuple[Path, list[str]], here: Here, tmp_path: Path) -> None:
    run_dir, same = first
    status, said = here("train.py", "algo=protonet", *same, f"init_from={run_dir}", "trainer.max_steps=0", "seed=5",
                        "hydra.run.dir=again")  # fmt: skip
    assert status == 0, said
    test = [json.loads((folder / "results.json").read_text())["test"] for folder in (run_dir, tmp_path / "again")]
    assert test[0] == test[1]


def test_a_frozen_body_is_that_of_the_first_run(first: tuple[Path, list[str]], here: Here, tmp_path: Path) -> None:
    """And the run is resumed where the first one is gone, to the bits of one that was not interrupted."""
    whole, same = first
    gone = shutil.copytree(whole, tmp_path / "gone")
    settings = ["algo=hypernet", "algo.freeze=body", *same, "data.shots=2", "algo.schedule=constant"]
    for name, steps in (("long", 4), ("short", 2)):
        begun = [f"init_from={gone}", f"trainer.max_steps={steps}", "trainer.val_every=2", f"hydra.run.dir={name}"]
        status, said = here("train.py", *settings, *begun)
        assert status == 0, said
    theirs, ours = net_of(whole), net_of(tmp_path / "long", "last")
    assert all(torch.equal(w, theirs[name]) for name, w in ours.items() if ".body." in name)
    assert set(ours) == set(theirs)
    shutil.rmtree(gone)
    status, said = here("train.py", "resume=short", "trainer.max_steps=4")
    assert status == 0, said
    last = [read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"] for name in ("long", "short")]
    assert all(torch.equal(w, last[1][name]) for name, w in last[0].items())
    status, said = here("train.py", "resume=short", f"init_from={whole}", "trainer.max_steps=6")
    assert (status, said.strip().count("\n")) == (1, 0)
    assert "would have no effect" in said


def test_a_head_of_another_size_starts_anew(first: tuple[Path, list[str]], here: Here, tmp_path: Path) -> None:
    run_dir, same = first
    status, said = here("train.py", "algo=maml", *same, "data.ways=3", f"init_from={run_dir}", "hydra.run.dir=three")
    assert status == 0, said
    assert "head.bias is (5,) in" in said
    assert net_of(tmp_path / "three")["net.head.bias"].shape == (3,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["init_from=nothing"], "nothing is no run directory"),
        (
            ["init_from=RUN", "net.width=8"],
            "its net does not fit, body.0.conv.weight is (4, 1, 3, 3) there and (8, 1, 3, 3) here",
        ),
        (["init_from=WAVES"], "is missing there and"),
        (["init_from=nothing", "-m", "seed=0,1"], "nothing is no run directory"),
    ],
    ids=str,
)
def test_what_cannot_begin(
    settings: list[str], message: str, first: tuple[Path, list[str]], waves: Path, here: Here, tmp_path: Path
) -> None:
    run_dir, same = first
    settings = [s.replace("RUN", str(run_dir)).replace("WAVES", str(waves)) for s in settings]
    flags = [s for s in settings if s == "-m"]
    status, said = here("train.py", *flags, "algo=maml", *same, *(s for s in settings if s not in flags))
    assert (status, said.strip().count("\n")) == (1, 0), said
    assert message in said
    assert not list(tmp_path.rglob("config.yaml"))


def test_classes_that_the_first_run_was_trained_on(first: tuple[Path, list[str]], here: Here, tmp_path: Path) -> None:
    run_dir, same = first
    copy = shutil.copytree(run_dir, tmp_path / "copy")
    own = json.loads((copy / "training_classes.json").read_text())
    (copy / "training_classes.json").write_text(json.dumps([*own, "other", "another"]))
    status, said = here("train.py", "algo=protonet", *same, f"init_from={copy}", "hydra.run.dir=next")
    assert status == 0, said
    assert "have the names of training classes" not in said
    assert json.loads((tmp_path / "next" / "training_classes.json").read_text()) == [*own, "other", "another"]
    from innerloop import load

    (test,) = [
        load(run_dir, data={"cache": s.partition("=")[2]}).tasks.class_names("test") for s in same if "cache=" in s
    ]
    (copy / "training_classes.json").write_text(json.dumps([*own, test[0]]))
    said = here("train.py", "algo=protonet", *same, f"init_from={copy}", "hydra.run.dir=seen")[1]
    (copy / "training_classes.json").write_text("{")
    assert here("train.py", "algo=protonet", *same, f"init_from={copy}", "hydra.run.dir=damaged")[0] == 1
    assert not (tmp_path / "damaged").exists()
    assert f"1 of {len(test)} test classes have the names of training classes" in said


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"a": 1}', "[" * 100_000, b"\xff"], ids=["cut", "numbers", "keys", "deep", "bytes"]
)
def test_a_record_of_classes_that_is_none(text: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "training_classes.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"training_classes\.json (cannot be read|is no list of names)"):
        read_classes(path)
    assert read_classes(tmp_path / "none.json") == []
