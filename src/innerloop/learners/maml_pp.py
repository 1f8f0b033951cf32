"""MAML++: MAML with additions that stabilise its training."""

from typing import Any

from torch import Tensor, nn

from innerloop.adaptation import PerStepNorms
from innerloop.adaptation.engine import Outputs
from innerloop.episodes import Episode, InputError, Loss, MetaBatch, Metrics, weights_of
from innerloop.learners.maml import MAML
from innerloop.nets.norm import with_statistics_from


class MAMLPlusPlus(MAML):
    """MAML++ (Antoniou, Edwards and Storkey, 2019). Each addition has its switch; with all of them off it is MAML.

    multi_step_until: until this outer step the query loss after each inner step counts, with weights that change from
        1/K each to those without it, 1 for the last step (section 4, multi-step loss). 0: never.
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

    def share_of_all_steps(self) -> float:
        until = self.multi_step_until
        return max(super().share_of_all_steps(), 1 - self.global_step / until if until else 0.0)

    def training_step(self, batch: MetaBatch, batch_idx: int) -> Tensor:
        self.adaptation.first_order = self.always_first_order or self.global_step < self.first_order_until
        if self.adaptation.running is not None:
            seen = self.engine.map(self._observe, batch)
            share, reduce = self.share_of(batch), self.trainer.strategy.reduce
            means = {name: value.mean(0) * share for name, value in seen.items()}
            self.adaptation.keep({name: reduce(mean, reduce_op="mean") for name, mean in means.items()})
        return super().training_step(batch, batch_idx)

    def query_net(self, episode: Episode, step: int | None = None) -> nn.Module:
        if step is None or self.training or self.adaptation.running is None:
            return super().query_net(episode, step)
        return with_statistics_from(self.net, self.adaptation.running_at(self.net, step))

    @property
    def transductive(self) -> bool:
        return super().transductive and self.adaptation.running is None

    def _observe(self, episode: Episode) -> Outputs:
        return self.adaptation.observe(self.net, weights_of(self.net), episode.support, episode.query)
