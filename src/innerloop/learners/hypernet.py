"""The model-based learner: a hypernetwork that reads a support set and writes the task's weights."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from innerloop.adaptation import Adaptation, Chain, Generate
from innerloop.adaptation.engine import Outputs
from innerloop.episodes import Episode, InputError, Loss, Metrics, weights_of
from innerloop.learners.learner import MetaLearner, Phase
from innerloop.nets import Generator, SetEncoder, convolutional

WRITES = ("auto", "all", "head", "film", "head+film")
ENCODERS = ("deepsets", "attention")
UPDATES = ("joint", "alternating")


def task_relation_model(
    net: nn.Module,
    encoder: str = "deepsets",
    width: int = 64,
    writes: str = "auto",
    chunk_size: int | None = None,
    init: str = "zero",
) -> Generate:
    """The map g(S; phi) for this net, w = theta + g(S; phi).

    encoder: "deepsets", or "attention" for a block of self-attention before the points are pooled; width: of its code.
    writes: "all" weights from the (x, y) pairs; the "head", row by row from class codes over the features of the net's
        own body; "film", the scale and shift of its norms, from their mean; "head+film". "auto" is all for nets without
        convolutions and head+film for those with.
    chunk_size, init: see `Generator`; init="hyperfan_in" drops theta for what is written.
    """
    for kind, name, choices in (("encoder", encoder, ENCODERS), ("writes", writes, WRITES)):
        if name not in choices:
            raise InputError(f"unknown {kind} {name!r}; choose one of {', '.join(choices)}")
    if writes == "auto":
        writes = "head+film" if convolutional(net) else "all"
    theta = weights_of(net)
    parts = {"all": ("",), "head": ("head.",), "film": (".norm.",), "head+film": ("head.", ".norm.")}[writes]
    shapes = {name: w.shape for name, w in theta.items() if any(part in name for part in parts)}
    if not shapes:
        raise InputError(f"writes={writes}: this net has no such weights, only {', '.join(theta)}")
    by_class = writes != "all"
    size = net.feature_size if by_class else net.input_size
    reader = SetEncoder(size, net.output_size, width, encoder == "attention", by_class)  # type: ignore[arg-type]
    if init == "hyperfan_in":
        # What it counts on: code entries of unit variance (the read-out's ReLUs halve the power of its layer norm).
        nn.init.kaiming_normal_(reader.read[-1].weight, nonlinearity="relu")  # type: ignore[arg-type]
        nn.init.zeros_(reader.read[-1].bias)  # type: ignore[arg-type]
    classes = net.output_size if by_class else None
    writer = Generator(shapes, width, classes, chunk_size, init)  # type: ignore[arg-type]
    return Generate(reader, writer, read_features=by_class, residual=init == "zero")


class TwoPart(MetaLearner):
    """Learners with a task relation model g(.; phi) before, perhaps, inner steps: joint or alternating outer updates.

    update="joint": theta, phi (and inner rates) move on the query loss.
    update="alternating", on each meta-batch: (1) phi moves on mean L_i^S(theta + g(S_i; phi)), theta fixed; (2) the
        tasks adapt with the new phi; (3) theta (and inner rates) move on mean L_i^Q.
    generator_lr: rate of phi; None: outer_lr.
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
        if update == "alternating" and self.accumulate > 1:
            raise InputError("update=alternating moves phi before the tasks adapt: it cannot accumulate meta-batches")
        self.update, self.generator_lr = update, generator_lr
        self._place = next(name for name, module in adaptation.named_modules() if module is generate)

    @property
    def generate(self) -> nn.Module:
        """The task relation model, a part of the adaptation."""
        return self.adaptation.get_submodule(self._place)

    def phases(self) -> Sequence[Phase]:
        if self.update == "joint":
            return super().phases()
        return [Phase("phi", self.support_objective), Phase("theta", self.query_objective)]

    def groups(self) -> dict[str, list[tuple[float, list[nn.Parameter]]]]:
        phi = list(self.generate.parameters())
        known = {id(p) for p in phi}
        theta = [p for p in self.parameters() if id(p) not in known]
        of_phi = (self.generator_lr or self.outer_lr, phi)
        if self.update == "joint":
            return {"all": [(self.outer_lr, theta), of_phi]}
        return {"phi": [of_phi], "theta": [(self.outer_lr, theta)]}

    def support_objective(self, episode: Episode) -> tuple[Tensor, Outputs]:
        """The support loss under the generated weights, before any inner step."""
        weights = self.generate(self.net, weights_of(self.net), episode.support)
        return self.loss(self.net, weights, episode.support), {}


class HyperNet(TwoPart):
    """w_i = theta + g(S_i; phi): the task's weights are written in one pass, without inner steps (Ha et al., 2017;
    Requeima et al., 2019).

    encoder, width, writes, chunk_size, init: see `task_relation_model`. update, generator_lr: see `TwoPart`. The rest:
    see `MetaLearner`.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        metrics: Metrics | None = None,
        *,
        encoder: str = "deepsets",
        width: int = 64,
        writes: str = "auto",
        chunk_size: int | None = None,
        init: str = "zero",
        **outer: Any,
    ) -> None:
        generate = task_relation_model(net, encoder, width, writes, chunk_size, init)
        super().__init__(net, loss, generate, generate, metrics, **outer)


class CNAPs(TwoPart):
    """Conditional neural adaptive processes (Requeima et al., 2019): first the body, then a head for its new features.

    The composition of two generators: one modulates the scale and shift of the body's norms, the next reads the
    features of the body so modulated and writes the head, row by row. Unlike the paper's, the body is trained along.

    encoder, width: see `task_relation_model`. The rest: see `TwoPart`.
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
        body, head = (task_relation_model(net, encoder, width, writes) for writes in ("film", "head"))
        generate = Chain(body, head)
        super().__init__(net, loss, generate, generate, metrics, **outer)
