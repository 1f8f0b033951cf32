"""The plots of a run. Each function returns a matplotlib Figure without pyplot, so there is no global state."""

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from innerloop.episodes import Episode, Samples
from innerloop.runs.report.style import (
    BLUE,
    EMPTY,
    GREEN,
    GREY,
    INK,
    NAMES,
    UNITS,
    VERMILLION,
    Column,
    log_where_wide,
    panels,
    read_metrics,
)
from innerloop.tasks.base import predict_class

GRID_POINTS = 201

# Distances from an image to the next one in a grid, in widths of an image. A row leaves room for a label.
COLUMN, ROW = 1.12, 1.36


def learning_curve(path_to_metrics_csv: Path, metric: str) -> Figure:
    """Plot the metric on training and validation tasks over the meta-batches, and the loss if it is another number.

    path_to_metrics_csv: has columns `step`, `train/<metric>`, `val/<metric>`, `train/loss` and `val/loss`. Any cell may
        be empty, and any column but `step` may be missing. Values that are not finite are left out.
    """
    columns = read_metrics(Path(path_to_metrics_csv))
    names = [metric, "loss"] if _loss_differs(columns, metric) else [metric]
    figure, axes = panels(1, len(names), width=6.4 if len(names) == 1 else 5.2, height=4.0)
    for ax, name in zip(axes, names, strict=True):
        steps, values = columns.get(f"train/{name}", EMPTY)
        if len(values) < 3:
            ax.plot(steps, values, color=BLUE, marker="o", label="training")
        else:
            ax.plot(steps, values, color=BLUE, alpha=0.3, linewidth=0.9, label="training, one meta-batch")
            ax.plot(steps, smooth(values), color=BLUE, linewidth=2, label="training, running mean")
        val_steps, val_values = columns.get(f"val/{name}", EMPTY)
        marker = "o" if len(val_values) <= 40 else None
        ax.plot(val_steps, val_values, color=VERMILLION, marker=marker, markersize=4, label="validation")
        log_where_wide(ax, name, np.concatenate([values, val_values]))
        ax.set(title=f"{_capital(NAMES.get(name, name))} during meta-training", ylabel=_label(name))
        ax.set_xlabel("training step (meta-batches)")
        if len(values) or len(val_values):
            for line in ax.lines:
                if not len(line.get_xdata()):  # type: ignore[arg-type]
                    line.set_label("_")
            ax.legend(frameon=False)
        else:
            ax.text(0.5, 0.5, "no values recorded", transform=ax.transAxes, ha="center", va="center", color=GREY)
    return figure


def adaptation_curve(
    rows: Sequence[Mapping[str, Any]],
    metric: str,
    unadapted: Mapping[str, float] | None = None,
    train_steps: int | None = None,
    beside: Mapping[str, float] | None = None,
) -> Figure:
    """Plot the mean of the metric over test episodes after each number of inner steps, with its 95 % interval.

    rows: {"step": s, metric: {"mean": …, "ci95": half-width, …}}, one row for each number of inner steps.
    unadapted: the same statistics before any adaptation, drawn as a dashed line.
    train_steps: the number of inner steps in training. beside: values to compare with, by name, as dotted lines.
    """
    figure, (ax,) = panels(1, 1, width=6.4, height=4.0)
    steps = np.array([row["step"] for row in rows])
    mean, ci95 = (np.array([row[metric][key] for row in rows], dtype=float) for key in ("mean", "ci95"))
    if len(rows) == 1:
        error = ci95 if np.isfinite(ci95).all() else None
        ax.errorbar(steps, mean, error, fmt="o", color=BLUE, capsize=5, linewidth=1.8, label="mean, 95 % interval")
        ax.set_xlim(steps[0] - 0.5, max(steps[0], train_steps or 0) + 0.5)
    else:
        ax.fill_between(steps, mean - ci95, mean + ci95, color=BLUE, alpha=0.2, linewidth=0, label="95 % interval")
        ax.plot(steps, mean, color=BLUE, marker="o" if len(rows) <= 30 else None, label="mean over test episodes")
    reference = []
    if unadapted is not None:
        reference = [unadapted["mean"]]
        ax.axhline(unadapted["mean"], color=VERMILLION, linestyle="--", linewidth=1.5, label="before any adaptation")
    if train_steps is not None:
        ax.axvline(train_steps, color=GREY, linewidth=0.9, zorder=0, label=f"inner steps in training: {train_steps}")
    for (name, value), colour in zip((beside or {}).items(), (GREEN, INK, GREY), strict=False):
        reference.append(value)
        ax.axhline(value, color=colour, linestyle=":", linewidth=1.5, label=name)
    log_where_wide(ax, metric, np.array([*mean, *reference]))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set(title="Adaptation to test tasks", xlabel="inner gradient steps on the support set", ylabel=_label(metric))
    ax.legend(frameon=False)
    return figure


