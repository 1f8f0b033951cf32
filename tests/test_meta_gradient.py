"""The meta-gradient in float64, in every engine: against closed forms, finite differences and a plain copied model."""

import copy
from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from conftest import class_batch, cross_entropy, randomise, regression_batch, squared, task
from torch import Tensor, nn

from innerloop.adaptation import Engine, GradientSteps
from innerloop.episodes import Episode, InputError, Weights, apply, tasks_of, weights_of
from innerloop.learners import MAML, Hybrid, HyperNet, MetaLearner
from innerloop.nets import MLP, Conv4, Linear

pytestmark = pytest.mark.usefixtures("float64")

ENGINES = [("loop", None), ("threads", 2), ("vmap", None), ("vmap", 2)]
every_engine = pytest.mark.parametrize(("engine", "chunk"), ENGINES)


def meta_gradient(learner: MetaLearner, batch: Episode) -> tuple[Tensor, list[Tensor]]:
    value, gradient, _ = learner.engine.value_and_grad(learner.query_objective, list(learner.parameters()), batch)
    return value, gradient


def in_engine(learner: MetaLearner, engine: str, chunk: int | None) -> MetaLearner:
    learner.engine = Engine(engine, [learner.net, learner.adaptation], chunk)
    return learner


def close(a: list[Tensor], b: list[Tensor], tolerance: float = 1e-10) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


# The linear model with squared loss: a closed form.


@every_engine
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 3, 7])
def test_linear_regression_has_the_closed_form(steps: int, first_order: bool, engine: str, chunk: int | None) -> None:
    torch.manual_seed(0)
    rate, batch = 0.1, regression_batch(tasks=5, shots=6, queries=4)
    net = Linear(3, 1)
    theta = torch.cat([net.head.weight[0], net.head.bias]).detach()
    expected = torch.zeros(4)
    for i in range(5):
        (xs, ys), (xq, yq) = task(batch, i)
        xs, xq = (torch.cat([x, torch.ones(len(x), 1)], 1) for x in (xs, xq))
        hessian, slope = 2 * xs.T @ xs / len(xs), 2 * xs.T @ ys[:, 0] / len(xs)
        contraction = torch.linalg.matrix_power(torch.eye(4) - rate * hessian, steps)
        optimum = torch.linalg.solve(hessian, slope)
        adapted = optimum + contraction @ (theta - optimum)
        query = 2 * xq.T @ (xq @ adapted - yq[:, 0]) / len(xq)
        expected += (query if first_order else contraction @ query) / 5

    learner = MAML(net, squared, inner_lr=rate, inner_steps=steps, first_order=first_order, engine=engine, chunk=chunk)
    _, (weight, bias) = meta_gradient(learner, batch)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(torch.cat([weight[0], bias]), expected, rtol=0, atol=1e-12)


# Smooth nets: central finite differences.


def directional_check(learner: MetaLearner, batch: Episode, engines: list[tuple[str, int | None]]) -> None:
    """Loop's gradient along a random direction against finite differences, then every engine's against loop's.

    A max-pool or a ReLU that switches within the difference makes a kink there or, after inner steps, a jump: then two
    differences of the function disagree, and the check moves to another point. No gradient is looked at for that.
    """
    parameters, rng = list(learner.parameters()), torch.Generator().manual_seed(1)
    in_engine(learner, "loop", None)
    for _ in range(5):
        randomise(learner, seed=int(torch.randint(1 << 30, (), generator=rng)), scale=0.02)
        start = [p.detach().clone() for p in parameters]
        direction = [torch.randn(p.shape, generator=rng) for p in parameters]

        def value(shift: float, start: list[Tensor] = start, direction: list[Tensor] = direction) -> Tensor:
            with torch.no_grad():
                for p, p0, d in zip(parameters, start, direction, strict=True):
                    p.copy_(p0 + shift * d)
            return learner.engine.map(lambda e: {"loss": learner.query_objective(e)[0]}, batch)["loss"].mean()

        coarse, middle, fine = ((value(h) - value(-h)) / (2 * h) for h in (2e-6, 1e-6, 5e-7))
        # Richardson: the error falls with the fourth power of the step.
        difference, check = (4 * middle - coarse) / 3, (4 * fine - middle) / 3
        value(0)
        gradient = meta_gradient(learner, batch)[1]
        length = torch.cat([g.flatten() for g in gradient]).norm()
        assert length > 1e-2
        if (difference - check).abs() < 2e-7 * length:
            break
    else:
        pytest.fail("there is a kink everywhere")
    slope = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
    assert (slope - difference).abs() < 1e-6 * length
    for engine in engines:
        close(meta_gradient(in_engine(learner, *engine), batch)[1], gradient)


