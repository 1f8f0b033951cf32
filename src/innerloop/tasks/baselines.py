"""Baselines without meta-learning on the synthetic tasks, and their Bayes limits."""

import torch
import torch.nn.functional as F
from torch import Tensor

from innerloop.episodes import Episode
from innerloop.errors import InputError
from innerloop.tasks.base import Tasks
from innerloop.tasks.hyperplane import Hyperplane
from innerloop.tasks.multimodal import Multimodal


def logistic_regression(episode: Episode, penalty: float = 1.0, iterations: int = 30) -> Tensor:
    """Return the probability (tasks, queries) that a query's label is 1, by a logistic regression for each task.

    It minimises the summed logistic loss + penalty |w|^2 / 2 by Newton's method, in float64. The offset is free, apart
    from a tiny penalty that keeps it finite if a support set has one class only.

    episode: a meta-batch with x (tasks, n, d) and y (tasks, n) in {0, 1}.
    """
    x, x_query = (F.pad(part.x.double(), (0, 1), value=1.0) for part in episode)
    y = episode.support.y.double()
    ridge = torch.full_like(x[0, 0], penalty)
    ridge[-1] = 1e-6
    weights = torch.zeros_like(x[:, 0])
    for _ in range(iterations):
        p = (x @ weights[..., None]).squeeze(-1).sigmoid()
        gradient = ((p - y)[..., None] * x).sum(1) + ridge * weights
        hessian = x.mT @ ((p * (1 - p))[..., None] * x) + ridge.diag()
        weights = weights - torch.linalg.solve(hessian, gradient)
    return (x_query @ weights[..., None]).squeeze(-1).sigmoid()


def accuracies(probability: Tensor, episode: Episode) -> Tensor:
    """Return the fraction of each task's queries (tasks,) on the right side of 0.5. probability: (tasks, queries)."""
    return ((probability > 0.5) == episode.query.y.bool()).double().mean(1)


def baselines(tasks: Tasks, episode: Episode) -> dict[str, Tensor]:
    """Return baseline -> its metric on each task (tasks,): the Bayes limit and, for classification, a regression.

    episode: a meta-batch of the family. Raises InputError for a family whose Bayes prediction is not known.
    """
    if isinstance(tasks, Multimodal):
        return {"Bayes": (tasks.oracle(episode) - episode.query.y).pow(2).mean((1, 2))}
    if isinstance(tasks, Hyperplane):
        regression, bayes = logistic_regression(episode), tasks.oracle(episode)
        return {"logistic regression": accuracies(regression, episode), "Bayes": accuracies(bayes, episode)}
    raise InputError(f"{type(tasks).__name__} has no Bayes prediction: choose Hyperplane or Multimodal")
