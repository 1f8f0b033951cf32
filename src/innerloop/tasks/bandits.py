"""Bernoulli bandits: the smallest reinforcement learning tasks, with Thompson sampling to compare with."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from innerloop.episodes import Episode, InputError, Samples, Split, Weights, apply
from innerloop.tasks.base import tensor
from innerloop.tasks.policies import Categorical
from innerloop.tasks.reinforcement import Simulated

GRID = 512
"""Number of points of the integrals over the probabilities of an arm."""


class Bandits(Simulated):
    """Bandits whose arms pay 1 with probabilities that are independent and uniform in [0, 1], and else 0.

    A trajectory is one pull, and the state is the constant 1: what is known of the arms is in the policy's weights. The
    metric is the regret of one more pull, the probability of the best arm less the policy's expected reward.

    x: (n, rounds, 1, 2 * arms), the Gumbel noise of the pull and a uniform number for each arm, which pays if it is
    below the arm's probability. y: (n, arms), the probabilities.

    arms: their number, above one. shots, queries: numbers of pulls. rounds: see `Reinforcement`.
    Raises InputError for other numbers, and for fewer queries than shots, because Thompson sampling pulls with the
    random numbers of the query.
    """

    metric = "regret"
    higher_is_better = False
    beside = ("bayes", "thompson", "random")

    def __init__(self, arms: int = 5, shots: int = 10, queries: int = 50, rounds: int = 2) -> None:
        if arms < 2:
            raise InputError(f"arms must be above one, got {arms}")
        super().__init__(1, Categorical(arms), shots, queries, horizon=1, discount=1.0, rounds=rounds)
        if queries < shots:
            raise InputError(f"queries must be at least shots={shots}, the pulls of Thompson sampling, got {queries}")
        self.arms = arms

    def draw(self, split: Split, rngs: Sequence[np.random.Generator]) -> Episode:
        n = self.shots * self.rounds + self.queries
        arms = np.stack([rng.random(self.arms) for rng in rngs])
        noise = [np.concatenate([self.actions.noise(rng, (n, 1)), rng.random((n, 1, self.arms))], -1) for rng in rngs]
        return self.in_rounds(tensor(np.stack(noise)), tensor(arms))

    def start(self, samples: Samples) -> Tensor:
        return torch.ones_like(samples.y[:, :1])

    def noise(self, samples: Samples) -> Tensor:
        return samples.x[:, 0, :, : self.arms]

    def step(self, state: Tensor, action: Tensor, t: int, samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
        reward = (action * self.payments(samples)).sum(-1)
        return state, reward, torch.ones_like(reward, dtype=torch.bool)

    def payments(self, samples: Samples) -> Tensor:
        """Return what each arm would pay at each pull, (n, arms)."""
        return (samples.x[:, 0, 0, self.arms :] < samples.y).to(samples.y.dtype)

    def metrics(self, net: nn.Module, weights: Weights, samples: Samples) -> dict[str, Tensor]:
        probability = apply(net, weights, self.start(samples)[:1]).softmax(-1)[0]
        return {"regret": self.regret(probability, samples), **super().metrics(net, weights, samples)}

    def regret(self, probability: Tensor, samples: Samples) -> Tensor:
        """Return the regret of a pull of the arms with these probabilities (arms,)."""
        return samples.y[0].amax() - (probability * samples.y[0]).sum()

    def references(self, samples: Samples) -> dict[str, Tensor]:
        """Return regrets to compare with.

        bayes: of the arm with the largest posterior mean after `shots` random pulls, below which no learner comes that
        reads as many random pulls. thompson: of Thompson sampling. random: of a random pull.
        """
        even = torch.zeros_like(samples.y[0])
        arms = self.actions.draw(even, self.noise(samples)[: self.shots, 0])
        paid = self.payments(samples)[: self.shots]
        mean = ((arms * paid).sum(0) + 1) / (arms.sum(0) + 2)
        best = (mean == mean.amax()).to(mean.dtype)
        return {
            "bayes": self.regret(best / best.sum(), samples),
            "thompson": self.thompson(samples),
            "random": self.regret(even.softmax(-1), samples),
        }

    def thompson(self, samples: Samples) -> Tensor:
        """Return the regret of the pull that Thompson sampling makes after `shots` pulls of its own, a scalar.

        Its prior is the true one. It pulls an arm with the probability that the arm is the best.
        """
        paid = self.payments(samples)
        gumbel = self.noise(samples)[:, 0]
        won = lost = torch.zeros_like(samples.y[0])
        for t in range(self.shots):
            arm = self.actions.draw(best_arm(won, lost).clamp_min(1e-30).log(), gumbel[t])
            won, lost = won + arm * paid[t], lost + arm * (1 - paid[t])
        return self.regret(best_arm(won, lost), samples)


def best_arm(won: Tensor, lost: Tensor) -> Tensor:
    """Return the probability that each arm is the best, (arms,), given its numbers of wins and losses (arms,).

    The posterior of an arm is Beta(1 + wins, 1 + losses). P(best) is the integral of its density times the product of
    the other arms' distribution functions, here a sum over a grid.
    """
    x = (torch.arange(GRID, dtype=won.dtype, device=won.device) + 0.5) / GRID
    density = (won[:, None] * x.log() + lost[:, None] * torch.log1p(-x)).softmax(-1)
    below = (density.cumsum(-1) - density / 2).clamp_min(1e-30).log()
    others = (below.sum(0) - below).exp()
    mass = (density * others).sum(-1)
    return mass / mass.sum()