def fitted_functions(
    tasks_episodes: Sequence[Episode],
    predict: Callable[[Episode], list[Tensor]],
    x_range: tuple[float, float],
    steps: Sequence[int] = (0, 1, 5, 10),
) -> Figure:
    """Plot, for regression on one variable, each task's points and the learner's function as it adapts.

    tasks_episodes: single tasks, one per panel; x (n, 1), y (n, targets). The first target is drawn.
    predict: returns the net outputs (n, targets) on the query's x before adaptation and after 0, 1, …, K inner steps.
    steps: the numbers of inner steps to draw. Those above K are left out, and K is drawn in their place.
    """
    n = len(tasks_episodes)
    columns = n if n <= 3 else ceil(n / 2) if n <= 8 else 4
    rows = ceil(n / columns)
    figure, axes = panels(rows, columns, width=4.2 if columns <= 2 else 3.4, height=3.0)
    for ax in axes[n:]:
        figure.delaxes(ax)
    spans = [np.ptp(_targets(episode)) for episode in tasks_episodes]
    for number, (ax, episode) in enumerate(zip(axes, tasks_episodes, strict=False)):
        x = torch.linspace(*x_range, GRID_POINTS, dtype=episode.support.x.dtype, device=episode.support.x.device)
        zeros = episode.query.y.new_zeros(GRID_POINTS, *episode.query.y.shape[1:])
        outputs = predict(Episode(episode.support, Samples(x[:, None], zeros)))
        drawn = _stages(outputs, steps)
        curves = [_numbers(outputs[index]) for index, _ in drawn]
        for curve, (_, label), style in zip(curves, drawn, _styles(drawn), strict=True):
            ax.plot(_numbers(x), curve, label=label, **style)
        looks: list[dict[str, Any]] = [
            {"label": "query points", "s": 14, "facecolor": "none", "edgecolor": INK, "linewidth": 0.8},
            {"label": "support points", "s": 42, "facecolor": INK, "edgecolor": "white", "linewidth": 0.8},
        ]
        for samples, look in zip((episode.query, episode.support), looks, strict=True):
            ax.scatter(_numbers(samples.x), _numbers(samples.y), zorder=4, clip_on=False, **look)
        ax.set(title=f"Test task {number + 1}", xlim=x_range)
        ax.set_ylim(_window(_targets(episode), curves, margin=max(spans[number], max(spans) / 4)))
    for ax in axes[:n]:
        place = ax.get_subplotspec()
        assert place is not None
        below = place.rowspan.start * columns + place.colspan.start + columns
        ax.set(xlabel="x" if below >= n else "", ylabel="y" if place.is_first_col() else "")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False)
    figure.suptitle("Functions fitted to test tasks from their support points", fontsize=13)
    return figure


