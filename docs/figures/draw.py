"""Draw the README's figures from a sweep of the three learners on sine waves, each for light and dark pages.

    WANDB_MODE=offline python train.py -m algo=maml,hypernet,hybrid seed=0,1,2 sweep=SWEEP
    python docs/figures/draw.py SWEEP

fit: a test task before and after adaptation by each learner. sweep: the sweep's table. wandb: what the offline file of
a run holds for W&B, read back by W&B's own command; it is no picture of W&B's page.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))

import matplotlib  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

import innerloop  # noqa: E402
from innerloop.episodes import weights_of  # noqa: E402
from innerloop.runs.compare import short  # noqa: E402
from innerloop.runs.report.style import log_where_wide, panels  # noqa: E402
from innerloop.sweeps import summary  # noqa: E402
from innerloop.sweeps.read import read_sweep  # noqa: E402

LEARNERS = ("maml", "hypernet", "hybrid")
# Of Okabe and Ito (2008), in tones that are distinguishable on white, on black and in grey print.
THEMES = {
    "light": {
        "page": "#FFFFFF",
        "ink": "#222222",
        "grid": "#E6E6E6",
        "before": "#8C8C8C",
        "written": "#009E73",
        "after": "#0072B2",
    },
    "dark": {
        "page": "#0D1117",
        "ink": "#E6E6E6",
        "grid": "#3A3A3A",
        "before": "#8C8C8C",
        "written": "#2BC298",
        "after": "#56B4E9",
    },
}


@contextmanager
def theme(name: str) -> Iterator[dict[str, str]]:
    """Give matplotlib the colours of a theme, on a transparent background."""
    colours = THEMES[name]
    ink = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), colours["ink"])
    ticks = dict.fromkeys(("xtick.color", "ytick.color"), colours["ink"])
    # A fixed salt gives the elements of an SVG file the same names each time.
    fixed = {"axes.facecolor": "none", "savefig.transparent": True, "svg.hashsalt": "innerloop", "font.size": 11}
    with matplotlib.rc_context(ink | ticks | fixed):
        yield colours


def fit(runs: dict[str, Any], colours: dict[str, str]) -> Figure:
    """Return the figure of the first test task, adapted to by each learner."""
    figure, axes = panels(1, len(runs), 3.4, 3.3)
    looks = {
        "before": {"label": "before adaptation", "linestyle": (0, (4, 2)), "linewidth": 1.6},
        "written": {"label": "written by the hypernetwork", "linewidth": 2},
        "after": {"label": "after one gradient step", "linewidth": 2.4},
    }
    for ax, (algo, run) in zip(axes, runs.items(), strict=True):
        support, query = run.data.episode("test", 0)
        x = torch.linspace(-5, 5, 400)[:, None]
        curves = {"before": weights_of(run.learner.net)}
        if algo != "maml":
            curves["written"] = run.adapt(support, 0)
        if algo != "hypernet":
            curves["after"] = run.adapt(support, 1)
        for name, weights in curves.items():
            ax.plot(x, run.predict(weights, x), color=colours[name], **looks[name])
        last = run.adapt(support, 1 if algo != "hypernet" else 0)
        error = float((run.predict(last, query.x) - query.y).square().mean())
        ax.grid(True, color=colours["grid"], linewidth=0.6)
        ax.plot(support.x, support.y, "o", color=colours["ink"], markersize=5, label="support point", zorder=3)
        ax.set(title=f"algo={algo}: MSE {short(error, 'mse')}", xlabel="x", xlim=(-5, 5), ylim=(-5, 5))
    axes[0].set_ylabel("y")
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def table(sweep: Path, colours: dict[str, str]) -> Figure:
    """Return the table of a sweep as a figure: its numbers, and the intervals on one axis."""
    rows = summary(sweep)
    values = {row.name: [run.results["test"]["mse"]["mean"] for run in row.runs] for row in read_sweep(sweep).rows}
    figure = Figure(figsize=(10.4, 0.42 * len(rows) + 1.25), layout="constrained")
    text, ax = figure.subplots(1, 2, width_ratios=(1.7, 1), sharey=True)
    text.axis("off")
    for side in ("left", "top", "right"):
        ax.spines[side].set_visible(False)
    ax.tick_params(left=False, labelleft=False)
    ax.grid(True, axis="x", color=colours["grid"], linewidth=0.6)
    heads = ("algo", "seeds", "validation MSE", "test MSE", f"difference to {rows[0]['algo']}")
    for cell, place in zip(heads, COLUMNS, strict=True):
        text.text(place, -0.8, cell, style="italic", va="center")
    for y, row in enumerate(rows):
        half_width, mean = row["test_over_seeds_ci95"], row["test"]
        ax.errorbar(mean, y, xerr=half_width, fmt="|", color=colours["after"], capsize=5, linewidth=2, markersize=12)
        ax.plot(values[row["row"]], [y] * len(row["seeds"]), "o", color=colours["ink"], markersize=4, alpha=0.75)
        difference = plus_minus(row, "difference", signed=True) if row["difference"] is not None else ""
        cells = (row["algo"] + " *" * bool(row["best"]), len(row["seeds"]))
        cells += (plus_minus(row, "validation"), plus_minus(row, "test"), difference)
        for cell, place in zip(cells, COLUMNS, strict=True):
            text.text(place, y, str(cell), va="center")
    ax.set(ylim=(len(rows) - 0.4, -1.2), xlim=(0, None), xlabel="test MSE: seeds, mean, 95 % interval over seeds")
    return figure


COLUMNS = (0.0, 0.15, 0.26, 0.51, 0.75)
"""Where the columns of the table start, in fractions of its width."""


def plus_minus(row: dict[str, Any], name: str, signed: bool = False) -> str:
    """Return a value with its interval over seeds, such as ".025 ± .007"."""
    return f"{short(row[name], 'mse', signed)} ± {short(row[f'{name}_over_seeds_ci95'], 'mse')}"


def received(run_dir: Path, colours: dict[str, str]) -> Figure:
    """Return the figure of what a run logged for W&B, from its offline file."""
    (offline,) = run_dir.glob("wandb/offline-run-*")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(offline)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    logged = [record["history"]["item"] for record in map(json.loads, lines) if record["type"] == "history"]
    figure, axes = panels(1, len(LOGGED), 2.75, 2.5)
    for ax, (name, (over, unit)) in zip(axes, LOGGED.items(), strict=True):
        x, y = np.array([(item[over], item[name]) for item in logged if name in item]).T
        ax.plot(x, y, color=colours["after"], linewidth=1.8, marker="o" if len(x) < 20 else None, markersize=4)
        ax.grid(True, color=colours["grid"], linewidth=0.6)
        log_where_wide(ax, "mse", y)
        ax.set_title(name, fontsize=11)
        ax.set_xlabel(unit)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=(1, 2, 5, 10)))
    return figure


LOGGED = {
    "train/mse": ("trainer/global_step", "meta-batches"),
    "val/mse": ("trainer/global_step", "meta-batches"),
    "train/gradient_norm": ("trainer/global_step", "meta-batches"),
    "adaptation/mse_mean": ("adaptation/step", "inner steps, test tasks"),
}
"""Name of a logged value -> the logged value that it is drawn over, and its label."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="the directory of the sweep")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="the folder of the figures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found = {algo: sorted(options.sweep.glob(f"*_{algo}-sinusoid_seed0")) for algo in LEARNERS}
    if missing := [algo for algo, paths in found.items() if not paths]:
        wanted = f"python train.py -m algo={','.join(LEARNERS)} seed=0,1,2"
        parser.error(f"{options.sweep} has no run of {missing[0]} with seed 0: it must be the sweep {wanted}")
    directories = {algo: paths[0] for algo, paths in found.items()}
    runs = {algo: innerloop.load(path) for algo, path in directories.items()}
    for name in THEMES:
        with theme(name) as colours:
            figures = {
                "fit": fit(runs, colours),
                "sweep": table(options.sweep, colours),
                "wandb": received(directories["hybrid"], colours),
            }
            for figure_name, figure in figures.items():
                # Without a date the same runs give the same files.
                figure.savefig(options.out / f"{figure_name}-{name}.svg", metadata={"Date": None})
                if name == "light":  # for print
                    figure.savefig(options.out / f"{figure_name}.png", dpi=160, facecolor="white", transparent=False)


if __name__ == "__main__":
    main()
