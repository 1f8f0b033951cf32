"""Reinforcement learning: a task is an environment to act in, and its loss rolls the policy out.

The random numbers of all rollouts are part of the episode, so a rollout is a pure function of (weights, samples).
"""

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from innerloop.devices.precision import full
from innerloop.episodes import Episode, InputError, Observation, Samples, SupportAt, Weights, apply, with_weights
from innerloop.tasks.base import Tasks, positive
from innerloop.tasks.policies import Actions

RIDGE = 1e-5
"""Regularisation of the baseline, whose features may depend on each other linearly."""


class Rollout(NamedTuple):
    """Trajectories of one task. They are data: no gradient passes through them.

    states: (n, horizon, state size). actions: (n, horizon, actions). rewards: (n, horizon), zero after the end.
    alive: (n, horizon), 1 until the trajectory's end and 0 after it.
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor
    alive: Tensor

    @property
    def returns(self) -> Tensor:
        """The undiscounted returns, (n,)."""
        return self.rewards.sum(-1)


class Reinforcement(Tasks):
    """Tasks whose loss is a policy gradient surrogate. The net is a policy, see `Actions`.

    One sample is one trajectory: y is what the task is, such as a goal, which the policy does not see, and x are random
    numbers, (rounds, …): those of the first round for inner step 0, of the second for step 1, and so on, and those of
    the last for what a hypernetwork reads. After them they begin again. So a step's trajectories are new not only
    because its weights are. The support are `shots` trajectories in each round, the query `queries` in one: its rounds
    are all the same.

    actions: the distribution of actions. discount: of the advantages; returns are reported undiscounted.
    Raises InputError unless the sizes are above zero and the discount is in (0, 1].
    """

    metric = "return"
    higher_is_better = True

    def __init__(
        self,
        state_size: int,
        actions: Actions,
        shots: int,
        queries: int,
        horizon: int,
        discount: float,
        rounds: int,
    ) -> None:
        positive(shots=shots, queries=queries, horizon=horizon, rounds=rounds)
        if not 0 < discount <= 1:
            raise InputError(f"discount must be above 0 and at most 1, got {discount}")
        self.actions, self.shots, self.queries = actions, shots, queries
        self.horizon, self.discount, self.rounds = horizon, discount, rounds
        self.input_shape, self.output_size = (state_size,), actions.outputs

    @property
    def observation(self) -> Observation:
        return Observation(self.observe, self.input_shape[0] + self.actions.actions + 1, 1)

    @property
    def support_at(self) -> SupportAt:
        def turned(support: Samples, k: int) -> Samples:
            return support._replace(x=support.x.roll(-(k % self.rounds), 1))

        return turned

    def in_rounds(self, x: Tensor, y: Tensor) -> Episode:
        """Return a meta-batch.

        x: (tasks, shots * rounds + queries, …), random numbers. y: (tasks, …), one for all trajectories of a task.
        """
        first, tasks = self.shots * self.rounds, len(x)
        support = x[:, :first].unflatten(1, (self.shots, self.rounds))
        query = x[:, first:, None].expand(-1, -1, self.rounds, *x.shape[2:])
        parts = (Samples(part, y[:, None].expand(tasks, part.shape[1], *y.shape[1:])) for part in (support, query))
        return Episode(*parts)

    @abstractmethod
    def rollout(self, net: nn.Module, weights: Weights, samples: Samples) -> Rollout:
        """Return the trajectories of the policy under these weights, one per sample, of the samples' first round."""

    def references(self, samples: Samples) -> dict[str, Tensor]:
        """Return named scalars that are reported beside the metric, such as what the best policy would reach."""
        return {}

    def loss(self, net: nn.Module, weights: Weights, samples: Samples) -> Tensor:
        """Return the negative mean return, whose gradient is that of `surrogate`. It rolls out under these weights."""
        rollout = self.rollout(net, weights, samples)
        outputs = apply(net, weights, rollout.states.flatten(0, 1))
        log_p = self.actions.log_prob(outputs, rollout.actions.flatten(0, 1)).reshape(rollout.alive.shape)
        value = surrogate(log_p, advantages(rollout, self.discount), rollout.alive)
        return value - value.detach() - rollout.returns.mean()

    def metrics(self, net: nn.Module, weights: Weights, samples: Samples) -> dict[str, Tensor]:
        returns = self.rollout(net, weights, samples).returns
        return {"return": returns.mean(), **self.references(samples)}

    def observe(self, net: nn.Module, weights: Weights, samples: Samples) -> Samples:
        """Return what happens under these weights, a point for each step of each trajectory.

        x: (n * horizon, state size + actions + 1), the state, the action and 1. y: (n * horizon, 1), the reward. After
        a trajectory's end both are zero.
        """
        rollout = self.rollout(net, weights, self.support_at(samples, self.rounds - 1))
        alive = rollout.alive[..., None]
        x = torch.cat([rollout.states, rollout.actions, torch.ones_like(alive)], -1) * alive
        return Samples(x.flatten(0, 1), (rollout.rewards[..., None] * alive).flatten(0, 1))


