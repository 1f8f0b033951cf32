"""Policies that adapt: the estimator against expectations and finite differences, pure rollouts, oracles, commands."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHORT, randomise, trainer
from hydra import compose, initialize_config_dir
from offline import offline_runs
from test_meta_gradient import ENGINES, close, in_engine, meta_gradient
from torch import Tensor
from torch.func import grad, jacrev

from innerloop.datamodule import EpisodeDataModule
from innerloop.episodes import Episode, InputError, Samples, Weights, apply, episode_rng, tasks_of, weights_of
from innerloop.errors import DivergedError
from innerloop.learners import LEO, MAML, FineTune, Hybrid, HyperNet, MetaLearner, Reptile
from innerloop.nets import CategoricalPolicy, GaussianPolicy
from innerloop.runs import schemas
from innerloop.runs.build import build
from innerloop.runs.command import Reported
from innerloop.runs.compare import comparison, read_run
from innerloop.runs.record import read_checkpoint
from innerloop.runs.report.trajectories import trajectories
from innerloop.sweeps.figures import _bar_limits
from innerloop.tasks import Bandits, Navigation
from innerloop.tasks.bandits import best_arm
from innerloop.tasks.policies import Gaussian
from innerloop.tasks.reinforcement import Reinforcement, Rollout, advantages, surrogate

schemas.register()
ROOT = Path(__file__).resolve().parents[1]


def curvature(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The second derivative. `torch.func.hessian` uses parts of torch that are deprecated."""
    return jacrev(grad(function))


double = pytest.mark.usefixtures("float64")


def drawn(tasks: Reinforcement, count: int, first: int = 0) -> Episode:
    """Episodes in the default precision."""
    batch = tasks.draw("train", [episode_rng(0, "train", i) for i in range(first, first + count)])  # type: ignore[attr-defined]
    return Episode(*(Samples(*(t.to(torch.get_default_dtype()) for t in part)) for part in batch))


def policy(tasks: Reinforcement) -> GaussianPolicy:
    torch.manual_seed(0)
    return GaussianPolicy(tasks.input_shape, tasks.output_size, hidden=(5, 4), log_std=-0.5)


# The estimator against expectations: 10^6 samples in a hundred batches, which give the Monte Carlo error.

BATCHES, SIZE = 100, 10_000


def agrees(found: Tensor, exact: Tensor, errors: float = 4.5, most: float = 0.04) -> bool:
    """Whether the mean over batches (batches, …) is within so many standard errors of an exact value."""
    spread = found.std(0) / math.sqrt(len(found))
    assert (spread < most).all(), "the test would accept nearly anything"
    return bool(((found.mean(0) - exact).abs() <= errors * spread + 1e-9).all())


@double
def test_two_arms_and_one_step_have_the_derivatives_of_the_expected_reward() -> None:
    """The family's own loss, with its baseline and its normalisation, which divides by the reward's deviation."""
    tasks, net = Bandits(arms=2, shots=SIZE, queries=SIZE), CategoricalPolicy(1, 2)
    theta, arms = {"head.weight": torch.zeros(2, 1), "head.bias": torch.tensor([0.3, -0.4])}, torch.tensor([0.8, 0.3])
    x = drawn(tasks, BATCHES).support.x
    batch = Samples(x, arms.expand(BATCHES, SIZE, 2))

    def loss(bias: Tensor, samples: Samples) -> Tensor:
        return tasks.loss(net, theta | {"head.bias": bias}, samples)

    def expected(bias: Tensor) -> Tensor:
        return -(bias.softmax(-1) * arms).sum()

    bias = theta["head.bias"]
    p = -expected(bias)
    deviation = (p * (1 - p)).sqrt()  # of a reward that is 0 or 1
    first, second = (
        torch.vmap(lambda x, y, d=d: d(loss)(bias, Samples(x, y)))(*batch) * deviation for d in (grad, curvature)
    )
    assert agrees(first, grad(expected)(bias))
    assert agrees(second, curvature(expected)(bias))
    # The mistake that this is about: -log_p * advantage has the same gradient and another second derivative.
    pulls = tasks.rollout(net, theta, Samples(*(t.flatten(0, 1) for t in batch)))

    def naive(bias: Tensor) -> Tensor:
        return -((bias.log_softmax(-1) * pulls.actions[:, 0]).sum(-1) * pulls.rewards[:, 0]).mean()

    torch.testing.assert_close(grad(naive)(bias), grad(expected)(bias), rtol=0, atol=5e-3)
    assert (curvature(naive)(bias) - curvature(expected)(bias)).abs().max() > 0.05


