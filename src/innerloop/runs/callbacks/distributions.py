"""How gradients and learned inner rates are distributed, logged from time to time."""

from collections.abc import Callable, Mapping
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from innerloop.adaptation import Adaptation


def learned_rates(module: LightningModule) -> dict[str, Tensor]:
    """Return name -> inner rates that a learner's adaptation learns; empty if it learns none."""
    parts = [part for part in module.modules() if isinstance(part, Adaptation)]
    return {name: rate.detach() for part in parts for name, rate in part.learned_rates().items()}


class InnerRates(Callback):
    """Log the mean of each layer's learned inner rates as inner_lr/<layer>, at the steps that are logged."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            means = {f"inner_lr/{name}": rate.mean() for name, rate in learned_rates(pl_module).items()}
            pl_module.log_dict(means, batch_size=1)


class Histograms(Callback):
    """Send the meta-gradient of each parameter, before clipping, and the inner rates, at regular intervals.

    every: number of outer updates between two histograms. In between, the callback costs nothing.
    send: called with (name -> entries, step). A learner with several learned rates per layer gets one entry per layer;
        a single number gets none.
    """

    def __init__(self, every: int, send: Callable[[Mapping[str, Tensor], int], None]) -> None:
        self.every, self.send = every, send
        self._names: dict[int, str] = {}
        self._gradients: dict[int, Tensor] = {}
        self._values: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._names = {id(p): name.replace("/", ".") for name, p in pl_module.named_parameters()}

    def _due(self, trainer: Trainer) -> bool:
        return trainer.is_global_zero and (trainer.global_step + 1) % self.every == 0

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._due(trainer):
            held = [p for p in pl_module.parameters() if p.numel()]
            self._gradients = {id(p): p.grad.detach().clone() for p in held if p.grad is not None}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # With several optimizers there is a backward pass for each: keep the parameters that this one updates.
        if self._due(trainer):
            updated = [id(p) for group in optimizer.param_groups for p in group["params"]]
            self._values |= {f"gradients/{self._names[i]}": self._gradients[i] for i in updated if i in self._gradients}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._values:
            rates = {f"inner_rates/{name}": rate for name, rate in learned_rates(pl_module).items() if rate.numel() > 1}
            self.send(self._values | rates, trainer.fit_loop.epoch_loop._batches_that_stepped)
            self._values, self._gradients = {}, {}