def learners(name: str, net: nn.Module, loss: Callable, steps: int) -> MetaLearner:
    reader = {"encoder": "attention", "width": 8}
    inner = {"inner_steps": steps, "inner_lr": 0.2}
    made: dict[str, Callable[[], MetaLearner]] = {
        "maml": lambda: MAML(net, loss, **inner),
        "rates": lambda: MAML(net, loss, learn_lr="parameter", **inner),
        "hypernet": lambda: HyperNet(net, loss, **reader),
        "hybrid": lambda: Hybrid(net, loss, learn_lr="tensor", **reader, **inner),
    }
    torch.manual_seed(0)
    learner = made[name]()
    randomise(learner, scale=0.1)
    return learner


@pytest.mark.parametrize("downsample", ["stride", "pool"])
@pytest.mark.parametrize("norm", ["batch", "layer", "group"])
@pytest.mark.parametrize(
    ("name", "steps"),
    [("maml", 1), ("maml", 3), ("rates", 1), ("rates", 3), ("hypernet", 0), ("hybrid", 1), ("hybrid", 3)],
)
def test_smooth_conv4_agrees_with_finite_differences(name: str, steps: int, norm: str, downsample: str) -> None:
    torch.manual_seed(0)
    net = Conv4((1, 17, 17), 3, width=4, downsample=downsample, norm=norm, activation="tanh")
    batch = class_batch(tasks=3, ways=3, shots=2, queries=1)
    directional_check(learners(name, net, cross_entropy, steps), batch, ENGINES[1:])


@pytest.mark.parametrize("chunk_size", [None, 7])
@pytest.mark.parametrize("encoder", ["deepsets", "attention"])
def test_smooth_mlp_agrees_with_finite_differences(encoder: str, chunk_size: int | None) -> None:
    torch.manual_seed(0)
    net = MLP(3, [5, 4], 1, activation="softplus")
    learner = Hybrid(net, squared, encoder=encoder, width=8, chunk_size=chunk_size, inner_steps=2, inner_clip=10.0)
    randomise(learner, scale=0.1)
    directional_check(learner, regression_batch(tasks=3, shots=5, queries=4), [*ENGINES, ("auto", None)])


# The inner loop against plain code.


