"""scripts/summarize.py: its plots draw the numbers of the table."""

import math
from pathlib import Path

import numpy as np
import pytest
from conftest import run_script
from made_sweeps import (
    begun,
    figure_of,
    finished,
    summarized,
    two_algorithms,
    write_curve,
)
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.colors import to_rgb

from innerloop.sweeps import figures
from innerloop.sweeps.read import read_sweep


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return two_algorithms(tmp_path)


# Plots.


def test_bars_are_the_means_and_intervals_of_the_table(sweep: Path) -> None:
    rows = summarized(sweep)
    (ax,) = figure_of("bars", sweep).axes
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([float(row["test"]) for row in rows], rel=1e-5)
    (errors,) = (c for c in ax.containers if hasattr(c, "has_xerr"))
    assert errors.get_label() == "95 % interval over seeds"
    ends = [segment[:, 0] for segment in errors[2][0].get_segments()]
    for row, (low, high) in zip(rows, ends, strict=True):
        mean, half = float(row["test"]), float(row["test_over_seeds_ci95"])
        assert (low, high) == pytest.approx((mean - half, mean + half), rel=1e-4)
    (dots,) = (c for c in ax.collections if isinstance(c, PathCollection))
    assert np.asarray(dots.get_offsets())[:, 0].tolist() == [2, 4, 4, 3, 6, 6]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["algo=maml", "algo=hypernet"]
    assert [text.get_text() for text in ax.texts] == ["3.333 ± 2.868", "5.000 ± 4.303"]
    assert ax.get_xlabel() == "test MSE"
    assert ax.get_xlim()[0] == 0


def test_one_seed_has_bars_over_episodes_and_says_so(tmp_path: Path) -> None:
    finished(tmp_path, 0, ["algo=maml"], [1.0, 3.0], 1.0)
    rows = read_sweep(tmp_path).rows
    (ax,) = figures.bars(rows, "mse").axes
    (errors,) = (c for c in ax.containers if hasattr(c, "has_xerr"))
    assert errors.get_label() == "95 % interval over test episodes"
    assert errors[2][0].get_segments()[0][:, 0] == pytest.approx([2 - 1.96, 2 + 1.96])
    assert not [c for c in ax.collections if isinstance(c, PathCollection)]


def test_only_the_best_of_many_bars_are_drawn(tmp_path: Path) -> None:
    for number in range(figures.MOST_BARS + 3):
        finished(tmp_path, number, [f"algo.k={number}"], [1.0, 2.0], float((number * 7) % 43))
    rows = read_sweep(tmp_path).rows
    (ax,) = figures.bars(rows, "mse").axes
    worst = {f"k={number}" for number in range(43) if (number * 7) % 43 >= 40}
    assert {label.get_text() for label in ax.get_yticklabels()} == {row.name for row in rows} - worst
    assert "the best 40 of 43 by validation" in ax.get_title()


def test_curves_are_means_with_bands_from_the_lowest_to_the_highest_seed(sweep: Path) -> None:
    with (sweep / "0_maml-toy_seed0" / "metrics.csv").open("a") as file:
        file.write("0,29,,1.5\r\n")
    (ax,) = figure_of("curves", sweep).axes
    # Seeds 0, 1, 2 have 4, 5, 6 and then 2.9, 3.1, 3.0; beyond that the first goes on alone, dashed.
    maml, alone, hypernet = ax.lines
    assert maml.get_label() == "algo=maml (3 seeds)"
    assert maml.get_xydata() == pytest.approx(np.array([[10, 5.0], [20, 3.0]]))
    assert alone.get_xydata() == pytest.approx(np.array([[20, 2.9], [30, 1.5]]))
    assert alone.get_linestyle() == "--"
    assert alone.get_color() == maml.get_color() != hypernet.get_color()
    assert hypernet.get_xydata() == pytest.approx(np.array([[10, 5.0], [20, 2.4]]))
    band, _ = (c for c in ax.collections if isinstance(c, PolyCollection))
    corners = {tuple(point) for point in np.round(band.get_paths()[0].vertices, 9).tolist()}
    assert corners == {(10, 4), (10, 6), (20, 2.9), (20, 3.1)}
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("meta-batches", "validation MSE")


def test_more_curves_than_colours_leave_the_worst_grey(tmp_path: Path) -> None:
    for number in range(9):
        path = finished(tmp_path, number, [f"algo.k={number}"], [1.0, 2.0], float(number))
        write_curve(path, [(10, number + 1.0), (20, float(number + 1))])
    figure = figures.curves(read_sweep(tmp_path).rows, "mse")
    told = {text.get_text() for text in figure.legends[0].get_texts()}
    assert told == {f"k={number}" for number in range(6)} | {"the other 3"}
    assert len({line.get_color() for line in figure.axes[0].lines}) == 7


def test_what_runs_and_leads_is_coloured(tmp_path: Path) -> None:
    for number in range(8):
        write_curve(finished(tmp_path, number, [f"algo.k={number}"], [1.0], float(number + 1)), [(10, number + 1.0)])
    begun(tmp_path, 8, ["algo.k=8"], [(10, 0.5)])
    figure = figures.curves(read_sweep(tmp_path).rows, "mse")
    assert "k=8" in {text.get_text() for text in figure.legends[0].get_texts()}


