"""No key of a YAML file is without effect: something takes it, and makes something of it."""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from innerloop.datamodule import EpisodeDataModule
from innerloop.datasets import folder
from innerloop.learners.keywords import flattened
from innerloop.runs import schemas
from innerloop.runs.build import DATA_MODULE_KEYS
from innerloop.runs.schemas import (
    EvaluateConfig,
    LoggerConfig,
    MLFlowConfig,
    TensorBoardConfig,
    TrainConfig,
    TrainerConfig,
    WandbConfig,
)
from innerloop.runs.signatures import locate
from innerloop.runs.sources import OF_SOURCES
from innerloop.runs.tracking import TRACKERS
from innerloop.tasks.images import FewShotImages

schemas.register()
ROOT = Path(__file__).resolve().parents[1]
CONF, SOURCE = ROOT / "conf", ROOT / "src" / "innerloop"
LOGGERS = {"wandb": WandbConfig, "tensorboard": TensorBoardConfig, "mlflow": MLFlowConfig}
SCHEMAS = (TrainConfig, EvaluateConfig, TrainerConfig, schemas.TestConfig, *LOGGERS.values())
READ_SCHEMAS = ("runs/*.py", "runs/tracking/*.py", "sweeps/*.py", "../../*.py")


def names(*groups: str) -> list[str]:
    """The files of these groups, such as `algo/maml`."""
    return sorted(str(p.relative_to(CONF).with_suffix("")) for g in groups for p in (CONF / g).glob("*.yaml"))


def attributes_read() -> set[str]:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in SOURCE.rglob("*.py")]
    nodes = [n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
    return {n.attr for n in nodes if isinstance(n.ctx, ast.Load)}


ATTRIBUTES = attributes_read()
INTERPOLATED = {key for path in CONF.rglob("*.yaml") for key in re.findall(r"\$\{(\w+\.\w+)\}", path.read_text())}


# Keys of what a `_target_` names.


def taker(target: Callable[..., Any], name: str) -> Any:
    """The function whose signature has this keyword, where `signatures.parameters` finds it; None: none has."""
    for function in [vars(c).get("__init__") for c in target.__mro__] if inspect.isclass(target) else [target]:
        if function is not None:
            taken = inspect.signature(function).parameters
            if name in taken:
                return function
            if not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
                break
    return None


def makes_use(function: Callable[..., Any], name: str) -> bool:
    """Whether a function reads its parameter, or keeps it as an attribute that something reads.

    A field of settings, which `flattened` makes a parameter of, is such an attribute.
    """
    if name not in inspect.signature(inspect.unwrap(function), follow_wrapped=False).parameters:
        return name in ATTRIBUTES
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    kept: dict[ast.AST, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target, value in assigned(node):
                if isinstance(target, ast.Attribute):
                    kept[value] = target.attr
    reads = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Load)]
    return any(n not in kept or kept[n] in ATTRIBUTES for n in reads)


def assigned(node: ast.Assign) -> Iterator[tuple[ast.expr, ast.expr]]:
    for target in node.targets:
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            yield from zip(target.elts, node.value.elts, strict=True)
        else:
            yield target, node.value


def without_effect(keys: Iterable[str], targets: Sequence[Callable[..., Any]]) -> list[str]:
    """The keys that none of the targets takes, or that the first to take it makes nothing of."""
    found = []
    for key in keys:
        takers = [function for target in targets if (function := taker(target, key))]
        if not takers:
            found.append(f"{key}: nothing takes it")
        elif not makes_use(takers[0], key):
            found.append(f"{key}: {takers[0].__qualname__} takes it and makes nothing of it")
    return found


