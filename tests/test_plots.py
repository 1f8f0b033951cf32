"""Figures hold the numbers that they were given: each test reads them back from what was drawn."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import same_color, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor

from innerloop.episodes import Episode, Samples
from innerloop.runs.report import plots, style


def render(figure: Figure) -> None:
    """Draws it for real: a warning on the way, of a glyph that no font has or a layout that collapsed, is an error."""
    figure.savefig(io.BytesIO(), format="png")


def line(ax: Axes, label: str) -> Line2D:
    (found,) = [each for each in ax.lines if each.get_label() == label]
    return found


def legend(ax: Axes) -> list[str]:
    found = ax.get_legend()
    return [text.get_text() for text in found.get_texts()] if found else []


def drawn(each: Line2D) -> tuple[list[float], list[float]]:
    return list(map(float, each.get_xdata())), list(map(float, each.get_ydata()))  # type: ignore[arg-type]


# Learning curves.


def metrics_file(folder: Path, text: str) -> Path:
    path = folder / "metrics.csv"
    path.write_text("".join(f"{row.strip()}\n" for row in text.strip().splitlines()))
    return path


def test_a_learning_curve_draws_what_was_logged(tmp_path: Path) -> None:
    path = metrics_file(
        tmp_path,
        """epoch,lr-Adam,step,train/loss,train/mse,val/mse
        ,0.1,9,,,
        0,,9,4.0,4.0,
        0,,19,3.0,3.0,
        0,,29,3.5,3.5,
        0,,29,,,3.25
        1,,39,1.5,1.5,
        1,,39,,,1.25""",
    )
    figure = plots.learning_curve(path, "mse")
    (ax,) = figure.axes  # in regression the loss is the metric: one panel
    assert drawn(line(ax, "training, one meta-batch")) == ([9, 19, 29, 39], [4, 3, 3.5, 1.5])
    assert drawn(line(ax, "training, running mean")) == ([9, 19, 29, 39], pytest.approx([4, 10.5 / 3, 8 / 3, 1.5]))
    assert drawn(line(ax, "validation")) == ([29, 39], [3.25, 1.25])
    assert ax.get_yscale() == "linear"
    assert ax.get_xlabel() == "training step (meta-batches)"
    assert ax.get_ylabel() == "mean squared error (squared units of y)"
    assert ax.get_title() == "Mean squared error during meta-training"
    assert legend(ax) == ["training, one meta-batch", "training, running mean", "validation"]
    render(figure)


def test_a_loss_that_is_another_number_gets_a_panel(tmp_path: Path) -> None:
    path = metrics_file(
        tmp_path,
        """step,train/accuracy,train/loss,val/accuracy,val/loss
        0,0.05,8.0,,
        1,0.5,2.0,,
        2,0.9,0.4,,
        2,,,0.8,0.5""",
    )
    figure = plots.learning_curve(path, "accuracy")
    accuracy, loss = figure.axes
    assert drawn(line(accuracy, "training, one meta-batch"))[1] == [0.05, 0.5, 0.9]
    assert drawn(line(accuracy, "validation")) == ([2], [0.8])
    assert drawn(line(loss, "training, one meta-batch"))[1] == [8.0, 2.0, 0.4]
    assert drawn(line(loss, "validation")) == ([2], [0.5])
    assert (accuracy.get_ylabel(), loss.get_ylabel()) == ("accuracy (fraction correct)", "query loss")
    # Both span a factor of more than ten, but an accuracy is not an error that falls by factors.
    assert (accuracy.get_yscale(), loss.get_yscale()) == ("linear", "log")
    render(figure)


def test_rows_of_a_killed_or_diverged_run_are_survived(tmp_path: Path) -> None:
    path = metrics_file(
        tmp_path,
        """step,train/loss,train/mse,val/mse
        20,2.0,2.0,
        10,3.0,3.0,
        30,nan,nan,
        40,inf,inf,
        50,1.0""",
    )
    (ax,) = plots.learning_curve(path, "mse").axes
    assert drawn(line(ax, "training")) == ([10, 20], [3, 2])
    assert legend(ax) == ["training"]  # and no validation, of which there is none


@pytest.mark.parametrize("text", ["", "step,train/mse\n", "step,train/accuracy\n3,0.5\n"])
def test_a_file_without_the_metric_says_so(tmp_path: Path, text: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    figure = plots.learning_curve(path, "mse")
    (ax,) = figure.axes
    assert [note.get_text() for note in ax.texts] == ["no values recorded"]
    assert ax.get_legend() is None
    render(figure)


def test_the_running_mean() -> None:
    values = np.random.default_rng(0).normal(size=100)
    smoothed = plots.smooth(values)  # over three to each side
    assert smoothed[50] == pytest.approx(values[47:54].mean())
    assert smoothed[1] == pytest.approx(values[:3].mean())
    assert smoothed[[0, 99]] == pytest.approx(values[[0, 99]])
    assert plots.smooth(np.linspace(3, 7, 100)) == pytest.approx(np.linspace(3, 7, 100))  # without lag


# Adaptation curves.


def statistics(mean: float, ci95: float) -> dict[str, float]:
    return {"mean": mean, "ci95": ci95, "median": -100.0}


ROWS = [{"step": s, "mse": statistics(mean, ci95)} for s, (mean, ci95) in enumerate([(3, 0.3), (1, 0.2), (0.5, 0.1)])]


def test_an_adaptation_curve_draws_means_and_their_band() -> None:
    figure = plots.adaptation_curve(ROWS, "mse", statistics(2.75, 0.4), 1)
    (ax,) = figure.axes
    assert drawn(line(ax, "mean over test episodes")) == ([0, 1, 2], [3, 1, 0.5])
    (band,) = ax.collections
    corners = {(round(float(x), 6), round(float(y), 6)) for x, y in band.get_paths()[0].vertices}
    assert corners == {(0, 2.7), (0, 3.3), (1, 0.8), (1, 1.2), (2, 0.4), (2, 0.6)}
    before = line(ax, "before any adaptation")
    assert drawn(before)[1] == [2.75, 2.75]
    assert before.get_linestyle() == "--"
    assert drawn(line(ax, "inner steps in training: 1"))[0] == [1, 1]
    assert ax.get_xlabel() == "inner gradient steps on the support set"
    assert ax.get_ylabel() == "mean squared error (squared units of y)"
    assert len(legend(ax)) == 4
    assert ax.get_yscale() == "linear"
    render(figure)


def test_an_adaptation_curve_is_logarithmic_over_more_than_a_factor_of_ten() -> None:
    figure = plots.adaptation_curve(ROWS, "mse", statistics(5.1, 0.4), None)
    assert figure.axes[0].get_yscale() == "log"
    assert legend(figure.axes[0]) == ["95 % interval", "mean over test episodes", "before any adaptation"]
    render(figure)


def test_a_learner_without_inner_steps_is_a_point_with_its_interval() -> None:
    figure = plots.adaptation_curve([{"step": 0, "accuracy": statistics(0.8, 0.05)}], "accuracy", None, None)
    (ax,) = figure.axes
    (point,) = ax.containers
    data, _, (bar,) = point.lines  # type: ignore[attr-defined]
    assert drawn(data) == ([0], [0.8])
    assert bar.get_segments()[0] == pytest.approx(np.array([[0, 0.75], [0, 0.85]]))
    figure.draw_without_rendering()
    low, high = ax.get_xlim()
    assert [tick for tick in ax.get_xticks() if low <= tick <= high] == [0]
    assert legend(ax) == ["mean, 95 % interval"]
    render(figure)


@pytest.mark.parametrize("count", [1, 3])
def test_one_episode_has_no_interval_and_is_drawn_all_the_same(count: int) -> None:
    rows = [{"step": row["step"], "mse": statistics(1.5, float("nan"))} for row in ROWS[:count]]
    figure = plots.adaptation_curve(rows, "mse", None, None)
    assert list(figure.axes[0].lines[0].get_ydata()) == [1.5] * count
    render(figure)


# Fitted functions.


def regression_task(seed: int) -> Episode:
    rng = torch.Generator().manual_seed(seed)
    parts = [torch.rand(n, 1, generator=rng) * 10 - 5 for n in (5, 7)]
    return Episode(*(Samples(x, x.sin() * (seed + 1)) for x in parts))


def lines_of_slope(count: int, offset: float = 0.0) -> object:
    """A learner whose function after the i-th of so many stages is i x + the mean of the support's y."""

    def predict(episode: Episode) -> list[Tensor]:
        assert not episode.query.y.any()  # the truth is not handed over
        assert episode.query.y.shape == episode.query.x.shape
        return [max(i - offset, 0) * episode.query.x + episode.support.y.mean() for i in range(count)]

    return predict


