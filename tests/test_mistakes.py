"""Mistakes at the command line and in a user's own files: one short message, and nothing left behind."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from conftest import TINY, Here, run
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from innerloop.episodes import InputError
from innerloop.runs import schemas
from innerloop.runs.command import explain

MISTAKES: list[tuple[Sequence[str], Sequence[str]]] = [
    (["algo=mamll"], ["algo/mamll", "hybrid", "hypernet", "maml"]),
    (["data=sinusoids"], ["data/sinusoids", "multimodal"]),
    (["algo.inner_lrr=0.1"], ["unknown key algo.inner_lrr", "Did you mean algo.inner_lr?"]),
    (["trainer.max_step=10"], ["unknown key trainer.max_step", "trainer.max_steps"]),
    (["trainer.max_steps=many"], ["trainer.max_steps", "many"]),
    (["resume=nowhere"], ["nowhere is no run directory"]),
    (["+extra=1"], ["unknown key extra"]),
    (["logger=csv", "logger.wandb.group=mine"], ["logger.wandb.group cannot be set", "has no logger.wandb"]),
    (["algo.inner_lr=fast"], ["algo.inner_lr=fast", "float"]),
    (["algo.inner_lr=-1"], ["inner_lr must be above zero, got -1"]),
    (["algo.outer_lr=0"], ["outer_lr must be above zero, got 0"]),
    (["trainer.max_steps=-1"], ["trainer.max_steps must not be negative, got -1"]),
    (["data.meta_batch_size=-3"], ["meta_batch_size must be above zero, got -3"]),
    (["data.shots=0"], ["shots must be above zero, got 0"]),
    (["seed=-1"], ["seed", "-1"]),
    (["algo.engine=gpu"], ["unknown engine 'gpu'", "loop", "vmap"]),
    (["algo=hybrid", "algo.writes=film"], ["writes=film", "no such weights"]),
    (["data=omniglot", "data.root=nowhere"], ["nowhere"]),
    (["data=mini_imagenet"], ["data.root=FOLDER", "train.csv", "image-net.org"]),
    (["data=folder"], ["data.root", "a folder of pictures for each class"]),
    (["data=folder", "data.root=nowhere"], ["data.root=nowhere"]),
    (["data=folder", "data.sizes=32"], ["unknown key data.sizes", "Did you mean data.size?"]),
    (["data=glyphs", "data.cache=GLYPHS", "data.ways=100000"], ["ways=100000", "split has"]),
    (["trainer=gpu"], ["no GPU"]),
    (["+trainer.foo=1"], ["unknown key trainer.foo. Possible here: accelerator, deterministic, devices, "]),
    (["+test.foo=1"], ["unknown key test.foo. Possible here: episodes, seed, steps\n"]),
    (["+logger.wandb.foo=1"], ["unknown key logger.wandb.foo. Possible here: artifacts, entity, group, "]),
    (["logger=csv", "+logger.csv.foo=1"], ["unknown key logger.csv. Possible here: mlflow, tensorboard, wandb\n"]),
    (["+algo.foo=1"], ["unknown key algo.foo. Possible here: accumulate, "]),
    (["+net.foo=1"], ["unknown key net.foo. Possible here: activation, "]),
    (["+data.shot=1"], ["unknown key data.shot. Did you mean data.shots? Possible here: frequency, meta_batch_size, "]),
    (["+data.dataset=innerloop.datasets.omniglot.load"], ["unknown key data.dataset"]),
    (["+callbacks.foo=1"], ["callbacks.foo must be a configuration with a _target_, got 1"]),
    (["+hydra.foo=1"], ["unknown key hydra.foo"]),
    (["+hydra.job.foo=1"], ["unknown key hydra.job.foo"]),
    (["recipe=nothing"], ["unknown key recipe/nothing", "glyphs_maml"]),
    (["recipe=null"], ["recipe=null: recipe chooses a configuration"]),
    (["logger=null"], ["logger=null: logger chooses a configuration"]),
    (["seed=4294967296"], ["seed must be below 2**32, got 4294967296"]),
]


@pytest.mark.parametrize(("arguments", "said"), MISTAKES, ids=[" ".join(a) for a, _ in MISTAKES])
def test_mistake_ends_in_one_short_message(
    arguments: Sequence[str], said: Sequence[str], here: Here, glyphs: Path, tmp_path: Path
) -> None:
    if arguments == ["trainer=gpu"] and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    status, err = here("train.py", *(a.replace("GLYPHS", str(glyphs)) for a in arguments))
    assert status == 1
    for part in said:
        assert part in err.replace("Float", "float")
    assert "Traceback" not in err
    assert len(err) < 1200
    assert not list(tmp_path.iterdir()), "a mistake leaves nothing behind"


def test_mistake_in_a_sweep_leaves_nothing(tmp_path: Path) -> None:
    _, err = run("train.py", "-m", "algo=maml,mamll", cwd=tmp_path, status=1)
    assert "mamll" in err
    assert not list(tmp_path.iterdir())


def test_debug_lets_the_exception_through(here: Here) -> None:
    with pytest.raises(InputError, match="inner_lr must be above zero"):
        here("train.py", "algo.inner_lr=-1", "traceback=true")


# Below a folder for --config-dir: a file, what it holds, the arguments that use it, what is said.
OWN_FILES = {
    "recipe": ("trainer: {bar: 3}", ["recipe=mine"], "In 'recipe/mine': unknown key trainer.bar. Possible here: acc"),
    "experiment": (
        "test: {foo: 3}",
        ["experiment=mine"],
        "In 'experiment/mine': unknown key test.foo. Possible",
    ),
    "experiment_value": (
        "trainer: {max_steps: many}",
        ["experiment=mine"],
        "In 'experiment/mine': trainer.max_steps: ",
    ),
    "experiment_algo": ("algo: {foo: 3}", ["experiment=mine"], "unknown key algo.foo. Possible here: "),
    "debug": ("algo: {foo: 3}", ["debug=mine"], "unknown key algo.foo. Possible here: "),
    "data": ("defaults: [sinusoid]\nnoise_: 3", ["data=mine"], "unknown key data.noise_. Possible here: frequency"),
    "trainer": ("defaults: [auto]\nfoo: 3", ["trainer=mine"], "In 'trainer/mine': unknown key trainer.foo. Possible"),
    "trainer_extra": ("defaults: [auto]\nextra: {foo: 3}", ["trainer=mine"], "unknown key trainer.extra.foo. Possible"),
    "logger": ("wandb: {foo: 3}", ["logger=mine"], "In 'logger/mine': unknown key logger.wandb.foo. Possible"),
    "net": (
        "name: mine\n_target_: innerloop.nets.MLP\nwide: 3",
        ["net=mine"],
        "unknown key net.wide. Did you mean net.hidden? P",
    ),
}


@pytest.mark.parametrize("kind", OWN_FILES)
def test_unknown_key_of_an_own_file_is_refused(kind: str, here: Here, tmp_path_factory: pytest.TempPathFactory) -> None:
    text, arguments, said = OWN_FILES[kind]
    group = kind.partition("_")[0]
    own = tmp_path_factory.mktemp("own")
    (own / group).mkdir()
    package = "# @package _global_\n" if group in ("recipe", "experiment", "debug") else ""
    (own / group / "mine.yaml").write_text(package + text)
    status, err = here("train.py", "--config-dir", str(own), *arguments)
    assert (status, err.count("\n")) == (1, 2), err
    assert f"train.py: {said}" in err
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["+trainer.foo=1,2"], "unknown key trainer.foo"),
        (["+test.foo=1", "seed=0,1"], "unknown key test.foo"),
        (["+hydra.foo=1", "seed=0,1"], "unknown key hydra.foo"),
        (["+hydra.sweeper.foo=1", "seed=0,1"], "unknown key hydra.sweeper.foo. Possible here: n_jobs, params"),
        (["recipe=none,nothing"], "unknown key recipe/nothing"),
    ],
)
def test_unknown_key_of_a_sweep_starts_no_job(arguments: list[str], said: str, here: Here) -> None:
    status, err = here("train.py", "-m", *arguments)
    assert (status, err.count("\n")) == (1, 2), err
    assert f"train.py: {said}" in err
    assert not list(Path().iterdir())


def test_unknown_key_of_an_evaluation_is_refused(here: Here) -> None:
    assert here("train.py", *TINY, "logger=csv", "hydra.run.dir=run")[0] == 0
    possible = {
        "+foo=1": "unknown key foo. Possible here: adapt, adapt_lr, adapt_steps, algo, allow, checkpoint, data, net, "
        "run, seed, test, traceback, trainer\n",
        "+trainer.foo=1": "unknown key trainer.foo. Possible here: accelerator, ",
        "+test.foo=1": "unknown key test.foo. Possible here: episodes, seed, steps\n",
        "+data.foo=1": "unknown key data.foo. Possible here: ",
        "+algo.foo=1": "unknown key algo.foo. Possible here: ",
        "+hydra.foo=1": "unknown key hydra.foo. Possible here: ",
        "net.hidden=[3]": "net.hidden=[3]: an evaluation uses the net that was trained, so net cannot be set\n",
        "net=conv4": "net=conv4: an evaluation uses the net that was trained, so net cannot be set\n",
    }
    for argument, said in possible.items():
        status, err = here("evaluate.py", "run=run", argument)
        assert (status, err.count("\n")) == (1, 2), err
        assert f"evaluate.py: {said}" in err
        assert not Path("run/evaluations").exists(), "a mistake leaves nothing behind"


@pytest.mark.parametrize("command", ["train.py", "evaluate.py"])
def test_possible_keys_are_those_of_the_command_each_once(command: str, here: Here) -> None:
    assert here("train.py", *TINY, "logger=csv", "hydra.run.dir=run")[0] == 0
    _, err = here(command, *(["run=run"] if command == "evaluate.py" else []), "+nothing=1")
    names = err.rpartition("Possible here: ")[2].strip().split(", ")
    assert names == sorted(set(names))
    schema = {"train.py": schemas.TrainConfig, "evaluate.py": schemas.EvaluateConfig}[command]
    assert set(names) == {field.name for field in fields(schema)}
    # A key without + is refused by Hydra, which knows the composed configuration.
    _, err = here(command, *(["run=run"] if command == "evaluate.py" else []), "nothing=1")
    assert set(err.rpartition("Possible here: ")[2].strip().split(", ")) <= {*names, "hydra"}


@pytest.mark.parametrize("full", ["0", "1"])
@pytest.mark.parametrize("argument", ["algo.inner_lrr=1", "algo.inner_lr=-1", "+trainer.foo=1", "logger=null"])
def test_the_message_stands_alone_whatever_hydra_is_told(
    argument: str, full: str, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", full)
    status, err = here("train.py", argument)
    assert status == 1
    assert err.startswith("\ntrain.py: "), err
    assert err.count("\n") == 2, err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"name: mine\n_target_: [", "mine.yaml, line 2, is no YAML"),
        (b"name: mine\n  a: 1\n b: 2\n", "mine.yaml, line"),
        (b"name: mine\n\tx: 1\n", "mine.yaml, line 2"),
        (b"name: \xff\xfe\n", "mine.yaml is no YAML"),
        (b"name: a\x00b\n", "mine.yaml is no YAML"),
        (b"- a\n- b\n", "net.name is missing"),
        (b"", "net"),
    ],
)
def test_a_broken_file_is_named_with_its_line(content: bytes, said: str, here: Here, tmp_path: Path) -> None:
    (tmp_path / "mine" / "net").mkdir(parents=True)
    (tmp_path / "mine" / "net" / "mine.yaml").write_bytes(content)
    status, err = here("train.py", f"hydra.searchpath=[file://{tmp_path / 'mine'}]", "net=mine", *TINY)
    assert status == 1
    assert "Traceback" not in err
    assert said in err
    assert not (tmp_path / "runs").exists()


def test_a_circle_of_causes_ends() -> None:
    first, second = HydraException("first"), OmegaConfBaseException("second")
    first.__context__, second.__context__ = second, first
    assert explain(first) == "first"


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("evaluate.py", [], "which run? python evaluate.py run=RUN, its directory"),
        ("evaluate.py", ["test.episodes=5"], "which run? python evaluate.py run=RUN, its directory"),
        ("evaluate.py", ["run="], "which run? python evaluate.py run=RUN, its directory"),
        ("evaluate.py", ["somewhere"], "somewhere: write KEY=VALUE, such as run=somewhere"),
        ("train.py", ["maml"], "maml: write KEY=VALUE, such as algo=maml"),
        ("train.py", ["algo=protonet"], "real targets: use data of classes, as data=glyphs"),
    ],
)
def test_what_is_missing_is_named(script: str, arguments: list[str], said: str, here: Here) -> None:
    status, err = here(script, *arguments)
    assert status == 1
    assert said in err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("logger.tensorboard={a:1}", "logger.tensorboard={a:1}: a value of this kind is not possible here"),
        ("algo.width=99999999999999999999", "this algorithm cannot be built on this net: TypeError: "),
        ("net.hidden=[99999999999999999999]", "this net cannot be built: TypeError: "),
        (
            "data=hyperplane data.dimensions=99999999999999999999 net=linear",
            "these tasks cannot be built: ValueError: Maximum allowed dimension exceeded",
        ),
        ("algo.accumulate=99999999999999999999", "accumulate must be at most 1,000,000, got 99999999999999999999"),
        ("trainer.extra=${seed}", "trainer.extra must have keys, got ${seed}, which is 0"),
        ("test=${seed}", "test must have keys, got ${seed}, which is 0"),
    ],
)
def test_what_odd_values_once_found(override: str, said: str, here: Here, tmp_path: Path) -> None:
    status, err = here("train.py", "algo=hybrid", *TINY, "logger=csv", *override.split())
    assert (status, err.strip().splitlines()[-1][: len(said) + 10]) == (1, f"train.py: {said}"[: len(said) + 10])
    assert not list(tmp_path.rglob("*"))
