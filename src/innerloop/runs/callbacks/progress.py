"""One progress bar for a whole run, or a plain line from time to time where stderr is no terminal."""

import logging
import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

log = logging.getLogger("innerloop")

SECONDS_BETWEEN_LINES = 10.0


class Bar(tqdm):
    """A tqdm bar without its monitor thread, because worker processes are forked and threads must not be."""

    monitor_interval = 0


class Progress(ProgressBar):
    """Show step / max_steps, the loss, the metric after adaptation, steps per second and the time left.

    On a terminal this is a bar on stderr. Otherwise it is a line to the logger "innerloop", at each validation and at
    most every ten seconds. Only the first rank shows anything.

    metric: the name of the task family's metric.
    """

    def __init__(self, metric: str) -> None:
        super().__init__()
        self.metric = metric
        self._shown = True
        self._bar: tqdm | None = None
        self._first_step = 0
        self._begin = self._last_line = 0.0

    def disable(self) -> None:
        self._shown = False

    def enable(self) -> None:
        self._shown = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first_step, self._begin = trainer.global_step, time.monotonic()
        self._last_line = self._begin
        self._open("training", trainer.max_steps, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is not None:
            if trainer.global_step % max(trainer.log_every_n_steps, 1) == 0:  # type: ignore[attr-defined]
                self._bar.set_postfix_str(self._numbers(trainer), refresh=False)
            self._bar.update(trainer.global_step - self._bar.n)
        elif time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._line(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            if self._bar is not None:
                self._bar.set_postfix_str(self._numbers(trainer))
            else:
                self._line(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open("testing", None, 0)
        if self._bar is None and self._shown:
            log.info("testing")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._bar is not None:
            self._bar.update()
        elif self._shown and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            log.info("testing: meta-batch %d is done", batch_idx + 1)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _open(self, what: str, total: int | None, done: int) -> None:
        if self._shown and sys.stderr.isatty():
            self._bar = Bar(desc=what, total=total, initial=done, file=sys.stderr, dynamic_ncols=True, leave=True)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _numbers(self, trainer: Trainer) -> str:
        found = trainer.callback_metrics
        names = ["train/loss", f"train/{self.metric}", f"val/{self.metric}"]
        shown = [name for name in names if name in found]
        if {"train/loss", "train/mse"} <= set(shown):
            shown.remove("train/loss")  # the same number
        return "  ".join(f"{name} {found[name].item():.4g}" for name in shown)

    def _line(self, trainer: Trainer) -> None:
        if not self._shown or self._bar is not None:
            return
        self._last_line = time.monotonic()
        rate = (trainer.global_step - self._first_step) / max(self._last_line - self._begin, 1e-9)
        total = f"/{trainer.max_steps}" if trainer.max_steps > 0 else ""
        parts = [f"step {trainer.global_step}{total}", self._numbers(trainer), f"{rate:.3g} steps/s"]
        if trainer.max_steps > 0 and rate > 0:
            left = round((trainer.max_steps - trainer.global_step) / rate)
            parts.append(f"eta {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}")
        log.info("  ".join(filter(None, parts)))
