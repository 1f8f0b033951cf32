"""What is possible without meta-learning, and what is possible at all, on the synthetic tasks.

    python scripts/baselines.py data=hyperplane
    python scripts/baselines.py data=hyperplane data.clusters=0 test.episodes=2000
    python scripts/baselines.py data=multimodal

Mean and 95 % confidence interval over the same test episodes that train.py and evaluate.py use (test.seed=0): the Bayes
prediction, and for classification a logistic regression for each task from scratch. Any value of the data's
configuration can be given. The Bayes prediction takes about 10 ms an episode.
"""

import sys
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from innerloop.config import arguments, locate  # noqa: E402
from innerloop.episodes import Episode, InputError, episode_rng  # noqa: E402
from innerloop.tasks.hyperplane import Hyperplane  # noqa: E402
from innerloop.tasks.multimodal import Multimodal  # noqa: E402

OF_THE_TRAINING = ("defaults", "name", "_target_", "meta_batch_size", "num_workers", "test_episodes")


def logistic_regression(episode: Episode, penalty: float = 1.0, iterations: int = 30) -> Tensor:
    """A task's own logistic regression: minimises the summed logistic loss + penalty |w|^2 / 2, by Newton's method.

    episode: a meta-batch with x (tasks, n, d) and y (tasks, n) in {0, 1}. Returns the probability (tasks, queries) that
    a query's label is 1, in float64. The offset is free but for a trace that keeps it finite where a support has one
    class only.
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
    """The share of each task's queries (tasks,) on the right side of 0.5."""
    return ((probability > 0.5) == episode.query.y.bool()).double().mean(1)


def mean_ci(values: Tensor) -> str:
    """Mean and 95 % interval of one value an episode."""
    return f"{values.mean():.4f} ± {1.96 * values.std() / len(values) ** 0.5:.4f}"


def main(argv: list[str]) -> None:
    """Reads key=value arguments and prints one line for each baseline. Raises InputError for what cannot be."""
    torch.set_num_threads(1)  # for tensors this small threads only wait for each other
    given = OmegaConf.from_dotlist([a for a in argv if not a.startswith("data=")])
    name = next((a.removeprefix("data=") for a in argv if a.startswith("data=")), "hyperplane")
    path = ROOT / "conf" / "data" / f"{name}.yaml"
    if not path.is_file():
        raise InputError(f"data={name}: there is no {path.relative_to(ROOT)}")
    data = cast(DictConfig, OmegaConf.merge(OmegaConf.load(path), given.get("data", {})))
    target = locate(data["_target_"], "data._target_")
    tasks = target(**arguments({str(k): v for k, v in data.items() if k not in OF_THE_TRAINING}, target, "data"))
    episodes = OmegaConf.select(given, "test.episodes", default=data.test_episodes)
    seed = OmegaConf.select(given, "test.seed", default=0)
    batch = tasks.draw("test", [episode_rng(seed, "test", i) for i in range(episodes)])

    print(f"data={name}, {episodes} test episodes, test.seed={seed}")
    if isinstance(tasks, Multimodal):
        errors = (tasks.oracle(batch) - batch.query.y).pow(2).mean((1, 2))
        print(f"Bayes: mse {mean_ci(errors)}, median {errors.median():.4f}")
    elif isinstance(tasks, Hyperplane):
        print("logistic regression: accuracy", mean_ci(accuracies(logistic_regression(batch), batch)))
        print("Bayes: accuracy", mean_ci(accuracies(tasks.oracle(batch), batch)))
    else:
        raise InputError(f"data={name} has no Bayes prediction: choose hyperplane or multimodal")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"baselines.py: {error}")
