"""What all figures share: colours, names and units of metrics, panels, reading metrics.csv. Light: no torch here."""

import csv
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

# The palette of Okabe and Ito (2008), distinguishable under each of the common colour vision deficiencies.
BLUE, VERMILLION, GREEN = "#0072B2", "#D55E00", "#009E73"
INK, GREY = "#222222", "#8C8C8C"

METRICS = ("accuracy", "mse", "mae", "regret", "return", "loss")
"""Metrics of task families. A run without the record of its own has the first of these that it reports."""
NAMES = {"mse": "mean squared error", "mae": "mean absolute error", "loss": "query loss"}
UNITS = {
    "mse": "squared units of y",
    "mae": "units of y",
    "accuracy": "fraction correct",
    "return": "sum of the rewards of a trajectory",
    "regret": "reward of the best arm less the expected reward",
}
ERRORS = {"mse", "mae", "rmse", "loss", "regret"}
"""Metrics that are better when lower."""

Column = tuple[np.ndarray, np.ndarray]
EMPTY: Column = (np.array([]), np.array([]))


def read_metrics(path: Path) -> dict[str, Column]:
    """Return column -> (steps, values), both (n,), of the finite cells of a metrics.csv, sorted by step."""
    # The last line of a running or killed run may be incomplete, and a truncated number would still be a number.
    whole, _, _ = path.read_text().rpartition("\n")
    recorded = [row for row in csv.DictReader(whole.splitlines()) if row.get("step")]
    rows = sorted(recorded, key=lambda row: int(row["step"]))
    columns: dict[str, Column] = {}
    for name in rows[0] if rows else []:
        cells = np.array([(row["step"], row[name]) for row in rows if row[name]], dtype=float).reshape(-1, 2)
        steps, values = cells[np.isfinite(cells).all(1)].T
        columns[name] = (steps, values)
    return columns


def log_where_wide(ax: Axes, name: str, values: np.ndarray) -> None:
    """Make the y axis logarithmic if the metric is an error whose values (n,) span more than a factor of ten."""
    values = values[np.isfinite(values)]
    if name not in ERRORS or not len(values) or values.min() <= 0 or values.max() <= 10 * values.min():
        return
    ax.set_yscale("log")
    plain_log_ticks(ax.yaxis, values.max() / values.min())


def plain_log_ticks(axis: Axis, ratio: float) -> None:
    """Label a logarithmic axis with plain numbers, at 1, 2, 5, 10, … or only at powers of ten.

    ratio: the largest value over the smallest.
    """
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 1e3 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def panels(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels of this size in inches, in the style that all figures share."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(w_pad=0.08, h_pad=0.08)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, color="#E6E6E6", linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes
