"""Histograms hold the meta-gradients that moved the parameters, not yet clipped; rates go by the layers' names."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from conftest import loader, randomise, regression_batch, squared, trainer
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from innerloop.learners import CAVIA, LEO, MAML, Hybrid, HyperNet, MetaLearner, ProtoNet
from innerloop.nets import MLP
from innerloop.runs.callbacks.distributions import Histograms, learned_rates

LR = 0.01
OUTER: dict[str, Any] = {"outer_lr": LR, "optimizer": "sgd"}


class Before(Callback):
    """The parameters before each meta-batch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.seen.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})


LEARNERS: dict[str, Callable[..., MetaLearner]] = {
    "maml": lambda **k: MAML(MLP(3, [5], 1), squared, inner_lr=0.1, inner_steps=2, learn_lr="parameter", **k),
    "accumulate": lambda **k: MAML(MLP(3, [5], 1), squared, inner_lr=0.1, inner_steps=1, accumulate=2, **k),
    "alternating": lambda **k: HyperNet(MLP(3, [5], 1), squared, width=4, update="alternating", **k),
    "hybrid": lambda **k: Hybrid(MLP(3, [5], 1), squared, width=4, inner_lr=0.1, inner_steps=1, learn_lr="tensor", **k),
}


def trained(
    name: str, every: int = 3, **outer: Any
) -> tuple[list[tuple[Mapping[str, Tensor], int]], list[dict[str, Tensor]]]:
    """(what was sent and when, the parameters before each of twelve meta-batches and at the end)."""
    torch.manual_seed(0)
    learner = LEARNERS[name](**OUTER | outer)
    randomise(learner, scale=0.1)
    sent: list[tuple[Mapping[str, Tensor], int]] = []
    before = Before()
    histograms = Histograms(every, lambda values, step: sent.append((dict(values), step)))
    batches = [regression_batch(tasks=2, shots=3, queries=4, seed=i) for i in range(12)]
    trainer(max_epochs=1, callbacks=[histograms, before]).fit(learner, loader(batches))
    return sent, [*before.seen, {n: p.detach() for n, p in learner.named_parameters()}]


@pytest.mark.parametrize("name", LEARNERS)
def test_histograms_are_of_the_gradients_that_moved_the_parameters(name: str, float64: None) -> None:
    sent, parameters = trained(name)
    batches = 2 if name == "accumulate" else 1  # of an outer update
    assert [step for _, step in sent] == [3 * batches * (i + 1) - 1 for i in range(4 // batches)]
    for values, step in sent:
        gradients = {n.removeprefix("gradients/"): v for n, v in values.items() if n.startswith("gradients/")}
        after, before = parameters[step + 1], parameters[step + 1 - batches]
        assert set(gradients) == {n.replace("/", ".") for n in before}
        for n, p in before.items():
            moved = (p - after[n]) / LR
            torch.testing.assert_close(gradients[n.replace("/", ".")], moved, rtol=1e-8, atol=1e-12)
        assert sum(v.abs().sum() > 0 for v in gradients.values()) > len(gradients) / 2


def test_histograms_are_of_gradients_before_clipping(float64: None) -> None:
    free, _ = trained("maml", every=1)
    sent, parameters = trained("maml", every=1, outer_clip=1e-9)
    gradients = {name: value for name, value in sent[0][0].items() if name.startswith("gradients/")}
    assert len(gradients) == 8
    assert all(torch.equal(free[0][0][name], value) for name, value in gradients.items())
    moved = torch.cat([(p - parameters[1][n]).flatten() for n, p in parameters[0].items()]) / LR
    assert moved.norm() == pytest.approx(1e-9, rel=1e-3)


def test_learned_rates_go_by_the_names_of_what_they_are_for() -> None:
    net = MLP(3, [5], 1)
    names = [name for name, _ in net.named_parameters()]
    per_parameter = learned_rates(MAML(net, squared, inner_lr=0.1, inner_steps=2, learn_lr="parameter"))
    assert {n: r.shape for n, r in per_parameter.items()} == {n: p.shape for n, p in net.named_parameters()}
    per_step = learned_rates(MAML(net, squared, inner_lr=0.1, inner_steps=2, learn_lr="tensor_step"))
    assert {n: r.tolist() for n, r in per_step.items()} == {n: pytest.approx([0.1, 0.1]) for n in names}
    head = learned_rates(Hybrid(net, squared, width=4, inner_lr=0.1, inner_steps=1, learn_lr="tensor", only="head"))
    assert set(head) == {"head.weight", "head.bias"}
    latent = learned_rates(LEO(net, squared, width=4, inner_lr=0.5, inner_steps=1, learn_lr=True))
    assert {n: r.item() for n, r in latent.items()} == {"code": 0.5}
    for none in (MAML(net, squared, inner_lr=0.1), CAVIA(net, squared, inner_lr=1.0), ProtoNet(net, squared)):
        assert learned_rates(none) == {}