@double
def test_normal_actions_have_the_derivatives_of_the_expected_reward() -> None:
    """J = -E (a - g)^2 = -(m - g)^2 - s^2 in the mean m and the logarithm of s."""
    actions, goal, theta = Gaussian(1), 0.7, torch.tensor([0.2, -0.3])
    noise = torch.randn(BATCHES, SIZE, 1, generator=torch.Generator().manual_seed(0))

    def loss(theta: Tensor, noise: Tensor) -> Tensor:
        outputs = theta.expand(SIZE, 2)
        drawn = actions.draw(outputs, noise).detach()
        reward = -(drawn[:, 0] - goal).square()
        reward = reward - reward.mean()  # a baseline, which lowers the error
        return surrogate(actions.log_prob(outputs, drawn), reward.detach(), torch.ones(SIZE))

    def expected(theta: Tensor) -> Tensor:
        return (theta[0] - goal).square() + (2 * theta[1]).exp()

    for derivative in (grad, curvature):
        found = torch.vmap(lambda z, d=derivative: d(loss)(theta, z))(noise)
        assert agrees(found, derivative(expected)(theta))


# Finite differences, the rollouts of each weights held fixed: what is differentiated is the score function alone.


@double
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_no_gradient_passes_through_a_rollout(steps: int, engine: str) -> None:
    tasks = Navigation(shots=4, queries=3, horizon=6)
    net, batch, rate = policy(tasks), drawn(tasks, 1), 0.7
    learner = MAML(net, tasks.loss, inner_lr=rate, inner_steps=steps, engine=engine, support_at=tasks.support_at)
    episode, theta = tasks_of(batch)[0], {n: p.detach() for n, p in weights_of(net).items()}

    def frozen(at: Weights, samples: Samples) -> Callable[[Weights], Tensor]:
        """The surrogate of the rollout under these weights, as a function of others."""
        rollout = tasks.rollout(net, at, samples)
        value = advantages(rollout, tasks.discount)

        def log_p(weights: Weights) -> Tensor:
            outputs = apply(net, weights, rollout.states.flatten(0, 1))
            return tasks.actions.log_prob(outputs, rollout.actions.flatten(0, 1)).reshape(value.shape)

        start = log_p(at).detach()
        return lambda weights: -((log_p(weights) - start).exp() * value * rollout.alive).sum() / rollout.alive.sum()

    inner, weights = [], theta
    for k in range(steps):
        inner.append(frozen(weights, tasks.support_at(episode.support, k)))
        slope = grad(inner[-1])(weights)
        weights = {n: w - rate * slope[n] for n, w in weights.items()}
    outer = frozen(weights, episode.query)

    def meta_loss(weights: Weights) -> Tensor:
        for surrogate_of_step in inner:
            slope = grad(surrogate_of_step)(weights)
            weights = {n: w - rate * slope[n] for n, w in weights.items()}
        return outer(weights)

    gradient = dict(zip(theta, meta_gradient(learner, batch)[1], strict=True))
    direction = {n: torch.randn(w.shape, generator=torch.Generator().manual_seed(1)) for n, w in theta.items()}

    def moved(shift: float) -> Tensor:
        return meta_loss({n: w + shift * direction[n] for n, w in theta.items()})

    difference = (8 * (moved(1e-4) - moved(-1e-4)) - (moved(2e-4) - moved(-2e-4))) / 12e-4
    slope_along = torch.stack([(gradient[n] * d).sum() for n, d in direction.items()]).sum()
    assert difference.abs() > 1e-2
    torch.testing.assert_close(slope_along, difference, rtol=1e-8, atol=1e-9)


