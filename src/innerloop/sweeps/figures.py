"""The figures of a sweep: bars with intervals, learning curves with bands, parallel coordinates."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from innerloop.runs.compare import TITLES, short, summary
from innerloop.runs.report.style import (
    BLUE,
    ERRORS,
    GREEN,
    INK,
    VERMILLION,
    Column,
    log_where_wide,
    panels,
    plain_log_ticks,
)
from innerloop.sweeps.read import ReadSweep, curves_of
from innerloop.sweeps.rows import Row, brief

# The colours of Okabe and Ito that are dark enough on white. More curves than these share one pale colour.
COLOURS = (BLUE, VERMILLION, GREEN, "#CC79A7", "#E69F00", "#56B4E9", INK)
PALE, PALER = "#A6CEE3", "#C8C8C8"
MOST_BARS = 40
WIDE_RATIO = 20  # of the largest to the smallest value, from which an axis is logarithmic


def draw(sweep: ReadSweep, rows: Sequence[Row], folder: Path) -> list[str]:
    """Save the figures that there are data for, and return their file names. rows: in the order of the table."""
    figures: dict[str, Figure] = {}
    for metric in dict.fromkeys(row.metric for row in rows if row.metric):
        comparable = [row for row in rows if row.metric == metric]
        suffix = "" if len({row.metric for row in rows if row.metric}) == 1 else f"_{metric}"
        finished = [row for row in comparable if row.runs]
        valued = [row for row in comparable if math.isfinite(row.worth)]
        if finished:
            figures[f"bars{suffix}.png"] = bars(finished, metric)
        if any(curves_of(row) for row in comparable):
            figures[f"curves{suffix}.png"] = curves(comparable, metric)
        if len(sweep.keys) > 1 and len(valued) > 1:
            figures[f"parallel{suffix}.png"] = parallel(sweep, valued, metric)
    if figures:
        folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=120)
    return list(figures)


def title(metric: str) -> str:
    """Return the title of a metric, such as "MSE" or "accuracy, %"."""
    return TITLES.get(metric, metric)


def scaled(values: Any, metric: str) -> np.ndarray:
    """Return values as the axes show them: accuracies in percent."""
    return np.asarray(values, dtype=float) * (100 if metric == "accuracy" else 1)


def chosen(rows: Sequence[Row], most: int) -> list[Row]:
    """Return at most so many rows, the best by their validation values so far, in the order of `rows`."""
    best = sorted(rows, key=lambda row: -row.standing)[:most]
    return [row for row in rows if any(row is other for other in best)]


def bars(rows: Sequence[Row], metric: str) -> Figure:
    """Plot the test mean of rows with finished runs and its interval, over seeds if there are several, or episodes."""
    some = chosen(rows, MOST_BARS)
    longest = max(len(row.name) for row in some)
    figure, (ax,) = panels(1, 1, width=6.5 + 0.085 * longest, height=1.5 + 0.36 * len(some))
    numbers = [summary(row.runs, None) for row in some]
    means = scaled([s["mean"] for s in numbers], metric)
    over_seeds = np.array([s["over_seeds_ci95"] is not None for s in numbers])
    intervals = [s["over_seeds_ci95"] if seeds else s["ci95"] for s, seeds in zip(numbers, over_seeds, strict=True)]
    half, places = scaled(intervals, metric), np.arange(len(some))
    ax.barh(places, np.nan_to_num(means, nan=0.0, posinf=1e300), height=0.62, color=PALE)
    for which, colour, kind in ((over_seeds, INK, "seeds"), (~over_seeds, VERMILLION, "test episodes")):
        which = which & np.isfinite(means + half)
        if which.any():
            drawn = ax.errorbar(means[which], places[which], xerr=half[which], fmt="none", ecolor=colour, capsize=3.5)
            drawn.set_label(f"95 % interval over {kind}")
    if over_seeds.any():
        seeds = [(run.values().mean(), p) for row, p in zip(some, places, strict=True) for run in row.runs]
        x, y = np.array(seeds).T
        ax.scatter(scaled(x, metric), y, s=16, facecolor="white", edgecolor=BLUE, zorder=4, label="a seed")
    for place, s, ci95 in zip(places, numbers, intervals, strict=True):
        text = f"{short(s['mean'], metric)} ± {short(ci95, metric)}"
        ax.annotate(text, (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    start, limit = _bar_limits(means, half, metric)
    cut = np.maximum(means, means + half) > limit
    if cut.any():
        ax.scatter(
            np.full(cut.sum(), limit), places[cut], marker=">", color=INK, clip_on=False, label="continues", zorder=5
        )
    ax.set_xlim(start, limit)
    ax.set_yticks(places, [row.name for row in some])
    ax.set_ylim(len(some) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    few = f", the best {len(some)} of {len(rows)} by validation" if len(some) < len(rows) else ""
    ax.set(xlabel=f"test {title(metric)}", title=f"Test: mean over seeds and episodes{few}")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _bar_limits(means: np.ndarray, half: np.ndarray, metric: str) -> tuple[float, float]:
    """Return where the axis starts and ends: at zero, or at the ends of the intervals on each side of it.

    A positive bar or interval that would dwarf all others is cut.
    """
    start = 1.03 * np.min(means - half, where=np.isfinite(means - half), initial=0)
    most = min(ceiling(means, metric), np.max(means, where=np.isfinite(means), initial=0))
    ends = np.max(means + half, where=np.isfinite(means + half), initial=most)
    limit = min(1.03 * ends, 2.5 * most) or (0.0 if start < 0 else 1.0)
    return start, min(limit, 100.0) if metric == "accuracy" else limit


def ceiling(largest: Sequence[float] | np.ndarray, metric: str) -> float:
    """Return where to cut diverged values: at ten times the median of the rows' largest errors. inf: nowhere."""
    finite = np.sort([value for value in largest if math.isfinite(value)])
    if metric not in ERRORS or not len(finite):
        return math.inf
    return 10 * float(finite[(len(finite) - 1) // 2])


def curves(rows: Sequence[Row], metric: str) -> Figure:
    """Plot the validation metric of each row: the mean over its seeds and a band from the lowest to the highest seed.

    The band is no interval, because Student's interval of two seeds is nine times as wide as their distance. The mean
    ends where the first seed's curve ends; the rest of the others is dashed.
    """
    found = {row.name: curves_of(row) for row in rows}
    drawn = [row for row in rows if found[row.name]]
    best = chosen(drawn, len(COLOURS) if len(drawn) <= len(COLOURS) else len(COLOURS) - 1)
    colours = {row.name: colour for row, colour in zip(best, COLOURS, strict=False)}
    columns = max(1, min(4, 90 // (max(len(row.name) for row in drawn) + 16)))
    figure, (ax,) = panels(1, 1, width=8.0, height=4.4 + 0.2 * math.ceil((len(best) + 1) / columns))
    for row in sorted(drawn, key=lambda row: row in best):
        scaled_curves = [(steps, scaled(values, metric)) for steps, values in found[row.name]]
        several = f" ({len(scaled_curves)} seeds)" if len(scaled_curves) > 1 else ""
        _curve(ax, scaled_curves, colours.get(row.name, PALER), row.name + several if row in best else "_")
    if len(drawn) > len(best):
        ax.plot([], [], color=PALER, label=f"the other {len(drawn) - len(best)}")
    everything = np.concatenate([values for row in drawn for _, values in found[row.name]])
    top = ceiling([max(values.max() for _, values in found[row.name]) for row in drawn], metric)
    log_where_wide(ax, metric, np.minimum(everything, top))
    if everything.max() > top:
        ax.set_ylim(0.8 * everything.min(), top)
        ax.text(
            0.99, 0.99, f"values above {top:.3g} are cut off", transform=ax.transAxes, ha="right", va="top", fontsize=9
        )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    banded = any(len(found[row.name]) > 1 for row in drawn)
    ax.set_title("Validation: mean, and band from the lowest to the highest seed" if banded else "Validation")
    ax.set(xlabel="meta-batches", ylabel=f"validation {title(metric)}")
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return figure


def _curve(ax: Axes, found: Sequence[Column], colour: str, label: str) -> None:
    """Plot one row's mean and band, and the rest of single seeds' curves."""
    steps, values = common(found)
    look: dict[str, Any] = {"color": colour, "zorder": 1 if label == "_" else 3}
    marker = "o" if len(steps) <= 25 and label != "_" else None
    width = 1.8 if label != "_" else 1.0
    ax.plot(steps, values.mean(0), linewidth=width, marker=marker, markersize=3.5, label=label, **look)
    if len(found) > 1 and label != "_":
        ax.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0, zorder=2)
    end = steps[-1] if len(steps) else -math.inf
    for own_steps, own in found:
        if own_steps[-1] > end:
            beyond = own_steps >= end
            ax.plot(own_steps[beyond], own[beyond], linewidth=0.9, linestyle="--", **look)


def common(found: Sequence[Column]) -> tuple[np.ndarray, np.ndarray]:
    """Return (steps (n,), values (curves, n)) at the steps where all curves have a value."""
    steps = found[0][0]
    for others, _ in found[1:]:
        steps = np.intersect1d(steps, others)
    return steps, np.array([values[np.searchsorted(own, steps)] for own, values in found])


def parallel(sweep: ReadSweep, rows: Sequence[Row], metric: str) -> Figure:
    """Plot a line per row through its swept values, one axis each, to its validation mean, which decides the colour."""
    exact = scaled([row.validations.mean() for row in rows], metric)
    values = np.minimum(exact, ceiling(exact, metric))
    wide = metric in ERRORS and values.min() > 0 and values.max() >= WIDE_RATIO * values.min()
    norm = LogNorm(values.min(), values.max()) if wide else Normalize(values.min(), values.max())
    # The best lines are dark and drawn last. The light end of viridis is left out, since it is invisible on white.
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, 256))
    colours = ScalarMappable(norm, ListedColormap(shades if metric in ERRORS else shades[::-1]))
    figure, (ax,) = panels(1, 1, width=max(7.0, 2.0 * len(sweep.keys) + 3.0), height=5.0)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.set_yticks([])
    axes = [Coordinate.of([row.settings.get(key, "") for row in rows]) for key in sweep.keys]
    axes.append(Coordinate.numeric(values, logarithmic=wide, round_ticks=True))
    x = np.arange(len(axes))
    worst_first = sorted(range(len(rows)), key=lambda i: rows[i].worth)
    heights = np.array([spread(np.array(axis.heights), worst_first) for axis in axes]).T
    for i in worst_first:
        ax.plot(x, heights[i], color=colours.to_rgba(values[i]), linewidth=1.5, alpha=0.9, solid_joinstyle="round")
    for place, axis in enumerate(axes):
        axis.draw(ax, place)
    names = [*sweep.headings.values(), f"validation {title(metric)}"]
    marks = ["\n(log)" if axis.logarithmic else "" for axis in axes]
    shares = [*(_importance(sweep, key) for key in sweep.keys), ""]
    ax.set_xticks(x, [name + mark + share for name, mark, share in zip(names, marks, shares, strict=True)])
    ax.tick_params(axis="x", length=0, pad=8)
    ax.set(xlim=(-0.35, len(axes) - 0.65), ylim=(-0.05, 1.05), title=_parallel_title(exact, values))
    bar = figure.colorbar(colours, ax=ax, label=f"validation {title(metric)}", pad=0.02)
    if wide:
        plain_log_ticks(bar.ax.yaxis, values.max() / values.min())
    return figure


def _parallel_title(exact: np.ndarray, drawn: np.ndarray) -> str:
    cut = f"; {(exact > drawn).sum()} above {drawn.max():.3g} drawn there" if (exact > drawn).any() else ""
    return f"{len(exact)} configurations, equal values side by side{cut}"


def spread(heights: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Return heights (rows,) with equal ones moved a little apart, in this order, so that no line hides another."""
    apart = heights.copy()
    for height in np.unique(heights):
        same = [i for i in order if heights[i] == height]
        apart[same] += np.linspace(-0.5, 0.5, len(same)) * min(0.06, 0.012 * (len(same) - 1)) if len(same) > 1 else 0
    return apart


def _importance(sweep: ReadSweep, key: str) -> str:
    share = sweep.study.importances.get(key) if sweep.study else None
    return f"\nimportance {share:.0%}" if share is not None else ""


class Coordinate:
    """One axis of parallel coordinates. heights: of the rows, in [0, 1]. ticks: (height, text)."""

    def __init__(self, heights: Sequence[float], ticks: Sequence[tuple[float, str]], logarithmic: bool = False) -> None:
        self.heights, self.ticks, self.logarithmic = heights, ticks, logarithmic

    @classmethod
    def of(cls, values: Sequence[str]) -> "Coordinate":
        """Return an axis for values: numbers by size, anything else as categories in the order of appearance."""
        try:
            return cls.numeric(np.array([float(value) for value in values]))
        except ValueError:
            names = list(dict.fromkeys(values))
            height = {name: (i + 0.5) / len(names) for i, name in enumerate(names)}
            return cls([height[v] for v in values], [(h, name or "(not set)") for name, h in height.items()])

    @classmethod
    def numeric(cls, values: np.ndarray, logarithmic: bool | None = None, round_ticks: bool = False) -> "Coordinate":
        """Return an axis for numbers, with ticks at the values if they are few, else at round numbers."""
        low, high = values.min(), values.max()
        if logarithmic is None:
            logarithmic = bool(low > 0 and high >= WIDE_RATIO * low)
        scale = np.log if logarithmic else np.asarray

        def height(value: Any) -> Any:
            return (scale(value) - scale(low)) / (scale(high) - scale(low)) if high > low else 0 * scale(value) + 0.5

        few = sorted(set(values.tolist()))
        if len(few) > 6 or round_ticks:
            few = _round_values(low, high, logarithmic)
        ticks = [(float(height(v)), brief(f"{v:.6g}")) for v in few]
        return cls(height(values), ticks, logarithmic)

    def draw(self, ax: Axes, place: float) -> None:
        ax.plot([place, place], [0, 1], color=INK, linewidth=1.0, zorder=3)
        box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
        for height, text in self.ticks:
            ax.plot([place - 0.02, place + 0.02], [height, height], color=INK, linewidth=1.0, zorder=3)
            ax.text(place + 0.035, height, text, va="center", fontsize=9, color=INK, bbox=box, zorder=4)


def _round_values(low: float, high: float, logarithmic: bool) -> list[float]:
    """Return round numbers within a range, for ticks, or the ends of the range if there are fewer than two."""
    if logarithmic:
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        few = [10.0**e for e in exponents]
        inside = [v for v in few if low <= v <= high]
        if len(inside) < 3:
            inside = [m * v for v in few for m in (1, 2, 5) if low <= m * v <= high]
    else:
        inside = [v for v in MaxNLocator(nbins=6, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= v <= high]
    return inside if len(inside) > 1 else [low, high]
