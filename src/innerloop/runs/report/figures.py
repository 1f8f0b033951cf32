"""The figures of a run: which plots its task family calls for, saved as plots/*.png."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from innerloop.datamodule import EpisodeDataModule
from innerloop.episodes import Episode
from innerloop.learners import MetaLearner
from innerloop.runs.report import plots
from innerloop.tasks.base import Regression, Tasks


def save_figures(
    run_dir: Path, tasks: Tasks, learner: MetaLearner, data: EpisodeDataModule, test: Mapping[str, Any]
) -> dict[str, Figure]:
    """Save plots/*.png and return the figures by name.

    test: the test's entry of results.json. There is a learning curve if the directory has a metrics.csv.
    """
    learner.eval()
    trained = learner.adaptation.training_steps
    curve = plots.adaptation_curve(test["by_step"], tasks.metric, test["unadapted"][tasks.metric], trained)
    figures = {"adaptation_curve": curve}
    if (run_dir / "metrics.csv").exists():
        figures["learning_curve"] = plots.learning_curve(run_dir / "metrics.csv", tasks.metric)
    episodes = [_like(data.episode("test", i), next(learner.parameters())) for i in range(4)]
    if isinstance(tasks, Regression) and tasks.input_shape == (1,):
        low, high = getattr(tasks, "x_range", (-5.0, 5.0))
        figures["fitted_functions"] = plots.fitted_functions(episodes, learner.predict_episode, (low, high))
    elif len(tasks.input_shape) == 3:
        outputs = learner.predict_episode(episodes[0])
        figures["episode"] = plots.episode_grid(episodes[0], outputs[0], outputs[test["step"] + 1])
    folder = run_dir / "plots"
    folder.mkdir(exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=120)
    return figures


def _like(episode: Episode, parameter: Tensor) -> Episode:
    """Return the episode on the parameter's device and, where it is real-valued, in its dtype."""

    def moved(t: Tensor) -> Tensor:
        return t.to(parameter.device, parameter.dtype if t.is_floating_point() else t.dtype)

    return Episode(*(type(part)(*map(moved, part)) for part in episode))
