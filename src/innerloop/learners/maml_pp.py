"""MAML++: MAML with additions that stabilise its training."""

from typing import Any

import torch
from torch import Tensor, nn

from innerloop.adaptation import PerStepNorms
from innerloop.adaptation.engine import Outputs
from innerloop.episodes import Episode, InputError, Loss, MetaBatch, Metrics, weights_of
from innerloop.learners.maml import MAML
from innerloop.nets.norm import with_statistics_from


class MAMLPlusPlus(MAML):
    """MAML++ (Antoniou, Edwards and Storkey, 2019). Each addition has its switch; with all of them off it is MAML.

    multi_step_until: until this outer step the query loss after each inner step counts, with weights that change from
        1/K each to 1 for the last step (section 4, multi-step loss). 0: only the last step ever counts.
    first_order_until: until this outer step the inner gradient is a constant (derivative-order annealing). 0: never.
    per_step_norms: learn the weights of the net's norms for each inner step: see `PerStepNorms`.
    running_statistics: evaluate queries with running statistics of each inner step, which are updated in training,
        instead of the batch's own. Then a query's prediction depends on no other query.
    learn_lr="tensor_step" learns a rate per layer and step; schedule="cosine" anneals the outer rate.
    The other keyword arguments: those of `MAML`.
    """

    inner_loop = PerStepNorms
    adaptation: PerStepNorms

    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        metrics: Metrics | None = None,
        *,
        multi_step_until: int = 0,
        first_order_until: int = 0,
        per_step_norms: bool = False,
        running_statistics: bool = False,
        **maml: Any,
    ) -> None:
        super().__init__(net, loss, metrics, **maml)
        for name, value in {"multi_step_until": multi_step_until, "first_order_until": first_order_until}.items():
            if value < 0:
                raise InputError(f"{name} must not be negative, got {value}")
        if multi_step_until or first_order_until:
            if self.engine.compile or self.engine.kind == "graph":
                raise InputError(
                    f"{'compile=true' if self.engine.compile else 'engine=graph'} needs an objective that stays the "
                    "same: set multi_step_until=0 and first_order_until=0"
                )
            self.engine.steady = False
        if running_statistics and self.support_statistics:
            raise InputError("running_statistics=true and transductive=false exclude each other: choose one")
        self.multi_step_until, self.first_order_until = multi_step_until, first_order_until
        self.always_first_order = self.adaptation.first_order
        if per_step_norms:
            self.adaptation.learn_norms(weights_of(net))
        if running_statistics:
            self.adaptation.keep_statistics(net)

    def loss_weights(self, step: int) -> list[float]:
        """Return the weights of the query loss after 1, …, K inner steps at an outer step. They sum to one."""
        k = self.adaptation.steps
        if k == 0:
            return []
        left = max(0.0, 1 - step / self.multi_step_until) if self.multi_step_until else 0.0
        return [left / k] * (k - 1) + [1 - left * (k - 1) / k]

    def training_step(self, batch: MetaBatch, batch_idx: int) -> Tensor:
        self.adaptation.first_order = self.always_first_order or self.global_step < self.first_order_until
        if self.adaptation.running is not None:
            seen = self.engine.map(self._observe, batch)
            share, reduce = self.share_of(batch), self.trainer.strategy.reduce
            means = {name: value.mean(0) * share for name, value in seen.items()}
            self.adaptation.keep({name: reduce(mean, reduce_op="mean") for name, mean in means.items()})
        return super().training_step(batch, batch_idx)

    def query_objective(self, episode: Episode) -> tuple[Tensor, Outputs]:
        path = self.adaptation.path(self.net, weights_of(self.net), episode.support, self.adaptation.steps)
        counted = [(c, w) for c, w in zip(self.loss_weights(self.global_step), path[1:], strict=True) if c > 0]
        losses = [c * self.query_loss(w, episode) for c, w in counted or [(1.0, path[-1])]]
        return torch.stack(losses).sum(), self.report_on(path[-1], episode)

    def query_net(self, episode: Episode, step: int | None = None) -> nn.Module:
        if step is None or self.training or self.adaptation.running is None:
            return super().query_net(episode, step)
        return with_statistics_from(self.net, self.adaptation.running_at(self.net, step))

    @property
    def transductive(self) -> bool:
        return super().transductive and self.adaptation.running is None

    def _observe(self, episode: Episode) -> Outputs:
        return self.adaptation.observe(self.net, weights_of(self.net), episode.support, episode.query)