@double
def test_the_value_is_the_negative_return_and_the_rollout_is_smooth_where_the_noise_is_fixed() -> None:
    """The pathwise derivative exists, and is what the loss must not contain."""
    tasks = Navigation(shots=3, queries=3, horizon=4)
    net, samples = policy(tasks), tasks_of(drawn(tasks, 1))[0].support
    samples = Samples(samples.x / 100, samples.y)  # small actions, none at the bounds or the goal
    weights = {n: p.detach() * 0.1 for n, p in weights_of(net).items()} | {"log_std": torch.full((2,), -1.0)}

    def mean_return(shift: float) -> float:
        at = weights | {"head.bias": weights["head.bias"] + shift}
        assert tasks.loss(net, at, samples) == -tasks.rollout(net, at, samples).returns.mean()
        return float(tasks.rollout(net, at, samples).returns.mean())

    def along_the_path(bias: Tensor) -> Tensor:
        """The same return by hand, differentiable."""
        state, total = torch.zeros(3, 2), torch.zeros(3)
        for t in range(4):
            outputs = apply(net, weights | {"head.bias": bias}, state)
            state = state + tasks.actions.draw(outputs, samples.x[:, 0, t])
            total = total - (state - samples.y).norm(dim=-1)
        return total.mean()

    difference = (mean_return(1e-5) - mean_return(-1e-5)) / 2e-5
    pathwise = grad(along_the_path)(weights["head.bias"]).sum()
    assert abs(difference) > 0.1
    assert abs(pathwise - difference) < 1e-7
    score = grad(lambda b: tasks.loss(net, weights | {"head.bias": b}, samples))(weights["head.bias"]).sum()
    assert abs(score + pathwise) > 1e-2


# Advantages.


@double
def test_advantages_by_hand_and_nothing_after_the_end_counts() -> None:
    rng = np.random.default_rng(0)
    n, horizon, discount = 5, 7, 0.9
    ends = np.array([7, 3, 5, 1, 7])
    alive = (np.arange(horizon) < ends[:, None]).astype(float)
    states, rewards = rng.normal(size=(n, horizon, 2)), rng.normal(size=(n, horizon))
    rollout = Rollout(*map(torch.from_numpy, (states, np.zeros((n, horizon, 1)), rewards * alive, alive)))
    rows, targets = [], []
    for i in range(n):
        for t in range(ends[i]):
            rows.append([*states[i, t], *states[i, t] ** 2, 1, t / 100, (t / 100) ** 2, (t / 100) ** 3])
            targets.append(sum(discount ** (u - t) * rewards[i, u] for u in range(t, ends[i])))
    a, b = np.array(rows), np.array(targets)
    rest = b - a @ np.linalg.solve(a.T @ a + 1e-5 * np.eye(8), a.T @ b)
    expected = (rest - rest.mean()) / rest.std()
    found = advantages(rollout, discount).numpy()
    np.testing.assert_allclose(found[alive > 0], expected, rtol=1e-6, atol=1e-6)
    assert (found[alive == 0] == 0).all()
    other = rollout._replace(states=rollout.states + 9 * (1 - rollout.alive[..., None]))
    torch.testing.assert_close(advantages(other, discount), torch.from_numpy(found), rtol=0, atol=1e-12)


def test_equal_rewards_leave_nothing_to_learn() -> None:
    one = torch.ones(4, 3)
    rollout = Rollout(torch.zeros(4, 3, 2), torch.zeros(4, 3, 2), 0 * one, one)
    assert (advantages(rollout, 0.9) == 0).all()


# Rollouts are functions of (weights, samples).


@double
@pytest.mark.parametrize(
    ("make", "engine", "chunk"),
    [(make, *engine) for make in (MAML, HyperNet, Hybrid) for engine in ENGINES[1:]]
    + [(make, "vmap", None) for make in (LEO, FineTune, Reptile)],
)
def test_every_engine_has_the_same_numbers(make: Any, engine: str, chunk: int | None) -> None:
    tasks = Navigation(shots=2, queries=2, horizon=3)
    inner: dict[str, Any] = {} if make is HyperNet else {"eval_inner_steps": 2, "support_at": tasks.support_at}
    inner |= {} if make in (HyperNet, FineTune) else {"inner_steps": 2}
    reader: dict[str, Any] = {"width": 4, "observation": tasks.observation} if make in (HyperNet, Hybrid, LEO) else {}
    learner: MetaLearner = make(policy(tasks), tasks.loss, tasks.metrics, **inner, **reader)
    randomise(learner, scale=0.1)
    batch = drawn(tasks, 4)
    expected = meta_gradient(in_engine(learner, "loop", None), batch)
    curve = learner.engine.map(learner.evaluate_episode, batch)
    assert torch.stack([g.norm() for g in expected[1]]).sum() > 1e-2
    value, gradient = meta_gradient(in_engine(learner, engine, chunk), batch)
    close([value, *gradient], [expected[0], *expected[1]])
    found = learner.engine.map(learner.evaluate_episode, batch)
    assert set(found) == {"return", "oracle"}
    for name, values in found.items():
        torch.testing.assert_close(values, curve[name], rtol=0, atol=1e-10)
    # Whatever the other tasks are.
    alone = learner.engine.map(learner.evaluate_episode, drawn(tasks, 1, first=2))["return"]
    torch.testing.assert_close(alone[0], curve["return"][2], rtol=0, atol=1e-10)


