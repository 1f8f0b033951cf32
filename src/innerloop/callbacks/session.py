"""What surrounds the training steps: the clock, memory, Ctrl-C, the closing validation."""

import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from innerloop.errors import DivergedError, Stopped
from innerloop.memory import largest_resident_set


class Session(Callback):
    """Keeps clock and peak memory across resumed runs, ends runs cleanly on Ctrl-C, validates after the last step.

    checkpoint: where the state is saved when the process is asked to end (SIGINT, SIGTERM), between two meta-batches,
    so that a resumed run equals an uninterrupted one. A second Ctrl-C ends at once, without saving. One rank that is
    asked is enough: all stop after the same step.
    accumulate: meta-batches an outer update is averaged over.
    wall_seconds, cpu_seconds: of training, validation included.
    peak_memory: results.json's peak_memory_mb and, where a GPU trains, peak_gpu_memory_mb, in 10^6 bytes, until
    training ended: the largest resident set of this process, and what torch had allocated on the GPU.
    """

    def __init__(self, checkpoint: Path, accumulate: int = 1) -> None:
        self.checkpoint, self.accumulate = checkpoint, accumulate
        self.asked = self.saved = False
        self._before = (0.0, 0.0)
        self._since: tuple[float, float] | None = None
        self._peak_before: dict[str, float] = {}
        self._device = torch.device("cpu")
        self._handlers: dict[int, Any] = {}

    @property
    def wall_seconds(self) -> float:
        return self._elapsed(0)

    @property
    def cpu_seconds(self) -> float:
        return self._elapsed(1)

    def _elapsed(self, i: int) -> float:
        running = (time.perf_counter(), time.process_time())[i] - self._since[i] if self._since else 0.0
        return self._before[i] + running

    @property
    def peak_memory(self) -> dict[str, float]:
        if self._since is None:
            return self._peak_before
        peak = {"peak_memory_mb": largest_resident_set()}
        if self._device.type == "cuda":
            peak["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated(self._device) / 1e6
        return {name: max(value, self._peak_before.get(name, 0.0)) for name, value in peak.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"wall_seconds": self.wall_seconds, "cpu_seconds": self.cpu_seconds, "memory": self.peak_memory}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = (state_dict["wall_seconds"], state_dict["cpu_seconds"])
        self._peak_before = state_dict.get("memory", {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._device = pl_module.device
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._since = (time.perf_counter(), time.process_time())
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.saved:
            raise Stopped(f"stopped after step {trainer.global_step}, which is saved in {self.checkpoint}")
        # The step that loggers are told; Lightning (2.6) counts one too many in a run resumed from an epoch's end.
        loop = trainer.fit_loop.epoch_loop
        loop._batches_that_stepped = loop.batch_progress.total.ready - 1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % self.accumulate == 0 and self._agree(trainer, self.asked):
            # Between two outer updates, since gradients that wait for one are in no checkpoint. Ends with the next
            # batch's start, when this one's numbers have been logged.
            trainer.save_checkpoint(self.checkpoint)
            self.saved = True
        # Lightning ends at max_steps without a validation unless it coincides with the end of an epoch.
        if trainer.global_step >= trainer.max_steps > 0:
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()
        if self._agree(trainer, self.asked):
            raise Stopped(f"stopped after step {trainer.global_step}, before the test")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # The update that found the divergence was not made: the weights are still finite.
        if isinstance(exception, DivergedError) and not self._agree(trainer, self.checkpoint.exists()):
            trainer.save_checkpoint(self.checkpoint)
        self._stop()

    @staticmethod
    def _agree(trainer: Trainer, one: bool) -> bool:
        """Whether it is so on one rank at least. All ranks must ask."""
        return one if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(one, all=False)

    def _stop(self) -> None:
        self._peak_before = self.peak_memory
        self._before, self._since = (self.wall_seconds, self.cpu_seconds), None
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
