"""What all learners share: the episodic train, validation and test steps, and the one place of the outer update."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._pytree import tree_map

from innerloop.adaptation import Adaptation, Engine
from innerloop.adaptation.engine import Outputs
from innerloop.episodes import (
    Episode,
    InputError,
    Loss,
    MetaBatch,
    Metrics,
    Weights,
    apply,
    number_of_tasks,
    weights_of,
)
from innerloop.errors import DivergedError
from innerloop.metrics import AdaptationCurve, summarize
from innerloop.nets.norm import BatchNorm, with_statistics_of

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}
SCHEDULES = ("constant", "cosine")


class Phase(NamedTuple):
    """One outer update of a meta-batch: an objective and the group of meta-parameters that moves on it."""

    group: str
    objective: Callable[[Episode], tuple[Tensor, Outputs]]


class MetaLearner(LightningModule):
    """Meta-trains an adaptation: theta (the net's weights) and the adaptation's own parameters learn on the query loss.

    net: the net that is adapted. loss, metrics: the task family's. adaptation: support set -> weights.
    outer_lr: rate of the outer optimizer ("adam", "adamw", "sgd"); schedule "constant" or "cosine" (to zero over the
        trainer's max_steps). outer_clip: bound on the norm of the meta-gradient, or None.
    accumulate: meta-batches an outer update is averaged over.
    engine, chunk, compile: how the tasks of a meta-batch are run, see `Engine`; steps that are logged are not compiled,
        so that what is only reported need not be.
    transductive: where the net has batch norms, whether a query's prediction uses the statistics of all queries of its
        task; if not, those of the support set, in training and evaluation alike.

    Optimization is manual: `training_step` asks the engine for the meta-gradient and hands it to Lightning in one
    backward pass, so that precision plug-ins, DDP and clipping act as they do elsewhere. One outer update counts as
    one `global_step`.
    """

    pools: ClassVar[bool] = False
    """Whether it trains on pooled tasks and so takes `training_outputs`, see `Tasks.pooled`."""

    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        adaptation: Adaptation,
        metrics: Metrics | None = None,
        *,
        outer_lr: float = 1e-3,
        optimizer: str = "adam",
        weight_decay: float = 0.0,
        schedule: str = "constant",
        outer_clip: float | None = None,
        accumulate: int = 1,
        engine: str = "auto",
        chunk: int | None = None,
        compile: bool = False,
        transductive: bool = True,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        if optimizer not in OPTIMIZERS:
            raise InputError(f"unknown optimizer {optimizer!r}; choose one of {', '.join(OPTIMIZERS)}")
        if schedule not in SCHEDULES:
            raise InputError(f"unknown schedule {schedule!r}; choose one of {', '.join(SCHEDULES)}")
        for name, value in {"outer_lr": outer_lr, "outer_clip": outer_clip, "accumulate": accumulate}.items():
            if value is not None and not value > 0:
                raise InputError(f"{name} must be above zero, got {value}")
        if weight_decay < 0:
            raise InputError(f"weight_decay must not be negative, got {weight_decay}")
        for name, module in net.named_modules():
            if getattr(module, "running_mean", None) is not None:
                raise InputError(
                    f"the net's {name} keeps running statistics, which would pass from task to task: use "
                    "innerloop.nets.BatchNorm, or track_running_stats=False with engine=loop"
                )
            if not transductive and isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise InputError(f"transductive=false: the net's {name} must be innerloop.nets.BatchNorm for that")
        self.net, self.adaptation = net, adaptation
        self.loss, self.metrics = loss, metrics or (lambda net, weights, samples: {"loss": loss(net, weights, samples)})
        self.outer_lr, self.optimizer, self.weight_decay = outer_lr, optimizer, weight_decay
        self.schedule, self.outer_clip, self.accumulate = schedule, outer_clip, accumulate
        self.engine = Engine(engine, [net, adaptation], chunk, compile)
        self.by_support = not transductive and any(isinstance(m, BatchNorm) for m in net.modules())
        self.curve = AdaptationCurve()
        self.last_curve: Mapping[str, list[dict[str, float]]] = {}

    # What a subclass may change.

    def phases(self) -> Sequence[Phase]:
        """The outer updates of one meta-batch, in order."""
        return [Phase("all", self.query_objective)]

    def groups(self) -> dict[str, list[tuple[float, list[nn.Parameter]]]]:
        """For each phase's group, (rate, meta-parameters) pairs: one optimizer a group."""
        return {"all": [(self.outer_lr, list(self.parameters()))]}

    # One task.

    def query_objective(self, episode: Episode) -> tuple[Tensor, Outputs]:
        """The query loss under the adapted weights."""
        weights = self.adaptation(self.net, weights_of(self.net), episode.support)
        return self.query_loss(weights, episode), self.report_on(weights, episode)

    def query_loss(self, weights: Weights, episode: Episode) -> Tensor:
        """The loss on the query under given weights."""
        return self.loss(self.query_net(episode), weights, episode.query)

    def query_net(self, episode: Episode, step: int | None = None) -> nn.Module:
        """The net as queries see it: its batch norms read the queries themselves or, not transductive, the support.

        step: the number of inner steps that the query is judged after; None: all of training.
        """
        return with_statistics_of(self.net, episode.support.x) if self.by_support else self.net

    @property
    def transductive(self) -> bool:
        """Whether, in evaluation, a query's prediction depends on the other queries of its task."""
        norms = (BatchNorm, nn.modules.batchnorm._BatchNorm)
        return not self.by_support and any(isinstance(m, norms) for m in self.net.modules())

    @torch.no_grad()
    def report_on(self, weights: Weights, episode: Episode) -> Outputs:
        """The query metrics under given weights, in the steps that are logged."""
        return self.metrics(self.query_net(episode), weights, episode.query) if self._reporting else {}

    def evaluate_episode(self, episode: Episode) -> Outputs:
        """Query metrics before any adaptation, and after 0, 1, …, K inner steps: each (1 + K + 1,)."""
        points = [self.metrics(net, weights, episode.query) for net, weights in self._path(episode)]
        return {name: torch.stack([point[name] for point in points]) for name in points[0]}

    @torch.no_grad()
    def predict_episode(self, episode: Episode) -> list[Tensor]:
        """One task's net outputs on the query before adaptation and after 0, 1, …, K inner steps."""
        return [apply(net, weights, episode.query.x) for net, weights in self._path(episode)]

    def _path(self, episode: Episode) -> list[tuple[nn.Module, Weights]]:
        theta = weights_of(self.net)
        path = self.adaptation.trajectory(self.net, theta, episode.support)
        return [(self.query_net(episode, max(k - 1, 0)), w) for k, w in enumerate([theta, *path])]

    # The outer loop.

    def training_step(self, batch: MetaBatch, batch_idx: int) -> Tensor:
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        first = batch_idx % self.accumulate == 0
        last = (batch_idx + 1) % self.accumulate == 0
        step = self.global_step
        for number, (phase, optimizer) in enumerate(zip(self.phases(), optimizers, strict=True)):
            if first:
                for each in optimizers:
                    each.zero_grad()
            value = self._backward(phase, batch, step)
            if last:
                self._update(optimizer, step, value, counts=number == len(optimizers) - 1)
        if last:
            schedulers = self.lr_schedulers()
            for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
                assert isinstance(scheduler, LambdaLR)
                scheduler.step()
        return value

    def _backward(self, phase: Phase, batch: MetaBatch, step: int) -> Tensor:
        parameters = [p for p in self.parameters() if p.requires_grad]
        moved = {id(p) for _, group in self.groups()[phase.group] for p in group}
        wanted = [p for p in parameters if id(p) in moved]
        value, gradient, reported = self.engine.value_and_grad(phase.objective, wanted, batch, self._reporting)
        found = dict(zip(map(id, wanted), gradient, strict=True))
        # DDP waits for every parameter, so those that this phase leaves alone are handed zeros.
        given = [found[id(p)] if id(p) in found else torch.zeros_like(p) for p in parameters]
        if not torch.isfinite(value):  # in the mean of all ranks' gradients, which stop training together
            given = [torch.full_like(g, math.nan) for g in given]
        share = self.share_of(batch)
        self.manual_backward(GivenGradient.apply(value, given, *parameters) * share / self.accumulate)
        if self._reporting:
            name = "train/loss" if phase.objective == self.query_objective else "train/support_loss"
            means = {f"train/{k}": v.mean() for k, v in reported.items()}
            self.log_dict({k: v * share for k, v in ({name: value} | means).items()}, batch_size=1, sync_dist=True)
        return value

    def share_of(self, batch: MetaBatch) -> Tensor | float:
        """What a mean over this rank's tasks counts for in the mean of the ranks' means: 1 where all have as many."""
        trainer = self._trainer
        if trainer is None or trainer.world_size == 1:
            return 1.0
        count = torch.tensor(float(number_of_tasks(batch)), dtype=torch.float64, device=self.device)
        share = count / trainer.strategy.reduce(count.clone(), reduce_op="mean")
        return share.to(next(self.parameters()).dtype)

    def _update(self, optimizer: LightningOptimizer, step: int, value: Tensor, counts: bool) -> None:
        moved = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm(moved)
        if not torch.isfinite(norm):
            what, number = ("meta-gradient", norm) if torch.isfinite(value) else ("loss", value)
            raise DivergedError(self._diverged(what, number.item(), step))
        if self._reporting and counts:
            self.log("train/gradient_norm", norm, batch_size=1)
        if self.outer_clip is not None:
            self.clip_gradients(optimizer.optimizer, gradient_clip_val=self.outer_clip, gradient_clip_algorithm="norm")
        if not counts:
            # Lightning counts the steps of every optimizer through these hooks; one meta-batch is to count once.
            optimizer._on_before_step = lambda: None
            optimizer._on_after_step = lambda: None
        optimizer.step()

    @property
    def _reporting(self) -> bool:
        trainer = self._trainer
        if trainer is None or not trainer.training:
            return False
        return (self.global_step + 1) % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]

    def _diverged(self, what: str, value: float, step: int) -> str:
        return (
            f"the {what} is {value} at step {step}: training has diverged. Lower algo.inner_lr or algo.outer_lr, "
            "bound the inner gradients (algo.inner_clip=10) or the outer one (algo.outer_clip=10), or take fewer "
            "inner steps"
        )

    def configure_optimizers(self) -> Any:
        total = self.trainer.max_steps
        if self.schedule == "cosine" and total < 1:
            raise InputError("schedule=cosine needs trainer.max_steps to be set")

        def factor(step: int) -> float:
            return 1.0 if self.schedule == "constant" else 0.5 * (1 + math.cos(math.pi * min(step / total, 1)))

        extra = {} if self.optimizer == "sgd" and not self.weight_decay else {"weight_decay": self.weight_decay}
        made = [
            OPTIMIZERS[self.optimizer]([{"params": ps, "lr": lr} for lr, ps in group if ps], lr=self.outer_lr, **extra)
            for group in self.groups().values()
        ]
        return made, [LambdaLR(optimizer, factor) for optimizer in made]

    # Evaluation.

    def on_validation_epoch_start(self) -> None:
        self.curve.reset()

    def on_test_epoch_start(self) -> None:
        self.curve.reset()

    def validation_step(self, batch: MetaBatch, batch_idx: int) -> None:
        self._evaluate(batch)

    def test_step(self, batch: MetaBatch, batch_idx: int) -> None:
        self._evaluate(batch)

    def _evaluate(self, batch: MetaBatch) -> None:
        # In Lightning's inference mode the inner loop could not take gradients; tensors made in it stay unusable.
        with torch.inference_mode(False):
            batch = tree_map(lambda t: t.clone() if t.is_inference() else t, batch)
            self.curve.update(self.engine.map(self.evaluate_episode, batch))

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _report(self, stage: str) -> None:
        values = self.curve.compute()
        self.last_curve = {
            name: [summarize(values[:, column, i]) for column in range(values.shape[1])]
            for i, name in enumerate(self.curve.names)
        }
        self.log_dict(
            {f"{stage}/{name}": column[-1]["mean"] for name, column in self.last_curve.items()}, sync_dist=True
        )


def with_gradient(value: Tensor, weights: Weights, gradient: Weights) -> Tensor:
    """The value of one task, with this gradient in the weights, for learners whose outer gradient is no derivative.

    Plain arithmetic, value + <w, g> - stopgrad(<w, g>), so every engine differentiates it.
    """
    inner = torch.stack([(weights[name] * g.detach()).sum() for name, g in gradient.items()]).sum()
    return value.detach() + inner - inner.detach()


class GivenGradient(torch.autograd.Function):
    """The value, with the given gradient: lets a gradient that was computed elsewhere pass through one backward."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradient: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradient = gradient
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,) = grad_outputs
        return None, None, *(g * upstream for g in ctx.gradient)
