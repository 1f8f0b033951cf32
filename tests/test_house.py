"""The house: no room imports from a storey above its own, no circle, and only two rooms know Hydra."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "innerloop"

# From the ground up. A room imports from itself and from storeys below its own; rooms side by side are strangers.
STOREYS = [
    {"errors"},
    {"devices"},
    {"episodes", "metrics"},
    {"nets", "datasets"},
    {"backbones"},
    {"adaptation", "tasks"},
    {"learners", "datamodule"},
    {"runs"},
    {"sweeps", "practice"},
]
STOREY = {room: number for number, rooms in enumerate(STOREYS) for room in rooms}

# Rooms below that a room must not know all the same.
STRANGERS = {"learners": {"tasks", "datasets", "backbones"}, "adaptation": {"datasets", "backbones"}}
HYDRA = {"hydra", "omegaconf"}
KNOW_HYDRA = {"runs", "sweeps"}

# Within runs: what a run leaves does not know how it is made.
BELOW_TRAINING = ("innerloop.runs.report", "innerloop.runs.callbacks", "innerloop.runs.tracking")
TRAINING = ("build", "checks", "config", "evaluate", "load", "train", "trainer")

# Modules that a command imports before it answers --help, or a sweep's parent process imports at all.
LIGHT = [
    "devices.startup",
    "errors",
    "runs.command",
    "runs.config",
    "runs.keys",
    "runs.locks",
    "runs.record",
    "runs.schemas",
    "runs.signatures",
    "sweeps.command_line",
    "sweeps.grid",
    "sweeps.jobs",
    "sweeps.record",
    "sweeps.search",
    "sweeps.study",
    "sweeps.sweep",
]
HEAVY = {"torch", "lightning", "torchmetrics", "wandb", "matplotlib", "numpy", "scipy", "optuna"}


def imported(module: str, source: str, is_package: bool = False, in_functions: bool = True) -> Iterator[str]:
    """Yield the dotted names that a module imports, with the names that `from` imports appended."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    tree = ast.parse(source)
    for node in ast.walk(tree) if in_functions else at_import(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that run when the module is imported, without functions and type checkers' blocks."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.Lambda) or (
            isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        ):
            continue
        yield child
        yield from at_import(child)


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    """Return what a module of this dotted name, `innerloop.…`, imports and must not."""
    room = module.split(".")[1] if "." in module else ""
    if room and room not in STOREY:
        return [f"{module}: give the room {room} a storey in {Path(__file__).name}"]
    found = []
    for name in imported(module, source, is_package):
        top, _, rest = name.partition(".")
        other = rest.split(".")[0]
        if top in HYDRA and room not in KNOW_HYDRA:
            found.append(f"{module} imports {name}: only {', '.join(sorted(KNOW_HYDRA))} know Hydra")
        elif top == "innerloop" and other and other != room:
            # The package itself has no storey, because it is imported before any of its rooms.
            if not room:
                if name not in DOOR:
                    found.append(f"{module} imports {name}")
            elif other not in STOREY or STOREY[other] >= STOREY[room]:
                found.append(f"{module} imports {name}, which is not on a storey below")
            elif other in STRANGERS.get(room, set()):
                found.append(f"{module} imports {name}: {room} must know nothing of {other}")
        elif module.startswith(BELOW_TRAINING) and rest.split(".")[1:2] and rest.split(".")[1] in TRAINING:
            found.append(f"{module} imports {name}, which is about making runs")
    return found


DOOR = ("innerloop.runs.load.load_run", "innerloop.runs.load.Run", "innerloop.practice")
MODULES = sorted(SOURCE.rglob("*.py"))


