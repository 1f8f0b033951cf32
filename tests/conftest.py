"""What the tests share: double precision, small meta-batches, plain losses, a quiet Trainer, and tiny runs."""

import fcntl
import gc
import logging
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from innerloop.episodes import Episode, Samples, Weights, apply

# Files in the order in which the workers start them: the slowest first, so that none is left for the end.
SLOWEST = (
    "test_typed_commands",
    "test_killed_runs",
    "test_notebooks",
    "test_commands",
    "test_benchmark",
    "test_odd_values",
    "test_sweep",
    "test_compiled",
    "test_ranks",
    "test_wandb",
    "test_search",
    "test_golden",
    "test_load",
    "test_mistakes",
    "test_resume",
    "test_adapt",
    "test_picture_folders",
    "test_callbacks",
    "test_extended_sweep",
    "test_init_from",
    "test_strangers",
    "test_ddp",
    "test_tracking",
)


gc.disable()  # for what is imported; see innerloop.devices.startup


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


LOCKS = "INNERLOOP_TEST_LOCKS"


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        os.environ[LOCKS] = tempfile.mkdtemp()  # the workers inherit it


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop(LOCKS))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let a test that is marked as `alone` run while no other worker runs a test."""
    with Path(os.environ[LOCKS], "turn").open("w") as turn, Path(os.environ[LOCKS], "room").open("w") as room:
        # Whoever waits to be alone holds the turn, so that the others cannot go on taking the room.
        fcntl.flock(turn, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        fcntl.flock(turn, fcntl.LOCK_UN)
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_handler_stays() -> Iterator[None]:
    """A handler that a command run in this process gave to the root logger writes to a stream of its own test only."""
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    for handler in [h for h in root.handlers if type(h) is logging.StreamHandler and h not in before]:
        root.removeHandler(handler)


@pytest.fixture
def float64() -> Iterator[None]:
    """Double precision by default: nets, batches and tolerances of 1e-10."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def quiet() -> None:
    """Ignores, until the running test or fixture ends, what Lightning says of Trainers as small as a test's."""
    # No worker processes: the data are a few tensors made on the spot.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # Training alone, without validation, is what most tests look at.
    warnings.filterwarnings("ignore", message="You defined a `validation_step` but have no `val_dataloader`")
    # Lightning 2.6 asks torch 2.13 in an old way; nothing that we could write differently.
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.* is deprecated", category=FutureWarning)
    # Lightning tells whoever has no TensorBoard of its default logger.
    warnings.filterwarnings("ignore", message="Starting from v1.9.0, `tensorboardX` has been removed")
    # GPUs that happen to be there are left alone on purpose.
    warnings.filterwarnings("ignore", message=".*GPU available but not used.*")


def trainer(**options: Any) -> Trainer:
    """A Trainer on the CPU that writes nothing."""
    quiet()
    silent = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    return Trainer(**(silent | options))


def loader(batches: Sequence[Episode]) -> DataLoader:
    """These meta-batches, in this order."""
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def squared(net: nn.Module, weights: Weights, samples: Samples) -> Tensor:
    return F.mse_loss(apply(net, weights, samples.x), samples.y)


def cross_entropy(net: nn.Module, weights: Weights, samples: Samples) -> Tensor:
    return F.cross_entropy(apply(net, weights, samples.x), samples.y)


def logistic(net: nn.Module, weights: Weights, samples: Samples) -> Tensor:
    logits = apply(net, weights, samples.x).squeeze(-1)
    return F.binary_cross_entropy_with_logits(logits, samples.y.to(logits.dtype))


def regression_batch(tasks: int, shots: int, queries: int, size: int = 3, targets: int = 1, seed: int = 0) -> Episode:
    """Random points with random targets."""
    rng = torch.Generator().manual_seed(seed)

    def samples(n: int) -> Samples:
        x = torch.randn(tasks, n, size, generator=rng)
        return Samples(x, torch.randn(tasks, n, targets, generator=rng))

    return Episode(samples(shots), samples(queries))


def class_batch(
    tasks: int, ways: int, shots: int, queries: int, shape: tuple[int, ...] = (1, 17, 17), seed: int = 0
) -> Episode:
    """Classes that are noise around a random image of their own; labels in order, `shots` and `queries` a class.

    17 pixels and not 16: four halvings leave more than one, and a norm of one pixel would be constant.
    """
    rng = torch.Generator().manual_seed(seed)
    means = torch.randn(tasks, ways, 1, *shape, generator=rng)

    def samples(n: int) -> Samples:
        x = means + torch.randn(tasks, ways, n, *shape, generator=rng)
        return Samples(x.flatten(1, 2), torch.arange(ways).repeat_interleave(n).expand(tasks, -1).clone())

    return Episode(samples(shots), samples(queries))


def task(batch: Episode, i: int) -> Episode:
    """The i-th task of a meta-batch."""
    return Episode(*(Samples(part.x[i], part.y[i]) for part in batch))


def randomise(module: nn.Module, seed: int = 0, scale: float = 0.3) -> None:
    """Adds noise to every parameter: generators no longer write zeros, norms no longer scale by one."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn(p.shape, generator=rng))


ROOT = Path(__file__).resolve().parents[1]


def run_script(name: str, *arguments: object) -> None:
    """Run a file of scripts/, or one named by its path, in this process, as if it were called with these arguments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        runpy.run_path(str((ROOT / "scripts" / name).with_suffix(".py")), run_name="__main__")


TINY = (
    "trainer=cpu",
    "trainer.max_steps=8",
    "trainer.val_every=4",
    "trainer.val_episodes=4",
    "trainer.log_every=2",
    "trainer.threads=1",
    "test.episodes=6",
    "data.meta_batch_size=2",
)


SHORT = (
    "trainer.max_steps=40",
    "trainer.val_every=15",
    "trainer.val_episodes=20",
    "trainer.log_every=10",
    "trainer.threads=1",
    "trainer.accelerator=cpu",
    "test.episodes=30",
)


def start(script: str, *arguments: str, cwd: Path, **variables: str) -> subprocess.Popen[str]:
    """A script in a process of its own, with these environment variables, empty ones unset, and no others of W&B's."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    environment |= {"WANDB_MODE": "offline"} | variables
    environment = {k: v for k, v in environment.items() if v}
    return subprocess.Popen(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=cwd,
        env=environment,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(script: str, *arguments: str, cwd: Path, status: int = 0, **variables: str) -> tuple[str, str]:
    """A script's output and errors, once it has ended with this exit status."""
    process = start(script, *arguments, cwd=cwd, **variables)
    out, err = process.communicate(timeout=240)
    assert process.returncode == status, (
        f"{script} {' '.join(arguments)} ended with {process.returncode}:\n{out}\n{err}"
    )
    return out, err


Here = Callable[..., tuple[int, str]]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Here:
    """A script's exit status and stderr, run in this process: starting Python and torch anew takes seconds."""

    def status(script: str, *arguments: str) -> int:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    def call(script: str, *arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        return status(script, *arguments), capsys.readouterr().err

    return call


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the glyphs are drawn, once."""
    return tmp_path_factory.mktemp("glyphs")


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Calls train.py in this process, in a directory of the module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("runs"))
        patch.setenv("WANDB_MODE", "offline")
        patch.delenv("WANDB_DATA_DIR", raising=False)

        def call(*arguments: str) -> None:
            patch.setattr(sys, "argv", ["train.py", *arguments])
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")

        yield call
