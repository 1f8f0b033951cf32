"""One run on many devices: how many ranks share its meta-batches, and the processes that are the other ranks."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from lightning.pytorch.plugins.environments import LightningEnvironment

from innerloop import precision
from innerloop.errors import DivergedError, InputError, RankError, Stopped

STRATEGIES = ("auto", "ddp")
GRACE = 60.0
"""Seconds in which a run ends on its own once one of its ranks is gone."""


class TrainerSettings(Protocol):
    """What is read here of the configuration's `trainer`."""

    accelerator: str
    devices: Any
    strategy: str
    precision: str


class Ranks(NamedTuple):
    """devices: ranks on this machine. nodes: machines, of which only torchrun and srun know more than one."""

    devices: int
    nodes: int

    @property
    def total(self) -> int:
        return self.devices * self.nodes


def launched() -> Ranks | None:
    """The ranks that torchrun or srun started, of which this process is one; None if nobody did."""
    e = os.environ
    if "TORCHELASTIC_RUN_ID" in e:
        devices = int(e["LOCAL_WORLD_SIZE"])
        return Ranks(devices, int(e["WORLD_SIZE"]) // devices)
    # Not SLURM_NTASKS: a batch script has it too, and is one process.
    tasks, nodes = int(e.get("SLURM_STEP_NUM_TASKS", 1)), int(e.get("SLURM_STEP_NUM_NODES", 1))
    return Ranks(tasks // nodes, nodes) if tasks > 1 else None


def is_first() -> bool:
    """Whether this process is rank 0, which alone writes the run directory."""
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    name = "RANK" if by_torchrun else "LOCAL_RANK" if launched() is None else "SLURM_PROCID"
    return int(os.environ.get(name, 0)) == 0


def on_gpu(trainer: TrainerSettings) -> bool:
    return trainer.accelerator in ("gpu", "cuda") or (trainer.accelerator == "auto" and torch.cuda.is_available())


def ranks(trainer: TrainerSettings) -> Ranks:
    """How many ranks there are to be. InputError for what cannot be."""
    devices = trainer.devices
    there = torch.cuda.device_count() if on_gpu(trainer) else 1
    wanted = _count(devices, there)
    if wanted is None:
        raise InputError(f"trainer.devices={devices}: give a number above zero, a list of GPUs, or auto")
    outside = launched()
    if outside is not None:
        if outside.devices != wanted:
            raise InputError(
                f"trainer.devices={devices}, but {outside.devices} processes were started on this machine: "
                f"use trainer.devices={outside.devices}"
            )
        return outside
    if on_gpu(trainer) and wanted > there:
        raise InputError(f"trainer.devices={devices}: only {there} GPUs are visible")
    return Ranks(wanted, 1)


def check_trainer(trainer: TrainerSettings, shared: Mapping[str, int | None]) -> None:
    """InputError for a strategy, precision or devices that cannot be, or more ranks than one of `shared` has tasks."""
    if trainer.strategy not in STRATEGIES:
        raise InputError(f"trainer.strategy={trainer.strategy}: choose one of {', '.join(STRATEGIES)}")
    if trainer.precision not in precision.CHOICES:
        raise InputError(f"trainer.precision={trainer.precision}: choose one of {', '.join(precision.CHOICES)}")
    if trainer.precision == precision.TENSOR_FLOAT and not on_gpu(trainer):
        raise InputError("trainer.precision=tf32: only GPUs compute in it, and this run is not on one; use 32-true")
    total = ranks(trainer).total
    for name, tasks in shared.items():
        if tasks is not None and 0 < tasks < total:
            raise InputError(f"{name}={tasks} cannot be shared by {total} ranks")


def check_launch(sweeping: bool, overrides: Sequence[str], resuming: bool) -> None:
    """InputError where torchrun or srun started the ranks in a way that they cannot know to be one run."""
    if launched() is None:
        return
    if sweeping:
        raise InputError(
            "a sweep (-m) under torchrun or srun with several tasks: start it as one process (a launcher's "
            "tasks_per_node=1), and trainer=ddp starts the ranks of each job"
        )
    if not resuming and not any(override.startswith("hydra.run.dir=") for override in overrides):
        raise InputError(
            "torchrun and srun start ranks that know nothing of each other's run directory: name it, "
            "hydra.run.dir=runs/mine, or leave out torchrun, since trainer=ddp starts the ranks of one machine itself"
        )


def placement(trainer: TrainerSettings) -> dict[str, Any]:
    """Lightning's trainer's arguments that say where a run takes place."""
    shared = ranks(trainer)
    devices = trainer.devices if isinstance(trainer.devices, str | int) else list(trainer.devices)
    if shared.total == 1:
        return {"devices": devices, "strategy": "auto"}
    # Not a cluster's where the processes are those of `together`.
    plugins = [LightningEnvironment()] if launched() is None else None
    return {"devices": devices, "num_nodes": shared.nodes, "strategy": "ddp", "plugins": plugins}


def share_of_cores(trainer: TrainerSettings) -> int | None:
    """The cores for each of several ranks on this machine, at least one; None for a single rank."""
    devices = ranks(trainer).devices
    return max((os.cpu_count() or 1) // devices, 1) if devices > 1 else None


def _count(devices: Any, there: int) -> int | None:
    text = str(devices).strip()
    if text in ("auto", "-1"):
        return there
    if not isinstance(devices, str | int):
        return len(devices) or None
    if "," in text:
        return len([part for part in text.split(",") if part.strip()]) or None
    return int(text) if text.isdecimal() and int(text) > 0 else None


@contextmanager
def together(trainer: TrainerSettings, task: Mapping[str, Any], entry: str) -> Iterator[None]:
    """Inside, this process is the first of the trainer's ranks; the others call `entry`, "module:function".

    They are sent the task as it is, and not a command line to compose it from: so all ranks of a sweep's job, or of a
    search's trial, run the same one. They end with this process, whatever becomes of it. Raises RankError where one of
    them was the first to fail.
    """
    count = 1 if launched() else ranks(trainer).total
    if count == 1:
        try:
            yield
        finally:
            leave()
        return
    before = dict(os.environ)
    children: list[subprocess.Popen[bytes]] = []
    over = threading.Event()
    try:
        os.environ |= _address(count, share_of_cores(trainer))
        for rank in range(1, count):
            children.append(_start(rank, task, entry))
        threading.Thread(target=_watch, args=(children, over), daemon=True).start()
        yield
        for child in children:
            child.wait()
    except (DivergedError, Stopped, InputError):
        raise  # of all ranks alike
    except RuntimeError as error:
        failed = _first_failed(children)
        if failed is None:
            raise
        raise RankError(failed) from error
    finally:
        over.set()
        for child in children:
            child.kill()
            child.wait()
            assert child.stdin is not None
            child.stdin.close()
        leave()
        os.environ.clear()
        os.environ.update(before)


def join(run: Callable[[Any], object]) -> None:
    """What another rank does: reads the task that `together` sends and runs it; ends when the first process does."""
    task = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        run(task)
    except (DivergedError, Stopped):
        pass  # of all ranks alike: the first one says it
    finally:
        leave()


def leave() -> None:
    """Ends this process's part in the group of ranks, if it has one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _address(count: int, threads: int | None) -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Lightning starts no processes where LOCAL_RANK is set, nor chooses a number of threads where OMP_NUM_THREADS is.
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "NODE_RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(count),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
    }


def _start(rank: int, task: Mapping[str, Any], entry: str) -> subprocess.Popen[bytes]:
    module, _, function = entry.partition(":")
    # sys.path, since a configuration may name classes that lie beside the script.
    environment = os.environ | {"LOCAL_RANK": str(rank), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", "-c", f"from {module} import {function}; {function}()"]
    # In a process group of its own: Ctrl-C is for the first rank, with which the others then agree to stop.
    child = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, process_group=0)
    assert child.stdin is not None
    child.stdin.write(json.dumps(task).encode() + b"\n")
    child.stdin.flush()
    return child


def _end_with_parent() -> None:
    # Nothing more is sent: this returns when the other end is closed, by intent or because its process is gone.
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def _watch(children: Sequence[subprocess.Popen[bytes]], over: threading.Event) -> None:
    # Gloo tells the other ranks at once that one is gone; NCCL lets them wait, and nothing else ends that.
    while not over.wait(0.5):
        if any(child.poll() for child in children):
            if not over.wait(GRACE):
                print(f"\n{_first_failed(children)}", file=sys.stderr, flush=True)
                os._exit(1)
            return


def _first_failed(children: Sequence[subprocess.Popen[bytes]]) -> str | None:
    end = time.monotonic() + 2
    while time.monotonic() < end:
        for rank, child in enumerate(children, 1):
            status = child.poll()
            if status:
                how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
                return f"rank {rank} {how}, and with it the run; what it had to say is above"
        time.sleep(0.05)
    return None
