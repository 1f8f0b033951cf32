"""The outer loop: an iteration worked by hand, what a step may touch and counts as, and where training converges to."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from conftest import class_batch, cross_entropy, loader, logistic, randomise, regression_batch, squared, task, trainer
from lightning import Callback
from numpy.typing import NDArray
from torch import Tensor, nn

from innerloop.adaptation import Chain, Generate, GradientSteps
from innerloop.episodes import Episode, InputError, Samples, Weights
from innerloop.errors import DivergedError
from innerloop.learners import MAML, Hybrid, HyperNet, MetaLearner
from innerloop.learners.hypernet import RelationLearner
from innerloop.learners.learner import Phase
from innerloop.nets import MLP, Conv4, Generator, Linear

pytestmark = pytest.mark.usefixtures("float64")

Array = NDArray[np.float64]


def fit(learner: MetaLearner, batches: list[Episode], **options: Any) -> MetaLearner:
    """One outer update, or one accumulation, for each meta-batch in the list."""
    trainer(**{"max_epochs": 1} | options).fit(learner, loader(batches))
    return learner


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in module.state_dict().items()}


def unchanged(module: nn.Module, before: dict[str, Tensor]) -> bool:
    now = module.state_dict()
    return list(now) == list(before) and all(torch.equal(now[name], t) for name, t in before.items())


# One iteration on the 2-d linear classifier, by hand.


class SignedMean(nn.Module):
    """code = mean_j (2 y_j - 1) x_j."""

    code_size, by_class = 2, False

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return ((2.0 * y - 1).unsqueeze(-1) * x).mean(0)


def two_part(steps: int, **outer: Any) -> RelationLearner:
    """Hybrid, or without inner steps the hypernetwork learner, with a generator that can be worked by hand."""
    torch.manual_seed(0)
    net = Linear(2, 1)
    shapes = {name: w.shape for name, w in net.named_parameters()}
    generate = Generate(SignedMean(), Generator(shapes, 2))  # type: ignore[arg-type]
    randomise(generate, scale=0.5)
    adaptation = Chain(generate, GradientSteps(logistic, steps, 0.7)) if steps else generate
    settings = {"optimizer": "sgd", "outer_lr": 0.3, "generator_lr": 0.9} | outer
    return RelationLearner(net, logistic, adaptation, generate, **settings)


def meta_batch(tasks: int = 3, seed: int = 0) -> Episode:
    """2-d points with labels from a hyperplane of each task's own."""
    batch = regression_batch(tasks, shots=4, queries=5, size=2, seed=seed)
    normals = torch.randn(tasks, 2, 1, generator=torch.Generator().manual_seed(seed + 1))
    return Episode(*(Samples(x, ((x @ normals).squeeze(-1) > 0.1).long()) for x, _ in batch))


def homogeneous(x: Tensor) -> Array:
    return np.concatenate([x.numpy(), np.ones((len(x), 1))], 1)


def slope(w: Array, x: Array, y: Array) -> Array:
    """Gradient of the mean logistic loss, mean (sigma(x.w) - y) x."""
    return (1 / (1 + np.exp(-x @ w)) - y) @ x / len(x)


def hessian(w: Array, x: Array) -> Array:
    p = 1 / (1 + np.exp(-x @ w))
    return (x * (p * (1 - p))[:, None]).T @ x / len(x)


