"""How gradients and inner rates are distributed, now and then."""

from collections.abc import Callable, Mapping
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from innerloop.adaptation import Adaptation


def learned_rates(module: LightningModule) -> dict[str, Tensor]:
    """Name -> the inner rates that a learner's adaptation learns; empty where it learns none."""
    parts = [part for part in module.modules() if isinstance(part, Adaptation)]
    return {name: rate.detach() for part in parts for name, rate in part.learned_rates().items()}


class InnerRates(Callback):
    """Logs the mean of the learned inner rates as inner_lr/<layer>, in the steps that are logged."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            means = {f"inner_lr/{name}": rate.mean() for name, rate in learned_rates(pl_module).items()}
            pl_module.log_dict(means, batch_size=1)


class Histograms(Callback):
    """Sends, each `every` outer updates, the meta-gradient of each parameter, not yet clipped, and the inner rates.

    send: takes (name -> entries, the step that loggers are told). What learns inner rates one by one has a histogram of
    each layer's; a single number has none. Between two intervals this costs nothing.
    """

    def __init__(self, every: int, send: Callable[[Mapping[str, Tensor], int], None]) -> None:
        self.every, self.send = every, send
        self._names: dict[int, str] = {}
        self._found: dict[int, Tensor] = {}
        self._values: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._names = {id(p): name.replace("/", ".") for name, p in pl_module.named_parameters()}

    def _due(self, trainer: Trainer) -> bool:
        return trainer.is_global_zero and (trainer.global_step + 1) % self.every == 0

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._due(trainer):
            self._found = {id(p): p.grad.detach().clone() for p in pl_module.parameters() if p.grad is not None}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # A learner with several optimizers has a backward pass for each: of each, the parameters that it moves.
        if self._due(trainer):
            moved = [id(p) for group in optimizer.param_groups for p in group["params"]]
            self._values |= {f"gradients/{self._names[i]}": self._found[i] for i in moved if i in self._found}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._values:
            rates = {f"inner_rates/{name}": rate for name, rate in learned_rates(pl_module).items() if rate.numel() > 1}
            self.send(self._values | rates, trainer.fit_loop.epoch_loop._batches_that_stepped)
            self._values, self._found = {}, {}
