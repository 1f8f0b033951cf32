"""The learner that ships with the package, meta-trained on tables of a prior and adapted to tables of any size."""

from functools import cache
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor, nn

from innerloop.episodes import Samples, weights_of, with_weights
from innerloop.errors import InputError
from innerloop.learners import MetaLearner
from innerloop.practice.heads import Identity, Novelty, Scores, class_means
from innerloop.practice.learned import NetModel
from innerloop.runs.load import Run
from innerloop.runs.signatures import make
from innerloop.tasks.table_prior import TablePrior

FILE = "tables.pt"
OF_TABLE = ("net.head.weight", "net.head.bias")
"""Parameters whose shape depends on the table; they are not kept, because the learner writes them."""


class PriorModel:
    """A meta-trained learner as data. net, algo: its configuration. state: its meta-parameters, without the head's.

    command: what it was trained with.
    """

    def __init__(self, content: dict[str, Any]) -> None:
        self.net, self.algo = content["net"], content["algo"]
        self.state: dict[str, Tensor] = {name: w.float() for name, w in content["state"].items()}
        self.command: str = content["command"]

    def learner(self, features: int, classes: int) -> MetaLearner:
        """Return the learner for tables of so many features and classes."""
        tasks = TablePrior()
        net = make(self.net, "net", nn.Module, (), input_shape=(features,), output_size=classes)
        found: MetaLearner = make(self.algo, "algo", MetaLearner, (), net=net, loss=tasks.loss, metrics=tasks.metrics)
        missing, unexpected = found.load_state_dict(self.state, strict=False)
        if unexpected or set(missing) != set(OF_TABLE):
            raise InputError("the meta-trained learner does not fit its configuration")
        return found.requires_grad_(True).eval()

    def fitted(self, learner: MetaLearner, x: Tensor, y: Tensor, classes: int) -> NetModel:
        """Return the learner's net adapted to rows x (n, features) with labels y (n,)."""
        support, theta = Samples(x.float(), y), weights_of(learner.net)
        weights = {k: w.detach() for k, w in learner.adaptation.trajectory(learner.net, theta, support)[-1].items()}
        model = NetModel(with_weights(learner.net, weights), {}, (x.shape[1],), classes, classes)
        f = model.features(x)
        novelty = Novelty(Identity(torch.zeros(f.shape[1], dtype=f.dtype)), class_means(f, y, classes))
        return NetModel(model.net, {}, model.input_shape, classes, classes, novelty)

    def scores(self, x: Tensor, y: Tensor, classes: int, query: Tensor) -> Scores:
        """Return the scores of rows by the learner adapted to others."""
        return self.fitted(self.learner(x.shape[1], classes), x, y, classes)(query)


def of_run(run: Run, command: str) -> dict[str, Any]:
    """Return what ships of a run on tables, its meta-parameters in half precision. command: what it was run with."""
    state = {name: w.half() for name, w in run.learner.state_dict().items() if name not in OF_TABLE}
    return {"net": run.config["net"], "algo": run.config["algo"], "state": state, "command": command}


@cache
def shipped() -> PriorModel:
    """Return the learner that ships with the package. Nothing in its file is run as code."""
    with files("innerloop.practice").joinpath(FILE).open("rb") as file:
        return PriorModel(torch.load(file, map_location="cpu", weights_only=True))
