"""Environments of Gymnasium as a task family: half-cheetahs that run in a direction, or an environment of one's own."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from innerloop.episodes import Episode, InputError, Samples, Split, Weights, apply
from innerloop.nets.fused import inside_transform
from innerloop.tasks.base import positive, tensor
from innerloop.tasks.policies import Actions, Categorical, Gaussian
from innerloop.tasks.reinforcement import Reinforcement, Rollout

SEEDS = 2**24
"""Number of first states per environment: as many integers as float32 has without gaps."""


class Gym(Reinforcement):
    """Vectorized environments of Gymnasium (Towers et al., 2024), whose rewards depend on the task.

    They run outside of torch: use engine=loop, or auto, which finds that vmap cannot run them. An environment without
    hidden randomness after its reset gives the same trajectories for the same weights and samples.

    x: (n, rounds, horizon, actions), the noise of the actions. y: (n, 1 + size), the seed of the first state and the
    task's numbers.
    env: HalfCheetahDir (Finn et al., 2017, section 5.3: the reward is the speed forward or backward, less .1 |a|^2), or
        the id of a registered environment that has `sample_task`, a function of a NumPy generator that returns a task's
        numbers (size,), and `set_task`, which takes them. Its rewards are those of the task. MODULE:ID is refused,
        since a configuration may be somebody else's and must not import modules: see docs/reinforcement-learning.md.
    shots, queries: numbers of trajectories. horizon, discount, rounds: see `Reinforcement`.
    Raises InputError if Gymnasium or the environment is not there, or has other spaces than boxes and discrete actions.
    """

    def __init__(
        self,
        env: str = "HalfCheetahDir",
        shots: int = 20,
        queries: int = 20,
        horizon: int = 100,
        discount: float = 0.99,
        rounds: int = 2,
    ) -> None:
        positive(shots=shots, queries=queries, horizon=horizon, rounds=rounds)
        self.env, self.local = env, threading.local()
        self.directed = env == "HalfCheetahDir"
        vector = make_vector("HalfCheetah-v5" if self.directed else env, 1, env)
        states, actions = vector.single_observation_space, vector.single_action_space
        self.sample_task: Callable[[np.random.Generator], np.ndarray] = direction
        if not self.directed:
            single = vector.envs[0].unwrapped
            if not (hasattr(single, "sample_task") and hasattr(single, "set_task")):
                raise InputError(f"data.env={env}: this environment has no sample_task and set_task, so no tasks")
            self.sample_task = single.sample_task
        kinds = type(states).__name__, type(actions).__name__
        if kinds[0] != "Box" or kinds[1] not in ("Box", "Discrete"):
            raise InputError(f"data.env={env}: states must be a Box and actions a Box or Discrete, got {kinds}")
        self.discrete = kinds[1] == "Discrete"
        chosen: Actions = Categorical(int(actions.n)) if self.discrete else Gaussian(int(np.prod(actions.shape)))
        super().__init__(int(np.prod(states.shape)), chosen, shots, queries, horizon, discount, rounds)

    def draw(self, split: Split, rngs: Sequence[np.random.Generator]) -> Episode:
        n = self.shots * self.rounds + self.queries
        seeds = [rng.integers(SEEDS, size=1) for rng in rngs]
        tasks = np.stack([np.concatenate([s, self.sample_task(rng)]) for s, rng in zip(seeds, rngs, strict=True)])
        noise = np.stack([self.actions.noise(rng, (n, self.horizon)) for rng in rngs])
        return self.in_rounds(tensor(noise), tensor(tasks))

    @torch.no_grad()
    def rollout(self, net: nn.Module, weights: Weights, samples: Samples) -> Rollout:
        if inside_transform():
            raise RuntimeError("environments of Gymnasium run outside of torch, and so not under vmap")
        like = samples.x
        weights = {name: w.detach() for name, w in weights.items()}
        numbers = samples.y.cpu().numpy().astype(float)
        vector = self._vector(len(numbers), numbers[:, 1:])
        # Trajectories of one task start at different states, the same ones for the same samples.
        state, _ = vector.reset(seed=[(int(s) + i) % SEEDS for i, s in enumerate(numbers[:, 0])])
        alive, steps = np.ones(len(numbers)), []
        for t in range(self.horizon):
            seen = torch.as_tensor(state.reshape(len(numbers), -1)).to(like)
            action = self.actions.draw(apply(net, weights, seen), like[:, 0, t])
            taken = action.argmax(-1).cpu().numpy() if self.discrete else self._bounded(vector, action)
            state, reward, terminated, truncated, info = vector.step(taken)
            reward = self._reward(reward, numbers[:, 1:], info)
            if not np.isfinite(reward[alive > 0]).all():
                raise InputError(f"data.env={self.env}: a reward at step {t} is not finite")
            reward = np.where(alive > 0, reward, 0.0)
            steps.append((seen, action, torch.as_tensor(reward).to(like), torch.as_tensor(alive).to(like)))
            alive = alive * ~(terminated | truncated)
        return Rollout(*(torch.stack(parts, 1) for parts in zip(*steps, strict=True)))

    def _reward(self, reward: np.ndarray, task: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        return task[:, 0] * info["reward_forward"] + info["reward_ctrl"] if self.directed else reward

    def _bounded(self, vector: Any, action: Tensor) -> np.ndarray:
        space = vector.single_action_space
        flat = action.cpu().numpy().reshape(len(action), *space.shape)
        return np.clip(flat, space.low, space.high).astype(space.dtype)

    def _vector(self, n: int, tasks: np.ndarray) -> Any:
        """Return this thread's environments for n trajectories, set to their tasks."""
        known = vars(self.local).setdefault("vectors", {})
        if n not in known:
            known[n] = make_vector("HalfCheetah-v5" if self.directed else self.env, n, self.env)
        if not self.directed:
            for single, task in zip(known[n].envs, tasks, strict=True):
                single.unwrapped.set_task(task)
        return known[n]


def direction(rng: np.random.Generator) -> np.ndarray:
    """Return 1 for forward or -1 for backward, with equal probability, (1,)."""
    return rng.choice([-1.0, 1.0], size=1)


def make_vector(identity: str, n: int, named: str) -> Any:
    """Return n environments of this id, which step together. Raises InputError that names it if there is none."""
    if ":" in identity:
        raise InputError(
            f"data.env={named}: a configuration cannot import a module this way; name a class below allow="
        )
    try:
        import gymnasium
    except ModuleNotFoundError as error:
        raise InputError(f'data.env={named} needs Gymnasium: pip install -e ".[mujoco]"') from error
    try:
        return gymnasium.make_vec(identity, num_envs=n, vectorization_mode="sync")
    except (gymnasium.error.Error, ImportError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f'data.env={named} is not there: {reason} (pip install -e ".[mujoco]" for MuJoCo)') from error
