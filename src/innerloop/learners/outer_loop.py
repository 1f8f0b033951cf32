"""The settings of the outer loop, which every learner has as keyword arguments, and the optimizers that follow."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from innerloop.episodes import InputError

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}
SCHEDULES = ("constant", "cosine")
FUSED = ("cpu", "cuda")
"""Devices whose optimizers update all tensors at once."""
MOST = 10**6
"""Limit on `accumulate`, far above what is sensible."""

Group = Sequence[tuple[float, list[nn.Parameter]]]
"""(rate, meta-parameters) pairs that one optimizer updates."""


class OuterSchedule(LambdaLR):
    """The schedule of a rate that `OuterLoop` configures, unlike one that a learner makes by itself."""


@dataclass(frozen=True)
class OuterLoop:
    """outer_lr: rate of the outer optimizer ("adam", "adamw", "sgd"). weight_decay: of that optimizer.

    decay_only: the part of the net that weight_decay acts on, such as "body"; None: all meta-parameters.
    schedule: of the rate, "constant", or "cosine" to zero over the trainer's max_steps.
    outer_clip: limit of the norm of the meta-gradient; None: no limit.
    accumulate: number of meta-batches that an outer update is averaged over.
    engine, chunk, compile: how the tasks of a meta-batch are run, see `Engine`. Steps that are logged are not compiled,
        so that reported values need not be compilable. compile="auto" leaves the choice to who trains: not compiled, or
        see `MetaLearner.compile_for`.
    freeze: "body" leaves the weights of the net's body as they are, to the last bit; None: all are trained. Inner steps
        do not change them either, and generators still write them for a task.
    transductive: whether the batch norms of a query use the statistics of all queries of its task. If not, they use
        those of the support set, in training and in evaluation.

    Raises InputError for unknown choices and for numbers that are not possible.
    """

    outer_lr: float = 1e-3
    optimizer: str = "adam"
    weight_decay: float = 0.0
    decay_only: str | None = None
    schedule: str = "constant"
    outer_clip: float | None = None
    accumulate: int = 1
    engine: str = "auto"
    chunk: int | None = None
    compile: bool | str = False
    freeze: str | None = None
    transductive: bool = True

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise InputError(f"unknown optimizer {self.optimizer!r}; choose one of {', '.join(OPTIMIZERS)}")
        if self.schedule not in SCHEDULES:
            raise InputError(f"unknown schedule {self.schedule!r}; choose one of {', '.join(SCHEDULES)}")
        if self.freeze not in (None, "body"):
            raise InputError(f"unknown freeze {self.freeze!r}; choose one of null, body")
        if self.compile not in (True, False, "auto"):
            raise InputError(f"compile must be true, false or auto, got {self.compile}")
        for name in ("outer_lr", "outer_clip", "accumulate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} must be above zero, got {value}")
            if value == math.inf:
                raise InputError(f"{name} must be finite, got inf")
        if self.accumulate > MOST:
            raise InputError(f"accumulate must be at most {MOST:,}, got {self.accumulate}")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"weight_decay must be finite and not negative, got {self.weight_decay}")

    def decayed(self, net: nn.Module, parameters: Iterable[nn.Parameter]) -> set[int]:
        """Return the ids of the meta-parameters that weight_decay acts on. Raises InputError if the net has no part."""
        if self.decay_only is None:
            return set(map(id, parameters))
        found = {id(p) for name, p in net.named_parameters() if name.startswith(f"{self.decay_only}.")}
        if not found:
            names = ", ".join(name for name, _ in net.named_parameters())
            raise InputError(f"decay_only={self.decay_only}: this net has no such part, only {names}")
        return found

    def split(self, group: Group, decayed: Collection[int]) -> list[tuple[float, float, list[nn.Parameter]]]:
        """Return (rate, weight decay, meta-parameters) of each part of a group that has some."""
        parts = []
        for lr, parameters in group:
            for decay, kept in ((self.weight_decay, True), (0.0, False)):
                some = [p for p in parameters if (id(p) in decayed) is kept]
                parts += [(lr, decay, some)] if some else []
        return parts

    def make_optimizer(self, group: Group, max_steps: int, decayed: Collection[int]) -> tuple[Optimizer, OuterSchedule]:
        """Return the optimizer of a group of meta-parameters, and the schedule of its rate. decayed: see `decayed`.

        Raises InputError if the schedule needs max_steps and it is not above zero.
        """
        if self.schedule == "cosine" and max_steps < 1:
            raise InputError("schedule=cosine needs trainer.max_steps to be set")

        def factor(step: int) -> float:
            return 1.0 if self.schedule == "constant" else 0.5 * (1 + math.cos(math.pi * min(step / max_steps, 1)))

        groups = [
            {"params": parameters, "lr": lr, "weight_decay": decay}
            for lr, decay, parameters in self.split(group, decayed)
        ]
        # One kernel for all tensors of a group: a third of the time, and the same numbers but for the last bits.
        fused = all(p.device.type in FUSED for _, parameters in group for p in parameters)
        optimizer = OPTIMIZERS[self.optimizer](groups, lr=self.outer_lr, fused=fused or None)
        return optimizer, OuterSchedule(optimizer, factor)

    def set_rates(self, optimizer: Any, schedule: OuterSchedule, group: Group, decayed: Collection[int]) -> None:
        """Set rates and weight decay of an optimizer and its schedule, at the step at which the schedule is."""
        parts = self.split(group, decayed)
        schedule.base_lrs = [lr for lr, _, _ in parts]
        for settings, (lr, decay, _), factor in zip(optimizer.param_groups, parts, schedule.lr_lambdas, strict=True):
            settings |= {"initial_lr": lr, "lr": lr * factor(schedule.last_epoch), "weight_decay": decay}
        schedule._last_lr = [settings["lr"] for settings in optimizer.param_groups]


def listed(found: Any) -> list[Any]:
    """Return what Lightning gives as a list, a single object or None, as a list."""
    return found if isinstance(found, list) else [] if found is None else [found]