def test_a_failed_seed_does_not_end_the_curve_of_the_others(sweep: Path) -> None:
    failed = begun(sweep, 6, ["algo=maml", "seed=9"], [(10, 99.0)])
    (failed / "error.json").write_text("{}")
    (ax,) = figure_of("curves", sweep).axes
    assert ax.lines[0].get_xydata() == pytest.approx(np.array([[10, 5.0], [20, 3.0]]))


def test_what_diverged_leaves_the_others_legible(tmp_path: Path) -> None:
    for number, value in enumerate([1.0, 2.0, 3.0, 1e30, math.inf]):
        told = [f"algo.lr={number}", f"net.width={number}"]
        write_curve(
            finished(tmp_path, number, told, [value, value], value), [(10, 4.0), (20, 1e32 if number == 3 else 2.0)]
        )
    figure = figure_of("bars", tmp_path)
    # The lower median of 1, 2, 3, 1e30 is 2: ten times that, and room for intervals.
    assert 20 <= figure.axes[0].get_xlim()[1] <= 50
    assert [bar.get_width() for bar in figure.axes[0].patches][:3] == [1, 2, 3]
    assert "continues" in {text.get_text() for text in figure.legends[0].get_texts()}
    (ax,) = figure_of("curves", tmp_path).axes
    assert ax.get_ylim()[1] == pytest.approx(40)
    assert [text.get_text() for text in ax.texts] == ["values above 40 are cut off"]
    found = read_sweep(tmp_path)
    figure = figures.parallel(found, found.rows[:4], "mse")
    assert figure.axes[0].get_title().endswith("; 1 above 20 drawn there")
    assert figure.axes[1].get_ylim() == pytest.approx((1, 20))


def test_parallel_coordinates_go_through_the_values(tmp_path: Path) -> None:
    told = [("0.001", "a", 1.0), ("0.1", "b", 3.0), ("0.01", "a", 2.0)]
    for number, (rate, kind, value) in enumerate(told):
        finished(tmp_path, number, [f"algo.inner_lr={rate}", f"algo.kind={kind}"], [value, 2.0], value)
    found = read_sweep(tmp_path)
    figure = figures.parallel(found, found.rows, "mse")
    ax, bar = figure.axes
    lines = [line for line in ax.lines if len(line.get_xdata()) == 3]
    heights = {tuple(np.round(line.get_ydata(), 6).tolist()): line.get_color() for line in lines}
    # Rates on a logarithmic axis, categories at the middles of halves, MSE from 1 to 3. The two that share a category
    # are drawn a little apart there, the better one above.
    assert set(heights) == {(0, 0.256, 0), (1, 0.75, 1), (0.5, 0.244, 0.5)}
    assert len(set(map(tuple, heights.values()))) == 3
    # The last drawn, and so on top, is the best.
    assert lines[-1].get_ydata().tolist() == pytest.approx([0, 0.256, 0])
    names = [label.get_text() for label in ax.get_xticklabels()]
    assert names == ["inner_lr\n(log)", "kind", "validation MSE"]
    ticks = {(round(t.get_position()[0]), round(t.get_position()[1], 6), t.get_text()) for t in ax.texts}
    assert {(0, 0, "0.001"), (0, 0.5, "0.01"), (0, 1, "0.1"), (1, 0.25, "a"), (1, 0.75, "b")} <= ticks
    assert bar.get_ylabel() == "validation MSE"


@pytest.mark.parametrize(("metric", "best"), [("mse", 0.1), ("accuracy", 0.9)])
def test_the_best_line_is_the_darkest(metric: str, best: float, tmp_path: Path) -> None:
    for number, value in enumerate([0.1, 0.5, 0.9]):
        finished(tmp_path, number, [f"algo.lr={number}"], [value, value], value, metric)
    ax = figure_of("parallel", tmp_path).axes[0]
    light = {line.get_xydata()[0, 1]: sum(to_rgb(line.get_color())) for line in ax.lines if line.get_linewidth() == 1.5}
    assert min(light, key=light.__getitem__) == pytest.approx({0.1: 0, 0.9: 1}[best])


def test_axes_are_logarithmic_where_values_span_decades() -> None:
    assert figures.Coordinate.of(["1", "19"]).logarithmic is False
    assert figures.Coordinate.of(["0.5", "20"]).logarithmic is True
    assert figures.Coordinate.of(["0", "100"]).logarithmic is False
    assert figures.Coordinate.of(["2", "2"]).heights == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("kind", ["bars", "curves", "parallel"])
def test_nothing_is_cut_off(kind: str, tmp_path: Path) -> None:
    """Long names, many rows, wide intervals."""
    for number in range(12):
        told = [f"algo.a_rather_long_name={number}", f"net.hidden=[{64 + number // 2},64,64,64]", f"seed={number % 2}"]
        path = finished(tmp_path, number, told, [1.0, 2.0 + number], 1.0 + number)
        write_curve(path, [(10, number + 1.0), (2000, float(number + 1))])
    figure = figure_of(kind, tmp_path)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box, (width, height) = figure.get_tightbbox(canvas.get_renderer()), figure.get_size_inches()
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= width
    assert box.y1 <= height


def test_plots_go_where_they_are_told(sweep: Path, tmp_path: Path) -> None:
    run_script("summarize", sweep, "--plots", tmp_path / "elsewhere")
    assert {path.name for path in (tmp_path / "elsewhere").iterdir()} == {"bars.png", "curves.png"}
    assert not (sweep / "summary").exists()
    # What an earlier summary left is no run of the sweep.
    run_script("summarize", sweep)
    assert len(read_sweep(sweep).jobs) == 6