@every_engine
def test_first_order_equals_a_copied_model_stepped_by_sgd(engine: str, chunk: int | None) -> None:
    torch.manual_seed(0)
    net, batch = Conv4((1, 17, 17), 3, width=4), class_batch(tasks=3, ways=3, shots=2, queries=2)
    expected = [torch.zeros_like(p) for p in net.parameters()]
    for i in range(3):
        (xs, ys), (xq, yq) = task(batch, i)
        model = copy.deepcopy(net)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(xs), ys).backward()
            optimizer.step()
        query = torch.autograd.grad(F.cross_entropy(model(xq), yq), list(model.parameters()))
        expected = [e + q / 3 for e, q in zip(expected, query, strict=True)]
    learner = MAML(net, cross_entropy, inner_lr=0.3, inner_steps=3, first_order=True, engine=engine, chunk=chunk)
    close(meta_gradient(learner, batch)[1], expected)
    second_order = MAML(net, cross_entropy, inner_lr=0.3, inner_steps=3, engine=engine, chunk=chunk)
    assert max((a - b).abs().max() for a, b in zip(meta_gradient(second_order, batch)[1], expected, strict=True)) > 1e-3


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("learn_lr", ["tensor", "parameter"])
def test_learned_rates_that_are_constant_equal_the_fixed_rate(learn_lr: str, first_order: bool) -> None:
    torch.manual_seed(0)
    net, batch = MLP(3, [5], 2, activation="tanh"), regression_batch(tasks=3, shots=5, queries=4, targets=2)
    inner = {"inner_lr": 0.2, "inner_steps": 3, "inner_clip": 0.3, "first_order": first_order}
    fixed, learned = MAML(net, squared, **inner), MAML(net, squared, learn_lr=learn_lr, **inner)
    value, gradient = meta_gradient(fixed, batch)
    learned_value, learned_gradient = meta_gradient(learned, batch)
    theta = len(gradient)
    close([learned_value, *learned_gradient[:theta]], [value, *gradient])
    # Each rate has a gradient of its own: one rate a tensor, or one a weight.
    rates = learned_gradient[theta:]
    assert sum(g.numel() for g in rates) == (theta if learn_lr == "tensor" else sum(p.numel() for p in gradient))
    assert all(g.abs().max() > 1e-6 for g in rates)


def test_clip_clamps_each_entry_of_the_inner_gradient() -> None:
    torch.manual_seed(0)
    net, support = MLP(3, [5], 1), task(regression_batch(tasks=1, shots=5, queries=1), 0).support
    theta = weights_of(net)
    gradient = torch.autograd.grad(F.mse_loss(net(support.x), support.y), list(theta.values()))
    bound = torch.cat([g.flatten().abs() for g in gradient]).median().item()
    adapted = GradientSteps(squared, 1, 0.2, clip=bound)(net, theta, support)
    close(
        list(adapted.values()),
        [w - 0.2 * g.clamp(-bound, bound) for w, g in zip(theta.values(), gradient, strict=True)],
    )


# What vmap cannot do right is refused.


class TorchNorm(nn.Module):
    """A net of one's own around one of torch's norms."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(3, 6), nn.Linear(6, 1)
        self.norm = nn.LayerNorm(6) if norm == "layer" else None
        self.functional = norm

    def forward(self, x: Tensor) -> Tensor:
        h = self.inp(x)
        if self.norm is not None:
            h = self.norm(h)
        elif self.functional == "batch":
            h = F.batch_norm(h, None, None, training=True)
        else:
            h = F.instance_norm(h.view(len(h), 2, 3)).flatten(1)
        return self.out(h.tanh())


@pytest.mark.parametrize("norm", ["layer", "batch", "instance"])
def test_vmap_refuses_inexact_norms_and_loop_is_right(norm: str) -> None:
    torch.manual_seed(0)
    net, batch = TorchNorm(norm), regression_batch(tasks=3, shots=5, queries=4)
    learner = MAML(net, squared, inner_lr=0.3, inner_steps=2)
    for attempt in range(2):
        with pytest.raises(InputError, match="engine=loop"):
            meta_gradient(learner if attempt else in_engine(learner, "vmap", None), batch)
    directional_check(learner, batch, [("loop", None)])


def test_running_statistics_do_not_move() -> None:
    """A net with torch's own batch norm: nothing may leak from a task into the buffers, refused or not."""
    net = MLP(3, [6], 1)
    net.body.append(nn.BatchNorm1d(6))
    batch, before = regression_batch(tasks=2, shots=5, queries=4), copy.deepcopy(net.state_dict())
    for kind in (HyperNet, MAML):
        with suppress(InputError):
            meta_gradient(kind(net, squared, engine="loop"), batch)
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


# Purity.


