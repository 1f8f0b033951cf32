"""Inner steps that are computed twice: the same meta-gradient, from the memory of one step."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import class_batch, cross_entropy, randomise, regression_batch, squared, task
from test_meta_gradient import close, every_engine, meta_gradient
from torch import Tensor, nn

from innerloop.adaptation.recompute import recomputed
from innerloop.episodes import Samples, Weights, weights_of
from innerloop.learners import MAML, Hybrid, MAMLPlusPlus, MetaLearner
from innerloop.nets import MLP, Conv4

LEARNERS: list[tuple[type[MetaLearner], dict[str, Any]]] = [
    (MAML, {"learn_lr": "tensor_step"}),
    (MAML, {"only": "head", "inner_clip": 0.1}),
    (MAML, {"first_order": True}),
    (MAML, {"transductive": False}),
    (Hybrid, {"width": 8, "learn_lr": "parameter"}),
    (MAMLPlusPlus, {"multi_step_until": 10, "per_step_norms": True}),
]


def conv(kind: type[MetaLearner], loss: Callable = cross_entropy, **settings: Any) -> MetaLearner:
    torch.manual_seed(0)
    learner = kind(Conv4((1, 17, 17), 3, width=4), loss, inner_steps=3, inner_lr=0.2, **settings)  # type: ignore
    randomise(learner, scale=0.1)
    return learner


@every_engine
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("kind", "settings"), LEARNERS, ids=str)
def test_the_meta_gradient_is_the_same(
    kind: type[MetaLearner], settings: dict[str, Any], engine: str, chunk: int | None
) -> None:
    batch = class_batch(tasks=3, ways=3, shots=2, queries=2)
    kept = meta_gradient(conv(kind, engine="loop", **settings), batch)[1]
    again = conv(kind, engine=engine, chunk=chunk, checkpoint_inner_steps=True, **settings)
    close(meta_gradient(again, batch)[1], kept)
    assert sum(g.abs().sum() for g in kept) > 1


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("autocast", [False, True])
def test_each_step_runs_twice_in_its_own_modes_and_evaluation_once(autocast: bool) -> None:
    seen: list[torch.dtype] = []

    def loss(net: nn.Module, weights: Weights, samples: Samples) -> Tensor:
        value = cross_entropy(net, weights, samples)
        # Under autocast a product of single precision is one of bfloat16.
        if samples.x.shape[0] == 3:
            seen.append((torch.ones(2, 2, dtype=torch.float32) @ torch.ones(2, 2, dtype=torch.float32)).dtype)
        return value

    learner = conv(MAML, loss, engine="loop", checkpoint_inner_steps=True)
    batch = class_batch(tasks=2, ways=3, shots=1, queries=2)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value, _ = learner.query_objective(task(batch, 0))
    torch.autograd.grad(value, list(learner.parameters()))
    assert seen == [torch.bfloat16 if autocast else torch.float32] * 6
    seen.clear()
    with torch.no_grad():
        learner.adaptation(learner.net, weights_of(learner.net), task(batch, 0).support)
    assert len(seen) == 3


@pytest.mark.usefixtures("float64")
def test_the_second_run_draws_the_dropout_of_the_first() -> None:
    torch.manual_seed(0)
    net = MLP(3, [20], 1, activation="tanh")
    net.body.append(nn.Dropout(0.5))
    learner = MAML(net, squared, inner_lr=0.1, inner_steps=2, engine="loop", checkpoint_inner_steps=True)
    batch, parameters = regression_batch(3, 4, 4), list(net.parameters())

    def value_and_grad() -> tuple[float, list[Tensor]]:
        torch.manual_seed(1)
        value, gradient, _ = learner.engine.value_and_grad(learner.query_objective, parameters, batch)
        return value.item(), gradient

    def value_at(step: float) -> float:
        start = nn.utils.parameters_to_vector(parameters).detach()
        nn.utils.vector_to_parameters(start + step * direction, parameters)
        value, _ = value_and_grad()
        nn.utils.vector_to_parameters(start, parameters)
        return value

    _, gradient = value_and_grad()
    after = torch.get_rng_state()
    flat = nn.utils.parameters_to_vector(gradient)
    direction = torch.randn_like(flat)
    slope = (flat @ direction).item()
    assert slope == pytest.approx((value_at(1e-6) - value_at(-1e-6)) / 2e-6, rel=1e-6)
    assert abs(slope) > 0.01
    learner.adaptation.recompute = False
    value_and_grad()
    assert torch.equal(torch.get_rng_state(), after), "the second run leaves the generator as it was"


def test_what_needs_no_gradient_gets_none() -> None:
    a, b = torch.randn(3, requires_grad=True), torch.arange(3)
    (product,) = recomputed(lambda a, b: (a * b,), a, b)
    torch.testing.assert_close(torch.autograd.grad(product.sum(), a)[0], b.float())


def test_dense_nets_under_vmap() -> None:
    batch, found = regression_batch(3, 4, 4), []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        net = MLP(3, [6], 1, activation="tanh")
        learner = MAML(net, squared, inner_lr=0.1, inner_steps=5, checkpoint_inner_steps=checkpoint)
        found.append(meta_gradient(learner, batch)[1])
    close(*found, tolerance=1e-5)


MEMORY = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from conftest import class_batch, cross_entropy
from innerloop.learners import MAML
from innerloop.devices.memory import largest_resident_set, return_freed
from innerloop.nets import Conv4
torch.set_num_threads(1)
return_freed()  # else the peak is also that of what lies about in the heap

def peak(steps, checkpoint, shots=5, queries=15):
    batch = class_batch(2, 5, shots, queries, (1, 28, 28))
    learner = MAML(Conv4((1, 28, 28), 5), cross_entropy, inner_steps=steps, checkpoint_inner_steps=checkpoint)
    learner.engine.value_and_grad(learner.query_objective, list(learner.parameters()), batch)
    return largest_resident_set()

# A process's peak only rises, so the cases come in the order that their memory is to have.
start = peak(1, False, shots=1, queries=1)
print(*(peak(*case) - start for case in ((1, False), (10, True), (10, False))))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process may be charged for its parent")
@pytest.mark.alone
def test_ten_steps_need_little_more_memory_than_one() -> None:
    command = [sys.executable, "-c", MEMORY, str(Path(__file__).parent)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    one, ten_again, ten_kept = map(float, out.split())
    assert ten_kept > 2 * one, "nothing is shown by steps that are small beside everything else"
    assert ten_again < 1.5 * one