def dotted(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_no_room_imports_from_above(path: Path) -> None:
    assert not violations(dotted(path), path.read_text(encoding="utf-8"), path.name == "__init__.py")


def test_no_modules_import_each_other_in_a_circle() -> None:
    names = {dotted(path) for path in MODULES}
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        module = dotted(path)
        found = imported(module, path.read_text(encoding="utf-8"), path.name == "__init__.py")
        known = {name if name in names else name.rpartition(".")[0] for name in found}
        graph[module] = {name for name in known & names if name != module and not is_front(name, module)}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError that names the circle


def is_front(name: str, module: str) -> bool:
    """Return True if a name is a package that a module below it or the package itself belongs to."""
    return module.startswith(f"{name}.") or (name == "innerloop")


def test_the_top_level_holds_only_the_words_that_everything_speaks() -> None:
    files = {path.name for path in SOURCE.iterdir() if path.is_file()}
    assert files == {"__init__.py", "py.typed", "datamodule.py", "episodes.py", "errors.py", "metrics.py"}
    assert {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"} <= set(STOREY)


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_files_and_functions_are_short(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 350
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


def test_scripts_are_short_and_no_library() -> None:
    scripts = list((ROOT / "scripts").rglob("*.py"))
    # Tables are the record of how numbers were made: there may be as many as there are numbers.
    assert sum(len(path.read_text().splitlines()) for path in scripts) <= 1700
    parts = {"benchmark", "benchmark_programs", "benchmark_jax", "benchmark_runs"}
    libraries = {path.stem for path in scripts} - parts
    for path in [*(ROOT / "tests").glob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        names = {name.partition(".")[0] for name in imported(path.stem, path.read_text(encoding="utf-8"))}
        assert not names & libraries, path


@pytest.mark.parametrize(
    ("module", "source", "is_package"),
    [
        ("innerloop.episodes", "import innerloop.nets", False),
        ("innerloop.nets.conv4", "from innerloop.adaptation import GradientSteps", False),
        ("innerloop.nets", "from ..tasks.base import Tasks", True),
        ("innerloop.nets.conv4", "from ..learners import MAML", False),
        ("innerloop.nets.conv4", "from .. import learners", False),
        ("innerloop.devices.ranks", "from innerloop.episodes import Episode", False),
        ("innerloop.adaptation.engine", "from innerloop import tasks", False),
        ("innerloop.adaptation.engine", "import innerloop.learners.maml as m", False),
        ("innerloop.learners.maml", "from innerloop.tasks.base import Tasks", False),
        ("innerloop.learners.maml", "from innerloop.datasets import omniglot", False),
        ("innerloop.learners.maml", "import innerloop.datamodule", False),
        ("innerloop.learners.maml", "def f():\n    from hydra.utils import instantiate", False),
        ("innerloop.learners.maml", "import omegaconf", False),
        ("innerloop.learners.maml", "if TYPE_CHECKING:\n    from omegaconf import DictConfig", False),
        ("innerloop.learners.maml", "importlib.import_module('innerloop.tasks.sinusoid')", False),
        ("innerloop.tasks.sinusoid", "from innerloop.learners import MAML", False),
        ("innerloop.datasets.omniglot", "from innerloop.learners.learner import MetaLearner", False),
        ("innerloop.datamodule", "from innerloop.learners import MetaLearner", False),
        ("innerloop.devices.ranks", "from hydra import compose", False),
        ("innerloop.runs.train", "from innerloop.sweeps.jobs import train_job", False),
        ("innerloop.runs.report.plots", "from innerloop.runs.train import train", False),
        ("innerloop.runs.callbacks.session", "from innerloop.runs.config import load_config", False),
        ("innerloop", "from innerloop.learners import MAML", True),
        ("innerloop", "from .errors import InputError", True),
        ("innerloop.attic", "import math", False),
        ("innerloop.nets.conv4", "from innerloop.attic import anything", False),
    ],
)
def test_a_planted_violation_is_caught(module: str, source: str, is_package: bool) -> None:
    assert violations(module, source, is_package)


@pytest.mark.parametrize(
    ("module", "source", "is_package"),
    [
        ("innerloop.nets.conv4", "from innerloop.nets.norm import NORMS\nfrom .dense import MLP", False),
        ("innerloop.nets", "from .conv4 import Conv4\nfrom . import dense", True),
        ("innerloop.learners.maml", "from innerloop.adaptation import Engine\nfrom innerloop import metrics", False),
        ("innerloop.tasks.images", "from ..datasets.images import LabelledImages\nimport torch.nn", False),
        ("innerloop.runs.build", "from hydra import compose\nfrom innerloop.learners import MAML", False),
        ("innerloop.sweeps.read", "from innerloop.runs.compare import read_run", False),
        ("innerloop", "def load():\n    from innerloop.runs.load import load_run", True),
    ],
)
def test_what_is_allowed_is_not_caught(module: str, source: str, is_package: bool) -> None:
    assert not violations(module, source, is_package)


@pytest.mark.parametrize("name", LIGHT)
def test_what_the_command_line_needs_is_light(name: str) -> None:
    """Neither torch nor anything else that takes seconds is imported with these, directly or through another module."""
    paths = {dotted(path): path for path in MODULES}
    todo, seen = [f"innerloop.{name}"], set()
    while todo:
        module = todo.pop()
        seen.add(module)
        path = paths[module]
        for other in imported(module, path.read_text(encoding="utf-8"), path.name == "__init__.py", False):
            assert other.partition(".")[0] not in HEAVY, f"{module} imports {other}"
            owner = other if other in paths else other.rpartition(".")[0]
            todo += [owner] if owner in paths and owner not in seen else []
