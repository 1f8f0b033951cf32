"""The early end of a search's unpromising runs."""

from collections.abc import Callable
from typing import Any

from lightning import Callback, LightningModule, Trainer

from innerloop.errors import Pruned


class Pruning(Callback):
    """Report each validation during training, and raise Pruned if the run is to be stopped.

    monitor: name of the logged metric. report: (step, value) -> whether to stop.
    """

    def __init__(self, monitor: str, report: Callable[[int, float], bool]) -> None:
        self.monitor, self.report = monitor, report
        self.pruned: Pruned | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":  # the closing evaluation is no point of the learning curve
            return
        step, value = trainer.global_step, float(trainer.callback_metrics[self.monitor])
        if self.report(step, value):
            self.pruned = Pruned(step, value, self.monitor)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Not earlier: now the validation is in metrics.csv. A run that ends with this validation is not pruned.
        if self.pruned:
            raise self.pruned
