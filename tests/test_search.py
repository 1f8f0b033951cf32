"""A search by Optuna counts its trials to a total, through kills and failures, and prunes what is hopeless."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from test_sweep import ROOT, TINY, Here, command, hashes, here, only, plan, plans, results

from innerloop.runs.schemas import register
from innerloop.sweeps.search import space
from innerloop.sweeps.study import Settings

optuna = pytest.importorskip("optuna")
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution  # noqa: E402

__all__ = ["here", "plans"]  # fixtures

CONF = ROOT / "conf"
PLANNED = ("data._target_=sabotage.Sabotaged", "allow=[sabotage]", "+data.plan=${oc.env:PLANS}/search")
# Half of the trials hardly learn.
SEARCH = (
    "hydra/sweeper=search",
    "hydra.sweeper.n_startup_trials=4",
    "hydra.sweeper.prune_after_trials=2",
    "algo.inner_lr=tag(log,interval(0.001,0.1))",
    "algo.outer_lr=choice(0.01,1e-9)",
    *TINY,
    *PLANNED,
)


def trials(sweep: Path) -> list[Any]:
    return optuna.load_study(study_name="study", storage=f"sqlite:///{sweep / 'study.db'}").trials


def states(sweep: Path) -> list[str]:
    return [trial.state.name for trial in trials(sweep)]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, plans: Path) -> Path:
    """The directory in which a search of twelve was killed within its sixth trial, after a checkpoint."""
    cwd = tmp_path_factory.mktemp("search")
    plan(plans, "search", do="kill", run=5, draw=5)
    assert (
        command(
            cwd, "-m", "hydra.sweeper.n_trials=12", "hydra.sweeper.prune_after_trials=9", *SEARCH[:2], *SEARCH[3:]
        ).returncode
        == -9
    )
    return cwd


def test_search_goes_on_to_its_total(killed: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = only(killed)
    before = trials(sweep)
    assert [trial.state.name for trial in before] == ["COMPLETE"] * 5 + ["RUNNING"]
    done = sorted(results(sweep))
    assert len(done) == 5
    finished = hashes(*(sweep / job for job in done))
    monkeypatch.chdir(killed)
    status, out, err = here("-m", f"sweep={sweep}", "allow=[sabotage]")
    assert status == 0, err
    after = trials(sweep)
    assert [trial.number for trial in after] == list(range(12))
    assert [trial.params for trial in after[:6]] == [trial.params for trial in before]
    assert after[5].user_attrs["directory"] == before[5].user_attrs["directory"]
    # Drawn at random, twice: by the sampler that was killed and by the one that came after it.
    assert len({trial.params["algo.inner_lr"] for trial in after}) == 12
    assert {path: now for path, now in hashes(*(sweep / job for job in done)).items() if path in finished} == finished
    directories = [trial.user_attrs["directory"] for trial in after]
    assert directories == [f"{number}_maml-sinusoid_seed0" for number in range(12)]
    assert all((sweep / name / "config.yaml").exists() for name in directories)
    complete = [trial for trial in after if trial.state.name == "COMPLETE"]
    found = results(sweep)
    assert all(found[trial.user_attrs["directory"]]["validation"]["mse"]["mean"] == trial.value for trial in complete)
    best = min(complete, key=lambda trial: trial.value)
    assert f"best: trial {best.number}, {best.value:.6g}" in out
    assert " ".join(f"{key}={value}" for key, value in best.params.items()) in out
    assert "12 trials: " in out


def test_interrupted_trial_equals_one_that_was_not(killed: Path, here: Here, tmp_path: Path) -> None:
    sweep = only(killed)
    trial = trials(sweep)[5]
    assert trial.state.name == "COMPLETE"
    words = [f"{key}={value}" for key, value in trial.params.items()]
    assert here("hydra.run.dir=plain", *words, *TINY, *PLANNED)[0] == 0
    (plain,) = results(tmp_path).values()
    assert plain == results(sweep)[trial.user_attrs["directory"]]


def test_more_trials_are_added_to_a_finished_search(killed: Path, here: Here) -> None:
    sweep = only(killed)
    before = trials(sweep)
    assert here("-m", f"sweep={sweep}", "allow=[sabotage]", "hydra.sweeper.n_trials=13")[0] == 0
    after = trials(sweep)
    assert [trial.params for trial in after[:12]] == [trial.params for trial in before]
    assert len(after) == 13


def test_hopeless_trials_are_pruned(here: Here, tmp_path: Path) -> None:
    status, out, err = here("-m", "hydra.sweeper.n_trials=8", *SEARCH)
    assert status == 0, err
    sweep = only(tmp_path)
    pruned = [trial for trial in trials(sweep) if trial.state.name == "PRUNED"]
    assert pruned
    assert f"{len(pruned)} pruned" in out
    assert not any(state == "PRUNED" for state in states(sweep)[:2]), "none before two are complete"
    for trial in pruned:
        run_dir = sweep / trial.user_attrs["directory"]
        told = yaml.safe_load((run_dir / "pruned.json").read_text())
        step = max(trial.intermediate_values)
        assert told == {"step": step, "value": trial.intermediate_values[step], "metric": "val/mse"}
        assert step < 6
        # Worse than the median of those that were complete, which is what the pruner goes by.
        others = [t for t in trials(sweep)[: trial.number] if t.state.name == "COMPLETE"]
        values = sorted(t.intermediate_values[step] for t in others)
        assert min(trial.intermediate_values.values()) > values[(len(values) - 1) // 2]
        assert not (run_dir / "results.json").exists()
        with (run_dir / "metrics.csv").open() as file:
            assert f"{told['value']}"[:8] in file.read()


def test_trial_that_raises_is_a_failed_trial(plans: Path, here: Here, tmp_path: Path) -> None:
    plan(plans, "search", do="raise", run=1, draw=2)
    status, out, err = here("-m", "hydra.sweeper.n_trials=3", *SEARCH)
    assert status == 1
    assert "1 of 3 runs failed\n  1_maml-sinusoid_seed0: ArithmeticError: sabotage in two lines" in err
    sweep = only(tmp_path)
    assert states(sweep) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert trials(sweep)[1].user_attrs["error"] == "ArithmeticError: sabotage in two lines"
    assert "best: trial" in out
    failed = hashes(sweep / "1_maml-sinusoid_seed0")
    assert here("-m", f"sweep={sweep}", "allow=[sabotage]")[0] == 1
    assert len(trials(sweep)) == 3
    assert hashes(sweep / "1_maml-sinusoid_seed0") == failed


def test_trial_that_was_killed_while_it_was_drawn_is_drawn_to_the_end(here: Here, tmp_path: Path) -> None:
    assert here("-m", "hydra.sweeper.n_trials=1", *SEARCH)[0] == 0
    sweep = only(tmp_path)
    study = optuna.load_study(study_name="study", storage=f"sqlite:///{sweep / 'study.db'}")
    half = study.ask({"algo.inner_lr": FloatDistribution(0.001, 0.1, log=True)})
    assert here("-m", f"sweep={sweep}", "allow=[sabotage]", "hydra.sweeper.n_trials=2")[0] == 0
    (_, trial) = trials(sweep)
    assert trial.state.name == "COMPLETE"
    assert set(trial.params) == {"algo.inner_lr", "algo.outer_lr"}
    assert trial.params["algo.inner_lr"] == half.params["algo.inner_lr"]
    overrides = yaml.safe_load((sweep / trial.user_attrs["directory"] / "overrides.yaml").read_text())
    assert {f"{key}={value}" for key, value in trial.params.items()} <= set(overrides)


def test_more_is_better_where_the_task_family_says_so(here: Here, tmp_path: Path) -> None:
    words = ("data=hyperplane", "hydra.sweeper.n_trials=1", "hydra/sweeper=search", "algo.inner_lr=interval(0.1,1.0)")
    assert here("-m", *words, *TINY)[0] == 0
    study = optuna.load_study(study_name="study", storage=f"sqlite:///{only(tmp_path) / 'study.db'}")
    assert study.direction.name == "MAXIMIZE"
    assert next(iter(results(only(tmp_path)).values()))["metric"] == "accuracy"


@pytest.mark.slow
def test_trials_of_several_processes_share_the_study(here: Here, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    status, _, err = here("-m", "sweep=out", "launcher=joblib", "hydra.sweeper.n_trials=5", *SEARCH)
    assert status == 0, err
    sweep = tmp_path / "out"
    assert set(states(sweep)) <= {"COMPLETE", "PRUNED"}
    assert len({trial.params["algo.inner_lr"] for trial in trials(sweep)}) == 5
    assert all(trial.intermediate_values for trial in trials(sweep))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trainer.strategy=ddp"], ["trainer.strategy=ddp", "ranks would draw different trials"]),
        (["trainer.devices=2"], ["trainer.devices=2", "ranks would draw different trials"]),
        (["trainer.devices=auto"], ["trainer.devices=auto", "ranks would draw different trials"]),
        (["trainer.strategy=choice(auto,ddp)"], ["trainer.strategy", "ranks would draw different trials"]),
        (["WORLD_SIZE=2"], ["WORLD_SIZE=2", "ranks would draw different trials"]),
        (["algo.inner_lrr=interval(0,1)"], ["unknown key algo.inner_lrr"]),
        (["algo.outer_lr=tag(log,interval(0.0,1.0))"], ["algo.outer_lr", "log"]),
        (["hydra.sweeper.n_trials=0"], ["hydra.sweeper.n_trials must be above zero"]),
    ],
    ids=lambda arguments: arguments[0],
)
def test_mistake_ends_before_any_work(
    arguments: list[str], said: list[str], here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if arguments == ["WORLD_SIZE=2"]:
        monkeypatch.setenv("WORLD_SIZE", "2")
        arguments = []
    status, _, err = here("-m", "hydra/sweeper=search", "algo.inner_lr=interval(0.01,0.1)", *arguments)
    assert status == 1
    for part in said:
        assert part in err
    assert err.strip().count("\n") == 0
    assert not list(tmp_path.iterdir())


def test_a_search_without_a_space_is_refused(here: Here, tmp_path: Path) -> None:
    status, _, err = here("-m", "hydra/sweeper=search", "algo.inner_lr=0.1")
    assert status == 1
    assert "a search needs what to search" in err
    assert not list(tmp_path.iterdir())


def test_space_is_what_hydra_reads() -> None:
    words = {
        "a=interval(0.5,2)": FloatDistribution(0.5, 2.0),
        "b=tag(log,interval(0.001,1.0))": FloatDistribution(0.001, 1.0, log=True),
        "c=interval(1,8)": FloatDistribution(1.0, 8.0),
        "d=int(interval(1,8))": IntDistribution(1, 8),
        "e=int(tag(log,interval(1,64)))": IntDistribution(1, 64, log=True),
        "f=range(2,9,3)": IntDistribution(2, 8, step=3),
        "g=choice(joint,alternating)": CategoricalDistribution(["joint", "alternating"]),
        "h=1,2": CategoricalDistribution(["1", "2"]),
    }
    overrides = OverridesParser.create().parse_overrides([*words, "i=3"])
    fixed, found = space(overrides)
    assert fixed == ["i=3"]
    assert found == {word[0]: distribution for word, distribution in words.items()}


@pytest.mark.parametrize("path", sorted((CONF / "hparams_search").glob("*.yaml")), ids=lambda path: path.stem)
def test_files_search_what_is_there(path: Path) -> None:
    head = path.read_text().partition("\ndefaults:")[0]
    if path.stem != "grid":
        assert re.search(rf"^#   python train\.py -m hparams_search={path.stem}$", head, re.M)
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"hparams_search={path.stem}"], return_hydra_config=True)
    params = dict(cfg.hydra.sweeper.params)
    if "Search" not in cfg.hydra.sweeper._target_:
        return
    assert path.stem == f"{cfg.algo.name}_optuna"
    assert Settings.of(cfg.hydra.sweeper).n_trials == 20
    fixed, found = space(OverridesParser.create().parse_overrides([f"{k}={v}" for k, v in params.items()]))
    assert not fixed
    for key in found:
        node = OmegaConf.select(cfg, key)
        assert isinstance(node, int | float | str), key


def test_every_algorithm_has_a_search() -> None:
    algorithms = {path.stem for path in (CONF / "algo").glob("*.yaml")}
    assert {path.stem for path in (CONF / "hparams_search").glob("*_optuna.yaml")} == {
        f"{a}_optuna" for a in algorithms
    }
