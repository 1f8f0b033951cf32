"""What a run leaves for people: results, the closing table, the values of each test episode, plots."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from innerloop import plots
from innerloop.adaptation import GradientSteps, LatentSteps
from innerloop.datamodule import EpisodeDataModule
from innerloop.episodes import Episode
from innerloop.learners import MetaLearner
from innerloop.tasks.base import Regression, Tasks

Curve = Mapping[str, Sequence[dict[str, float]]]


def test_results(curve: Curve, episodes: int, step: int) -> dict[str, Any]:
    """The entry of results.json: the metrics after `step` inner steps, before any adaptation, and along the curve.

    curve: metric -> statistics before adaptation and after 0, 1, …, K inner steps.
    """
    by_step = [
        {"step": s, **{name: c[s + 1] for name, c in curve.items()}} for s in range(len(next(iter(curve.values()))) - 1)
    ]
    return {
        "episodes": episodes,
        "step": step,
        **{name: column[step + 1] for name, column in curve.items()},
        "unadapted": {name: column[0] for name, column in curve.items()},
        "by_step": by_step,
    }


def flatten(results: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(name -> number for a summary, one row of numbers for each inner step)."""
    flat = {k: v for k, v in results.items() if not isinstance(v, Mapping)}
    for split in ("validation", "test"):
        for name, entry in results[split].items():
            if isinstance(entry, Mapping) and "mean" in entry:
                flat[f"{split}/{name}"] = entry["mean"]
                flat[f"{split}/{name}_ci95"] = entry["ci95"]
        flat[f"{split}/step"] = results[split]["step"]
    rows = []
    for row in results["test"]["by_step"]:
        numbers = {k: v for k, v in row.items() if k != "step"}
        rows.append({"step": row["step"]} | {f"{n}_{s}": v for n, e in numbers.items() for s, v in e.items()})
    return flat, rows


def episode_rows(names: Sequence[str], values: Tensor, step: int) -> list[dict[str, float]]:
    """For each test episode its metrics before any adaptation and after the reported number of inner steps.

    values: (episodes, 1 + K + 1, metrics).
    """
    return [
        {"episode": episode}
        | {f"unadapted/{name}": value for name, value in zip(names, curve[0], strict=True)}
        | dict(zip(names, curve[step + 1], strict=True))
        for episode, curve in enumerate(values.tolist())
    ]


def closing_table(results: Mapping[str, Any], metric: str, run_dir: Path) -> str:
    """The few lines that a run ends with."""
    test, trained = results["test"], ""
    if "steps" in results:
        trained = f", {results['steps']:,} steps in {results['train_seconds']:.0f} s"
        trained += f" ({results['steps_per_second']:.1f} a second)"
    lines = [
        f"{results['algo']} on {results['data']} ({results['net']}, {results['parameters']:,} parameters), "
        f"seed {results['seed']}{trained}",
        f"{test['episodes']} test episodes{_conditions(results)}:",
        f"  {'inner steps':<18}{metric:>10}{'± 95 %':>10}{'median':>10}",
    ]
    shown = [("before adaptation", test["unadapted"])]
    shown += [(str(row["step"]), row) for row in test["by_step"]]
    for label, row in shown:
        entry = row[metric]
        mark = "  <- reported" if row.get("step") == test["step"] else ""
        lines.append(f"  {label:<18}{entry['mean']:>10.4f}{entry['ci95']:>10.4f}{entry['median']:>10.4f}{mark}")
    return "\n".join(["", *lines, f"run directory: {run_dir}"])


def _conditions(results: Mapping[str, Any]) -> str:
    if results["norm"] is None:
        return ""
    return (
        f", norm: {results['norm']}{' (transductive)' * results['transductive']}, {results['queries']} queries a class"
    )


def write_episodes(path: Path, names: Sequence[str], values: Tensor) -> None:
    """One row for each test episode and inner step, so that runs can be compared in pairs.

    values: (episodes, 1 + K + 1, metrics).
    """
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["episode", "step", *names])
        for episode, curve in enumerate(values.tolist()):
            for column, row in enumerate(curve):
                writer.writerow([episode, "unadapted" if column == 0 else column - 1, *row])


def draw_plots(
    run_dir: Path, tasks: Tasks, learner: MetaLearner, data: EpisodeDataModule, test: Mapping[str, Any]
) -> dict[str, Figure]:
    """Saves plots/*.png and returns the figures by name; a learning curve where the directory has a metrics.csv."""
    learner.eval()
    steps = [part.steps for part in learner.modules() if isinstance(part, GradientSteps | LatentSteps)]
    trained = sum(steps) if steps else None
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
    """The episode where, and as precise as, the learner is."""

    def moved(t: Tensor) -> Tensor:
        return t.to(parameter.device, parameter.dtype if t.is_floating_point() else t.dtype)

    return Episode(*(type(part)(*map(moved, part)) for part in episode))