@pytest.mark.parametrize("tasks", [Navigation(2, 3, 4), Bandits(shots=2, queries=3)], ids=["navigation", "bandits"])
def test_episodes_depend_on_their_own_stream_alone(tasks: Navigation | Bandits) -> None:
    batch, alone = drawn(tasks, 3), drawn(tasks, 1, first=1)
    for part, single in zip(batch, alone, strict=True):
        assert all(torch.equal(t[1], s[0]) for t, s in zip(part, single, strict=True))
        assert torch.equal(part.y[:, 0], part.y[:, 1]), "one task for all trajectories"
    assert torch.equal(batch.support.y[:, 0], batch.query.y[:, 0])
    assert not torch.equal(batch.support.x[:, 0], batch.query.x[:, 0])
    assert not torch.equal(batch.support.y[0], batch.support.y[1])


def test_each_inner_step_rolls_out_under_its_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks, seen = Navigation(2, 2, 3), []
    original = Navigation.rollout

    def rollout(self: Navigation, net: Any, weights: Weights, samples: Samples) -> Rollout:
        seen.append((weights["head.bias"].detach().clone(), samples.x))
        return original(self, net, weights, samples)

    monkeypatch.setattr(Navigation, "rollout", rollout)
    inner: dict[str, Any] = {"inner_lr": 0.5, "inner_steps": 3, "support_at": tasks.support_at}
    learner = MAML(policy(tasks), tasks.loss, tasks.metrics, engine="loop", **inner)
    episode = tasks_of(drawn(tasks, 1))[0]
    learner.query_objective(episode)
    biases, x = zip(*seen, strict=True)
    assert len({tuple(noise[:, 0].flatten().tolist()) for noise in x}) == 4, "new noise, too"
    assert torch.equal(x[0], episode.support.x)
    assert len(seen) == 4
    assert len({tuple(b.tolist()) for b in biases}) == 4
    assert [torch.equal(v, episode.query.x) for v in x] == [False, False, False, True]


# What the hypernetwork reads.


@double
def test_the_hypernetwork_reads_what_happened_before_the_end() -> None:
    tasks = Navigation(shots=3, queries=2, horizon=4, rounds=1)
    net, samples = policy(tasks), tasks_of(drawn(tasks, 1))[0].support
    rollout = tasks.rollout(net, weights_of(net), samples)
    x, y = tasks.observe(net, weights_of(net), samples)
    assert x.shape == (12, tasks.observation.x_size)
    assert y.shape == (12, tasks.observation.y_size)
    # The goal is on a circle around the next position, whose radius is the reward.
    following = x[:, :2] + x[:, 2:4].clamp(-0.1, 0.1)
    torch.testing.assert_close((following - samples.y[0]).norm(dim=-1), -y[:, 0])
    near = samples._replace(y=rollout.states[0, 1].expand(3, 2))  # the first trajectory ends at once
    ended = tasks.rollout(net, weights_of(net), near)
    assert ended.alive[0].tolist() == [1, 0, 0, 0]
    x, y = tasks.observe(net, weights_of(net), near)
    assert (x[1:4] == 0).all()
    assert (y[1:4] == 0).all()
    assert (x[0, 4:] == 1).all()


@double
def test_with_a_generator_that_writes_zeros_the_hybrid_is_maml() -> None:
    tasks = Navigation(shots=3, queries=2, horizon=5)
    net, batch = policy(tasks), drawn(tasks, 2)
    hybrid = Hybrid(net, tasks.loss, observation=tasks.observation, width=4, inner_lr=0.3, inner_steps=2)
    maml = MAML(net, tasks.loss, inner_lr=0.3, inner_steps=2)
    value, gradient = meta_gradient(maml, batch)
    theirs, _, _ = hybrid.engine.value_and_grad(hybrid.query_objective, list(net.parameters()), batch)
    close([theirs], [value])
    (value, theta, _) = hybrid.engine.value_and_grad(hybrid.query_objective, list(net.parameters()), batch)
    close(theta, gradient)


# What is possible.


