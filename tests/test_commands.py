"""The commands as a person types them: what a run leaves behind, sweeps, resuming, evaluating, and mistakes."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT, SHORT, TINY, Here, run, start
from hydra import compose, initialize_config_dir
from offline import offline_runs

from innerloop.episodes import InputError, weights_of
from innerloop.learners import MetaLearner
from innerloop.runs import schemas
from innerloop.runs.build import build
from innerloop.runs.command import quoted_paths
from innerloop.runs.evaluate import best_step

schemas.register()


def results(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "results.json").read_text())


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def curve(run_dir: Path) -> list[tuple[str, str, str]]:
    """(step, train loss, validation error) of all rows that hold one of them."""
    return [(r["step"], r["train/loss"], r["val/mse"]) for r in rows(run_dir) if r["train/loss"] or r["val/mse"]]


@pytest.fixture(scope="module")
def sweep(train: Any) -> dict[tuple[str, int], Path]:
    """Six runs, (algorithm, seed) -> run directory, with W&B as it comes by default."""
    train("-m", "algo=maml,hypernet,hybrid", "seed=0,1", *SHORT)
    found = sorted(Path().resolve().glob("runs/sweeps/*/*/results.json"))
    assert len(found) == 6
    return {(r["algo"], r["seed"]): path.parent for path in found for r in [json.loads(path.read_text())]}


def test_run_directory_is_the_record(sweep: dict[tuple[str, int], Path]) -> None:
    run_dir = sweep["maml", 1]
    for name in ("config.yaml", "overrides.yaml", "environment.json", "metrics.csv", "train.log", "wandb.json"):
        assert (run_dir / name).stat().st_size, name
    assert {p.name for p in (run_dir / "checkpoints").glob("*.ckpt")} == {"best.ckpt", "last.ckpt"}
    assert {p.stem for p in (run_dir / "plots").iterdir()} == {"learning_curve", "adaptation_curve", "fitted_functions"}
    saved = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=False)
    assert saved["global_step"] == 40  # the last, whether or not it is the best
    environment = json.loads((run_dir / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    found = results(run_dir)
    assert (found["algo"], found["data"], found["net"], found["seed"], found["steps"]) == (
        "maml",
        "sinusoid",
        "mlp",
        1,
        40,
    )
    assert found["parameters"] == 40 + 40 + 40 * 40 + 40 + 40 + 1
    assert [row["step"] for row in found["test"]["by_step"]] == list(range(11))
    assert found["test"]["mse"] == found["test"]["by_step"][10]["mse"]
    # Nothing in results.json that the episodes themselves do not say.
    with (run_dir / "test_episodes.csv").open(newline="") as file:
        last = [float(r["mse"]) for r in csv.DictReader(file) if r["step"] == "10"]
    values = torch.tensor(last, dtype=torch.float64)
    assert len(values) == found["test"]["episodes"] == 30
    assert found["test"]["mse"]["mean"] == pytest.approx(values.mean().item(), rel=1e-12)
    assert found["test"]["mse"]["ci95"] == pytest.approx(1.96 * values.std().item() / 30**0.5, rel=1e-12)


def test_seeds_and_algorithms_share_test_episodes(sweep: dict[tuple[str, int], Path]) -> None:
    # MAML and the hybrid start from the same theta and have moved it differently; the tasks' own difficulty remains.
    values = {}
    for key, run_dir in sweep.items():
        with (run_dir / "test_episodes.csv").open(newline="") as file:
            values[key] = [float(r["mse"]) for r in csv.DictReader(file) if r["step"] == "unadapted"]
    for key in sweep:
        together = torch.corrcoef(torch.tensor([values["maml", 0], values[key]]))[0, 1]
        assert together > 0.9, key
    assert values["maml", 0] != values["maml", 1]


def test_wandb_runs_hold_the_right_values(sweep: dict[tuple[str, int], Path]) -> None:
    identities = set()
    for (algo, seed), run_dir in sweep.items():
        (offline,) = offline_runs(run_dir)
        summary = offline.summary
        identities.add(summary["run_id"])
        assert summary["run_id"] == json.loads((run_dir / "wandb.json").read_text())["id"]
        assert summary["state"] == "finished"
        assert summary["exit_code"] == 0
        assert (summary["config"]["algo"]["name"], summary["config"]["seed"]) == (algo, seed)
        assert summary["config"]["trainer"]["max_steps"] == 40
        found = results(run_dir)
        assert summary["summary"]["test/mse"] == pytest.approx(found["test"]["mse"]["mean"])
        assert summary["summary"]["test/mse_ci95"] == pytest.approx(found["test"]["mse"]["ci95"])
        assert {"plots/learning_curve", "plots/adaptation_curve", "plots/fitted_functions"} <= set(summary["summary"])
        seen = {h["trainer/global_step"]: h["val/mse"] for h in offline.history if "val/mse" in h}
        # The same numbers, at the same steps, as in metrics.csv: and no others, of no other job.
        expected = {int(r["step"]): float(r["val/mse"]) for r in rows(run_dir) if r["val/mse"]}
        assert list(expected) == [14, 29, 39]
        assert seen == pytest.approx(expected)
    assert len(identities) == 6


def test_runs_of_one_second_have_their_own_directories(tmp_path: Path) -> None:
    arguments = ["trainer.max_steps=2", "trainer.val_episodes=2", "test.episodes=2", "logger=csv"]
    both = [start("train.py", *arguments, cwd=tmp_path) for _ in range(2)]
    for process in both:
        process.communicate(timeout=240)
        assert process.returncode == 0
    assert len(list(tmp_path.glob("runs/maml-sinusoid/*/results.json"))) == 2


FIFTY = """
import os, runpy, signal, sys
import innerloop.runs.train, innerloop.sweeps.jobs
arguments, fifty = sys.argv[1:], []
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
for _ in range(50):
    if not (process := os.fork()):
        sys.argv = ["train.py", *arguments]
        signal.sigwait({signal.SIGUSR1})  # so that all start in one moment
        runpy.run_path(os.environ["TRAIN"], run_name="__main__")
        os._exit(0)
    fifty.append(process)
