"""The programs that scripts/benchmark.py and gpu.py measure: workloads, innerloop and its peers, and their agreement.

A program leaves the meta-gradient of a workload's meta-batch in the `.grad` of the net's parameters.
"""

import argparse
import hashlib
import importlib
import itertools
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.compiler.config
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from innerloop.adaptation.records import EAGER_CALLS  # noqa: E402
from innerloop.datasets.images import cache_folder  # noqa: E402
from innerloop.episodes import Episode, InputError, Samples, Weights, apply, tasks_of  # noqa: E402
from innerloop.learners import MAML  # noqa: E402
from innerloop.nets import MLP, Conv2d, Conv4  # noqa: E402
from innerloop.nets.norm import BatchNorm  # noqa: E402

LEARN2LEARN = "learn2learn-0.2.0"
LEARN2LEARN_SHA256 = "69f1d7cb0d0a6be7a2c6ad8e83e2ebbe70fb05e51d61e45e63078b40c75ea419"
TOLERANCE = 1e-10
MODES: dict[str, dict[str, Any]] = {"eager": {}, "compiled": {"compile": True}, "jit": {}}
"""Mode -> settings of the learner. "jit" is JAX's only one."""


class Disagreement(Exception):
    """A program computes something else than the others, so its time means nothing."""


