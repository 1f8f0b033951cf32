"""The figures of a run: which plots its task family calls for, saved as plots/*.png."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from innerloop.datamodule import EpisodeDataModule
from innerloop.episodes import Episode
from innerloop.learners import MetaLearner
from innerloop.runs.report import plots
from innerloop.runs.report.trajectories import trajectories
from innerloop.tasks.base import Regression, Tasks
from innerloop.tasks.navigation import Navigation


def save_figures(
    run_dir: Path, tasks: Tasks, learner: MetaLearner, data: EpisodeDataModule, test: Mapping[str, Any]
) -> dict[str, Figure]:
    """Save plots/*.png and return the figures by name.

    test: the test's entry of results.json. There is a learning curve if the directory has a metrics.csv.
    """
    learner.eval()
    trained = learner.adaptation.training_steps
    beside = {name: test[name]["mean"] for name in tasks.beside}
    curve = plots.adaptation_curve(test["by_step"], tasks.metric, test["unadapted"][tasks.metric], trained, beside)
    figures = {"adaptation_curve": curve}
    if (run_dir / "metrics.csv").exists():
        figures["learning_curve"] = plots.learning_curve(run_dir / "metrics.csv", tasks.metric)
    episodes = [_like(data.episode("test", i), next(learner.parameters())) for i in range(6)]
    if isinstance(tasks, Regression) and tasks.input_shape == (1,):
        low, high = getattr(tasks, "x_range", (-5.0, 5.0))
        figures["fitted_functions"] = plots.fitted_functions(episodes[:4], learner.predict_episode, (low, high))
    elif len(tasks.input_shape) == 3:
        outputs = learner.predict_episode(episodes[0])
        figures["episode"] = plots.episode_grid(episodes[0], outputs[0], outputs[test["step"] + 1])
    elif isinstance(tasks, Navigation):
        figures["trajectories"] = _trajectories(tasks, learner, episodes, test["step"])
    folder = run_dir / "plots"
    folder.mkdir(exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=120)
    return figures


@torch.no_grad()
def _trajectories(tasks: Navigation, learner: MetaLearner, episodes: Sequence[Episode], step: int) -> Figure:
    """Plot rollouts on the queries' noise, before adaptation and after `step` inner steps."""
    drawn: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for episode in episodes:
        path = learner.path(episode)
        for part, (net, weights) in zip(drawn, (path[0], path[step + 1]), strict=True):
            part.append(tasks.rollout(net, weights, episode.query).states.cpu().numpy())
    goals = np.stack([episode.query.y[0].cpu().numpy() for episode in episodes])
    return trajectories(goals, *drawn, "adapted" if step == 0 else f"after {step} step{'s' * (step > 1)}")


def _like(episode: Episode, parameter: Tensor) -> Episode:
    """Return the episode on the parameter's device and, where it is real-valued, in its dtype."""

    def moved(t: Tensor) -> Tensor:
        return t.to(parameter.device, parameter.dtype if t.is_floating_point() else t.dtype)

    return Episode(*(type(part)(*map(moved, part)) for part in episode))
