"""What a configuration may say: schemas, checks against the signatures that it fills, and the face of the commands.

Light on purpose: no torch here, so that `--help` and `--cfg job` answer at once.
"""

import difflib
import importlib
import inspect
import os
import re
import secrets
import sys
import traceback
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from innerloop.errors import DivergedError, FailedRuns, InputError, RankError, Stopped

CONFIG = "config.yaml"

# The extra of pyproject.toml that brings a launcher.
LAUNCHERS = {"joblib": "sweep", "submitit_local": "sweep", "submitit_slurm": "sweep", "ray": "ray"}


@dataclass
class TrainerConfig:
    """How long and on what a run trains."""

    max_steps: int = MISSING
    val_every: int = MISSING
    val_episodes: int = MISSING
    accelerator: str = MISSING
    devices: Any = MISSING
    strategy: str = MISSING
    precision: str = MISSING
    threads: int | None = MISSING
    log_every: int = MISSING
    deterministic: bool = MISSING


@dataclass
class TestConfig:
    """The final test."""

    episodes: int | None = MISSING
    seed: int = MISSING
    steps: str = MISSING


@dataclass
class WandbConfig:
    """A Weights & Biases run."""

    mode: str = MISSING
    project: str = MISSING
    entity: str | None = MISSING
    name: str | None = MISSING
    group: str | None = MISSING
    tags: list[str] = MISSING
    # With defaults, for runs that were recorded before there were these keys.
    artifacts: bool = False
    histograms_every: int | None = None


@dataclass
class TensorBoardConfig:
    """TensorBoard's event files in the run directory."""

    histograms_every: int | None = MISSING


@dataclass
class MLFlowConfig:
    """A run in an MLflow store."""

    uri: str = MISSING
    experiment: str = MISSING


@dataclass
class LoggerConfig:
    """Loggers besides the CSV file that every run has."""

    wandb: WandbConfig | None = None
    tensorboard: TensorBoardConfig | None = None
    mlflow: MLFlowConfig | None = None