@dataclass(frozen=True)
class Workload:
    """A meta-batch and the net that adapts to its tasks: Conv4 with `width` channels, or an MLP on one variable.

    form: how the Conv4 downsamples; "valid": the net of torchbench's functorch_maml_omniglot; None: the MLP.
    shots, queries: points per class.
    """

    name: str
    tasks: int
    inner_steps: int
    inner_lr: float
    form: str | None = None
    width: int = 64
    shape: tuple[int, ...] = (1, 28, 28)
    ways: int = 5
    shots: int = 1
    queries: int = 1

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in asdict(self).items() if name != "name")

    def tiny(self) -> "Workload":
        shape = self.shape if self.form is None else (self.shape[0], 28, 28)
        return replace(self, tasks=2, width=8, shape=shape, queries=min(self.queries, 2))

    def net(self) -> nn.Module:
        torch.manual_seed(0)
        if self.form is None:
            return MLP(self.shape, [self.width, self.width], 1)
        if self.form == "valid":
            return valid_convolutions(self.shape[0], self.width, self.ways)
        return Conv4(self.shape, self.ways, self.width, downsample=self.form)

    def batch(self) -> Episode:
        rng = torch.Generator().manual_seed(1)

        def samples(n: int) -> Samples:
            x = torch.randn(self.tasks, self.ways * n, *self.shape, generator=rng)
            labels = torch.arange(self.ways).repeat_interleave(n).repeat(self.tasks, 1)
            return Samples(x, labels if self.form else torch.sin(x))

        return Episode(samples(self.shots), samples(self.queries))

    def criterion(self, prediction: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(prediction, y) if self.form else F.mse_loss(prediction, y)

    def loss(self, net: nn.Module, weights: Weights, samples: Samples) -> Tensor:
        return self.criterion(apply(net, weights, samples.x), samples.y)


def valid_convolutions(channels: int, width: int, ways: int) -> nn.Module:
    """Return torchbench's net for 28x28 images: three blocks of a convolution without padding, norm, ReLU and pool."""
    blocks: list[nn.Module] = []
    for before in (channels, width, width):
        blocks += [Conv2d(before, width, 3), BatchNorm(width), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(width, ways))


def _workloads() -> dict[str, Workload]:
    sinusoid = Workload("sinusoid_k1", 25, 1, 0.01, width=40, shape=(1,), ways=1, shots=10, queries=10)
    omniglot = Workload("omniglot_20w1s", 16, 5, 0.4, "stride", ways=20)
    five_ways = replace(omniglot, ways=5, tasks=32, inner_steps=1)
    found = [sinusoid, replace(sinusoid, name="sinusoid_k5", inner_steps=5)]
    for form, queries in itertools.product(("stride", "pool"), (1, 15)):
        found.append(replace(five_ways, name=f"omniglot_5w1s_{form}_q{queries}", form=form, queries=queries))
    found += [omniglot, Workload("mini_imagenet", 4, 5, 0.01, "pool", 32, (3, 84, 84), queries=15)]
    return {workload.name: workload for workload in found}


WORKLOADS = _workloads()
TORCHBENCH = Workload("torchbench", 32, 5, 0.1, "valid", shots=5, queries=15)
"""functorch_maml_omniglot of pytorch/benchmark, whose gradient is wrong there: functorch's batch norm under vmap."""


def of_innerloop(workload: Workload, net: nn.Module, **settings: Any) -> Callable[[Episode], None]:
    """Return a function that leaves the gradient of a meta-batch's mean query loss in the parameters' `.grad`."""
    if "compile" in settings:
        # The reported time is that of a first compilation. torch warns that its caches are disabled.
        torch.compiler.config.force_disable_caches = True
        warnings.filterwarnings("ignore", message=".*force_disable_caches")
    steps = {"inner_lr": workload.inner_lr, "inner_steps": workload.inner_steps}
    learner = MAML(net, workload.loss, **(steps | settings))
    theta = list(learner.parameters())

    def backward(batch: Episode) -> None:
        _, gradient, _ = learner.engine.value_and_grad(learner.query_objective, theta, batch)
        for p, g in zip(theta, gradient, strict=True):
            p.grad = g

    return backward


OfTask = Callable[[Episode], None]
"""Adds the gradient of one task's query loss to the `.grad` of the net's parameters."""


def of_learn2learn(workload: Workload, net: nn.Module) -> OfTask:
    maml = importlib.import_module("learn2learn.algorithms.maml").MAML(net, lr=workload.inner_lr)

    def of_task(task: Episode) -> None:
        learner = maml.clone()
        for _ in range(workload.inner_steps):
            learner.adapt(workload.criterion(learner(task.support.x), task.support.y))
        workload.criterion(learner(task.query.x), task.query.y).backward()

    return of_task


def of_higher(workload: Workload, net: nn.Module) -> OfTask:
    import higher

    inner = torch.optim.SGD(net.parameters(), lr=workload.inner_lr)

    def of_task(task: Episode) -> None:
        with higher.innerloop_ctx(net, inner, copy_initial_weights=False) as (fast, optimizer):
            for _ in range(workload.inner_steps):
                optimizer.step(workload.criterion(fast(task.support.x), task.support.y))
            workload.criterion(fast(task.query.x), task.query.y).backward()

    return of_task


def of_torchopt(workload: Workload, net: nn.Module) -> OfTask:
    import torchopt

    inner = torchopt.MetaSGD(net, lr=workload.inner_lr)
    theta, begun = (torchopt.extract_state_dict(part, by="reference") for part in (net, inner))

    def of_task(task: Episode) -> None:
        for _ in range(workload.inner_steps):
            inner.step(workload.criterion(net(task.support.x), task.support.y))
        workload.criterion(net(task.query.x), task.query.y).backward()
        torchopt.recover_state_dict(net, theta)
        torchopt.recover_state_dict(inner, begun)

    return of_task


PEERS: dict[str, Callable[[Workload, nn.Module], OfTask]] = {
    "learn2learn": of_learn2learn,
    "higher": of_higher,
    "torchopt": of_torchopt,
}
PROGRAMS = ("innerloop", *PEERS)


def use_torchs_norms(net: nn.Module) -> None:
    """Replace innerloop's batch norms, whose speed is innerloop's own, by torch's with the same parameters."""
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, BatchNorm):
                norm = nn.BatchNorm2d(len(child.weight), child.eps, track_running_stats=False)
                norm.weight, norm.bias = child.weight, child.bias
                setattr(module, name, norm)


def of(program: str, workload: Workload, net: nn.Module, settings: dict[str, Any]) -> Callable[[Episode], None]:
    """Return a program: see `of_innerloop`. A peer loops over the tasks, as its documentation shows."""
    if program == "innerloop":
        return of_innerloop(workload, net, **settings)
    use_torchs_norms(net)
    of_task = PEERS[program](workload, net)

    def backward(batch: Episode) -> None:
        net.zero_grad()
        for task in tasks_of(batch):
            of_task(task)
        for p in net.parameters():
            p.grad.mul_(1 / workload.tasks)

    return backward


CPU = torch.device("cpu")
CALLS = EAGER_CALLS + 2
"""Number of meta-steps after which a CUDA graph is recorded and has been used."""


def placed(workload: Workload, device: torch.device, dtype: torch.dtype) -> tuple[nn.Module, Episode]:
    """Return the workload's net and meta-batch on a device in a dtype."""

    def moved(t: Tensor) -> Tensor:
        return t.to(device, dtype) if t.is_floating_point() else t.to(device)

    return workload.net().to(device, dtype), tree_map(moved, workload.batch())


