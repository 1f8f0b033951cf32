"""The plot of how a policy moves in the plane before and after it has adapted to its goal."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from innerloop.runs.report.style import BLUE, GREY, INK, VERMILLION, panels

SHOWN = 5
"""Number of trajectories of each policy."""


def trajectories(goals: np.ndarray, before: Sequence[np.ndarray], after: Sequence[np.ndarray], adapted: str) -> Figure:
    """Plot, in a panel for each goal, trajectories of the policy before and after adaptation.

    goals: (tasks, 2). before, after: for each task the positions (n, horizon, 2); those after a trajectory's end repeat
        the last one. adapted: what the second policy is called in the legend. Raises ValueError unless there is a
        number of tasks that fills two rows.
    """
    columns, odd = divmod(len(goals), 2)
    if odd or not columns:
        raise ValueError(f"there must be an even number of goals, got {len(goals)}")
    figure, axes = panels(2, columns, width=3.2, height=3.1)
    for number, (ax, goal) in enumerate(zip(axes, goals, strict=True)):
        for paths, colour, label in ((before[number], GREY, "before adaptation"), (after[number], BLUE, adapted)):
            for i, path in enumerate(paths[:SHOWN]):
                ax.plot(*path.T, color=colour, linewidth=1, alpha=0.8, label=label if i == 0 else None)
        ax.scatter(0, 0, s=30, color=INK, zorder=4, label="start")
        ax.scatter(goal[0], goal[1], s=110, marker="*", color=VERMILLION, zorder=5, label="goal")
        ax.set(title=f"Test task {number + 1}", aspect="equal", xlim=(-0.85, 0.85), ylim=(-0.85, 0.85))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle("Trajectories to goals that the policy does not see", fontsize=13)
    return figure
