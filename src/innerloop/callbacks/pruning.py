"""Gives a search's hopeless run up."""

from collections.abc import Callable
from typing import Any

from lightning import Callback, LightningModule, Trainer

from innerloop.errors import Pruned


class Pruning(Callback):
    """Reports each validation of training; raises Pruned where that is said to be hopeless.

    monitor: the logged metric. report: (step, value) -> whether to give up.
    """

    def __init__(self, monitor: str, report: Callable[[int, float], bool]) -> None:
        self.monitor, self.report = monitor, report
        self.hopeless: Pruned | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":  # the closing evaluation is no point of the learning curve
            return
        step, value = trainer.global_step, float(trainer.callback_metrics[self.monitor])
        if self.report(step, value):
            self.hopeless = Pruned(step, value, self.monitor)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Not before: by now the validation is in metrics.csv. A run that was to end with it is as good as done.
        if self.hopeless:
            raise self.hopeless
