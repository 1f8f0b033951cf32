"""What surrounds the training steps: the clock, peak memory, signals to stop, the closing validation."""

import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from innerloop.devices.memory import largest_resident_set
from innerloop.devices.random_state import seed_torch
from innerloop.errors import DivergedError, Stopped


class Session(Callback):
    """Keep time and peak memory across resumed runs, stop cleanly on a signal, and validate after the last step.

    It must be the first callback, and `SaveOnSignal` the last.

    checkpoint: where the state is saved on SIGINT or SIGTERM. It is saved between two meta-batches, so that the resumed
        run equals an uninterrupted one. A second Ctrl-C ends the process at once without saving. If one rank gets the
        signal, all ranks stop after the same step.
    accumulate: number of meta-batches that an outer update is averaged over.
    seed: of torch's random numbers, such as those of dropout. Like an episode, what a meta-batch of training draws is a
        pure function of (seed, rank, number of the meta-batch), so a resumed run draws what an uninterrupted one does.

    wall_seconds, cpu_seconds: of training, validation included.
    peak_memory: peak_memory_mb of results.json, the largest resident set of this process until training ended, and on a
        GPU peak_gpu_memory_mb, what torch had allocated; both in 10^6 bytes.
    """

    def __init__(self, checkpoint: Path, accumulate: int = 1, seed: int = 0) -> None:
        self.checkpoint, self.accumulate, self.seed = checkpoint, accumulate, seed
        self.signalled = self.saved = False
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
            return self._peak_before or {"peak_memory_mb": largest_resident_set()}
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
                self._handlers[number] = signal.signal(number, self._note_signal)

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signalled:
            raise KeyboardInterrupt
        self.signalled = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.saved:
            raise Stopped(f"stopped after step {trainer.global_step}, which is saved in {self.checkpoint}")
        # The step number that loggers get. Lightning (2.6) counts one too many in a run resumed at an epoch's end.
        loop = trainer.fit_loop.epoch_loop
        loop._batches_that_stepped = number = loop.batch_progress.total.ready - 1
        seed_torch(self._device, self.seed, trainer.global_rank, number)

    def save_if_signalled(self, trainer: Trainer, batch_idx: int) -> None:
        """Save the state if the run is to stop.

        Only between two outer updates, because no checkpoint holds accumulated gradients. The run ends at the start of
        the next batch, after this batch's numbers were logged.
        """
        if (batch_idx + 1) % self.accumulate == 0 and self._any_rank(trainer, self.signalled):
            trainer.save_checkpoint(self.checkpoint)
            self.saved = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Lightning validates at max_steps only if an epoch ends there.
        if trainer.global_step >= trainer.max_steps > 0:
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()
        if self._any_rank(trainer, self.signalled):
            raise Stopped(f"stopped after step {trainer.global_step}, before the test")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # The update that diverged was not applied, so the weights are still finite.
        if isinstance(exception, DivergedError) and not self._any_rank(trainer, self.checkpoint.exists()):
            trainer.save_checkpoint(self.checkpoint)
        self._stop()

    @staticmethod
    def _any_rank(trainer: Trainer, here: bool) -> bool:
        """Return True if it is true on at least one rank. All ranks must call this."""
        return here if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(here, all=False)

    def _stop(self) -> None:
        self._peak_before = self.peak_memory
        self._before, self._since = (self.wall_seconds, self.cpu_seconds), None
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


class SaveOnSignal(Callback):
    """Save the state of a run that is to stop, after all other callbacks have updated theirs for the step."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.session.save_if_signalled(trainer, batch_idx)