@every_engine
@pytest.mark.parametrize("norm", ["batch", "layer", "group"])
@pytest.mark.parametrize("name", ["maml", "rates", "hypernet", "hybrid"])
def test_adaptation_mutates_nothing(name: str, norm: str, engine: str, chunk: int | None) -> None:
    torch.manual_seed(0)
    net = Conv4((1, 17, 17), 3, width=4, norm=norm)
    net.register_buffer("constant", torch.ones(2))
    learner = in_engine(learners(name, net, cross_entropy, 2), engine, chunk)
    tensors = {**dict(learner.named_parameters()), **dict(learner.named_buffers())}
    before = {k: (v.clone(), v._version, v.requires_grad, v.data_ptr()) for k, v in tensors.items()}
    batch = class_batch(tasks=3, ways=3, shots=2, queries=1)
    inputs = [t.clone() for part in batch for t in part]
    meta_gradient(learner, batch)
    learner.engine.map(learner.evaluate_episode, batch)
    after = {**dict(learner.named_parameters()), **dict(learner.named_buffers())}
    assert list(after) == list(before)
    for key, tensor in after.items():
        value, *record = before[key]
        assert torch.equal(tensor, value), key
        assert [tensor._version, tensor.requires_grad, tensor.data_ptr()] == record, key
        assert tensor.grad is None, key
    assert all(torch.equal(a, b) for a, b in zip(inputs, (t for part in batch for t in part), strict=True))


@every_engine
@pytest.mark.parametrize("name", ["maml", "hypernet", "hybrid"])
def test_tasks_of_a_meta_batch_never_see_each_other(name: str, engine: str, chunk: int | None) -> None:
    torch.manual_seed(0)
    net = Conv4((1, 17, 17), 3, width=4)
    learner = in_engine(learners(name, net, cross_entropy, 2), engine, chunk)

    def adapted(batch: Episode) -> Weights:
        return learner.engine.map(lambda e: learner.adaptation(net, weights_of(net), e.support), batch)

    batch, foreign = (class_batch(tasks=3, ways=3, shots=2, queries=1, seed=s) for s in (0, 1))
    mixed = copy.deepcopy(batch)
    for here, there in zip(mixed, foreign, strict=True):
        here.x[1:] = 100 * there.x[1:]
        here.y[1:] = there.y[1:].flip(-1)
    original, replaced = adapted(batch), adapted(mixed)
    for key, value in original.items():
        torch.testing.assert_close(replaced[key][0], value[0], rtol=1e-12, atol=1e-13)
    assert not torch.equal(replaced["head.weight"][1], original["head.weight"][1])


def test_the_objective_is_the_query_loss_of_the_adapted_weights() -> None:
    torch.manual_seed(0)
    net, batch = MLP(3, [5], 1), regression_batch(tasks=4, shots=5, queries=3)
    learner = MAML(net, squared, inner_lr=0.1, inner_steps=2)
    losses = []
    for i in range(4):
        episode = task(batch, i)
        adapted = learner.adaptation(net, weights_of(net), episode.support)
        losses.append(F.mse_loss(apply(net, adapted, episode.query.x), episode.query.y))
    torch.testing.assert_close(meta_gradient(learner, batch)[0], torch.stack(losses).mean().detach())


@every_engine
def test_a_weight_that_the_loss_does_not_read_stays(engine: str, chunk: int | None) -> None:
    class Spare(MLP):
        """A net with a weight of no use."""

        def __init__(self) -> None:
            super().__init__(3, [4], 1, "tanh")
            self.spare = nn.Parameter(torch.ones(2))

    torch.manual_seed(0)
    batch, net = regression_batch(tasks=3, shots=5, queries=4), Spare()
    learner = MAML(net, squared, inner_lr=0.1, inner_steps=2, engine=engine, chunk=chunk)
    assert torch.equal(learner.adaptation(net, weights_of(net), tasks_of(batch)[0].support)["spare"], net.spare)
    _, gradient = meta_gradient(learner, batch)
    plain = MAML(MLP(3, [4], 1, "tanh"), squared, inner_lr=0.1, inner_steps=2, engine="loop")
    plain.net.load_state_dict({name: w for name, w in net.state_dict().items() if name != "spare"})
    found = dict(zip((name for name, _ in net.named_parameters()), gradient, strict=True))
    assert not found.pop("spare").any()
    close(list(found.values()), meta_gradient(plain, batch)[1])