class Simulated(Reinforcement):
    """Environments written in torch: all trajectories of a task step at once, and under vmap all tasks, too."""

    @abstractmethod
    def start(self, samples: Samples) -> Tensor:
        """Return the first states, (n, state size)."""

    @abstractmethod
    def step(self, state: Tensor, action: Tensor, t: int, samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
        """Return the next states (n, state size), the rewards (n,), and whether the trajectories end (n,).

        action: (n, actions). t: the number of steps before this one.
        """

    def noise(self, samples: Samples) -> Tensor:
        """Return the random numbers that actions are drawn with, (n, horizon, actions)."""
        return samples.x[:, 0]

    @torch.no_grad()
    def rollout(self, net: nn.Module, weights: Weights, samples: Samples) -> Rollout:
        # Also detached, because no_grad concerns one level of nested transforms only.
        policy = with_weights(net, {name: w.detach() for name, w in weights.items()})
        noise, state = self.noise(samples), self.start(samples)
        alive, steps = torch.ones_like(state[:, 0]), []
        for t in range(self.horizon):
            action = self.actions.draw(full(policy(state)), noise[:, t])
            following, reward, done = self.step(state, action, t, samples)
            steps.append((state, action, torch.where(alive > 0, reward, 0.0), alive))
            state = torch.where(alive[:, None] > 0, following, state)
            alive = alive * ~done
        return Rollout(*(torch.stack(parts, 1).detach() for parts in zip(*steps, strict=True)))


def surrogate(log_p: Tensor, advantage: Tensor, alive: Tensor) -> Tensor:
    """Return -mean(exp(log_p - stopgrad(log_p)) * advantage) over the steps before the end of their trajectories.

    Its value is the negative mean advantage. Its first derivative is that of -log_p * advantage, and its second
    derivative has also the product of the first ones, as that of an expected return must (Foerster et al., 2018).
    Products over two different steps of a trajectory are left out (the low variance curvature estimator, Rothfuss et
    al., 2019): with one step there are none.
    """
    ratio = (log_p - log_p.detach()).exp()
    return -(ratio * advantage * alive).sum() / alive.sum()


@torch.no_grad()
def advantages(rollout: Rollout, discount: float) -> Tensor:
    """Return how much better than expected each step's discounted return is, (n, horizon), with mean 0 and variance 1.

    What is expected is a linear function of the state, its square and powers of the time (Duan et al., 2016), fitted to
    the trajectories of the task by least squares, in float64. All of it concerns the steps before the end.
    """
    states, rewards, alive = (t.double() for t in (rollout.states, rollout.rewards, rollout.alive))
    steps = torch.arange(alive.shape[-1], dtype=alive.dtype, device=alive.device)
    powers = torch.where(steps >= steps[:, None], discount ** (steps - steps[:, None]).clamp_min(0), 0.0)
    returns = (rewards * alive) @ powers.T
    time = (steps / 100)[:, None]
    clock = torch.cat([torch.ones_like(time), time, time**2, time**3], -1).expand(len(alive), -1, -1)
    seen = torch.cat([states, states.square(), clock], -1).flatten(0, 1) * alive.reshape(-1, 1)
    regular = RIDGE * torch.eye(seen.shape[-1], dtype=seen.dtype, device=seen.device)
    solution = torch.linalg.solve(seen.T @ seen + regular, seen.T @ (returns * alive).flatten())
    rest = (returns - (seen @ solution).reshape(returns.shape)) * alive
    count = alive.sum()
    rest = (rest - rest.sum() / count) * alive
    spread = (rest.square().sum() / count).sqrt()
    return (rest / (spread + 1e-8)).to(rollout.rewards.dtype)