for process in fifty:
    os.kill(process, signal.SIGUSR1)
sys.exit(sum(os.waitpid(process, 0)[1] != 0 for process in fifty))
"""


@pytest.mark.slow
def test_fifty_runs_of_one_second(tmp_path: Path) -> None:
    few = ["trainer=cpu", "trainer.threads=1", "trainer.max_steps=2", "trainer.val_episodes=2", "test.episodes=2"]
    command = [sys.executable, "-c", FIFTY, *few, "logger=csv"]
    environment = os.environ | {"TRAIN": str(ROOT / "train.py"), "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = [json.loads(path.read_text()) for path in tmp_path.glob("runs/maml-sinusoid/*/results.json")]
    assert len(found) == len(list(tmp_path.glob("runs/maml-sinusoid/*"))) == 50
    assert len({result["test"]["mse"]["mean"] for result in found}) == 1


LONGER = (*SHORT, "trainer.max_steps=600", "trainer.val_every=100", "logger=csv")


@pytest.fixture(scope="module")
def whole(train: Any) -> Path:
    """A run that nothing stopped."""
    train(*LONGER, "hydra.run.dir=run")
    return Path("run").resolve()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_run_goes_on_as_if_nothing_had_been(number: int, whole: Path, here: Here, tmp_path: Path) -> None:
    process = start("train.py", *LONGER, "hydra.run.dir=stopped", cwd=tmp_path)
    stopped = tmp_path / "stopped"
    deadline = time.monotonic() + 120
    while not (stopped / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)  # into the next stretch between two validations
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert not (stopped / "results.json").exists()
    if number == signal.SIGINT:
        assert "resume=" in err
        assert "Traceback" not in err
    assert here("train.py", "resume=stopped")[0] == 0
    assert results(stopped)["test"] == results(whole)["test"]
    assert curve(stopped) == curve(whole)
    a, b = (torch.load(d / "checkpoints" / "last.ckpt", weights_only=False) for d in (whole, stopped))
    assert all(torch.equal(value, b["state_dict"][name]) for name, value in a["state_dict"].items())


def test_evaluation_repeats_and_extends(sweep: dict[tuple[str, int], Path], here: Here, tmp_path: Path) -> None:
    run_dir = sweep["hybrid", 0]
    assert here("evaluate.py", f"run={run_dir}", "trainer.threads=1")[0] == 0
    (again,) = run_dir.glob("evaluations/*")
    assert results(again)["test"] == results(run_dir)["test"]
    more, elsewhere = tmp_path / "more", tmp_path / "elsewhere"
    longer = ("test.episodes=50", "algo.eval_inner_steps=12")
    assert here("evaluate.py", f"run={run_dir}", *longer, f"hydra.run.dir={more}")[0] == 0
    found = results(more)["test"]
    assert found["episodes"] == 50
    assert len(found["by_step"]) == 13
    wanted = [line for line in (run_dir / "test_episodes.csv").read_text().splitlines() if line[0].isdigit()]
    # The list of episodes only grows.
    assert set(wanted) <= set((more / "test_episodes.csv").read_text().splitlines())
    other = ("data=multimodal", "test.episodes=20")
    assert here("evaluate.py", f"run={run_dir}", *other, f"hydra.run.dir={elsewhere}")[0] == 0
    assert results(elsewhere)["data"] == "multimodal"
    status, err = here("evaluate.py", f"run={run_dir}", "data=hyperplane")
    assert status == 1
    assert "does not fit" in err
    assert "Traceback" not in err


def test_diverging_run_stops_and_keeps_good_weights(here: Here, tmp_path: Path) -> None:
    arguments = ["algo.inner_lr=1e12", "algo.inner_steps=5", "logger=csv", "hydra.run.dir=run"]
    status, err = here("train.py", *SHORT, *arguments)
    assert status == 1
    assert "at step 0" in err
    assert "algo.inner_lr" in err
    assert "Traceback" not in err
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
    assert all(value.isfinite().all() for value in saved.values())
    assert not (tmp_path / "run" / "results.json").exists()


def test_run_directory_is_not_overwritten(sweep: dict[tuple[str, int], Path], here: Here) -> None:
    run_dir = sweep["maml", 0]
    before = (run_dir / "config.yaml").read_bytes()
    status, err = here("train.py", f"hydra.run.dir={run_dir}")
    assert status == 1
    assert "holds a run already" in err
    assert (run_dir / "config.yaml").read_bytes() == before


@pytest.mark.alone
@pytest.mark.parametrize("flag", [["--help"], ["--cfg", "job"]])
def test_help_answers_at_once(flag: list[str], tmp_path: Path) -> None:
    """In half of the time that importing Lightning alone takes, on a machine of any speed."""
    times, imports = [], []
    for _ in range(3):
        begin = time.monotonic()
        out, _ = run("train.py", *flag, cwd=tmp_path)
        times.append(time.monotonic() - begin)
        begin = time.monotonic()
        subprocess.run([sys.executable, "-c", "import lightning"], check=True, cwd=tmp_path)
        imports.append(time.monotonic() - begin)
    assert "inner_lr" in out
    assert min(times) < min(imports) / 2, (times, imports)
    assert not list(tmp_path.iterdir())


# What cannot be: prototypes of real targets, a body without weights of a task's own, norms to modulate where there are
# none, a ridge regression where one acts, learning the vectors of items by learners that learn only what tasks adapt.
ACTING = {"navigation", "bandits", "gym"}
REFUSED = {
    "protonet": {"sinusoid", "multimodal", "ratings_synthetic", *ACTING},
    "proto_maml": {"sinusoid", "multimodal", "ratings_synthetic", *ACTING},
    "boil": {"hyperplane", "ratings_synthetic", "bandits"},
    "cnaps": {"sinusoid", "multimodal", "hyperplane", "ratings_synthetic", *ACTING},
    "simple_cnaps": {"sinusoid", "multimodal", "hyperplane", "ratings_synthetic", *ACTING},
    "hypermaml": ACTING,
    "r2d2": ACTING,
    "imaml": {"ratings_synthetic"},
    "reptile": {"ratings_synthetic"},
}
# In these tables' tasks the number of classes varies.
for fixed in (
    *("anil", "boil", "cavia", "cnaps", "finetune", "fomaml", "imaml"),
    *("leo", "maml", "maml_pp", "meta_sgd", "reptile", "simple_cnaps"),
):
    REFUSED[fixed] = REFUSED.get(fixed, set()) | {"table_prior"}


# Those with files of the user's are built in the tests of their loaders; net and tasks are those of glyphs.
WITHOUT_FILES = sorted(
    p.stem
    for p in (ROOT / "conf" / "data").glob("*.yaml")
    if not {"root", "roots"} & set(yaml.safe_load(p.read_text()))
)
SHORT_ONES = {"data.horizon=2", "data.shots=2", "data.queries=2"}
EXTRAS = {"gym": "mujoco"}


@pytest.mark.parametrize("algo", sorted(p.stem for p in (ROOT / "conf" / "algo").glob("*.yaml")))
def test_every_algorithm_builds_with_every_data_config_or_says_why_not(algo: str, glyphs: Path) -> None:
    for data in WITHOUT_FILES:
        if data in EXTRAS and find_spec(EXTRAS[data]) is None:
            continue
        extra = [f"data.cache={glyphs}"] if data == "glyphs" else []
        extra += SHORT_ONES if data in ACTING - {"bandits"} else []
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose("train", [f"algo={algo}", f"data={data}", *extra])
        if data in REFUSED.get(algo, ()):
            with pytest.raises(
                InputError, match=r"class ids|only=body|writes=film|tasks share|reads states|fixed head"
            ):
                build(cfg)
            continue
        learner, episode = (parts := build(cfg)).learner, parts.data.episode("test", 0)
        weights = learner.adaptation(learner.net, weights_of(learner.net), episode.support)
        assert set(weights) == set(weights_of(learner.net))


def test_the_best_number_of_steps_is_one_whose_mean_is_a_number() -> None:
    nan = float("nan")
    assert best_step([nan, 0.4, 0.3], higher_is_better=False) == 2
    assert best_step([0.1, nan, 0.9, 0.9], higher_is_better=True) == 2
    assert best_step([nan, nan], higher_is_better=True) == 0


@pytest.mark.parametrize("experiment", sorted(p.stem for p in (ROOT / "conf" / "experiment").glob("*.yaml")))
def test_experiments_are_what_their_head_says(experiment: str) -> None:
    head = (ROOT / "conf" / "experiment" / f"{experiment}.yaml").read_text().partition("\ndefaults:")[0]
    assert re.search(rf"^#   python train\.py experiment={experiment}( data\.root=FOLDER)?$", head, re.M)
    assert re.search(r"^# Expected: (not measured yet|.*± .* on .* test episodes.* minutes)", head, re.M)
    assert re.search(r"^# Published: \S.*\(.*, \d{4}, ", head, re.M)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", [f"experiment={experiment}"])
        for same in re.findall(r"^# The same as (.*)$", head, re.M):
            assert cfg == compose("train", same.split())
    assert experiment.startswith(cfg.data.name)
    assert experiment.endswith(cfg.algo.name)
    if "ways" in cfg.data:
        assert f"_{cfg.data.test_ways or cfg.data.ways}w{cfg.data.shots}s_" in experiment


def test_double_precision_trains_and_draws(here: Here, tmp_path: Path) -> None:
    assert here("train.py", *SHORT, "trainer.precision=64-true", "logger=csv", "hydra.run.dir=run")[0] == 0
    saved = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=False)["state_dict"]
    assert all(value.dtype == torch.float64 for value in saved.values())
    assert (tmp_path / "run" / "plots" / "fitted_functions.png").exists()
    assert here("evaluate.py", "run=run", "hydra.run.dir=again")[0] == 0
    assert results(tmp_path / "again")["test"] == results(tmp_path / "run")["test"], "nothing is rounded on the way"


def test_a_run_without_training(here: Here, tmp_path: Path) -> None:
    def result(run_dir: str) -> dict[str, Any]:
        found = json.loads((tmp_path / run_dir / "results.json").read_text())
        return {name: value for name, value in found.items() if name in ("steps", "validation", "test")}

    data = ("data=glyphs", "net=linear", "data.queries=3", f"data.cache={tmp_path / 'glyphs'}")
    few = (*SHORT, *data, "logger=csv", "trainer.max_steps=0")
    status, err = here("train.py", "algo=protonet", *few, "hydra.run.dir=means")  # it has nothing to learn
    assert status == 0, err
    assert result("means")["steps"] == 0
    assert result("means")["test"]["accuracy"]["mean"] > 0.3
    assert here("evaluate.py", "run=means", "hydra.run.dir=again")[0] == 0
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert again["test"] == result("means")["test"]
    assert here("train.py", "resume=means")[0] == 0
    maml = ("algo=maml", *few, "trainer.max_steps=0")
    assert here("train.py", *maml, "hydra.run.dir=run")[0] == 0
    assert here("train.py", "resume=run", "trainer.max_steps=3")[0] == 0
    assert here("train.py", *maml, "trainer.max_steps=3", "hydra.run.dir=whole")[0] == 0
    assert result("run") == result("whole")
    assert result("run")["steps"] == 3


def test_a_cpu_beside_a_gpu_is_a_choice(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = "lightning.pytorch.trainer.setup.CUDAAccelerator"  # where Lightning warns of an unused GPU
    monkeypatch.setattr(there, type("Present", (), {"is_available": staticmethod(lambda: True)}))
    status, said = here("train.py", *SHORT, "trainer.max_steps=2", "logger=csv", f"hydra.run.dir={tmp_path / 'run'}")
    assert status == 0, said
    assert "GPU" not in said


def test_last_checkpoint_is_the_last_even_if_another_was_better(here: Here, tmp_path: Path) -> None:
    worse = ["algo.outer_lr=0.3", "algo.schedule=constant", "logger=csv", "hydra.run.dir=run"]
    assert here("train.py", *SHORT, *worse)[0] == 0
    steps = {
        name: torch.load(tmp_path / "run" / "checkpoints" / f"{name}.ckpt", weights_only=False)["global_step"]
        for name in ("best", "last")
    }
    validated = {int(r["step"]): float(r["val/mse"]) for r in rows(tmp_path / "run") if r["val/mse"]}
    assert steps == {"best": min(validated, key=validated.__getitem__) + 1, "last": 40}
    assert steps["best"] < 40, "nothing is shown by a run whose last weights are its best"


def test_truncated_checkpoint_is_named(sweep: dict[tuple[str, int], Path], here: Here, tmp_path: Path) -> None:
    broken = tmp_path / "run"
    shutil.copytree(sweep["maml", 0], broken, ignore=shutil.ignore_patterns("wandb", "evaluations"))
    whole = (broken / "checkpoints" / "last.ckpt").read_bytes()
    (broken / "checkpoints" / "last.ckpt").write_bytes(whole[: len(whole) // 2])
    for command in (
        ("train.py", f"resume={broken}", "trainer.max_steps=60"),
        ("evaluate.py", f"run={broken}", "checkpoint=last"),
    ):
        status, err = here(*command)
        assert status == 1
        assert "last.ckpt was damaged or changed after it was written" in err
        assert "Traceback" not in err
    assert not (broken / "evaluations").exists()


@pytest.mark.parametrize("name", ["Läufe/eins", "runs (copy)/a", "r[1]", "r{2}", "a'b", 'q"x'])
def test_runs_in_folders_of_any_name(name: str, tmp_path: Path, here: Here) -> None:
    """Characters that Hydra's grammar has no place for, or another meaning."""
    tiny = [*TINY, "logger=csv", "algo=maml"]
    assert here("train.py", *tiny, f"hydra.run.dir={name}")[0] == 0
    assert (tmp_path / name / "results.json").is_file()
    assert here("evaluate.py", f"run={name}", "test.episodes=4")[0] == 0
    assert here("train.py", f"resume={name}", "trainer.max_steps=10")[0] == 0