def meta_gradient(
    workload: Workload,
    program: str,
    settings: dict[str, Any],
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return all entries of a meta-gradient, (n,) float64 on the CPU, computed on this device in this dtype."""
    net, batch = placed(workload, device, dtype)
    backward = of(program, workload, net, settings)
    for _ in range(CALLS if settings.get("engine") == "graph" else 1):
        backward(batch)
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]).double().cpu()


def meta_step(
    workload: Workload, program: str, settings: dict[str, Any], device: torch.device = CPU
) -> Callable[[], None]:
    """Return a function that takes one meta-step of a program on a net of its own, in float32."""
    net, batch = placed(workload, device, torch.float32)
    backward = of(program, workload, net, settings)
    # Such small steps change nothing, so the thousandth does the same work as the first. It is fused, as in runs.
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-7, fused=True)

    def step() -> None:
        backward(batch)
        optimizer.step()

    return step


def fetched_learn2learn() -> Path:
    """Return learn2learn's unpacked sources in the user's cache folder. Raises InputError if they cannot be fetched."""
    place = cache_folder("learn2learn")
    folder = place / LEARN2LEARN
    if folder.is_dir():
        return folder
    # There is no wheel, and its build would fail: only the sources are needed.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--retries=1", "--no-deps", "--no-binary=:all:"]
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place) as draft:
            command += ["--no-build-isolation", LEARN2LEARN.replace("-", "=="), "--dest", draft]
            subprocess.run(command, check=True, capture_output=True, text=True)
            archive = Path(draft) / f"{LEARN2LEARN}.tar.gz"
            if hashlib.sha256(archive.read_bytes()).hexdigest() != LEARN2LEARN_SHA256:
                raise InputError(f"what was downloaded as {archive.name} is not learn2learn's published source")
            with tarfile.open(archive) as tar:
                wanted = [m for m in tar if m.name.startswith(f"{LEARN2LEARN}/learn2learn/")]
                tar.extractall(draft, wanted, filter="data")
            (Path(draft) / LEARN2LEARN).replace(folder)
    except (OSError, subprocess.CalledProcessError, tarfile.TarError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise InputError(
            f"learn2learn could not be downloaded ({said[-1] if said else error}): give its unpacked source "
            "distribution with --learn2learn FOLDER, or leave it out with --program"
        ) from error
    return folder


def expose_learn2learn(folder: Path) -> None:
    """Make learn2learn's files importable without the packages' `__init__`, which needs what no longer installs."""
    if not (folder / "learn2learn" / "algorithms" / "maml.py").is_file():
        raise InputError(f"{folder} is no source distribution of learn2learn: it has no learn2learn/algorithms/maml.py")
    for name in ("learn2learn", "learn2learn.algorithms"):
        package = types.ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = package


Variants = Sequence[tuple[str, str]]
"""Programs and their modes."""


def gradient_differences(
    workload: Workload, variants: Variants, of_jax: Callable[[Workload], Tensor] | None = None
) -> list[float]:
    """Return each variant's largest difference of a meta-gradient's entry to learn2learn's, or else to the first one's.

    In float64, for two tasks. Raises Disagreement if a difference is above 1e-10. of_jax: JAX's meta-gradient.
    """
    workload = replace(workload, tasks=2)
    gradients = [
        of_jax(workload) if of_jax and program == "jax" else meta_gradient(workload, program, MODES[mode])
        for program, mode in variants
    ]
    reference = gradients[next((i for i, (program, _) in enumerate(variants) if program == "learn2learn"), 0)]
    found = [(g - reference).abs().max().item() for g in gradients]
    for (program, mode), difference in zip(variants, found, strict=True):
        if not difference <= TOLERANCE:  # NaN is refused too
            raise Disagreement(f"{workload.name}: the meta-gradient of {program} ({mode}) is off by {difference:.1e}")
    return found


def measured(step: Callable[[], None], repeats: int) -> np.ndarray:
    """Return milliseconds per step: wall time, and CPU time of all threads."""
    begun = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        step()
    return 1e3 * np.subtract((time.perf_counter(), time.process_time()), begun) / repeats


def machine() -> str:
    """Return one line with the processor and the versions that the numbers belong to."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores; torch {torch.__version__}, Python {platform.python_version()}"


def above_zero(text: str) -> int:
    """Return a number of the command line. Raises ArgumentTypeError unless it is above zero."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is not above zero")
    return number
