"""One run in two processes, as a person types it: the same results as in one, one record, and nothing left behind."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from test_commands import ROOT, curve, results, rows, run, start

from innerloop.devices import ranks
from innerloop.episodes import InputError
from innerloop.runs import command, schemas
from innerloop.runs.checks import check

schemas.register()

# 25 tasks a meta-batch, 21 and 31 episodes: two ranks never have equally many.
SHORT = (
    "trainer.precision=64-true",
    "trainer.max_steps=12",
    "trainer.val_every=5",
    "trainer.val_episodes=21",
    "trainer.log_every=4",
    "test.episodes=31",
)
ALGORITHMS = ("maml", "hypernet", "hybrid")
# Without a schedule, which would know how long the run was to be.
ENDLESS = (
    "trainer.precision=64-true",
    "algo.schedule=constant",
    "trainer.val_every=4",
    "trainer.val_episodes=2",
    "test.episodes=2",
    "logger=csv",
)


SWEEP = ("-m", f"algo={','.join(ALGORITHMS)}", *SHORT)


def runs_of(sweep: Path) -> dict[str, Path]:
    """algorithm -> run directory of a sweep over them."""
    found = sorted(sweep.glob("*/results.json"))
    assert len(found) == len(ALGORITHMS)
    return {json.loads(path.read_text())["algo"]: path.parent for path in found}


@pytest.fixture(scope="module")
def alone(train: Any) -> dict[str, Path]:
    train(*SWEEP, "sweep=alone", "trainer=cpu", "logger=csv")
    return runs_of(Path("alone").resolve())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    cwd = tmp_path_factory.mktemp("shared")
    run("train.py", *SWEEP, "sweep=shared", "trainer=ddp_cpu", cwd=cwd)
    return runs_of(cwd / "shared")


def same(found: Any, expected: Any) -> None:
    """Equal but for rounding, and so are all its parts."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            same(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    else:
        assert found == (pytest.approx(expected, rel=1e-8) if isinstance(expected, float) else expected)


def episodes(run_dir: Path) -> list[list[str]]:
    with (run_dir / "test_episodes.csv").open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_two_ranks_have_the_results_of_one(algo: str, alone: dict[str, Path], shared: dict[str, Path]) -> None:
    one, two = results(alone[algo]), results(shared[algo])
    assert (one["ranks"], two["ranks"], one["steps"], two["steps"]) == (1, 2, 12, 12)
    assert len({results(run_dir)["test"]["mse"]["mean"] for run_dir in shared.values()}) == len(ALGORITHMS)
    measured = {"ranks", "train_seconds", "train_cpu_seconds", "steps_per_second", "peak_memory_mb"}
    same({k: v for k, v in two.items() if k not in measured}, {k: v for k, v in one.items() if k not in measured})
    expected = episodes(alone[algo])
    assert len(expected) == 1 + 31 * (1 + len(one["test"]["by_step"]))
    for row, other in zip(episodes(shared[algo]), expected, strict=True):
        assert row[:2] == other[:2]
        assert row[2:] == other[2:] or [*map(float, row[2:])] == pytest.approx([*map(float, other[2:])], rel=1e-8)
    for row, other in zip(rows(shared[algo]), rows(alone[algo]), strict=True):
        same({k: float(v) for k, v in row.items() if v}, {k: float(v) for k, v in other.items() if v})


def test_the_first_rank_alone_writes(alone: dict[str, Path], shared: dict[str, Path]) -> None:
    def written(run_dir: Path) -> set[str]:
        return {str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if "wandb" not in path.parts}

    assert written(shared["maml"]) == written(alone["maml"]) | {"wandb.json"}
    assert len([*shared["maml"].glob("wandb/offline-run-*")]) == 1
    assert len([*shared["maml"].parent.iterdir()]) == len([*alone["maml"].parent.iterdir()])
    lines = [(path["maml"] / "train.log").read_text().splitlines() for path in (alone, shared)]
    assert [len([line for line in log if "training maml" in line]) for log in lines] == [1, 1]
    assert len(lines[0]) == len(lines[1])


def others(process: subprocess.Popen[str]) -> list[int]:
    """The processes that are the other ranks of a command's."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command, parent = path.read_bytes(), (path.parent / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if b"train_as_rank" in command and int(parent) == process.pid:
            found.append(int(path.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int) -> bool:
    """Within ten seconds."""
    end = time.monotonic() + 10
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


@pytest.fixture
def endless(tmp_path: Path) -> Callable[[], tuple[subprocess.Popen[str], int]]:
    """Starts a long run in two processes in tmp_path/run; once it trains: the first process, and the other's number."""

    def begin(*arguments: str) -> tuple[subprocess.Popen[str], int]:
        steps = "trainer.max_steps=100000"
        process = start("train.py", *ENDLESS, "trainer=ddp_cpu", steps, "hydra.run.dir=run", *arguments, cwd=tmp_path)
        end = time.monotonic() + 120
        while not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.05)
        (other,) = others(process)
        return process, other

    return begin


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