@dataclass
class TrainConfig:
    """`train.py`. data, net and algo are checked against the signatures of their targets, see `arguments`."""

    algo: Any = MISSING
    data: Any = MISSING
    net: Any = MISSING
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    test: TestConfig = field(default_factory=TestConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    seed: int = MISSING
    resume: str | None = MISSING
    sweep: str | None = MISSING
    debug: bool = MISSING


@dataclass
class EvaluateConfig:
    """`evaluate.py`."""

    run: str = MISSING
    checkpoint: str = MISSING
    data: Any = MISSING
    net: Any = MISSING
    algo: Any = MISSING
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    test: TestConfig = field(default_factory=TestConfig)
    debug: bool = MISSING
    seed: int = MISSING


_token = secrets.token_hex(3)


def register() -> None:
    """Makes the schemas and the resolvers known to Hydra."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="evaluate_schema", node=EvaluateConfig)
    # Runs that start in the same second on different machines still get directories of their own.
    OmegaConf.register_new_resolver("token", lambda: _token, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("either", lambda first, second: first or second, replace=True)


def load_config(run_dir: Path) -> DictConfig:
    """The configuration that a run recorded. Raises InputError if the directory holds no run."""
    path = run_dir / CONFIG
    if not path.is_file():
        raise InputError(f"{run_dir} is no run directory: it has no {CONFIG}")
    try:
        cfg = OmegaConf.load(path)
        assert isinstance(cfg, DictConfig)
    except (OmegaConfBaseException, YAMLError, AssertionError) as error:
        raise InputError(f"{path} is no configuration: {error}") from error
    return cfg


def register_run(run_dir: str | None) -> None:
    """Makes a run's recorded configuration what an evaluation starts from: `data=of_run`, `net=of_run`, `recorded`."""
    cfg = load_config(Path(run_dir)) if run_dir else OmegaConf.create({"net": {}, "data": {}})
    store = ConfigStore.instance()
    store.store(group="data", name="of_run", node=cfg.data)
    store.store(group="net", name="of_run", node=cfg.net)
    kept = {name: cfg[name] for name in ("algo", "trainer", "test", "seed") if name in cfg}
    if "trainer" in kept:
        kept["trainer"] = {**kept["trainer"], "devices": 1, "strategy": "auto"}  # however many devices trained it
    store.store(name="recorded", node=OmegaConf.create(kept))


def locate(path: str, key: str) -> Callable[..., Any]:
    """The class or function at a dotted path; InputError naming the key if there is none."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{key}={path}: there is no such class or function ({error})") from error


def parameters(target: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """name -> (type, default) of all keywords that a class or function takes, through `**kwargs` to its bases."""
    found: dict[str, tuple[Any, Any]] = {}
    functions: list[Any] = [vars(c).get("__init__") for c in target.__mro__] if inspect.isclass(target) else [target]
    for function in filter(None, functions):
        signature = inspect.signature(function)
        hints = typing.get_type_hints(function)
        for name, parameter in signature.parameters.items():
            if name != "self" and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(name, (hints.get(name, Any), parameter.default))
        if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
            break
    return found


def arguments(node: Mapping[str, Any], target: Callable[..., Any], key: str) -> dict[str, Any]:
    """The node's values, converted to the types that the target's signature declares.

    Raises InputError naming the key and what is possible, for an unknown name or a value of the wrong type.
    """
    known = parameters(target)
    for name in node:
        if name not in known:
            raise InputError(unknown_key(f"{key}.{name}", known))
    fields = [(name, _for_omegaconf(known[name][0]), field(default=MISSING)) for name in node]
    schema = OmegaConf.structured(make_dataclass("Arguments", fields))
    for name, value in node.items():
        try:
            schema[name] = value
        except OmegaConfBaseException as error:
            raise InputError(f"{key}.{name}={value}: {str(error).splitlines()[0]}") from error
    missing = [name for name in node if OmegaConf.is_missing(schema, name)]
    if missing:
        raise InputError(f"{key}.{missing[0]} must be given")
    return typing.cast(dict[str, Any], OmegaConf.to_container(schema, resolve=True))


def _for_omegaconf(hint: Any) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Sequence, list):
        return list[inner[0]]  # type: ignore[valid-type]
    if origin in (typing.Union, types.UnionType) or hint in (int, float, str, bool):
        return hint
    return Any


def unknown_key(full_key: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    """What to say of a key that does not exist."""
    *path, name = full_key.split(".")
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f" Did you mean {'.'.join([*path, close[0]])}?" if close else ""
    return f"unknown key {full_key}.{hint} Possible here: {', '.join(sorted(map(str, known)))}"


def explain(error: BaseException) -> str:
    """One short message for an error of the user's making."""
    cause: BaseException | None = error if not isinstance(error, InputError) else None
    while cause is not None:
        parent, full_key = getattr(cause, "parent_node", None), getattr(cause, "full_key", None)
        if isinstance(cause, OmegaConfBaseException) and isinstance(parent, DictConfig) and full_key:
            last = full_key.rpartition(".")[2]
            if last not in parent:
                return unknown_key(full_key, [str(k) for k in parent])
            return f"{full_key}: {str(cause).splitlines()[0]}"
        cause = cause.__cause__
    message = str(error).partition("\nConfig search path")[0].rstrip()
    launcher = re.search(r"hydra/launcher/(\w+)'", message)
    if launcher and launcher[1] in LAUNCHERS:
        return f'launcher={launcher[1]} needs a package: pip install -e ".[{LAUNCHERS[launcher[1]]}]"'
    return message


def below_nothing(error: AssertionError) -> str | None:
    """What to say where OmegaConf (2.3) asserts that an overridden key's parent is there; None for other errors."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if frame.f_code is not OmegaConf.update.__code__:
        return None
    key = frame.f_locals["key"]
    return f"{key} cannot be set: this configuration has no {key.rpartition('.')[0]}"


def given(key: str, argv: Sequence[str]) -> str | None:
    """The value of `key=value` on the command line."""
    return next((a.partition("=")[2].strip("\"'") for a in argv if a.startswith(f"{key}=")), None)


OF_THE_USER = (InputError, HydraException, OmegaConfBaseException, DivergedError, FailedRuns, RankError, Stopped)
"""Errors that end a command in one line."""


def command(task: Callable[[], Any]) -> None:
    """Runs a Hydra application: a mistake of the user's ends in one short message, status 1 and no directory.

    `debug=true` shows the whole traceback. Ctrl-C ends with status 130.
    """
    # Hydra would print its own half of the story; with this it hands every error on.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    status, message = 1, "interrupted"
    try:
        task()
        return
    except (*OF_THE_USER, AssertionError) as error:
        told = below_nothing(error) if isinstance(error, AssertionError) else explain(error)
        if told is None or "debug=true" in [a.lower() for a in sys.argv]:
            raise
        message, status = told, 130 if isinstance(error, Stopped) else 1
    except (KeyboardInterrupt, SystemExit) as end:
        # Lightning makes an exit with status 1 of a Ctrl-C that comes before or after the steps of training.
        if isinstance(end, SystemExit) and not isinstance(end.__context__, KeyboardInterrupt):
            raise
        status = 130
    print(f"\n{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    sys.exit(status)


def remove_empty(directory: Path) -> None:
    """Removes a directory if it is empty, and then those above it that are, as far as the working directory."""
    directory = directory.resolve()
    for path in [directory, *(p for p in directory.parents if Path.cwd().resolve() in p.parents)]:
        try:
            path.rmdir()
        except OSError:
            return