def functions(figure: Figure, panel: int = 0) -> dict[str, tuple[list[float], list[float]]]:
    return {str(each.get_label()): drawn(each) for each in figure.axes[panel].lines}


def test_each_panel_holds_a_task_and_the_function_as_it_adapts() -> None:
    tasks = [regression_task(seed) for seed in range(4)]
    figure = plots.fitted_functions(tasks, lines_of_slope(12), (-5.0, 5.0))  # type: ignore[arg-type]
    assert len(figure.axes) == 4
    for panel, (ax, task) in enumerate(zip(figure.axes, tasks, strict=True)):
        found = functions(figure, panel)
        assert list(found) == ["before adaptation", "after 0 steps", "after 1 step", "after 5 steps", "after 10 steps"]
        for label, slope in zip(found, (0, 1, 2, 6, 11), strict=True):
            x, y = found[label]
            assert (x[0], x[-1], len(x)) == (-5, 5, plots.GRID_POINTS)
            assert y == pytest.approx([slope * v + task.support.y.mean().item() for v in x], abs=1e-4)
        points = {c.get_label(): np.asarray(c.get_offsets()) for c in ax.collections}
        for label, samples in (("support points", task.support), ("query points", task.query)):
            assert points[label] == pytest.approx(torch.cat(samples, -1).numpy())
        assert ax.get_title() == f"Test task {panel + 1}"
    assert [(ax.get_xlabel(), ax.get_ylabel()) for ax in figure.axes] == [("", "y"), ("", ""), ("x", "y"), ("x", "")]
    (key,) = figure.legends
    assert [text.get_text() for text in key.get_texts()] == [*found, "query points", "support points"]
    colours = [each.get_color() for each in figure.axes[0].lines]
    assert len({to_rgba(colour) for colour in colours}) == 5
    render(figure)