def by_hand(batch: Episode, theta: Array, phi: Array, steps: int, alternating: bool) -> tuple[Array, Array]:
    """theta (w1, w2, b) and phi (3, 2 + 1: matrix and bias of the generator) after one iteration."""
    inner, outer_theta, outer_phi = 0.7, 0.3, 0.9
    episodes = [task(batch, i) for i in range(len(batch.support.x))]
    supports = [(homogeneous(e.support.x), e.support.y.numpy()) for e in episodes]
    queries = [(homogeneous(e.query.x), e.query.y.numpy()) for e in episodes]
    codes = [np.append(((2 * y - 1) @ x[:, :2]) / len(x), 1.0) for x, y in supports]

    if alternating:
        of_phi = [np.outer(slope(theta + phi @ c, x, y), c) for c, (x, y) in zip(codes, supports, strict=True)]
        phi = phi - outer_phi * np.mean(of_phi, 0)

    pulled = []
    for code, (xs, ys), (xq, yq) in zip(codes, supports, queries, strict=True):
        w, passed = theta + phi @ code, []
        for _ in range(steps):
            passed.append(np.eye(3) - inner * hessian(w, xs))
            w = w - inner * slope(w, xs, ys)
        v = slope(w, xq, yq)
        for factor in reversed(passed):
            v = factor @ v
        pulled.append(v)
    if not alternating:
        phi = phi - outer_phi * np.mean([np.outer(v, c) for v, c in zip(pulled, codes, strict=True)], 0)
    return theta - outer_theta * np.mean(pulled, 0), phi


def parameters_of(learner: RelationLearner) -> tuple[Array, Array]:
    head, writer = learner.net.head, learner.generate.generator.writer
    theta = np.append(head.weight.detach().numpy()[0], head.bias.detach().numpy())
    phi = np.concatenate([writer.weight.detach().numpy(), writer.bias.detach().numpy()[:, None]], 1)
    return theta.copy(), phi.copy()


@pytest.mark.parametrize("engine", ["loop", "vmap"])
@pytest.mark.parametrize("update", ["alternating", "joint"])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_one_iteration_equals_the_one_worked_by_hand(steps: int, update: str, engine: str) -> None:
    learner, batch = two_part(steps, update=update, engine=engine), meta_batch()
    theta, phi = parameters_of(learner)
    expected = by_hand(batch, theta, phi, steps, update == "alternating")
    fit(learner, [batch])
    for found, wanted, start in zip(parameters_of(learner), expected, (theta, phi), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-13)
        assert np.abs(wanted - start).max() > 1e-3
    # The orders differ: neither is a passable answer for the other.
    other = by_hand(batch, theta, phi, steps, update != "alternating")
    assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(expected, other, strict=True))


class Spy(Callback):
    """The state of a two-part learner each time that an objective is first asked for."""

    def __init__(self, learner: RelationLearner) -> None:
        self.seen: list[tuple[str, Array, Array]] = []
        for name in ("support_objective", "query_objective"):
            setattr(learner, name, self.watch(learner, name))

    def watch(self, learner: RelationLearner, name: str) -> Any:
        real = getattr(learner, name)

        def objective(episode: Episode) -> Any:
            if not self.seen or self.seen[-1][0] != name:
                self.seen.append((name, *parameters_of(learner)))
            return real(episode)

        return objective


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_phases_of_the_alternating_update(optimizer: str) -> None:
    """Phase 1 leaves theta bit-identical; the tasks adapt, and theta moves, with the new phi; phi then stays."""
    learner = two_part(1, update="alternating", weight_decay=0.1, optimizer=optimizer)
    theta, phi = parameters_of(learner)
    spy = Spy(learner)
    fit(learner, [meta_batch(seed=s) for s in range(3)])
    assert [name for name, *_ in spy.seen] == ["support_objective", "query_objective"] * 3
    states = [(t, p) for _, t, p in spy.seen] + [parameters_of(learner)]
    assert np.array_equal(states[0][0], theta)
    assert np.array_equal(states[0][1], phi)
    for number, ((t0, p0), (t1, p1)) in enumerate(pairwise(states)):
        still, moved = ((t0, t1), (p0, p1)) if number % 2 == 0 else ((p0, p1), (t0, t1))
        assert np.array_equal(*still)
        assert not np.array_equal(*moved)


@pytest.mark.parametrize("update", ["alternating", "joint"])
def test_one_meta_batch_counts_once(update: str) -> None:
    learner, drawn = two_part(1, update=update), []

    def endless() -> Iterator[Episode]:
        while True:
            drawn.append(len(drawn))
            yield meta_batch(seed=len(drawn))

    class Endless:
        def __iter__(self) -> Iterator[Episode]:
            return endless()

    spy, t = Spy(learner), trainer(max_steps=4)
    t.fit(learner, Endless())
    assert t.global_step == 4
    assert sum(name == "query_objective" for name, *_ in spy.seen) == (4 if update == "alternating" else 1)
    assert t.fit_loop.epoch_loop.batch_progress.total.completed == 4