def episode_grid(
    episode: Episode,
    logits_before: Tensor | None,
    logits: Tensor,
    class_names: Sequence[str] | None = None,
    max_queries: int = 8,
) -> Figure:
    """Draw an episode, one row per class: its support images, and its query images framed by whether they are right.

    episode: one task; x (n, 1 or 3, height, width) in [0, 1], y (n,) class ids.
    logits, logits_before: (queries, classes), or (queries, 1) for two classes, after and before adaptation.
    class_names: names of the class ids 0, 1, …. None shows the ids.
    max_queries: the largest number of images that are shown per class, in the support and in the query. The accuracies
        in the title are over all queries.
    """
    support, query = episode
    classes = sorted({*support.y.tolist(), *query.y.tolist()})
    names = {c: _short(class_names[c]) if class_names is not None else str(c) for c in classes}
    predicted = predict_class(logits).cpu()
    blocks = [{c: (y == c).nonzero().flatten().tolist() for c in classes} for y in (support.y.cpu(), query.y.cpu())]
    wide = [min(max_queries, max(map(len, block.values()))) for block in blocks]

    figure, axes = _blocks([max(w, 1) for w in wide], len(classes), margin=0.45 + 0.09 * max(map(len, names.values())))
    for ax, samples, block in zip(axes, (support, query), blocks, strict=True):
        limits = ax.get_xlim(), ax.get_ylim()
        for row, c in enumerate(classes):
            for column, i in enumerate(block[c][:max_queries]):
                left, top = column * COLUMN, row * ROW
                place = (left, left + 1, top + 1, top)
                ax.imshow(_pixels(samples.x[i]), extent=place, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                colour, width = GREY, 0.8
                if samples is query:
                    guess = int(predicted[i])
                    colour, width = (GREEN if guess == c else VERMILLION), 2.5
                    # The cross carries the same information for readers who cannot tell the colours apart.
                    label = ("" if guess == c else "✗ ") + names.get(guess, str(guess))
                    ax.text(left + 0.5, top + 1.07, label, ha="center", va="top", fontsize=8, color=colour)
                frame = Rectangle((left, top), 1, 1, fill=False, edgecolor=colour, linewidth=width, clip_on=False)
                ax.add_patch(frame)
        ax.set(xlim=limits[0], ylim=limits[1])  # imshow has changed them
    axes[0].set_yticks([row * ROW + 0.5 for row in range(len(classes))], [names[c] for c in classes])
    axes[0].set_ylabel("class")
    axes[0].set_title("Support", loc="left")
    shown, most = wide[1], max(map(len, blocks[1].values()))
    some = f" ({shown} of {most} per class)" if shown < most else ""
    axes[1].set_title(f"Queries and predictions{some}", loc="left")
    shots = {len(indices) for indices in blocks[0].values()}
    kind = f"{len(classes)}-way" + (f" {shots.pop()}-shot" if len(shots) == 1 else "")
    title = f"{kind} episode: accuracy {_accuracy(logits, query.y):.3f}"
    if logits_before is not None:
        title += f" ({_accuracy(logits_before, query.y):.3f} before adaptation)"
    figure.suptitle(title, fontsize=13, y=1 - 0.12 / figure.get_figheight())
    return figure


def smooth(values: np.ndarray) -> np.ndarray:
    """Return the centred running mean of (n,) values over about a fifteenth of them.

    Near the ends the window shrinks, so that it stays symmetric.
    """
    n = len(values)
    i = np.arange(n)
    reach = np.minimum(max(1, n // 30), np.minimum(i, n - 1 - i))
    total = np.concatenate([[0.0], np.cumsum(values)])
    return (total[i + reach + 1] - total[i - reach]) / (2 * reach + 1)


def _loss_differs(columns: Mapping[str, Column], metric: str) -> bool:
    """Return True if the loss was recorded and is neither the metric, as in regression, nor its negative value."""
    if metric == "loss":
        return False
    for part in ("train", "val"):
        (steps, loss), (others, values) = (columns.get(f"{part}/{name}", EMPTY) for name in ("loss", metric))
        both, i, j = np.intersect1d(steps, others, return_indices=True)
        if len(loss) and not (len(both) and np.allclose(abs(loss[i]), abs(values[j]), rtol=1e-5, atol=0)):
            return True
    return False


def _stages(outputs: Sequence[Tensor], steps: Sequence[int]) -> list[tuple[int, str]]:
    """Return (index, label) of the outputs to draw. Index 0 is before adaptation, 1 + s is after s inner steps."""
    last = len(outputs) - 2
    if last == 0:
        stages = [(1, "adapted")]
    else:
        wanted = {s for s in steps if s <= last} | ({last} if last < max(steps) else set())
        stages = [(1 + s, f"after {s} step{'' if s == 1 else 's'}") for s in sorted(wanted)]
    if len(outputs) > 1 and torch.equal(outputs[0], outputs[1]):
        stages = [stage for stage in stages if stage[0] != 1]
    return [(0, "before adaptation"), *stages]


def _styles(stages: Sequence[tuple[int, str]]) -> list[dict[str, Any]]:
    """Return a dashed style for before adaptation, then solid styles whose colours darken with the inner steps."""
    # The lightness of viridis changes evenly, so the order stays visible without colour vision and in print. Its
    # yellow end is too light on white.
    after = len(stages) - 1
    hues = matplotlib.colormaps["viridis_r"](np.linspace(0.15, 0.85, after)) if after > 1 else [BLUE] * after
    widths = np.linspace(1.4, 2.2, after)
    before = {"color": GREY, "linestyle": "--", "linewidth": 1.5}
    return [before, *({"color": hue, "linewidth": width} for hue, width in zip(hues, widths, strict=True))]


def _window(points: np.ndarray, curves: Sequence[np.ndarray], margin: float) -> tuple[float, float]:
    """Return y limits that contain all points, and the curves up to `margin` away from the points."""
    margin = margin or 1.0
    everything = np.concatenate([points, *curves])
    everything = everything[np.isfinite(everything)]
    low, high = max(everything.min(), points.min() - margin), min(everything.max(), points.max() + margin)
    room = 0.06 * (high - low)
    return low - room, high + room


def _blocks(columns: Sequence[int], rows: int, margin: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with blocks of images side by side, all at one scale, and the axes of each block.

    columns: the number of images in a row of each block. margin: inches on the left for the names of the rows.
    Coordinates are in widths of an image: the image at (row, column) starts at x = column * COLUMN, y = row * ROW.
    """
    inch, gap, above, edge = 0.8, 0.35, 0.8, 0.12
    widths = [COLUMN * n for n in columns]
    last = margin + inch * sum(widths[:-1]) + gap * (len(columns) - 1)
    # With few images the titles of the figure and of the last block are wider than the images.
    width = max(last + inch * widths[-1] + edge, last + 4.3, 6.3)
    height = above + inch * ROW * rows + edge
    figure, axes, left = Figure(figsize=(width, height)), [], margin
    for w in widths:
        box = (left / width, edge / height, inch * w / width, inch * ROW * rows / height)
        ax = figure.add_axes(box, xlim=(0, w), ylim=(ROW * rows, 0))
        ax.spines[:].set_visible(False)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.tick_params(length=0)
        axes.append(ax)
        left += inch * w + gap
    return figure, axes


def _label(name: str) -> str:
    return NAMES.get(name, name) + (f" ({UNITS[name]})" if name in UNITS else "")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _short(name: str, longest: int = 10) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def _targets(episode: Episode) -> np.ndarray:
    """Return the y (n,) of all points of a task, support and query."""
    return np.concatenate([_numbers(part.y) for part in episode])


def _numbers(values: Tensor) -> np.ndarray:
    """Return (n,) values, or the first column of (n, targets), as float64."""
    return (values if values.ndim == 1 else values[:, 0]).detach().double().cpu().numpy()


def _pixels(image: Tensor) -> np.ndarray:
    """(1, H, W) -> (H, W), (3, H, W) -> (H, W, 3), within [0, 1]."""
    pixels = image.detach().float().cpu().clamp(0, 1)
    return (pixels[0] if len(pixels) == 1 else pixels.movedim(0, -1)).numpy()


def _accuracy(logits: Tensor, y: Tensor) -> float:
    return (predict_class(logits) == y).float().mean().item()