def test_the_oracle_of_navigation_goes_there() -> None:
    tasks = Navigation(shots=30, queries=1)
    samples = Samples(*(t.flatten(0, 1)[:, ...] for t in drawn(tasks, 30).support))
    state, total = tasks.start(samples), torch.zeros(len(samples.y))
    alive = torch.ones(len(samples.y))
    for t in range(tasks.horizon):
        state, reward, done = tasks.step(state, samples.y - state, t, samples)
        total, alive = total + reward * alive, alive * ~done
    assert (alive == 0).all()
    torch.testing.assert_close(tasks.references(samples)["oracle"], total.mean())
    net = GaussianPolicy(2, 4)
    assert tasks.metrics(net, weights_of(net), samples)["return"] < total.mean()


@double
def test_the_best_arm_by_sampling() -> None:
    won, lost = torch.tensor([0.0, 3.0, 1.0]), torch.tensor([0.0, 2.0, 4.0])
    samples = np.random.default_rng(0).beta(1 + won.numpy(), 1 + lost.numpy(), size=(400_000, 3))
    share = np.bincount(samples.argmax(-1), minlength=3) / len(samples)
    np.testing.assert_allclose(best_arm(won, lost).numpy(), share, atol=0.003)
    torch.testing.assert_close(best_arm(torch.zeros(4), torch.zeros(4)), torch.full((4,), 0.25))


@double
def test_thompson_sampling_learns_and_random_does_not() -> None:
    tasks = Bandits(shots=30, queries=30)
    query = drawn(tasks, 400).query
    found = torch.vmap(lambda x, y: torch.stack(list(tasks.references(Samples(x, y)).values())))(*query)
    bayes, thompson, random = found.mean(0).tolist()
    assert random == pytest.approx(5 / 6 - 1 / 2, abs=0.03)  # of five uniform numbers the largest is 5/6 on average
    assert 0.02 < thompson < random / 2
    assert 0.02 < bayes < random / 2


@double
def test_pulls_have_the_probabilities_of_the_policy() -> None:
    tasks, net = Bandits(arms=3, shots=2, queries=20_000), CategoricalPolicy(1, 3)
    weights = {"head.weight": torch.zeros(3, 1), "head.bias": torch.tensor([0.0, 1.0, -1.0])}
    samples = tasks_of(drawn(tasks, 1))[0].query
    rollout = tasks.rollout(net, weights, samples)
    probability = weights["head.bias"].softmax(-1)
    torch.testing.assert_close(rollout.actions.mean((0, 1)), probability, rtol=0, atol=0.015)
    assert rollout.returns.mean() == pytest.approx(float((probability * samples.y[0]).sum()), abs=0.015)
    found = tasks.metrics(net, weights, samples)
    assert found["regret"] == pytest.approx(float(samples.y[0].max() - (probability * samples.y[0]).sum()))


# Wrong inputs: one line each.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Navigation(horizon=0), "horizon must be above zero, got 0"),
        (lambda: Navigation(shots=0), "shots must be above zero, got 0"),
        (lambda: Navigation(queries=-1), "queries must be above zero, got -1"),
        (lambda: Navigation(rounds=0), "rounds must be above zero, got 0"),
        (lambda: Navigation(discount=0), "discount must be above 0 and at most 1, got 0"),
        (lambda: Navigation(discount=1.01), "discount must be above 0 and at most 1"),
        (lambda: Bandits(arms=1), "arms must be above one, got 1"),
        (lambda: Bandits(shots=5, queries=4), "queries must be at least shots=5"),
        (lambda: GaussianPolicy(1, 5), "5 outputs: use net=categorical"),
        (lambda: GaussianPolicy(1, 4, log_std=-4), "log_std must be at least the floor -3.0, got -4"),
        (
            lambda: HyperNet(GaussianPolicy(2, 4), print, writes="head", observation=Navigation().observation),
            "writes=all",
        ),
        (lambda: GaussianPolicy(2, 4)(torch.zeros(3, 7)), "reads states of 2 numbers, got 7"),
    ],
)
def test_wrong_values(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_reward_that_is_not_finite_ends_training() -> None:
    class Broken(Navigation):
        def step(self, state: Tensor, action: Tensor, t: int, samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
            position, reward, done = super().step(state, action, t, samples)
            return position, reward * math.inf, done

    tasks = Broken(2, 2, 3)
    learner = MAML(policy(tasks), tasks.loss, tasks.metrics, support_at=tasks.support_at)
    with pytest.raises(DivergedError, match=r"^the loss is (inf|nan) at step 0"):
        trainer(max_steps=1).fit(learner, EpisodeDataModule(tasks, meta_batch_size=2))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algo=r2d2"], "a policy reads states"),
        (["algo=protonet"], "prototypes need class ids"),
        (["algo=cnaps"], "writes=film"),
        (["data.horizon=0"], "horizon must be above zero"),
        (["net=mlp", "data=bandits", "algo.inner_lr=-1"], "inner_lr must be above zero"),
    ],
)
def test_wrong_configurations(overrides: list[str], message: str) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", ["data=navigation", "data.shots=2", "data.queries=10", *overrides])
    with pytest.raises(InputError, match=message):
        build(cfg)