# Accumulation, clipping, schedules, divergence.


def maml(**settings: Any) -> MAML:
    torch.manual_seed(0)
    return MAML(MLP(3, [5], 1), squared, **{"inner_lr": 0.1, "optimizer": "sgd", "outer_lr": 0.5} | settings)


def half(batch: Episode, part: slice) -> Episode:
    return Episode(*(Samples(s.x[part], s.y[part]) for s in batch))


def test_accumulated_halves_equal_the_whole_meta_batch() -> None:
    batches = [regression_batch(tasks=6, shots=5, queries=4, seed=s) for s in range(2)]
    whole = fit(maml(), batches)
    halves = [half(b, part) for b in batches for part in (slice(0, 3), slice(3, 6))]
    t = trainer(max_epochs=1)
    accumulated = maml(accumulate=2)
    t.fit(accumulated, loader(halves))
    assert t.global_step == 2
    for a, b, start in zip(whole.parameters(), accumulated.parameters(), maml().parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert (a - start).abs().max() > 1e-3


class PartByPart(MAML):
    """Body and head have a phase each; `order` says which of them comes first."""

    order: tuple[str, ...] = ("body", "head")

    def phases(self) -> list[Phase]:
        return [Phase(part, self.query_objective) for part in self.order]

    def groups(self) -> dict[str, Any]:
        return {part: [(0.5, list(self.net.get_submodule(part).parameters()))] for part in self.order}


@pytest.mark.parametrize("first", ["body", "head"])
def test_phases_accumulate_what_is_their_own(first: str) -> None:
    """The first phase of an outer update sees the same weights as the one update of a learner without phases."""
    halves = [regression_batch(tasks=3, shots=5, queries=4, seed=s) for s in range(2)]

    def trained(kind: type[MAML]) -> MAML:
        torch.manual_seed(0)
        learner = kind(MLP(3, [5], 1), squared, inner_lr=0.1, optimizer="sgd", outer_lr=0.5, accumulate=2)
        trainer(max_epochs=1).fit(learner, loader(halves))
        return learner

    kind = type("PartByPart", (PartByPart,), {"order": (first, *({"body", "head"} - {first}))})
    whole, parts = trained(MAML), trained(kind)
    for name, p in parts.net.get_submodule(first).named_parameters():
        torch.testing.assert_close(p, whole.net.get_submodule(first).get_parameter(name), rtol=1e-12, atol=1e-12)


class OwnOptimizer(MAML):
    """Makes its optimizer by itself, and its schedule if there is one."""

    make_schedule: Any = None

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.5)
        return ([optimizer], [self.make_schedule(optimizer)]) if self.make_schedule else optimizer


def own_optimizer(schedule: Any = None) -> MAML:
    torch.manual_seed(0)
    kind = type("Own", (OwnOptimizer,), {"make_schedule": staticmethod(schedule) if schedule else None})
    return kind(MLP(3, [5], 1), squared, inner_lr=0.1, outer_lr=99.0)


def test_a_learner_may_make_its_own_optimizers_and_schedules() -> None:
    batches = [regression_batch(tasks=3, shots=5, queries=4, seed=s) for s in range(4)]
    plain, rates = fit(maml(), batches), Rates()
    for a, b in zip(plain.parameters(), fit(own_optimizer(), batches).parameters(), strict=True):
        assert torch.equal(a, b), "the same optimizer, made elsewhere"
    halved = own_optimizer(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.1))
    fit(halved, batches, callbacks=[rates])
    np.testing.assert_allclose(rates.steps, [[0.5], [0.5], [0.05], [0.05]])


