"""A sweep that is killed, interrupted or that has failing jobs ends, by the same command, as if nothing had been."""

import hashlib
import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT
from hydra import compose, initialize_config_dir
from sabotage import Sabotaged

from innerloop.runs import command as command_module
from innerloop.runs import schemas, train
from innerloop.runs.locks import LOCK, locked
from innerloop.sweeps.record import CONF

TINY = (
    "trainer.max_steps=6",
    "trainer.val_every=2",
    "trainer.val_episodes=4",
    "trainer.log_every=2",
    "trainer.accelerator=cpu",
    "trainer.threads=1",
    "test.episodes=4",
    "data.meta_batch_size=2",
    "logger=csv",
)
# Each job reads its own plan, at which nothing happens where there is none.
PLANNED = ("data._target_=sabotage.Sabotaged", "allow=[sabotage]", "+data.plan=${oc.env:PLANS}/${algo.name}${seed}")
SIX = ("algo=maml,hypernet,hybrid", "seed=0,1", *TINY, *PLANNED)
MEASURED = {"train_seconds", "train_cpu_seconds", "steps_per_second", "peak_memory_mb"}


@pytest.fixture(scope="module", autouse=True)
def plans(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Where the jobs look for what is to happen to them; processes that a test starts find these tests' modules."""
    folder = tmp_path_factory.mktemp("plans")
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLANS", str(folder))
        patch.setenv("PYTHONPATH", path)
        yield folder


def plan(plans: Path, job: str, **what: Any) -> None:
    (plans / job).write_text(json.dumps(what))


def command(cwd: Path, *arguments: str, script: Path = ROOT / "train.py") -> subprocess.CompletedProcess[str]:
    """python train.py, in a process of its own."""
    words = [sys.executable, str(script), *arguments]
    return subprocess.run(words, cwd=cwd, text=True, capture_output=True, timeout=300, stdin=subprocess.DEVNULL)


Here = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Here:
    """The same in this process: (exit status, stdout, stderr)."""

    def call(*arguments: str, script: Path = ROOT / "train.py") -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(script), *arguments])
        monkeypatch.setattr(train, "save_figures", lambda *arguments: {})  # takes half of a run as short as these
        Sabotaged.trained = 0
        capsys.readouterr()
        status = 0
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    return call


def results(sweep: Path) -> dict[str, dict[str, Any]]:
    """job directory -> all of results.json but what a clock or the machine measured."""
    found = {path.parent.name: json.loads(path.read_text()) for path in sorted(sweep.glob("*/results.json"))}
    return {job: {k: v for k, v in found[job].items() if k not in MEASURED} for job in found}