@needs_proc
@pytest.mark.slow
def test_ctrl_c_stops_all_ranks_after_one_step_and_a_resumed_run_is_the_uninterrupted_one(
    tmp_path: Path, endless: Callable[[], tuple[subprocess.Popen[str], int]], train: Any
) -> None:
    process, other = endless()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert gone(other)
    stopped = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=False)["global_step"]
    steps = f"trainer.max_steps={stopped + 6}"
    run("train.py", "resume=run", steps, cwd=tmp_path)
    train(*ENDLESS, "trainer=cpu", steps, f"hydra.run.dir={tmp_path / 'whole'}")
    resumed, whole = (results(tmp_path / name) for name in ("run", "whole"))
    assert (resumed["ranks"], whole["ranks"]) == (2, 1)
    same(resumed["test"], whole["test"])
    same(resumed["validation"], whole["validation"])
    assert curve(tmp_path / "run")[-1][0] == curve(tmp_path / "whole")[-1][0]


@needs_proc
def test_a_rank_that_dies_ends_the_run_in_one_line(
    tmp_path: Path, endless: Callable[[], tuple[subprocess.Popen[str], int]]
) -> None:
    process, other = endless()
    os.kill(other, signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "rank 1 was killed by signal 9" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "results.json").exists()


@needs_proc
def test_no_rank_outlives_the_first(endless: Callable[[], tuple[subprocess.Popen[str], int]]) -> None:
    process, other = endless()
    process.kill()
    process.communicate(timeout=120)
    assert gone(other)


def torchrun(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*command, str(ROOT / "train.py"), *arguments], cwd=cwd, capture_output=True, text=True, timeout=240
    )


@pytest.mark.slow
def test_torchrun_starts_the_ranks_of_the_same_run(alone: dict[str, Path], tmp_path: Path) -> None:
    done = torchrun("trainer=ddp_cpu", "logger=csv", *SHORT, "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found, expected = results(tmp_path / "run"), results(alone["maml"])
    assert found["ranks"] == 2
    same(found["test"], expected["test"])
    same(found["validation"], expected["validation"])
    assert done.stdout.count("run directory:") == 1


# What is refused, before anything is written.


def refused(*arguments: str) -> str:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", [*arguments])
    with pytest.raises(InputError) as error:
        check(cfg)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["trainer.precision=16-mixed"],
            "trainer.precision=16-mixed: choose one of 32-true, tf32, bf16-mixed, 64-true",
        ),
        (["trainer.precision=half"], "trainer.precision=half: choose one of 32-true"),
        (["trainer.precision=bf16-true"], "trainer.precision=bf16-true: choose one of 32-true"),
        (["trainer.precision=tf32"], "trainer.precision=tf32 needs a GPU"),
        (["trainer.strategy=fsdp"], "trainer.strategy=fsdp: choose one of auto, ddp"),
        (["trainer.devices=0"], "trainer.devices=0: give a number above zero"),
        (["trainer.devices=two"], "trainer.devices=two: give a number above zero"),
        (["trainer=ddp_cpu", "data.meta_batch_size=1"], "data.meta_batch_size=1 cannot be shared by 2 ranks"),
        (["trainer=ddp_cpu", "test.episodes=1"], "test.episodes=1 cannot be shared by 2 ranks"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments: list[str], message: str) -> None:
    assert message in refused("trainer=cpu", *arguments)


def test_gpus_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "trainer.devices=3: only 2 GPUs are visible" in refused("trainer=ddp", "trainer.devices=3")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for devices, total in {"auto": 2, "-1": 2, "1": 1, "[1]": 1, "[0,1]": 2}.items():
            trainer = compose("train", ["trainer=ddp", f"trainer.devices={devices}"]).trainer
            assert ranks.ranks(trainer).total == total
            check(compose("train", ["trainer=ddp", f"trainer.devices={devices}", "trainer.precision=tf32"]))


def test_ranks_that_others_started_must_share_a_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks.check_launch(sweeping=True, overrides=[], resuming=False)  # one process, which starts the ranks itself
    for environment, first in (
        (
            {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"},
            False,
        ),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "0"}, True),
    ):
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            assert ranks.launched() == ranks.Ranks(devices=2, nodes=2)
            assert ranks.is_first() == first
            with pytest.raises(InputError, match=r"hydra\.run\.dir=runs/mine"):
                ranks.check_launch(sweeping=False, overrides=["hydra.verbose=true"], resuming=False)
            with pytest.raises(InputError, match="sweep"):
                ranks.check_launch(sweeping=True, overrides=["hydra.run.dir=x"], resuming=False)
            ranks.check_launch(sweeping=False, overrides=["hydra.run.dir=x"], resuming=False)
            ranks.check_launch(sweeping=False, overrides=[], resuming=True)
            assert "3 processes" not in refused("trainer=cpu")
            assert "use trainer.devices=2" in refused("trainer=cpu", "trainer.devices=3")


def test_a_batch_script_of_many_tasks_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert ranks.launched() is None
    assert ranks.is_first()


def interrupted_in_lightning() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)


@pytest.mark.parametrize(("task", "status"), [(interrupted_in_lightning, 130), (lambda: sys.exit(2), 2)])
def test_ctrl_c_ends_with_130_though_lightning_says_1(
    task: Callable[[], None], status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        command.command(task)
    assert end.value.code == status