def unread(node: dict[str, Any], group: str) -> list[str]:
    """The keys of a data, net or algo configuration that no code reads."""
    keys = [key for key in node if key not in ("name", "_target_", "dataset") and f"{group}.{key}" not in INTERPOLATED]
    of_module = [key for key in keys if group == "data" and key in DATA_MODULE_KEYS]
    targets = [locate(node[key], key) for key in ("dataset", "_target_") if key in node]
    found = without_effect(of_module, [EpisodeDataModule])
    if "sources" in node:  # a mixture's other settings are those of its sources, whose families and loaders take them
        targets += [FewShotImages, folder.load]
        keys = [key for key in keys if key not in OF_SOURCES]
    return found + without_effect([key for key in keys if key not in of_module], targets)


def merged(name: str) -> dict[str, Any]:
    """A file of a group with the files of its own group that its defaults name."""
    content = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    found: dict[str, Any] = {}
    for entry in content.pop("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            found |= merged(f"{name.partition('/')[0]}/{entry.partition('@')[0]}")
    return found | content


@pytest.mark.parametrize("name", names("algo", "data", "net"))
def test_keys_of_a_target_are_read(name: str) -> None:
    assert unread(merged(name), name.partition("/")[0]) == []


@pytest.mark.parametrize("group", ["algo", "data", "recipe"])
def test_every_part_is_part_of_something(group: str) -> None:
    lines = [line for name in names(group, f"{group}/part") for line in (CONF / f"{name}.yaml").read_text().split("\n")]
    named = {line.strip(" -").partition("@")[0].removeprefix("part/") for line in lines}
    assert {Path(part).name for part in names(f"{group}/part")} <= named


class Planted:
    def __init__(self, used: int, kept: int, dropped: int, forgotten: int, net: int = 0, **more: int) -> None:
        self.planted, self.nobody_reads_this = kept + used, dropped
        self.net = net


@dataclass(frozen=True)
class PlantedSettings:
    name: int = 0  # everybody reads an attribute of this name
    dropped: int = 0


class Settled:
    @flattened
    def __init__(self, used: int = 0, *, settings: PlantedSettings = PlantedSettings()) -> None:
        self.used = used


def test_a_planted_field_of_settings_without_effect_is_caught() -> None:
    assert without_effect(["name", "dropped", "other"], [Settled]) == [
        "dropped: Settled.__init__ takes it and makes nothing of it",
        "other: nothing takes it",
    ]


class SettledHeir(Settled):
    @flattened
    def __init__(self, *, settings: PlantedSettings = PlantedSettings(name=3), **more: int) -> None:
        super().__init__(**more)
        self.settings = settings


def test_fields_of_settings_are_keywords_with_the_defaults_of_their_instance() -> None:
    signature = inspect.signature(SettledHeir)
    assert {name: p.default for name, p in signature.parameters.items() if name != "more"} == {
        "name": 3,
        "dropped": 0,
    }
    assert SettledHeir(dropped=4, used=5).settings == PlantedSettings(3, 4)
    assert SettledHeir(dropped=4, used=5).used == 5
    assert SettledHeir(settings=PlantedSettings(1, 2), name=7).settings == PlantedSettings(7, 2)
    with pytest.raises(TypeError, match="unknown"):
        SettledHeir(unknown=1)


class Heir(Planted):
    def __init__(self, own: int = 0, **more: int) -> None:
        super().__init__(own, **more)


@pytest.mark.parametrize(
    ("key", "said"), [("dropped", "nothing of it"), ("forgotten", "nothing of it"), ("k", "takes")]
)
@pytest.mark.parametrize("target", [Planted, Heir])
def test_a_planted_key_without_effect_is_caught(key: str, said: str, target: type) -> None:
    (found,) = without_effect(["used", "kept", "net", key], [target])
    assert found.startswith(f"{key}: ")
    assert said in found


def test_a_planted_key_of_a_file_is_caught() -> None:
    assert unread(merged("data/omniglot") | {"num_worker": 1}, "data") == ["num_worker: nothing takes it"]
    assert unread(merged("algo/boil") | {"encoder": "deepsets"}, "algo") == ["encoder: nothing takes it"]


# Keys of the schemas.


def reads(source: str) -> set[str]:
    """What a module reads by name: attributes, ["key"], .get("key"), and names listed for a loop or a command line."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            found.add(node.slice.value)
        elif isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple):
            found |= {n.value for n in node.iter.elts if isinstance(n, ast.Constant)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"\w+=\w+", node.value):
            found.add(node.value.partition("=")[0])
    return found


def unread_fields(schema: type, source: str) -> list[str]:
    read = reads(source)
    return [f.name for f in fields(schema) if f.name not in read]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_fields_of_a_schema_are_read(schema: type) -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for name in READ_SCHEMAS for path in SOURCE.glob(name))
    assert unread_fields(schema, source) == []


def test_every_logger_that_can_be_set_is_one_that_starts() -> None:
    assert [f.name for f in fields(LoggerConfig)] == list(TRACKERS) == list(LOGGERS)


def test_a_planted_field_is_caught() -> None:
    @dataclass
    class Schema:
        episodes: int
        seed: int
        forgotten: int
        set_only: int

    source = 'cfg.test.episodes\nplain["test"]["seed"]\nforgotten = 1\ncfg.set_only = 1'
    assert unread_fields(Schema, source) == ["forgotten", "set_only"]


def strangers(node: dict[str, Any], schema: type) -> list[str]:
    return [key for key in node if key not in ("defaults", "hydra") and key not in [f.name for f in fields(schema)]]


@pytest.mark.parametrize(
    ("name", "schema"),
    [("train", TrainConfig), ("evaluate", EvaluateConfig)]
    + [(name, TrainerConfig) for name in names("trainer")]
    + [(name, LoggerConfig) for name in names("logger")],
)
def test_files_of_a_schema_have_only_its_keys(name: str, schema: type) -> None:
    content = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    assert strangers(content, schema) == []
    assert strangers(content.get("test", {}), schemas.TestConfig) == []
    for logger, schema_of_logger in LOGGERS.items():
        assert strangers(content.get(logger) or {}, schema_of_logger) == []
    assert strangers({**content, "planted": 1}, schema) == ["planted"]


# Recipes and experiments.


def unread_of(cfg: DictConfig) -> list[str]:
    """The keys of a whole configuration that no code reads."""
    groups = {name: dict(cfg[name]) for name in ("algo", "data", "net")}
    found = [f"{group}.{key}" for group, node in groups.items() for key in unread(node, group)]
    return found + strangers(dict(cfg), TrainConfig)


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


def overrides_of(recipe: str) -> list[str]:
    """The data and the algorithm in the name of a recipe."""
    if recipe == "none":
        return ["recipe=none"]
    algos = [a for a in (n.partition("/")[2] for n in names("algo")) if recipe.endswith(f"_{a}")]
    algo = max(algos, key=len)
    return [f"data={recipe.removesuffix(f'_{algo}')}", f"algo={algo}"]


@pytest.mark.parametrize("name", names("recipe", "experiment"))
def test_recipes_and_experiments_set_only_what_is_read(name: str) -> None:
    group, _, stem = name.partition("/")
    assert unread_of(composed(*(overrides_of(stem) if group == "recipe" else [f"experiment={stem}"]))) == []


def test_a_planted_key_of_a_recipe_is_caught() -> None:
    # Merged as a recipe's keys are: Hydra adds to algo what it does not have.
    cfg = composed("data=omniglot", "+algo.inner_step=1", "+data.way=5", "+more=1")
    said = ["algo.inner_step: nothing takes it", "data.way: nothing takes it", "more"]
    assert unread_of(cfg) == said


def test_every_group_is_looked_at() -> None:
    groups = {str(p.parent.relative_to(CONF)) for p in CONF.rglob("*.yaml")}
    looked_at = {
        ".",
        "algo",
        "algo/part",
        "callbacks",  # in test_callbacks.py
        "data",
        "data/part",
        "debug",  # in test_debug.py
        "debug/part",
        "experiment",
        "hparams_search",  # in test_search.py
        "hparams_search/part",
        "launcher",  # in test_sweep.py
        "logger",
        "net",
        "recipe",
        "recipe/part",
        "trainer",
    }
    assert groups <= looked_at
