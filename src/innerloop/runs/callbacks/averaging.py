"""Stochastic weight averaging of the meta-parameters."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging

from innerloop.errors import InputError


class StochasticWeightAveraging(WeightAveraging):
    """Average the meta-parameters of the last outer updates, each with the same weight (Izmailov et al., 2018).

    Validations and checkpoints use the average, training goes on from the latest meta-parameters. Lightning's callback
    of the same name needs automatic optimization; this one is built on its WeightAveraging.

    start: the fraction of trainer.max_steps after which averaging starts, in [0, 1). Before, the average is the latest.
    Raises InputError for another start.
    """

    def __init__(self, start: float = 0.75) -> None:
        super().__init__()
        if not 0 <= start < 1:
            raise InputError(f"start of averaging must be at least 0 and below 1, got {start}")
        self.start = start

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.global_step <= self.start * trainer.max_steps:
            assert self._average_model is not None
            self._average_model.n_averaged.zero_()  # so the next update copies instead of averaging