@pytest.mark.parametrize(
    ("count", "offset", "labels"),
    [
        (12, 1, ["after 1 step", "after 5 steps", "after 10 steps"]),  # before adaptation and after 0 steps coincide
        (5, 1, ["after 1 step", "after 3 steps"]),  # as far as the learner goes
        (3, 1, ["after 1 step"]),
        (2, 0, ["adapted"]),
        (2, 1, []),
    ],
)
def test_only_what_there_is_to_see_is_drawn(count: int, offset: int, labels: list[str]) -> None:
    predict = lines_of_slope(count, offset)
    figure = plots.fitted_functions([regression_task(0)], predict, (-5.0, 5.0))  # type: ignore[arg-type]
    assert list(functions(figure)) == ["before adaptation", *labels]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_as_many_panels_as_tasks(count: int) -> None:
    tasks = [regression_task(seed) for seed in range(count)]
    figure = plots.fitted_functions(tasks, lines_of_slope(2), (-5.0, 5.0))  # type: ignore[arg-type]
    assert len(figure.axes) == count
    # The lowest panel of each column names the x axis.
    lowest = {ax.get_subplotspec().colspan.start: ax for ax in figure.axes}  # type: ignore[union-attr]
    assert [ax for ax in figure.axes if ax.get_xlabel() == "x"] == sorted(lowest.values(), key=figure.axes.index)


def test_a_function_that_strays_does_not_hide_the_points() -> None:
    task = regression_task(0)

    def predict(episode: Episode) -> list[Tensor]:
        return [0 * episode.query.x, 1e6 * episode.query.x]

    low, high = plots.fitted_functions([task], predict, (-5.0, 5.0)).axes[0].get_ylim()
    y = torch.cat([task.support.y, task.query.y])
    assert low < y.min() < y.max() < high
    assert high - low < 4 * (y.max() - y.min())


# An episode of images.

Y = torch.tensor([2, 0, 1, 1, 0, 2])
GUESSES = torch.tensor([2, 0, 1, 0, 0, 1])  # the fourth and the sixth are wrong


def image_task(channels: int = 1, queries: Tensor = Y) -> Episode:
    rng = torch.Generator().manual_seed(channels)
    x = [torch.rand(n, channels, 6, 5, generator=rng) for n in (3, len(queries))]
    return Episode(Samples(x[0], torch.tensor([1, 2, 0])), Samples(x[1], queries))


def scores(guesses: Tensor, classes: int = 3) -> Tensor:
    return torch.eye(classes)[guesses]


def frames(ax: Axes) -> list[Rectangle]:
    return [patch for patch in ax.patches if isinstance(patch, Rectangle)]


@pytest.mark.parametrize("channels", [1, 3])
def test_an_episode_shows_its_images_a_row_a_class(channels: int) -> None:
    task = image_task(channels)
    figure = plots.episode_grid(task, scores(torch.zeros(6, dtype=torch.long)), scores(GUESSES))
    support, query = figure.axes

    def pixels(image: Tensor) -> np.ndarray:
        return (image[0] if channels == 1 else image.permute(1, 2, 0)).numpy()

    for ax, order, samples in (
        (support, [2, 0, 1], task.support),
        (query, [1, 4, 2, 3, 0, 5], task.query),
    ):
        assert len(ax.images) == len(order)
        for image, i in zip(ax.images, order, strict=True):
            assert np.array_equal(np.asarray(image.get_array()), pixels(samples.x[i]))
            assert image.get_clim() == (0, 1)
            left, right, bottom, top = image.get_extent()
            assert (right - left, bottom - top) == pytest.approx((1, 1))
            assert top == pytest.approx(int(samples.y[i]) * plots.ROW)
            # Nothing is drawn outside its block.
            assert 0 <= left < right <= ax.get_xlim()[1] + 1e-9
            assert 0 <= top < bottom <= ax.get_ylim()[0] + 1e-9
    assert [label.get_text() for label in support.get_yticklabels()] == ["0", "1", "2"]
    assert figure.get_suptitle() == "3-way 1-shot episode: accuracy 0.667 (0.333 before adaptation)"
    render(figure)