def test_optimizers_that_do_not_fit_are_refused() -> None:
    batch = regression_batch(tasks=3, shots=5, queries=4)
    plateau = own_optimizer(torch.optim.lr_scheduler.ReduceLROnPlateau)
    with pytest.raises(InputError, match="ReduceLROnPlateau is not supported"):
        fit(plateau, [batch])
    single = type("Single", (OwnOptimizer,), {"phases": PartByPart.phases, "groups": PartByPart.groups})
    single.order = ("body", "head")
    with pytest.raises(InputError, match="one optimizer per phase, so 2"):
        fit(single(MLP(3, [5], 1), squared, inner_lr=0.1), [batch])


def test_outer_clip_bounds_the_norm_and_keeps_the_direction() -> None:
    batch = regression_batch(tasks=4, shots=5, queries=4)
    start = nn.utils.parameters_to_vector(maml().parameters())

    def moved(clip: float | None) -> Tensor:
        learner = fit(maml(outer_lr=1.0, outer_clip=clip), [batch])
        return (nn.utils.parameters_to_vector(learner.parameters()) - start).detach()

    free, bound = moved(None), moved(0.01)
    assert free.norm() > 0.1
    torch.testing.assert_close(bound, 0.01 * free / free.norm(), rtol=1e-4, atol=0)
    torch.testing.assert_close(moved(1e3), free)


class Rates(Callback):
    """The rates that each outer step was taken with: one list of groups a step, optimizer after optimizer."""

    def __init__(self) -> None:
        self.steps: list[list[float]] = []

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self.steps.append([g["lr"] for o in trainer.optimizers for g in o.param_groups])


@pytest.mark.parametrize("update", ["alternating", "joint"])
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_schedules(schedule: str, update: str) -> None:
    rates, batches = Rates(), [meta_batch(seed=s) for s in range(8)]
    fit(two_part(1, schedule=schedule, update=update), batches, max_steps=8, max_epochs=None, callbacks=[rates])
    first = [0.9, 0.3] if update == "alternating" else [0.3, 0.9]
    factors = [0.5 * (1 + np.cos(np.pi * t / 8)) if schedule == "cosine" else 1.0 for t in range(8)]
    np.testing.assert_allclose(rates.steps, np.outer(factors, first))
    assert factors[-1] < 0.04 or schedule == "constant"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_divergence_names_the_step_and_leaves_the_last_good_weights(bad: float) -> None:
    batches = [regression_batch(tasks=3, shots=5, queries=4, seed=s) for s in range(3)]
    good = fit(maml(), batches[:2])
    batches[2].query.y[1, 0] = bad
    learner = maml()
    with pytest.raises(DivergedError, match=r"loss is (nan|inf) at step 2"):
        fit(learner, batches)
    assert unchanged(learner, snapshot(good))


def test_a_meta_gradient_that_is_not_finite_stops_training() -> None:
    def loss(net: nn.Module, weights: Weights, samples: Samples) -> Tensor:
        distance = sum((w - w.detach()).abs().sum() for w in weights.values())
        return squared(net, weights, samples) + torch.as_tensor(distance).sqrt()

    torch.manual_seed(0)
    learner = MAML(MLP(3, [5], 1), loss, inner_steps=0, optimizer="sgd")
    before = snapshot(learner)
    with pytest.raises(DivergedError, match="meta-gradient is nan at step 0"):
        fit(learner, [regression_batch(tasks=3, shots=5, queries=4)])
    assert unchanged(learner, before)


# Evaluation.

KINDS: dict[str, type[MetaLearner]] = {"maml": MAML, "hypernet": HyperNet, "hybrid": Hybrid}


