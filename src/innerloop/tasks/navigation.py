"""A point that moves to a goal in the plane: the first reinforcement learning task of MAML (Finn et al., 2017)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from innerloop.episodes import Episode, Samples, Split
from innerloop.tasks.base import tensor
from innerloop.tasks.policies import Gaussian
from innerloop.tasks.reinforcement import Simulated
from innerloop.tasks.sinusoid import between


class Navigation(Simulated):
    """A point starts at the origin, moves by at most .1 in each coordinate per step, and is to reach a goal.

    Source: Finn, Abbeel and Levine, 2017, section 5.3. The goal is uniform in the unit square around the origin, and
    the policy does not see it. The state is the position. The reward of a step is the negative distance to the goal
    after it, as in the code of the paper. A trajectory ends within .01 of the goal or after `horizon` steps.

    x: (n, rounds, horizon, 2), the noise of the actions. y: (n, 2), the goal.
    shots, queries: number of trajectories. discount, rounds: see `Reinforcement`.
    """

    beside = ("oracle",)
    reach, near, half_side = 0.1, 0.01, 0.5

    def __init__(
        self, shots: int = 20, queries: int = 20, horizon: int = 100, discount: float = 0.99, rounds: int = 4
    ) -> None:
        super().__init__(2, Gaussian(2), shots, queries, horizon, discount, rounds)

    def draw(self, split: Split, rngs: Sequence[np.random.Generator]) -> Episode:
        n = self.shots * self.rounds + self.queries
        goals = np.stack([between((-self.half_side, self.half_side), rng.random(2)) for rng in rngs])
        noise = np.stack([self.actions.noise(rng, (n, self.horizon)) for rng in rngs])
        return self.in_rounds(tensor(noise), tensor(goals))

    def start(self, samples: Samples) -> Tensor:
        return torch.zeros_like(samples.y)

    def step(self, state: Tensor, action: Tensor, t: int, samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
        position = state + action.clamp(-self.reach, self.reach)
        distance = (position - samples.y).square().sum(-1).sqrt()
        return position, -distance, distance < self.near

    def references(self, samples: Samples) -> dict[str, Tensor]:
        """Return the oracle's return: it knows the goal and goes there, each coordinate as fast as it can."""
        steps = torch.arange(1, self.horizon + 1, dtype=samples.y.dtype, device=samples.y.device)
        left = (samples.y.abs()[:, None] - self.reach * steps[:, None]).clamp_min(0)
        return {"oracle": -left.square().sum(-1).sqrt().sum(-1).mean()}