def test_frames_and_labels_tell_right_from_wrong() -> None:
    figure = plots.episode_grid(image_task(), None, scores(GUESSES), class_names=["ant", "bee", "a very long name"])
    support, query = figure.axes
    order = [1, 4, 2, 3, 0, 5]
    right = [bool(GUESSES[i] == Y[i]) for i in order]
    assert [same_color(f.get_edgecolor(), plots.GREEN) for f in frames(query)] == right
    assert [same_color(f.get_edgecolor(), plots.VERMILLION) for f in frames(query)] == [not r for r in right]
    assert [t.get_text() for t in query.texts] == ["ant", "ant", "bee", "✗ ant", "a very lo…", "✗ bee"]
    for frame, image, text in zip(frames(query), query.images, query.texts, strict=True):
        left, _, bottom, top = image.get_extent()
        assert frame.get_xy() == pytest.approx((left, top))
        assert text.get_position()[0] == pytest.approx(left + 0.5)
        assert bottom < text.get_position()[1] < top + plots.ROW
    assert not support.texts
    assert all(same_color(f.get_edgecolor(), plots.GREY) for f in frames(support))
    assert figure.get_suptitle() == "3-way 1-shot episode: accuracy 0.667"
    render(figure)


def test_the_accuracy_is_of_all_queries_and_the_images_are_the_first() -> None:
    y = torch.arange(2).repeat_interleave(10)
    guesses = y.clone()
    guesses[5:10] = 1
    task = image_task(queries=y)._replace(support=Samples(torch.zeros(2, 1, 6, 5), torch.arange(2)))
    figure = plots.episode_grid(task, None, scores(guesses, 2), max_queries=4)
    query = figure.axes[1]
    assert [np.asarray(i.get_array()).tolist() for i in query.images] == [
        task.query.x[i, 0].tolist() for i in [*range(4), *range(10, 14)]
    ]
    assert all(same_color(f.get_edgecolor(), plots.GREEN) for f in frames(query))
    assert "accuracy 0.750" in figure.get_suptitle()
    assert query.get_title(loc="left") == "Queries and predictions (4 of 10 per class)"


@pytest.mark.parametrize(("ways", "shots", "queries"), [(20, 1, 1), (2, 1, 9), (2, 3, 1)])
def test_titles_of_any_size_of_grid_keep_apart(ways: int, shots: int, queries: int) -> None:
    y = [torch.arange(ways).repeat_interleave(n) for n in (shots, queries)]
    task = Episode(*(Samples(torch.rand(len(each), 1, 3, 3), each) for each in y))
    names = ["w" * 20] * ways
    figure = plots.episode_grid(task, scores(y[1], ways), scores(y[1], ways), names, max_queries=shots)
    figure.draw_without_rendering()
    assert figure._suptitle is not None  # type: ignore[attr-defined]
    titles = [figure._suptitle, *(ax._left_title for ax in figure.axes)]  # type: ignore[attr-defined]
    assert all(title.get_text() for title in titles)
    boxes = [title.get_window_extent() for title in titles]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)


def test_a_single_logit_decides_between_two_classes() -> None:
    task = Episode(*(Samples(torch.rand(4, 1, 6, 5), torch.tensor([0, 1, 0, 1])) for _ in range(2)))
    figure = plots.episode_grid(task, None, torch.tensor([[-1.0], [2.0], [3.0], [0.5]]))
    assert [t.get_text() for t in figure.axes[1].texts] == ["0", "✗ 1", "1", "1"]
    assert figure.get_suptitle() == "2-way 2-shot episode: accuracy 0.750"


def test_figures_leave_no_trace_in_the_process() -> None:
    """pyplot keeps every figure that it made, and its backend would be the whole process's."""
    source = "".join(Path(m.__file__).read_text(encoding="utf-8") for m in (plots, style))
    assert "import matplotlib.pyplot" not in source
    assert "from matplotlib import pyplot" not in source
    assert "matplotlib.use" not in source
    assert "rcParams[" not in source
