"""How many ranks share a run, whether that is possible, and the arguments of Lightning's Trainer that follow."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from lightning.pytorch.plugins.environments import LightningEnvironment

from innerloop.devices import precision
from innerloop.errors import InputError

STRATEGIES = ("auto", "ddp")


class TrainerSettings(Protocol):
    """The part of the configuration's `trainer` node that is read here."""

    accelerator: str
    devices: Any
    strategy: str
    precision: str


class Ranks(NamedTuple):
    """devices: number of ranks on this machine. nodes: number of machines; above 1 only under torchrun or srun."""

    devices: int
    nodes: int

    @property
    def total(self) -> int:
        return self.devices * self.nodes


def launched() -> Ranks | None:
    """Return the ranks that torchrun or srun started, this process among them, or None if neither did."""
    e = os.environ
    if "TORCHELASTIC_RUN_ID" in e:
        devices = int(e["LOCAL_WORLD_SIZE"])
        return Ranks(devices, int(e["WORLD_SIZE"]) // devices)
    # Not SLURM_NTASKS, which is set in a batch script as well, where there is one process.
    tasks, nodes = int(e.get("SLURM_STEP_NUM_TASKS", 1)), int(e.get("SLURM_STEP_NUM_NODES", 1))
    return Ranks(tasks // nodes, nodes) if tasks > 1 else None


def is_first() -> bool:
    """Return True if this process is rank 0, the only one that writes to the run directory."""
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    name = "RANK" if by_torchrun else "LOCAL_RANK" if launched() is None else "SLURM_PROCID"
    return int(os.environ.get(name, 0)) == 0


def on_gpu(trainer: TrainerSettings) -> bool:
    """Return True if the run trains on GPUs."""
    return trainer.accelerator in ("gpu", "cuda") or (trainer.accelerator == "auto" and torch.cuda.is_available())


def ranks(trainer: TrainerSettings) -> Ranks:
    """Return the number of ranks that the settings ask for. Raises InputError if that is not possible here."""
    devices = trainer.devices
    available = torch.cuda.device_count() if on_gpu(trainer) else 1
    wanted = _count(devices, available)
    if wanted is None:
        raise InputError(f"trainer.devices={devices}: give a number above zero, a list of GPUs, or auto")
    if not on_gpu(trainer) and not isinstance(devices, str | int):
        raise InputError(f"trainer.devices={devices}: a list names GPUs, and this run is on the CPU: give a number")
    started = launched()
    if started is not None:
        if started.devices != wanted:
            raise InputError(
                f"trainer.devices={devices}, but {started.devices} processes were started on this machine: "
                f"use trainer.devices={started.devices}"
            )
        return started
    if on_gpu(trainer) and wanted > available:
        raise InputError(f"trainer.devices={devices}: only {available} GPUs are visible")
    return Ranks(wanted, 1)


def check_trainer(trainer: TrainerSettings, shared: Mapping[str, int | None]) -> None:
    """Raise InputError if the strategy, the precision or the devices are not possible.

    shared: key of the configuration -> a number of tasks that all ranks share, so that it must not be below their
        number. None is not checked.
    """
    if trainer.strategy not in STRATEGIES:
        raise InputError(f"trainer.strategy={trainer.strategy}: choose one of {', '.join(STRATEGIES)}")
    if trainer.precision not in precision.CHOICES:
        raise InputError(f"trainer.precision={trainer.precision}: choose one of {', '.join(precision.CHOICES)}")
    if trainer.precision == precision.TENSOR_FLOAT and not on_gpu(trainer):
        raise InputError("trainer.precision=tf32 needs a GPU, and this run does not train on one: use 32-true")
    total = ranks(trainer).total
    for name, tasks in shared.items():
        if tasks is not None and 0 < tasks < total:
            raise InputError(f"{name}={tasks} cannot be shared by {total} ranks")


def check_launch(sweeping: bool, overrides: Sequence[str], resuming: bool) -> None:
    """Raise InputError if torchrun or srun started the ranks in a way that does not make them one run.

    sweeping: whether this is a multirun. overrides: Hydra's own, such as hydra.run.dir=runs/mine.
    """
    if launched() is None:
        return
    if sweeping:
        raise InputError(
            "a sweep (-m) cannot be started by torchrun or by srun with several tasks: start it as one process (a "
            "launcher's tasks_per_node=1), and trainer=ddp starts the ranks of each job"
        )
    if not resuming and not any(override.startswith("hydra.run.dir=") for override in overrides):
        raise InputError(
            "ranks that torchrun or srun starts do not know each other's run directory: give it, "
            "hydra.run.dir=runs/mine, or leave out torchrun, since trainer=ddp starts the ranks of one machine itself"
        )


def placement(trainer: TrainerSettings) -> dict[str, Any]:
    """Return the arguments of Lightning's Trainer that say where a run takes place."""
    shared = ranks(trainer)
    devices = trainer.devices if isinstance(trainer.devices, str | int) else list(trainer.devices)
    if shared.total == 1:
        return {"devices": devices if on_gpu(trainer) else 1, "strategy": "auto", "plugins": []}
    # Ranks that innerloop.devices.processes starts run on this machine, even within a cluster's job.
    plugins = [LightningEnvironment()] if launched() is None else []
    return {"devices": devices, "num_nodes": shared.nodes, "strategy": "ddp", "plugins": plugins}


def share_of_cores(trainer: TrainerSettings) -> int | None:
    """Return the number of cores for each of several ranks on this machine, at least 1; None for a single rank."""
    devices = ranks(trainer).devices
    return max((os.cpu_count() or 1) // devices, 1) if devices > 1 else None


def _count(devices: Any, available: int) -> int | None:
    text = str(devices).strip()
    if text in ("auto", "-1"):
        return available
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return len(devices) or None
    if not isinstance(devices, str | int):
        return None
    if "," in text:
        return len([part for part in text.split(",") if part.strip()]) or None
    return int(text) if text.isdecimal() and int(text) > 0 else None
