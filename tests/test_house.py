"""The house: no room imports from a floor above its own, and each knows only what it should (DESIGN, section 3)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "innerloop"

# From the ground up. A room imports from itself and from floors below its own; so rooms side by side are strangers.
FLOORS = [
    {"errors", "memory", "precision", "drawing"},
    {"episodes", "ranks", "locks"},
    {"nets", "datasets"},
    {"adaptation", "tasks", "metrics", "plots"},
    {"learners", "datamodule", "callbacks", "tracking"},
    {"reporting", "record"},
    {"config", "jobs", "naming"},
    {"sweep"},
    {"search"},
    {"run"},
    {"evaluation", "practice"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# Rooms that are below, and still none of their business.
STRANGERS = {
    "learners": {"tasks", "datasets"},
    "adaptation": {"datasets"},
    "metrics": {"nets", "datasets"},
    "callbacks": {"datasets"},
}
HYDRA = {"hydra", "omegaconf"}
KNOW_HYDRA = {"config", "naming", "sweep", "search", "run", "evaluation", "practice"}


def imported(module: str, source: str, is_package: bool = False) -> Iterator[str]:
    """The dotted names that a module imports anywhere, in functions too; names brought in by `from` are appended."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    """What a module of this dotted name, `innerloop.…`, must not import but does."""
    room = module.split(".")[1] if "." in module else ""
    if room and room not in FLOOR:
        return [f"{module}: give the room {room} a floor in {Path(__file__).name}"]
    found = []
    for name in imported(module, source, is_package):
        top, _, rest = name.partition(".")
        other = rest.split(".")[0]
        if top in HYDRA and room not in KNOW_HYDRA:
            found.append(f"{module} imports {name}: only {', '.join(sorted(KNOW_HYDRA))} know Hydra")
        elif top == "innerloop" and other and other != room:
            # The package itself has no floor: whoever imports any room runs it first.
            if not room or other not in FLOOR or FLOOR[other] >= FLOOR[room]:
                found.append(f"{module} imports {name}, which is not on a floor below")
            elif other in STRANGERS.get(room, set()):
                found.append(f"{module} imports {name}: {room} is to know nothing of {other}")
    return found


MODULES = sorted(SOURCE.rglob("*.py"))


def dotted(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_no_room_imports_from_above(path: Path) -> None:
    assert not violations(dotted(path), path.read_text(encoding="utf-8"), path.name == "__init__.py")


def test_every_room_is_there_to_be_checked() -> None:
    rooms = {dotted(path).split(".")[1] for path in MODULES if "." in dotted(path)}
    assert {"episodes", "nets", "adaptation", "learners", "tasks", "datasets", "datamodule", "run"} <= rooms


@pytest.mark.parametrize(
    ("module", "source", "is_package"),
    [
        ("innerloop.episodes", "import innerloop.nets", False),
        ("innerloop.nets.conv4", "from innerloop.adaptation import GradientSteps", False),
        ("innerloop.nets", "from ..tasks.base import Tasks", True),
        ("innerloop.nets.conv4", "from ..learners import MAML", False),
        ("innerloop.nets.conv4", "from .. import learners", False),
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
        ("innerloop.reporting", "from innerloop import run", False),
        ("innerloop.reporting", "from hydra import compose", False),
        ("innerloop.run", "from innerloop.evaluation import evaluate_run", False),
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
        ("innerloop.run", "from hydra import compose\nfrom innerloop.learners import MAML", False),
    ],
)
def test_what_is_allowed_is_not_caught(module: str, source: str, is_package: bool) -> None:
    assert not violations(module, source, is_package)


@pytest.mark.parametrize("name", ["config", "jobs", "sweep", "search", "errors", "__init__"])
def test_what_the_command_line_needs_to_answer_at_once_is_light(name: str) -> None:
    """`--help` imports these: neither torch nor Lightning nor anything else that takes seconds."""
    source = (SOURCE / f"{name}.py").read_text(encoding="utf-8")
    found = {other.split(".")[0] for other in imported(f"innerloop.{name}", source)}
    assert not found & {"torch", "lightning", "torchmetrics", "wandb", "matplotlib", "numpy"}