def test_a_run_directory_may_name_settings(tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "Läufe")
    assert (
        here(
            "train.py", *TINY, "logger=csv", "algo=maml", "seed=3", "hydra.run.dir=${oc.env:PLACE}/${algo.name}-${seed}"
        )[0]
        == 0
    )
    assert (tmp_path / "Läufe" / "maml-3" / "results.json").is_file()
    for wrong in ("${nope}/x", "${oc.env:NOPE}/x"):
        status, err = here("train.py", *TINY, "logger=csv", "algo=maml", f"hydra.run.dir={wrong}")
        assert status == 1
        assert err.startswith("\ntrain.py: hydra.run.dir: ")
        assert "nope" in err.lower()
        assert err.count("\n") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Läufe"]


def test_all_of_a_run_has_its_threads_from_the_first_trial_on(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, before = set[int](), torch.get_num_threads()

    def query_loss(self: MetaLearner, *arguments: Any) -> torch.Tensor:
        seen.add(torch.get_num_threads())
        return original(self, *arguments)

    original = MetaLearner.query_loss
    monkeypatch.setattr(MetaLearner, "query_loss", query_loss)
    try:
        assert here("train.py", *TINY, "logger=csv", "algo=maml", "trainer.threads=3")[0] == 0
    finally:
        torch.set_num_threads(before)
    assert seen == {3}


def test_values_that_hydra_understands_are_left_to_it() -> None:
    typed = ["data.root=a,b", "resume=null", "data.root='x y'", "run=2024_06", "algo=Ä", "data.root=~/my pictures"]
    assert quoted_paths(typed, ("data.root", "resume", "run")) == typed
    assert quoted_paths(["run=2024_06"], ("run",), always=True) == ['run="2024_06"']
    assert quoted_paths(["data.root=ä(1)"], ("data.root",)) == ['data.root="ä(1)"']
    assert quoted_paths(["data.root=${x}"], ("data.root",)) == ['data.root="${x}"']
    assert quoted_paths(["support=${x}"], ("support",), always=True) == [r'support="\${x}"']