@pytest.mark.parametrize("inference_mode", [True, False])
@pytest.mark.parametrize("engine", ["loop", "vmap"])
@pytest.mark.parametrize("name", list(KINDS))
def test_evaluation_leaves_the_learner_bit_identical(name: str, engine: str, inference_mode: bool) -> None:
    torch.manual_seed(0)
    net = Conv4((1, 17, 17), 3, width=4)
    learner = KINDS[name](net, cross_entropy, engine=engine)  # type: ignore[arg-type]
    randomise(learner)
    before = snapshot(learner)
    batches = [class_batch(tasks=2, ways=3, shots=1, queries=2, seed=s) for s in range(2)]
    t = trainer(inference_mode=inference_mode)
    for evaluate in (t.validate, t.test):
        evaluate(learner, loader(batches), verbose=False)
        assert unchanged(learner, before)
        assert learner.curve.compute().shape == (4, 2 if name == "hypernet" else 3, 1)
    assert all(p.grad is None for p in learner.parameters())
    # ... and still able to learn.
    fit(learner, batches)
    assert not unchanged(learner, before)


def test_the_curve_holds_the_query_metrics_of_every_episode_and_step() -> None:
    learner = maml(inner_steps=1, eval_inner_steps=3)
    batches = [regression_batch(tasks=n, shots=5, queries=4, seed=n) for n in (3, 2)]
    (logged,) = trainer().test(learner, loader(batches), verbose=False)
    expected = []
    for batch in batches:
        for i in range(len(batch.query.x)):
            (xs, ys), (xq, yq) = task(batch, i)
            model = MLP(3, [5], 1)
            model.load_state_dict(learner.net.state_dict())
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            row = [nn.functional.mse_loss(model(xq), yq).item()] * 2
            for _ in range(3):
                optimizer.zero_grad()
                nn.functional.mse_loss(model(xs), ys).backward()
                optimizer.step()
                row.append(nn.functional.mse_loss(model(xq), yq).item())
            expected.append(row)
    values = learner.curve.compute()
    torch.testing.assert_close(values[..., 0], torch.tensor(expected))
    last = values[:, -1, 0].numpy()
    assert logged["test/loss"] == pytest.approx(last.mean())
    half_width = 1.96 * last.std(ddof=1) / np.sqrt(5)
    assert learner.last_curve["loss"][-1] == pytest.approx(
        {"mean": last.mean(), "ci95": half_width, "median": np.median(last)}
    )


# Where training converges to: nothing but the right algorithm passes.


class Point(nn.Module):
    """A net that is its weight."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


def quadratic(net: nn.Module, weights: Weights, samples: Samples) -> Tensor:
    """(w - c)' A (w - c) / 2; x: the rows of A, y: c."""
    off = weights["w"] - samples.y
    return off @ samples.x @ off / 2


@pytest.mark.parametrize("steps", [1, 2])
def test_trained_optima_on_quadratic_tasks(steps: int) -> None:
    rng, rate = np.random.default_rng(0), 0.4
    rotations = np.linalg.qr(rng.normal(size=(5, 3, 3)))[0]
    a = np.einsum("tij,tj,tkj->tik", rotations, rng.uniform(0.3, 1.8, (5, 3)), rotations)
    c = rng.normal(size=(5, 3)) * 2
    contraction = np.linalg.matrix_power(np.eye(3) - rate * a, steps)
    metric = {"maml": contraction @ a @ contraction, "fomaml": a @ contraction, "pooled": a}
    optimum = {name: np.linalg.solve(m.sum(0), np.einsum("tij,tj->i", m, c)) for name, m in metric.items()}
    samples = Samples(torch.tensor(a), torch.tensor(c))
    found = {}
    for name, settings in {"maml": {}, "fomaml": {"first_order": True}, "pooled": {"inner_steps": 0}}.items():
        settings = {"inner_steps": steps, "inner_lr": rate, "optimizer": "sgd", "outer_lr": 1.0} | settings
        if name != "pooled":
            settings["outer_lr"] = 1.0 / np.linalg.norm(metric[name].mean(0), 2)
        learner = MAML(Point(3), quadratic, **settings)
        fit(learner, [Episode(samples, samples)] * 150)
        found[name] = learner.net.w.detach().numpy()
        np.testing.assert_allclose(found[name], optimum[name], rtol=0, atol=1e-6)
    for one, other in (("maml", "fomaml"), ("maml", "pooled"), ("fomaml", "pooled")):
        assert np.abs(optimum[one] - optimum[other]).max() > 0.05
