"""The baseline that every table needs: ordinary training on all tasks at once, then fine-tuning."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from innerloop.adaptation import Adaptation, Chain, GradientSteps, PrototypeHead, ZeroHead
from innerloop.adaptation.engine import Outputs
from innerloop.episodes import Episode, InputError, Loss, MetaBatch, Metrics, Samples, SupportAt, tasks_of, weights_of
from innerloop.learners.learner import MetaLearner

HEADS = ("auto", "trained", "zero", "prototypes")


class FineTune(MetaLearner):
    """Supervised training on the pooled samples of all training tasks, and gradient steps on each task in evaluation.

    The baseline of Chen et al. (2019). Training has no inner loop: a meta-batch is one batch of samples, its support
    and query together.

    training_outputs: number of training classes, if labels mean the same class in every task. A classifier over them is
        trained on the net's features and dropped in evaluation. None: the net's own head is trained.
    head: start of the head in evaluation. "trained": as it was trained. "zero": zeros. "prototypes": after 0 steps it
        is the nearest class mean. "auto": trained if the net's own head was trained, else prototypes.
    only: fine-tune the "head" or the "body" only; None: the whole net.
    inner_lr, eval_inner_steps, inner_clip, support_at: see `GradientSteps`. The other keyword arguments: those of
        `OuterLoop`.
    """

    pools = True

    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        metrics: Metrics | None = None,
        *,
        training_outputs: int | None = None,
        head: str = "auto",
        only: str | None = None,
        inner_lr: float = 0.01,
        eval_inner_steps: int = 10,
        inner_clip: float | None = None,
        support_at: SupportAt | None = None,
        **outer: Any,
    ) -> None:
        if head not in HEADS:
            raise InputError(f"unknown head {head!r}; choose one of {', '.join(HEADS)}")
        if head == "auto":
            head = "trained" if training_outputs is None else "prototypes"
        theta = weights_of(net)
        inner: dict[str, Any] = {"eval_steps": eval_inner_steps, "only": only, "clip": inner_clip}
        steps = GradientSteps(loss, 0, inner_lr, weights=theta, support_at=support_at, **inner)
        starts: dict[str, list[Adaptation]] = {"trained": [], "zero": [ZeroHead()], "prototypes": [PrototypeHead()]}
        super().__init__(net, loss, Chain(*starts[head], steps), metrics, **outer)
        self.classifier: nn.Linear | None = None
        if training_outputs is not None:
            self.classifier = nn.Linear(net.feature_size, training_outputs)  # type: ignore[arg-type]

    def training_step(self, batch: MetaBatch, batch_idx: int) -> Tensor:
        parts = [part for kind in zip(*tasks_of(batch), strict=True) for part in kind]
        whole = Samples(*(torch.cat(values)[None] for values in zip(*parts, strict=True)))
        return super().training_step(Episode(whole, whole), batch_idx)

    def query_objective(self, episode: Episode) -> tuple[Tensor, Outputs]:
        weights = weights_of(self.net)
        if self.classifier is not None:
            weights |= {f"head.{name}": w for name, w in self.classifier.named_parameters()}
        return self.loss(self.net, weights, episode.query), self.report_on(weights, episode)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        # Other data have other training classes, which evaluation does not use.
        if self.classifier is not None and (trained := state_dict.get("classifier.weight")) is not None:
            self.classifier = nn.Linear(trained.shape[1], trained.shape[0])
        return super().load_state_dict(state_dict, *args, **kwargs)
