"""The compiled meta-step: the operations that are recorded are the objective's, or it is refused."""

import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from conftest import loader, randomise, regression_batch, squared, trainer
from test_meta_gradient import close
from torch import Tensor
from torch import _inductor as inductor

from innerloop.adaptation import native
from innerloop.adaptation.compiled import check, thin_product
from innerloop.episodes import Episode, InputError, tasks_of
from innerloop.learners import CAVIA, LEO, MAML, R2D2, Hybrid, HyperNet, MAMLPlusPlus, MetaLearner, Reptile
from innerloop.nets import MLP

pytestmark = pytest.mark.usefixtures("float64")

LEARNERS: list[tuple[type[MetaLearner], dict[str, Any]]] = [
    (MAML, {"inner_steps": 3, "learn_lr": "tensor_step", "inner_clip": 1.0}),
    (MAML, {"inner_steps": 3, "checkpoint_inner_steps": True}),
    (MAML, {"first_order": True}),
    (MAMLPlusPlus, {"inner_steps": 2, "learn_lr": "tensor_step"}),
    (Reptile, {"inner_steps": 3}),
    (CAVIA, {"inner_steps": 2}),
    (LEO, {"width": 8}),
    (HyperNet, {"width": 8, "encoder": "attention"}),
    (Hybrid, {"width": 8, "update": "alternating"}),
    (R2D2, {}),
]


def a_batch(seed: int = 0) -> Episode:
    return regression_batch(tasks=6, shots=5, queries=4, seed=seed)


def made(kind: type[MetaLearner], **settings: Any) -> MetaLearner:
    torch.manual_seed(0)
    learner = kind(MLP(3, [6], 1, activation="tanh"), squared, **settings)  # type: ignore[arg-type]
    randomise(learner, scale=0.1)
    return learner


@pytest.fixture
def recorded_only(monkeypatch: pytest.MonkeyPatch) -> list[Callable]:
    """The functions that would be compiled: the recorded operations run as they are, so that no test takes minutes."""
    recorded: list[Callable] = []
    monkeypatch.setattr(native, "MOST", 0)
    monkeypatch.setattr(inductor, "compile", lambda function, _: recorded.append(function) or function)
    return recorded


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize(("kind", "settings"), LEARNERS, ids=str)
def test_what_is_recorded_is_the_objective(
    kind: type[MetaLearner], settings: dict[str, Any], chunk: int | None, recorded_only: list[Callable]
) -> None:
    eager, fast = made(kind, **settings), made(kind, compile=True, chunk=chunk, **settings)
    for phase, again in zip(eager.phases(), fast.phases(), strict=True):
        for seed in (1, 2):  # the second time with other parameters, and without recording anew
            for learner in (eager, fast):
                randomise(learner, seed=seed, scale=0.1)
            batch = a_batch(seed)
            found = fast.engine.value_and_grad(again.objective, list(fast.parameters()), batch)
            value, gradient, _ = eager.engine.value_and_grad(phase.objective, list(eager.parameters()), batch)
            torch.testing.assert_close(found[0], value, rtol=1e-10, atol=1e-12)
            close(found[1], gradient)
            assert torch.stack([g.abs().max() for g in gradient]).max() > 1e-3
    shapes = 1 if chunk is None else 2  # chunks of four and of two tasks
    assert len(recorded_only) == shapes * len(eager.phases())


def test_training_is_the_same_and_logged_steps_are_not_compiled(recorded_only: list[Callable]) -> None:
    found = []
    for compile in (False, True):
        learner = made(MAML, outer_lr=0.01, compile=compile)
        batches = [a_batch(s) for s in range(6)]
        trainer(max_steps=6, log_every_n_steps=3).fit(learner, loader(batches))
        found.append([p.detach().clone() for p in learner.parameters()])
        assert learner.trainer.callback_metrics["train/loss"] > 0
    close(*found)
    assert len(recorded_only) == 1


class Elsewhere(MAML):
    """Its loss depends on its parameters in another way too than as its parameters."""

    outside: Sequence[Tensor]

    def query_objective(self, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        value, reported = super().query_objective(episode)
        return value + torch.stack([p.square().sum() for p in self.outside]).sum(), reported


def test_a_gradient_that_was_not_recorded_is_refused(recorded_only: list[Callable]) -> None:
    learner = made(Elsewhere, compile=True)
    learner.outside = list(learner.net.parameters())  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"compile=true changes the loss or its gradient .*: use compile=false"):
        learner.engine.value_and_grad(learner.query_objective, list(learner.parameters()), a_batch())


