"""What all figures share: colours, names and units, panels, and the reading of metrics.csv. Light: no torch here."""

import csv
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

# Okabe and Ito's palette (2008), which people with any of the common colour deficiencies can tell apart.
BLUE, VERMILLION, GREEN = "#0072B2", "#D55E00", "#009E73"
INK, GREY = "#222222", "#8C8C8C"

NAMES = {"mse": "mean squared error", "accuracy": "accuracy", "loss": "query loss"}
UNITS = {"mse": "squared units of y", "accuracy": "fraction correct"}
ERRORS = {"mse", "loss"}

Column = tuple[np.ndarray, np.ndarray]
NOTHING: Column = (np.array([]), np.array([]))


def read_metrics(path: Path) -> dict[str, Column]:
    """Column -> (steps, values), both (n,), of its finite cells in the order of their steps."""
    # A run that goes on, or was killed, may have written half of its last line: half a number would still be one.
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
    """A logarithmic y axis where an error's values (n,) span more than a factor of ten."""
    values = values[np.isfinite(values)]
    if name not in ERRORS or not len(values) or values.min() <= 0 or values.max() <= 10 * values.min():
        return
    ax.set_yscale("log")
    plain_log_ticks(ax.yaxis, values.max() / values.min())


def plain_log_ticks(axis: Axis, ratio: float) -> None:
    """Plain numbers at 1, 2, 5, 10, … or at powers of ten alone. ratio: of the largest value to the smallest."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 1e3 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def panels(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with panels of the given size in inches, in the style that all share."""
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
