"""Environments of Gymnasium as tasks: without the extra, only what is said of it."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHORT
from test_reinforcement import drawn, results

from innerloop.episodes import InputError, Samples, tasks_of, weights_of
from innerloop.nets import CategoricalPolicy, GaussianPolicy
from innerloop.tasks.gym import Gym
from innerloop.tasks.policies import Categorical

installed = pytest.mark.skipif(find_spec("gymnasium") is None, reason='needs pip install -e ".[mujoco]"')
with_mujoco = pytest.mark.skipif(find_spec("mujoco") is None, reason='needs pip install -e ".[mujoco]"')


def test_without_gymnasium_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^data\.env=HalfCheetahDir needs Gymnasium: pip install .*mujoco"):
        Gym()


def test_a_configuration_cannot_import_a_module() -> None:
    with pytest.raises(InputError, match=r"data\.env=evil:Env-v0: a configuration cannot import a module"):
        Gym("evil:Env-v0")


@installed
@pytest.mark.parametrize(
    ("env", "message"), [("NoSuchCheetah-v5", "is not there"), ("CartPole-v1", "has no sample_task and set_task")]
)
def test_environments_that_cannot_be_tasks(env: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        Gym(env)
    assert "\n" not in str(error.value)


@pytest.fixture
def line() -> str:
    """An environment of one's own: a walk on a line to the side that the task says, over after three wrong steps."""
    gymnasium = pytest.importorskip("gymnasium")

    class Line(gymnasium.Env):  # type: ignore[misc, name-defined]
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
        action_space = gymnasium.spaces.Discrete(2)
        side, pays = 1.0, 1.0

        def sample_task(self, rng: np.random.Generator) -> np.ndarray:
            return rng.choice([-1.0, 1.0], size=1)

        def set_task(self, task: np.ndarray) -> None:
            self.side = float(task[0])

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            self.place = 0.0
            return np.array([self.place]), {}

        def step(self, action: int) -> Any:
            self.place += 2 * action - 1
            right = self.place * self.side
            return np.array([self.place]), right * self.pays, right <= -3, False, {}

    gymnasium.register("Line-v0", Line, disable_env_checker=True, order_enforce=False)
    yield "Line-v0"
    del gymnasium.registry["Line-v0"]


def test_an_environment_of_ones_own(line: str) -> None:
    tasks = Gym(line, shots=6, queries=5, horizon=8)
    assert isinstance(tasks.actions, Categorical)
    episode = tasks_of(drawn(tasks, 1))[0]
    net = CategoricalPolicy(tasks.input_shape, tasks.output_size)
    for side in (1.0, -1.0):
        samples = Samples(episode.support.x, torch.tensor([[7.0, side]]).expand(6, 2))
        rollout = tasks.rollout(net, weights_of(net), samples)
        moves = rollout.actions[..., 1] - rollout.actions[..., 0]
        assert moves.abs().eq(1).all()
        place = moves.cumsum(1)
        ended = ((place * side <= -3).cumsum(1) > 0).float()
        alive = 1 - torch.cat([torch.zeros(6, 1), ended[:, :-1]], 1)
        assert torch.equal(rollout.alive, alive)
        assert torch.equal(rollout.rewards, place * side * alive)
        again = tasks.rollout(net, weights_of(net), samples)
        assert all(torch.equal(a, b) for a, b in zip(rollout, again, strict=True))


def test_a_reward_that_is_not_finite(line: str) -> None:
    tasks = Gym(line, shots=2, queries=2, horizon=3)
    net = CategoricalPolicy(tasks.input_shape, tasks.output_size)
    samples = tasks_of(drawn(tasks, 1))[0].support
    vector = tasks._vector(2, np.ones((2, 1)))
    vector.envs[1].unwrapped.pays = float("nan")
    with pytest.raises(InputError, match=r"^data\.env=Line-v0: a reward at step 0 is not finite$"):
        tasks.rollout(net, weights_of(net), samples)


@with_mujoco
def test_half_cheetahs_are_paid_for_their_direction() -> None:
    tasks = Gym(shots=2, queries=2, horizon=5)
    net = GaussianPolicy(tasks.input_shape, tasks.output_size)
    episode = tasks_of(drawn(tasks, 1))[0]
    forward, backward = (
        tasks.rollout(net, weights_of(net), Samples(episode.support.x, torch.tensor([[3.0, side]]).expand(2, 2)))
        for side in (1.0, -1.0)
    )
    assert torch.equal(forward.states, backward.states)
    cost = -0.1 * forward.actions.clamp(-1, 1).square().sum(-1)
    torch.testing.assert_close((forward.rewards + backward.rewards) / 2, cost, rtol=0, atol=1e-5)
    assert (forward.rewards - backward.rewards).abs().max() > 1e-2


@with_mujoco
def test_two_iterations(train: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small = ("data.shots=2", "data.queries=2", "data.horizon=4", "data.meta_batch_size=2", "logger=csv")
    few = ("trainer.max_steps=2", "trainer.val_every=1", "trainer.log_every=1", "trainer.val_episodes=2")
    command = ("algo=maml", "data=gym", *SHORT, *small, *few, "test.episodes=2")
    for name in ("first", "second"):
        train(*command, f"hydra.run.dir={tmp_path / name}")
    found = results(tmp_path / "first")
    assert found["steps"] == 2
    assert found["test"] == results(tmp_path / "second")["test"], "the same episodes under the same weights"
    with pytest.raises(SystemExit):
        train(*command, "algo.engine=vmap", f"hydra.run.dir={tmp_path / 'vmap'}")
    assert "engine=vmap cannot run" in capfd.readouterr().err
    assert not (tmp_path / "vmap").exists()
