"""A run's learner adapted to a person's own pictures, with batch norms whose statistics are fixed."""

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from innerloop.adaptation import Chain, GradientSteps, PrototypeHead
from innerloop.adaptation.generate import Generate
from innerloop.backbones import standard
from innerloop.episodes import Samples, Weights, apply, weights_of, with_weights
from innerloop.errors import InputError
from innerloop.nets.norm import Moments, fixed_statistics, recorded_statistics, statistics_from
from innerloop.practice.heads import Novelty, Scores, class_means
from innerloop.runs.load import Run

CHUNK = 64


@dataclass(frozen=True, eq=False)
class NetModel:
    """A net with a task's weights and fixed statistics of its batch norms, so that each picture is predicted alone.

    x: (n, *input_shape), real-valued, or uint8 pictures, which are divided by 255.
    statistics: name of a batch norm -> mean and variance per channel. input_shape: of one x. outputs: of the net.
    classes: number of classes of the task; further outputs are not used.
    novelty: on the features of the net's body, the input of its head.
    """

    net: nn.Module
    statistics: Mapping[str, Moments]
    input_shape: tuple[int, ...]
    outputs: int
    classes: int
    novelty: Novelty | None = None

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Scores:
        parts = [(self._logits(part), self._distance(part)) for part in inputs(x).split(CHUNK)]
        logits, distances = zip(*parts, strict=True)
        return Scores(torch.cat(logits), torch.cat(distances))

    def _logits(self, x: Tensor) -> Tensor:
        with self._fixed():
            outputs = self.net(x).double()
        if outputs.shape[1] == 1:  # one logit for two classes
            outputs = torch.cat([torch.zeros_like(outputs), outputs], 1)
        return outputs[:, : self.classes]

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Return the input of the net's head, or its outputs if the net has no body. x -> (n, features) float64."""
        body = getattr(self.net, "body", self.net)
        with self._fixed():
            return torch.cat([body(part).flatten(1).double() for part in inputs(x).split(CHUNK)])

    def _distance(self, x: Tensor) -> Tensor:
        assert self.novelty is not None
        return self.novelty(self.features(x))

    def _fixed(self) -> AbstractContextManager[None]:
        return statistics_from(fixed_statistics(self.net, self.statistics))


def inputs(x: Tensor) -> Tensor:
    """Return what a net takes: pictures (uint8) divided by 255, all else as it is."""
    return x / 255 if x.dtype == torch.uint8 else x.float()


class RunMethod:
    """How a run's learner is adapted to any number of classes.

    remarks: what differs from the run's own tasks, in sentences. steps: numbers of inner steps to choose from.
    Raises InputError for nets that cannot be used one picture at a time, or whose head cannot be exchanged.
    """

    def __init__(self, run: Run, classes: int) -> None:
        learner = run.learner
        self.net, self.adaptation, self.remarks = learner.net, learner.adaptation, list[str]()
        self.steps, self.ways = [run.step], run.tasks.output_size
        self.outputs = self.ways
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.net.modules()):
            raise InputError(
                f"{run.path}: the net has batch norms of torch's, whose predictions depend on all pictures"
            )
        if learner.transductive:
            self.remarks.append(
                "the run's batch norms used the statistics of all queries; here they use those of the labelled "
                "pictures, so that each picture is predicted alone"
            )
        if classes != self.ways and not (classes < self.ways and self.adaptation.frees_ways):
            self._resize(run, classes)

    def _resize(self, run: Run, classes: int) -> None:
        head = getattr(self.net, "head", None)
        if not isinstance(head, nn.Linear):
            raise InputError(
                f"{run.path} has a head of {self.ways} classes that cannot be exchanged for one of {classes}"
            )
        self.net = copy.deepcopy(self.net)
        self.net.head, self.outputs = type(head)(head.in_features, classes), classes
        if self.adaptation.frees_ways and not any(isinstance(m, Generate) for m in self.adaptation.modules()):
            return  # its head is built for the classes at hand
        self.remarks.append(
            f"the run has a head of {self.ways} classes and these are {classes}: it starts from prototypes"
        )
        if type(self.adaptation) is GradientSteps and self.adaptation.rates is None:
            self.steps = list(range(self.adaptation.eval_steps + 1))
            self.adaptation = Chain(PrototypeHead(), self.adaptation)
        else:
            self.steps, self.adaptation = [0], PrototypeHead()
            self.remarks.append(
                f"what {run.config['algo']['name']} learned for a head of {self.ways} classes is not used"
            )

    def __call__(self, x: Tensor, y: Tensor, classes: int) -> dict[str, NetModel]:
        """Return name -> model for each number of inner steps, adapted to x (n, …) with labels y (n,)."""
        support = Samples(inputs(x), y)
        with torch.no_grad():
            path = self.adaptation.trajectory(self.net, weights_of(self.net), support)
        found = {}
        for step in self.steps:
            weights = {name: w.detach() for name, w in path[min(step, len(path) - 1)].items()}
            net, statistics = with_weights(self.net, weights), self._statistics(weights, support.x, step)
            model = NetModel(net, statistics, tuple(support.x.shape[1:]), self.outputs, classes)
            f = model.features(x)
            form = standard(f, y, whiten=False)
            name = f"the run after {step} inner steps" if self.adaptation.training_steps else "the run"
            found[name] = replace(model, novelty=Novelty(form, class_means(form(f), y, classes)))
        return found

    @torch.no_grad()
    def _statistics(self, weights: Weights, x: Tensor, step: int) -> dict[str, Moments]:
        """Return mean and variance of each batch norm: those that the run kept, else those of the support set."""
        keeps = getattr(self.adaptation, "running", None) is not None
        source = self.adaptation.running_at(self.net, step) if keeps else None  # type: ignore[operator]
        return recorded_statistics(self.net, lambda: apply(self.net, weights, x), source)