# More is better, and below zero.


def test_bars_of_negative_returns_start_at_zero() -> None:
    means, half = np.array([-10.0, -5.0]), np.array([1.0, 0.5])
    assert _bar_limits(means, half, "return") == (pytest.approx(-1.03 * 11), 0.0)
    start, end = _bar_limits(np.array([-10.0, 5.0]), half, "return")
    assert (start, end) == (pytest.approx(-1.03 * 11), pytest.approx(1.03 * 5.5))
    assert _bar_limits(-means, half, "mse")[0] == 0


def test_goals_in_panels() -> None:
    goals, paths = np.array([[0.1, 0.2], [0.3, -0.4]]), [np.zeros((7, 5, 2)), np.ones((7, 5, 2))]
    figure = trajectories(goals, paths, paths[::-1], "after 2 steps")
    first, second = figure.axes
    assert [len(ax.lines) for ax in (first, second)] == [10, 10], "five trajectories of each policy"
    assert first.lines[0].get_xydata().max() == 0
    assert first.lines[5].get_xydata().min() == 1
    assert second.collections[1].get_offsets().tolist() == [[0.3, -0.4]]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="even number of goals, got 1"):
        trajectories(goals[:1], paths, paths, "")


# Commands.

SMALL = (*SHORT, "trainer.log_every=2", "data.horizon=5", "data.meta_batch_size=4", "logger=csv")
FEW = ("trainer.max_steps=6", "trainer.val_every=3", "trainer.val_episodes=4", "test.episodes=8")


def results(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "results.json").read_text())


def test_a_run_and_its_comparison(train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for algo, logger in {"maml": "csv", "hypernet": "[csv,wandb]"}.items():
        command = (f"algo={algo}", "data=navigation", *SMALL, *FEW, f"logger={logger}")
        train(*command, f"hydra.run.dir={tmp_path / algo}")
    found = results(tmp_path / "maml")
    assert found["metric"] == "return"
    assert [row["step"] for row in found["test"]["by_step"]] == [0, 1, 2, 3]
    oracles = {results(tmp_path / algo)["test"]["oracle"]["mean"] for algo in ("maml", "hypernet")}
    assert len(oracles) == 1, "the same goals"
    assert capsys.readouterr().out.count("\n  oracle ") == 2
    plots = {path.stem for path in (tmp_path / "hypernet" / "plots").iterdir()}
    assert plots == {"adaptation_curve", "learning_curve", "trajectories"}
    (offline,) = offline_runs(tmp_path / "hypernet")
    assert {f"plots/{name}" for name in plots} <= set(offline.summary["summary"])
    head, *rows = comparison([read_run(tmp_path / algo) for algo in ("maml", "hypernet")])
    assert "return" in head
    assert rows[1][-2].count("±") == 1


def test_a_run_that_is_stopped_between_two_validations_ends_with_the_same_numbers(train: Any, tmp_path: Path) -> None:
    command = ("algo=hybrid", "algo.width=8", "data=navigation", *SMALL, *FEW, "trainer.max_steps=9")
    train(*command, f"hydra.run.dir={tmp_path / 'whole'}")
    stop = ("allow=[test_callbacks]", "+callbacks.stop._target_=test_callbacks.StopsOnce")
    with pytest.raises(Reported) as end:
        train(*command, *stop, f"+callbacks.stop.file={tmp_path / 'stopped'}", f"hydra.run.dir={tmp_path / 'parts'}")
    assert end.value.code == 130
    whole, early = (read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "parts"))
    assert early["global_step"] == 7
    assert not torch.equal(early["state_dict"]["net.head.bias"], whole["state_dict"]["net.head.bias"])
    train(f"resume={tmp_path / 'parts'}", stop[0])
    ended = read_checkpoint(tmp_path / "parts" / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(torch.equal(w, ended[name]) for name, w in whole["state_dict"].items())
    assert results(tmp_path / "parts")["test"] == results(tmp_path / "whole")["test"]