def hashes(*directories: Path) -> dict[str, str]:
    files = [path for directory in directories for path in directory.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def only(cwd: Path) -> Path:
    (sweep,) = cwd.glob("runs/sweeps/*")
    return sweep


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep that nothing happens to, one job after the other."""
    cwd = tmp_path_factory.mktemp("whole")
    done = command(cwd, "-m", "sweep=whole", "launcher=basic", *SIX)
    assert done.returncode == 0, done.stderr
    assert len(results(cwd / "whole")) == 6
    return cwd / "whole"


def test_jobs_are_numbered_and_differ(whole: Path) -> None:
    names = [f"{i}_{a}-sinusoid_seed{s}" for i, (a, s) in enumerate((a, s) for a in ALGORITHMS for s in (0, 1))]
    found = results(whole)
    assert list(found) == names
    assert len({found[name]["validation"]["mse"]["mean"] for name in names}) == 6


ALGORITHMS = ("maml", "hypernet", "hybrid")


@pytest.mark.parametrize(
    ("launcher", "module"),
    [
        pytest.param("joblib", "hydra_plugins.hydra_joblib_launcher"),
        pytest.param("submitit_local", "hydra_plugins.hydra_submitit_launcher", marks=pytest.mark.slow),
        pytest.param("ray", "hydra_plugins.hydra_ray_launcher"),
    ],
)
def test_every_launcher_gives_the_same_results(launcher: str, module: str, whole: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: its packages exclude those of the other launchers")
    done = command(tmp_path, "-m", "sweep=out", f"launcher={launcher}", *SIX)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "out") == results(whole)


def copy_of_commands(folder: Path) -> Path:
    """train.py with a conf/ of its own, to be edited."""
    shutil.copy(ROOT / "train.py", folder)
    shutil.copytree(ROOT / "conf", folder / "conf")
    return folder / "train.py"


def test_killed_sweep_goes_on_by_the_same_command(whole: Path, plans: Path, here: Here, tmp_path: Path) -> None:
    script = copy_of_commands(tmp_path)
    # The second job dies after a checkpoint, the fourth before it has one.
    plan(plans, "maml1", do="kill", draw=5)
    plan(plans, "hypernet1", do="kill", draw=1)
    assert command(tmp_path, "-m", *SIX, script=script).returncode == -9
    sweep = only(tmp_path)
    first, second, fourth = (
        sweep / f"{n}_{j}-sinusoid_seed{s}" for n, j, s in ((0, "maml", 0), (1, "maml", 1), (3, "hypernet", 1))
    )
    assert list(results(sweep)) == [first.name]
    assert torch.load(second / "checkpoints" / "last.ckpt", weights_only=False)["global_step"] == 4
    before, of_second = hashes(first), hashes(second)
    # Nobody who edits a file in the middle of a sweep changes its other half.
    for name in ("algo/part/inner.yaml", "algo/hypernet.yaml", "train.yaml"):
        (tmp_path / "conf" / name).write_text("edited: true\n")
    assert command(tmp_path, "-m", *SIX, script=script).returncode == -9
    assert (fourth / "config.yaml").exists()
    assert not (fourth / "checkpoints" / "last.ckpt").exists()
    before |= hashes(second)
    assert before[str(second / "environment.json")] == of_second[str(second / "environment.json")], "begun anew"
    status, out, err = here("-m", *SIX, script=script)
    assert status == 0, err
    assert "continuing the same sweep" in out
    assert only(tmp_path) == sweep
    assert results(sweep) == results(whole)
    assert {path: after for path, after in hashes(first, second).items() if path in before} == before
    for job in (second, fourth):
        name = job.name
        assert (job / "test_episodes.csv").read_bytes() == (whole / name / "test_episodes.csv").read_bytes()
        a, b = (torch.load(d / name / "checkpoints" / "last.ckpt", weights_only=False) for d in (whole, sweep))
        assert all(torch.equal(value, b["state_dict"][key]) for key, value in a["state_dict"].items())
    # Finished: named, it does nothing; the command alone starts another one.
    everything = hashes(*(sweep / job for job in results(sweep)))
    status, out, _ = here("-m", f"sweep={sweep}", script=script)
    assert status == 0
    assert "6 of 6" in out
    assert hashes(*(sweep / job for job in results(sweep))) == everything


@pytest.mark.slow
def test_lost_process_is_recorded_and_the_others_go_on(whole: Path, plans: Path, here: Here, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    arguments = ("-m", "sweep=out", "launcher=joblib", "algo=maml", "seed=0,1,2", *TINY, *PLANNED)
    plan(plans, "maml0", do="kill", draw=3)
    # The launcher kills the others at the first that dies: were that the second, the first would die of its own plan
    # in its retry, and count as failed.
    plan(plans, "maml1", do="kill", draw=3, always=True, after="maml0")
    done = command(tmp_path, *arguments)
    assert done.returncode == 1, done.stderr
    assert "1 of 3 runs failed" in done.stderr
    assert "1_maml-sinusoid_seed1: TerminatedWorkerError" in done.stderr
    assert "Traceback" not in done.stderr.rpartition("train.py: ")[2]
    sweep = tmp_path / "out"
    assert list(results(sweep)) == ["0_maml-sinusoid_seed0", "2_maml-sinusoid_seed2"]
    assert json.loads((sweep / "1_maml-sinusoid_seed1" / "error.json").read_text())["type"] == "TerminatedWorkerError"
    (plans / "maml1").unlink()
    before = hashes(*(sweep / job for job in results(sweep)))
    status, _, err = here("-m", "sweep=out", "launcher=basic", "allow=[sabotage]")
    assert status == 0, err
    assert not (sweep / "1_maml-sinusoid_seed1" / "error.json").exists()
    found = results(sweep)
    assert len(found) == 3
    assert {job: found[job] for job in results(whole) if job in found} == {
        job: entry for job, entry in results(whole).items() if job in found
    }
    assert {path: after for path, after in hashes(*(sweep / job for job in found)).items() if path in before} == before


def test_failed_job_is_recorded_and_the_others_go_on(whole: Path, plans: Path, here: Here, tmp_path: Path) -> None:
    plan(plans, "maml0", do="raise", draw=3)
    arguments = ("-m", "algo=maml", "seed=0,1", *TINY, *PLANNED)
    status, _, err = here(*arguments)
    assert status == 1
    last = err.rpartition("train.py: ")[2]
    assert last.split("\n")[:2] == [
        "1 of 2 runs failed",
        "  0_maml-sinusoid_seed0: ArithmeticError: sabotage in two lines",
    ]
    assert "Traceback" not in last
    sweep = only(tmp_path)
    error = json.loads((sweep / "0_maml-sinusoid_seed0" / "error.json").read_text())
    assert (error["type"], error["error"]) == ("ArithmeticError", "sabotage in two lines")
    assert "sabotage.py" in error["traceback"]
    assert list(results(sweep)) == ["1_maml-sinusoid_seed1"]
    assert here(*arguments)[0] == 0
    assert only(tmp_path) == sweep
    assert not list(sweep.glob("*/error.json"))
    assert results(sweep) == {job: results(whole)[job] for job in ("0_maml-sinusoid_seed0", "1_maml-sinusoid_seed1")}


def test_ctrl_c_saves_and_stops_the_sweep(whole: Path, plans: Path, here: Here, tmp_path: Path) -> None:
    plan(plans, "maml0", do="interrupt", draw=3)
    arguments = ("-m", "sweep=out", "algo=maml", "seed=0,1", *TINY, *PLANNED)
    status, out, err = here(*arguments)
    assert status == 130
    assert "Traceback" not in err
    assert "continue it with: python train.py -m sweep=" in out
    sweep = tmp_path / "out"
    assert not (sweep / "1_maml-sinusoid_seed1").exists()
    assert not list(sweep.glob("*/error.json"))
    # Between two validations: saved on being asked to end.
    last = sweep / "0_maml-sinusoid_seed0" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=False)["global_step"] == 3
    assert here(*arguments)[0] == 0
    assert results(sweep) == {job: results(whole)[job] for job in ("0_maml-sinusoid_seed0", "1_maml-sinusoid_seed1")}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-m", "sweep=SWEEP", "algo=maml", "seed=0"], ["is the sweep of: algo=maml,hypernet,hybrid seed=0,1"]),
        (["-m", "sweep=nowhere"], ["sweep=nowhere: there is no sweep"]),
        (["sweep=SWEEP"], ["python train.py -m sweep="]),
        (["-m", "sweep=full", "seed=0,1"], ["full holds other files, such as mine.txt"]),
        (["-m", "algo.inner_lr=interval(0,1)"], ["algo.inner_lr=interval(0,1)", "hydra/sweeper=search"]),
        (["-m", "seed=0,1", "hydra.sweep.subdir=same"], ["hydra.sweep.subdir gives two jobs one directory"]),
        (["-m", "seed=0,1", "hydra.sweeper.n_jobs=0"], ["hydra.sweeper.n_jobs must be above zero, got 0"]),
        (["-m", "seed=0,1", "algo.inner_lrr=1"], ["unknown key algo.inner_lrr"]),
        (["-m", "seed=0,1", "trainer.max_steps=2,many"], ["trainer.max_steps", "many"]),
    ],
)
def test_mistake_ends_before_any_work(
    arguments: list[str], said: list[str], whole: Path, here: Here, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    before = hashes(whole)
    status, _, err = here(*(a.replace("SWEEP", str(whole)) for a in arguments))
    assert status == 1
    for part in said:
        assert part in err
    assert "Traceback" not in err
    assert err.strip().count("\n") <= 1
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left == {"full", "full/mine.txt"}
    assert hashes(whole) == before


HOPELESS = [
    (["algo.outer_lr=-1"], "outer_lr must be above zero, got -1.0"),
    (["algo.outer_lr=-1,-2"], "outer_lr must be above zero, got -1.0"),
    (["data=hyperplane", "net=conv4"], "conv4 needs images"),
    (["logger=[csv]", "trainer.precision=16"], "trainer.precision=16: choose one of"),
    (["hydra/sweeper=search", "algo.inner_lr=interval(0.01,0.1)", "algo.inner_steps=-1"], "must not be negative"),
]


@pytest.mark.parametrize(("overrides", "said"), HOPELESS)
def test_what_is_wrong_for_all_jobs_is_refused_before_a_directory_is_made(
    overrides: list[str], said: str, here: Here, tmp_path: Path
) -> None:
    status, _, err = here("-m", "seed=0,1", *overrides)
    assert status == 1
    assert said in err.strip().splitlines()[-1]
    assert not list(tmp_path.rglob("*"))


def test_where_jobs_run_elsewhere_nothing_is_tried_out(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = ("-m", "seed=0,1", "algo.outer_lr=-1", "launcher=submitit_slurm")
    status, _, err = here(*wrong)
    assert (status, err.strip().splitlines()[-1]) == (
        1,
        "train.py: launcher=submitit_slurm needs a SLURM cluster: there is no srun on this machine",
    )
    assert not list(tmp_path.rglob("*"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bin" / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    status, _, err = here(*wrong)
    assert status == 1
    assert "outer_lr" not in err.strip().splitlines()[-1]


def test_two_processes_never_run_one_sweep(whole: Path, here: Here) -> None:
    with locked(whole / LOCK):
        status, _, err = here("-m", f"sweep={whole}")
    assert status == 1
    assert "is a sweep that another process is running" in err
    assert here("-m", f"sweep={whole}")[0] == 0


def test_launcher_that_is_not_installed_is_named_with_its_extra(here: Here, tmp_path: Path) -> None:
    if importlib.util.find_spec("hydra_plugins.hydra_ray_launcher"):
        pytest.skip("ray is installed")
    status, _, err = here("-m", "seed=0,1", "launcher=ray")
    assert status == 1
    assert err.strip() == 'train.py: launcher=ray needs a package: pip install -e ".[ray]"'
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "launcher").glob("*.yaml")), ids=lambda path: path.stem)
def test_launcher_files_say_how_and_compose(path: Path) -> None:
    head = path.read_text().partition("\ndefaults:")[0]
    assert f"#   python train.py -m launcher={path.stem} " in head
    extra = command_module.LAUNCHERS.get(path.stem)
    assert (extra is not None) == (path.stem != "basic")
    assert extra is None or f'pip install -e ".[{extra}]"' in head
    plugin = f"hydra_plugins.hydra_{path.stem.partition('_')[0]}_launcher"
    if extra and importlib.util.find_spec(plugin) is None:
        pytest.skip(f"{plugin} is not installed")
    schemas.register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", [f"launcher={path.stem}"], return_hydra_config=True)
    assert cfg.hydra.runtime.choices["hydra/launcher"] == path.stem


def test_record_says_what_was_asked(whole: Path) -> None:
    record = yaml.safe_load((whole / "sweep.yaml").read_text())
    assert record["kind"] == "grid"
    assert record["overrides"] == ["launcher=basic", *SIX]
    assert record["directories"] == list(results(whole))
    words = [word for word in (*TINY, *PLANNED) if not word.startswith("allow=")]
    assert [job[2:] for job in record["jobs"]] == [words] * 6, "as typed, without what the user allows"
    assert [job[:2] for job in record["jobs"]] == [[f"algo={a}", f"seed={s}"] for a in ALGORITHMS for s in (0, 1)]
    relative = {p.relative_to(ROOT / "conf") for p in (ROOT / "conf").rglob("*.yaml")}
    assert {p.relative_to(whole / CONF) for p in (whole / CONF).rglob("*.yaml")} == relative


def test_parent_of_a_sweep_does_without_torch(whole: Path) -> None:
    code = (
        "import runpy, sys; sys.argv = ['train.py', '-m', sys.argv[2]]; "
        f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__'); "
        "assert not {'torch', 'lightning', 'optuna', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, "-m", f"sweep={whole}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "6 of 6 runs are done" in done.stdout