@pytest.mark.parametrize(
    ("value", "gradient", "same"),
    [
        (1.0, 1.0, True),
        (1.0, 0.0, False),
        (1.0005, 1.0, True),
        (1.0, 1.0005, True),
        (1.01, 1.0, False),
        (1.0, 1.01, False),
    ],
)
def test_a_recorded_value_and_its_gradient_agree_to_a_thousandth(value: float, gradient: float, same: bool) -> None:
    def result(value: float, gradient: float) -> tuple:
        return torch.tensor(value), [gradient * torch.tensor([3.0, 0.0]), gradient * torch.tensor([4.0])], {}

    refused = pytest.raises(InputError, match=r"this changes the loss or its gradient .* use other")
    with nullcontext() if same else refused:
        check(result(value, gradient), result(1.0, 1.0), ("this", "other"))


class Unused(MAML):
    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.unused = torch.nn.Parameter(torch.ones(3))


def test_a_gradient_of_zero_agrees_with_itself() -> None:
    nothing = torch.tensor(1.0), [torch.zeros(3)], {}
    check(nothing, nothing, ("this", "other"))


def test_small_is_only_what_is_compiled_in_advance(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, compiled = made(MAML, compile=True, inner_steps=1), list[Callable]()
    learner.compile_for(a_batch(), small=True)
    monkeypatch.setattr(native, "MOST", 0)  # other shapes are too large
    monkeypatch.setattr(inductor, "compile", lambda function, _: compiled.append(function) or function)
    batch = regression_batch(tasks=5, shots=5, queries=4)
    learner.engine.value_and_grad(learner.query_objective, list(learner.parameters()), batch)
    assert len(compiled) == 1


@pytest.mark.parametrize("batched", [False, True])
def test_thin_products_are_products(batched: bool) -> None:
    """Whatever the sizes; where none of them is one the library multiplies."""
    for n, k, m in itertools.product((1, 2, 3), repeat=3):
        a, b = (torch.randn(*shape) for shape in (((2,) if batched else ()) + s for s in ((n, k), (k, m))))
        found = thin_product(a, b)
        if 1 in (n, k, m):
            torch.testing.assert_close(found, a @ b, rtol=1e-12, atol=1e-12)
        else:
            assert found is NotImplemented


def test_what_the_loss_does_not_use_has_the_gradient_zero(recorded_only: list[Callable]) -> None:
    learner = made(Unused, compile=True, inner_steps=1)
    parameters = list(learner.parameters())
    _, gradient, _ = learner.engine.value_and_grad(learner.query_objective, parameters, a_batch())
    (unused,) = (g for g, p in zip(gradient, parameters, strict=True) if p is learner.unused)
    assert unused is not None
    assert unused.tolist() == [0, 0, 0]


def test_what_cannot_be_compiled_is_refused() -> None:
    objective_of_nobody = made(MAML, compile=True)
    with pytest.raises(InputError, match="must be a method of the module"):
        objective_of_nobody.engine.value_and_grad(
            lambda episode: objective_of_nobody.query_objective(episode),
            list(objective_of_nobody.parameters()),
            a_batch(),
        )
    for learner, batch in (
        (made(MAML, compile=True), tasks_of(a_batch())),
        (made(MAML, compile=True, engine="loop"), a_batch()),
    ):
        with pytest.raises(InputError, match="compile=true needs tasks of equal shape and, but for convolutions"):
            learner.engine.value_and_grad(learner.query_objective, list(learner.parameters()), batch)
    for changing in ({"multi_step_until": 5}, {"first_order_until": 5}):
        with pytest.raises(InputError, match="compile=true needs an objective that stays the same"):
            made(MAMLPlusPlus, compile=True, **changing)


# The compiler itself uses what torch has deprecated.
in_torch = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")


@in_torch
def test_without_a_compiler_it_says_so() -> None:
    learner = made(MAML, compile=True)
    missing = inductor.config.patch({"cpp.cxx": (None, "/nowhere/g++"), "fx_graph_cache": False})
    with missing, pytest.raises(InputError, match=r"^compile=true needs .* a C\+\+ compiler: .*/nowhere/g\+\+"):
        learner.engine.value_and_grad(learner.query_objective, list(learner.parameters()), a_batch())


@in_torch
@pytest.mark.slow
def test_inductor_computes_the_same() -> None:
    for kind, settings in (LEARNERS[1], LEARNERS[8]):
        eager, fast = made(kind, **settings), made(kind, compile=True, **settings)
        for phase, again in zip(eager.phases(), fast.phases(), strict=True):
            found = fast.engine.value_and_grad(again.objective, list(fast.parameters()), a_batch())
            value, gradient, _ = eager.engine.value_and_grad(phase.objective, list(eager.parameters()), a_batch())
            torch.testing.assert_close(found[0], value, rtol=1e-10, atol=1e-12)
            close(found[1], gradient)


@in_torch
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (MAML, {"inner_steps": 2, "learn_lr": "parameter", "inner_clip": 0.1}),
        (MAML, {"first_order": True, "only": "head"}),
        (Reptile, {"inner_steps": 4, "minibatches": 3}),
        (CAVIA, {"inner_steps": 2}),
    ],
    ids=str,
)
def test_learners_are_translated_for_one_task(
    kind: type[MetaLearner], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inductor, "compile", None)
    eager, fast = made(kind, **settings), made(kind, compile=True, **settings)
    for phase, again in zip(eager.phases(), fast.phases(), strict=True):
        for seed in (1, 2):
            for learner in (eager, fast):
                randomise(learner, seed=seed, scale=0.1)
            found = fast.engine.value_and_grad(again.objective, list(fast.parameters()), a_batch(seed))
            value, gradient, _ = eager.engine.value_and_grad(phase.objective, list(eager.parameters()), a_batch(seed))
            torch.testing.assert_close(found[0], value, rtol=1e-10, atol=1e-12)
            close(found[1], gradient)


