"""What all learners share: the episodic training, validation and test steps, and the one place of the outer update."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils._pytree import tree_map

from innerloop.adaptation import Adaptation, Engine
from innerloop.adaptation.engine import Outputs
from innerloop.devices.random_state import random_state
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
from innerloop.learners.keywords import flattened
from innerloop.learners.outer_loop import Group, OuterLoop, OuterSchedule, listed
from innerloop.metrics import AdaptationCurve, summarize
from innerloop.nets.norm import BatchNorm, with_statistics_of


class Phase(NamedTuple):
    """One outer update of a meta-batch: an objective, and the group of meta-parameters that it updates."""

    group: str
    objective: Callable[[Episode], tuple[Tensor, Outputs]]


class MetaLearner(LightningModule):
    """Meta-train an adaptation: theta, the net's weights, and the adaptation's own parameters, on the query loss.

    net: the net that is adapted. loss, metrics: the task family's; metrics None reports the loss.
    adaptation: turns a support set into weights. The keyword arguments of the outer loop: see `OuterLoop`.

    Optimization is manual: `training_step` gets the meta-gradient from the engine and passes it to Lightning in one
    backward call, so that precision plug-ins and DDP act as usual. One outer update counts as one
    `global_step`.
    Raises InputError for a net whose norms keep running statistics, which would pass from task to task.
    """

    pools: ClassVar[bool] = False
    """Whether the learner trains on pooled tasks and therefore takes `training_outputs`: see `Tasks.pooled`."""
    steady: ClassVar[bool] = True
    """Whether the objectives depend on nothing that changes but meta-parameters and episodes, as a CUDA graph needs.
    False in a subclass that does not say otherwise in its own class body, because nobody has checked it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.steady = vars(cls).get("steady", cls.__module__.partition(".")[0] == __name__.partition(".")[0])

    @flattened
    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        adaptation: Adaptation,
        metrics: Metrics | None = None,
        *,
        outer: OuterLoop = OuterLoop(),
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        _check_norms(net, outer.transductive)
        if outer.freeze:
            if not isinstance(getattr(net, outer.freeze, None), nn.Module):
                raise InputError(f"freeze={outer.freeze}: this net has no such part")
            net.get_submodule(outer.freeze).requires_grad_(False)
        self.net, self.adaptation, self.outer = net, adaptation, outer
        self._decayed()  # raises InputError early
        self.loss, self.metrics = loss, metrics or (lambda net, weights, samples: {"loss": loss(net, weights, samples)})
        compile = outer.compile is True
        self.engine = Engine(outer.engine, [net, adaptation], outer.chunk, compile, steady=self.steady)
        self.support_statistics = not outer.transductive and any(isinstance(m, BatchNorm) for m in net.modules())
        self.curve = AdaptationCurve()
        self.last_curve: Mapping[str, list[dict[str, float]]] = {}
        self._reporting = False
        self._of_phases: dict[str, set[int]] = {}
        self._meta_parameters: list[nn.Parameter] = []

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Return a learner with the meta-parameters of a checkpoint, built from the keyword arguments.

        A checkpoint holds meta-parameters, not the net and the loss, so these must be given. `innerloop.load` builds
        everything from the run directory. Raises InputError that says so if they are missing.
        """
        if not {"net", "loss"} <= set(kwargs):
            raise InputError(
                "a checkpoint holds neither the net nor the loss: use innerloop.load(<run directory>).learner, or "
                f"{cls.__name__}.load_from_checkpoint(path, net=…, loss=…) with the learner's keyword arguments"
            )
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    # What a subclass may change.

    def phases(self) -> Sequence[Phase]:
        """Return the outer updates of one meta-batch, in order."""
        return [Phase("all", self.query_objective)]

    def groups(self) -> dict[str, Group]:
        """Return group -> (rate, meta-parameters) pairs. Each group has one optimizer."""
        return {"all": [(self.outer.outer_lr, list(self.parameters()))]}

    # One task.

    def query_objective(self, episode: Episode) -> tuple[Tensor, Outputs]:
        """Return the query loss under the adapted weights, and what is reported of it."""
        weights = self.adaptation(self.net, weights_of(self.net), episode.support)
        return self.query_loss(weights, episode), self.report_on(weights, episode)

    def query_loss(self, weights: Weights, episode: Episode) -> Tensor:
        """Return the loss on the query under these weights."""
        return self.loss(self.query_net(episode), weights, episode.query)

    def query_net(self, episode: Episode, step: int | None = None) -> nn.Module:
        """Return the net that queries are evaluated with.

        Its batch norms use the statistics of the queries, or those of the support set if it is not transductive.

        step: number of inner steps after which the query is evaluated; None: all steps of training.
        """
        return with_statistics_of(self.net, episode.support.x) if self.support_statistics else self.net

    @property
    def transductive(self) -> bool:
        """Whether, in evaluation, a query's prediction depends on the other queries of its task."""
        norms = (BatchNorm, nn.modules.batchnorm._BatchNorm)
        return not self.support_statistics and any(isinstance(m, norms) for m in self.net.modules())

    @torch.no_grad()
    def report_on(self, weights: Weights, episode: Episode) -> Outputs:
        """Return the query metrics under these weights at steps that are logged, else nothing."""
        if not self._reporting:
            return {}
        with random_state()():  # dropout draws here what training draws next, so that logging changes nothing
            return self.metrics(self.query_net(episode), weights, episode.query)

    def evaluate_episode(self, episode: Episode) -> Outputs:
        """Return each query metric before any adaptation and after 0, 1, …, K inner steps, (1 + K + 1,)."""
        points = [self.metrics(net, weights, episode.query) for net, weights in self.path(episode)]
        return {name: torch.stack([point[name] for point in points]) for name in points[0]}

    @torch.no_grad()
    def predict_episode(self, episode: Episode) -> list[Tensor]:
        """Return one task's net outputs on the query before adaptation and after 0, 1, …, K inner steps."""
        return [apply(net, weights, episode.query.x) for net, weights in self.path(episode)]

    def path(self, episode: Episode) -> list[tuple[nn.Module, Weights]]:
        """Return the query's net and the weights before any adaptation and after 0, 1, …, K inner steps."""
        theta = weights_of(self.net)
        path = self.adaptation.trajectory(self.net, theta, episode.support)
        return [(self.query_net(episode, max(k - 1, 0)), w) for k, w in enumerate([theta, *path])]

    # The outer loop.

    def compile_for(self, batch: MetaBatch, small: bool = False) -> None:
        """Compile the meta-step for training meta-batches of the shapes of this one, before the first of them.

        Raises InputError if that is not possible, and leaves the learner as it was: see `Engine.compile_now`.
        """
        self._find_parameters()
        self.engine.compile_now([(phase.objective, self._updated_by(phase)) for phase in self.phases()], batch, small)

    def training_step(self, batch: MetaBatch, batch_idx: int) -> Tensor:
        optimizers = listed(self.optimizers())
        first = batch_idx % self.outer.accumulate == 0
        last = (batch_idx + 1) % self.outer.accumulate == 0
        step = self.global_step
        if reporting := self._logs(step):
            self._reporting = True
        for number, (phase, optimizer) in enumerate(zip(self.phases(), optimizers, strict=True)):
            if first:  # what other phases have accumulated stays
                updated = self._of_phases.get(phase.group, set())
                for p in (p for p in self._meta_parameters if id(p) in updated):
                    p.grad = None
            value = self._backward(phase, batch, step)
            if last:
                self._update(optimizer, step, value, counts=number == len(optimizers) - 1)
        if last:
            for scheduler in listed(self.lr_schedulers()):
                scheduler.step()
        if reporting:
            self._reporting = False
        return value

    def _backward(self, phase: Phase, batch: MetaBatch, step: int) -> Tensor:
        parameters, wanted = [p for p in self._meta_parameters if p.requires_grad], self._updated_by(phase)
        value, gradients, reported = self.engine.value_and_grad(phase.objective, wanted, batch, self._reporting)
        if len(wanted) < len(parameters):  # DDP waits for every parameter, so those of other phases get zeros
            found = dict(zip(map(id, wanted), gradients, strict=True))
            gradients = [found[id(p)] if id(p) in found else torch.zeros_like(p) for p in parameters]
        if not math.isfinite(value):  # NaN in the mean over the ranks' gradients stops all of them together
            gradients = [torch.full_like(g, math.nan) for g in gradients]
        share, loss = self.share_of(batch), GivenGradient.apply(value, gradients, *parameters)
        if isinstance(share, Tensor) or self.outer.accumulate > 1:
            loss = loss * share / self.outer.accumulate
        self.manual_backward(loss)
        if self._reporting:
            name = "train/loss" if phase.objective == self.query_objective else "train/support_loss"
            means = {f"train/{k}": v.mean() for k, v in reported.items()}
            self.log_dict({k: v * share for k, v in ({name: value} | means).items()}, batch_size=1, sync_dist=True)
        return value

    def share_of(self, batch: MetaBatch) -> Tensor | float:
        """Return the weight of this rank's mean over its tasks in the mean over all ranks; 1 if all have as many."""
        trainer = self._trainer
        if trainer is None or trainer.world_size == 1:
            return 1.0
        count = torch.tensor(float(number_of_tasks(batch)), dtype=torch.float64, device=self.device)
        share = count / trainer.strategy.reduce(count.clone(), reduce_op="mean")
        return share.to(next(self.parameters()).dtype)

    def _update(self, optimizer: LightningOptimizer, step: int, value: Tensor, counts: bool) -> None:
        updated = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in updated if p.grad is not None])
        size = norm.item()
        if not math.isfinite(size):
            what, number = ("meta-gradient", size) if math.isfinite(value) else ("loss", value.item())
            raise DivergedError(f"the {what} is {number} at step {step}: training has diverged")
        if self._reporting and counts:
            self.log("train/gradient_norm", norm, batch_size=1)
        if self.outer.outer_clip is not None and size + 1e-5 > self.outer.outer_clip:  # else torch multiplies by one
            nn.utils.clip_grads_with_norm_(updated, self.outer.outer_clip, norm)  # Lightning's takes the norm anew
        if not counts:
            # Lightning counts the steps of every optimizer through these hooks, but a meta-batch must count once.
            optimizer._on_before_step = lambda: None
            optimizer._on_after_step = lambda: None
        optimizer.step()

    def _logs(self, step: int) -> bool:
        trainer = self._trainer
        return trainer is not None and (step + 1) % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]

    def on_train_start(self) -> None:
        """Set the rates of a resumed run as configured, since the optimizers in its checkpoint have those of before.

        Optimizers and schedules that a subclass makes in its own `configure_optimizers` stay as they are. Raises
        InputError if they do not fit.
        """
        self._find_parameters()
        optimizers, schedules, groups = listed(self.optimizers()), listed(self.lr_schedulers()), self.groups()
        if len(optimizers) != len(self.phases()):
            raise InputError(f"configure_optimizers must return one optimizer per phase, so {len(self.phases())}")
        if any(isinstance(schedule, ReduceLROnPlateau) for schedule in schedules):
            raise InputError("configure_optimizers: ReduceLROnPlateau is not supported; choose another schedule")
        for optimizer, schedule, group in zip(optimizers, schedules, groups.values(), strict=False):
            if isinstance(schedule, OuterSchedule):
                self.outer.set_rates(optimizer, schedule, group, self._decayed())

    def _find_parameters(self) -> None:
        # A walk over the modules takes a tenth of a small step, and optimizers keep their parameters anyway.
        self._meta_parameters, groups = list(self.parameters()), self.groups()
        self._of_phases = {name: {id(p) for _, part in group for p in part} for name, group in groups.items()}

    def _updated_by(self, phase: Phase) -> list[nn.Parameter]:
        members = self._of_phases[phase.group]
        return [p for p in self._meta_parameters if p.requires_grad and id(p) in members]

    def _decayed(self) -> set[int]:
        return self.outer.decayed(self.net, self.parameters())

    def configure_optimizers(self) -> Any:
        steps, decayed = self.trainer.max_steps, self._decayed()
        pairs = [self.outer.make_optimizer(group, steps, decayed) for group in self.groups().values()]
        optimizers, schedules = zip(*pairs, strict=True)
        return list(optimizers), list(schedules)

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
        # In inference mode the inner loop cannot take gradients, and tensors made in that mode stay unusable for it.
        with torch.inference_mode(False):
            batch = tree_map(lambda t: t.clone() if t.is_inference() else t, batch)
            self.curve.update(self.engine.map(self.evaluate_episode, batch))

    def on_validation_epoch_end(self) -> None:
        self._summarize("val")

    def on_test_epoch_end(self) -> None:
        self._summarize("test")

    def _summarize(self, stage: str) -> None:
        values = self.curve.compute()
        self.last_curve = {
            name: [summarize(values[:, column, i]) for column in range(values.shape[1])]
            for i, name in enumerate(self.curve.names)
        }
        self.log_dict(
            {f"{stage}/{name}": column[-1]["mean"] for name, column in self.last_curve.items()}, sync_dist=True
        )


def _check_norms(net: nn.Module, transductive: bool) -> None:
    for name, module in net.named_modules():
        if getattr(module, "running_mean", None) is not None:
            raise InputError(
                f"the net's {name} keeps running statistics, which would pass from task to task: use "
                "innerloop.nets.BatchNorm, or track_running_stats=False with engine=loop"
            )
        if not transductive and isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise InputError(f"transductive=false: the net's {name} must be innerloop.nets.BatchNorm for that")


def with_gradient(value: Tensor, weights: Weights, gradient: Weights) -> Tensor:
    """Return the value of one task with this gradient with respect to the weights.

    For learners whose outer gradient is not the derivative of a loss. It is plain arithmetic,
    value + <w, g> - stopgrad(<w, g>), so every engine can differentiate it.
    """
    inner = torch.stack([(weights[name] * g.detach()).sum() for name, g in gradient.items()]).sum()
    return value.detach() + inner - inner.detach()


class GivenGradient(torch.autograd.Function):
    """A value with a gradient that was computed elsewhere, so that the gradient passes through one backward call."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradient: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradient = gradient
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,) = grad_outputs
        return None, None, *torch._foreach_mul(ctx.gradient, upstream)
