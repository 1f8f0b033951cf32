"""The model-based learners: hypernetworks that read a support set and write the task's weights."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from innerloop.adaptation import Adaptation, Chain
from innerloop.adaptation.engine import Outputs
from innerloop.episodes import Episode, InputError, Loss, Metrics, Observation, weights_of
from innerloop.learners.keywords import flattened
from innerloop.learners.learner import MetaLearner, Phase
from innerloop.learners.outer_loop import Group
from innerloop.learners.task_relation import TaskRelation

UPDATES = ("joint", "alternating")


class RelationLearner(MetaLearner):
    """A learner with a task relation model g(.; phi), which inner steps may follow, and joint or alternating updates.

    generate: the task relation model, a part of `adaptation`.
    update: "joint" updates theta, phi and inner rates on the query loss. "alternating" does three things for each
        meta-batch: (1) it updates phi on mean L_i^S(theta + g(S_i; phi)), theta fixed; (2) the tasks adapt with the new
        phi; (3) it updates theta and inner rates on mean L_i^Q.
    generator_lr: outer rate of phi; None: outer_lr.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        adaptation: Adaptation,
        generate: Adaptation,
        metrics: Metrics | None = None,
        *,
        update: str = "joint",
        generator_lr: float | None = None,
        **outer: Any,
    ) -> None:
        super().__init__(net, loss, adaptation, metrics, **outer)
        if update not in UPDATES:
            raise InputError(f"unknown update {update!r}; choose one of {', '.join(UPDATES)}")
        if generator_lr is not None and not generator_lr > 0:
            raise InputError(f"generator_lr must be above zero, got {generator_lr}")
        if update == "alternating" and self.outer.accumulate > 1:
            raise InputError("update=alternating moves phi before the tasks adapt: it cannot accumulate meta-batches")
        self.update, self.generator_lr = update, generator_lr
        # By name, because a copy of this module has a copy of the model.
        self._generate_name = next(name for name, module in adaptation.named_modules() if module is generate)

    @property
    def generate(self) -> nn.Module:
        """The task relation model, a part of the adaptation."""
        return self.adaptation.get_submodule(self._generate_name)

    def phases(self) -> Sequence[Phase]:
        if self.update == "joint":
            return super().phases()
        return [Phase("phi", self.support_objective), Phase("theta", self.query_objective)]

    def groups(self) -> dict[str, Group]:
        phi = list(self.generate.parameters())
        known = {id(p) for p in phi}
        theta_group = (self.outer.outer_lr, [p for p in self.parameters() if id(p) not in known])
        phi_group = (self.generator_lr or self.outer.outer_lr, phi)
        if self.update == "joint":
            return {"all": [theta_group, phi_group]}
        return {"phi": [phi_group], "theta": [theta_group]}

    def support_objective(self, episode: Episode) -> tuple[Tensor, Outputs]:
        """Return the support loss under the generated weights, before any inner step."""
        weights = self.generate(self.net, weights_of(self.net), episode.support)
        return self.loss(self.net, weights, episode.support), {}


class HyperNet(RelationLearner):
    """w_i = theta + g(S_i; phi): the task's weights are written in one pass, without inner steps.

    Source: Ha et al., 2017; Requeima et al., 2019.

    observation: what the task relation model reads, see `Generate`.
    Keyword arguments: those of `TaskRelation`, `RelationLearner` and `OuterLoop`. The others: see `MetaLearner`.
    """

    @flattened
    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        metrics: Metrics | None = None,
        *,
        relation: TaskRelation = TaskRelation(),
        observation: Observation | None = None,
        **outer: Any,
    ) -> None:
        generate = relation.model(net, observation)
        super().__init__(net, loss, generate, generate, metrics, **outer)


class CNAPs(RelationLearner):
    """Conditional neural adaptive processes (Requeima et al., 2019): first the body, then a head for its new features.

    The composition of two generators: one modulates the scale and shift of the body's norms, the next reads the
    features of the modulated body and writes the head, row by row. Unlike in the paper, the body is trained as well.

    encoder, width: see `TaskRelation`. The other keyword arguments: those of `RelationLearner` and `OuterLoop`.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        metrics: Metrics | None = None,
        *,
        encoder: str = "deepsets",
        width: int = 64,
        **outer: Any,
    ) -> None:
        relation = TaskRelation(encoder, width)
        body, head = (replace(relation, writes=writes).model(net) for writes in ("film", "head"))
        generate = Chain(body, head)
        super().__init__(net, loss, generate, generate, metrics, **outer)