@in_torch
@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.cat([x[1:4], x[-2:], x[::3]]),
        lambda x: torch.cat([x[:, 2:], x[:, :1]], dim=-1).mT,
        lambda x: x[2] * x[-1] + x.select(0, 3),
        lambda x: torch.stack(x.split([2, 3, 1])[1].unbind(1)),
        lambda x: x.unbind(1)[2] - x.split(4)[1].sum(),
        lambda x: x.clamp(min=-0.3) + x.clamp(max=0.2) + x.clamp(-0.1, 0.1),
        lambda x: torch.where((x >= 0.1).logical_and(x < 0.5), x, torch.full((6, 4), 2.0)),
        lambda x: x.view(-1)[5:9].exp().log().neg(),
        lambda x: (x[:, 1:3].mT @ x[:, ::2]).relu() + x[1:3, :2].abs().sqrt(),
        lambda x: x.mean() + x.sum(0, keepdim=True).expand(3, 4)[1] + x.sum([0, 1]),
        lambda x: torch.where(x == 0, x + 1, (x / 3 - 1).tanh().pow(2)),
    ],
)
def test_every_operation_is_translated(function: Callable) -> None:
    shared, stacked = torch.randn(6, 4), torch.randn(3, 6, 4)
    stacked[0, 0, 0] = 0

    def of_a_task(s: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        return function(s), function(t), function(s + t)

    (*found,) = native.native(of_a_task, [shared], [stacked])(shared, stacked)
    expected = [torch.stack(each).sum(0) for each in zip(*(of_a_task(shared, t) for t in stacked), strict=True)]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, equal_nan=True)


@in_torch
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_what_is_small_is_translated_for_one_task_and_keeps_nan(
    activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inductor, "compile", None)
    torch.manual_seed(0)
    # Sizes that are and are no multiples of what a register holds.
    nets = [MLP(3, [13, 24], 1, activation=activation) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    eager, fast = (MAML(net, squared, inner_steps=2, compile=c) for net, c in zip(nets, (False, True), strict=True))
    for seed in (1, 2, 3):
        batch = a_batch(seed)
        if seed == 3:
            batch.query.y[0, 0] = torch.nan
        found, expected = (
            learner.engine.value_and_grad(learner.query_objective, list(learner.parameters()), batch)
            for learner in (fast, eager)
        )
        torch.testing.assert_close(found[0], expected[0], rtol=1e-10, atol=1e-12, equal_nan=True)
        if seed < 3:
            close(found[1], expected[1])
            randomise(eager, seed=seed, scale=0.1)
            randomise(fast, seed=seed, scale=0.1)
    assert found[0].isnan()
