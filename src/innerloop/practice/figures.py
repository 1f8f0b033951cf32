"""The figures of a report, as PNG: a confusion matrix, a reliability diagram, pictures as thumbnails."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from innerloop.practice.validation import Bin
from innerloop.runs.report.style import BLUE, GREY, INK, panels

NAMED = 40
"""Up to this number of classes a confusion matrix has their names."""


def png(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    file = io.BytesIO()
    figure.savefig(file, dpi=144, format="png")
    return file.getvalue()


def jpeg(image: Tensor) -> bytes:
    """Return a picture as JPEG: (1 or 3, h, w) uint8."""
    values = image.permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(values[..., 0] if values.shape[2] == 1 else values).save(file, "JPEG", quality=85)
    return file.getvalue()


def confusion(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """Return a confusion matrix. counts: (classes, classes) int, rows are the true classes."""
    n = len(classes)
    side = min(max(3.4, 0.34 * n + 2), 9.0)
    figure, (ax,) = panels(1, 1, side, side)
    ax.grid(False)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    for side_name in ("left", "bottom"):
        ax.spines[side_name].set_visible(False)
    if n <= NAMED:
        names = [shorten(name) for name in classes]
        ax.set_xticks(range(n), names, rotation=90, fontsize=7)
        ax.set_yticks(range(n), names, fontsize=7)
        for row, column in zip(*np.nonzero(counts), strict=True):
            dark = share[row, column] > 0.5
            text = f"{counts[row, column]}"
            ax.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else INK)
    else:
        ax.set_xticks([])
        ax.set_yticks([])
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    return figure


def reliability_diagram(bins: Sequence[Bin]) -> Figure:
    """Return the share of right answers over their probability, beside the diagonal of probabilities to trust."""
    figure, (ax,) = panels(1, 1, 3.6, 3.4)
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    total = sum(b.size for b in bins)
    x, y = [b.confidence for b in bins], [b.accuracy for b in bins]
    ax.plot(x, y, color=BLUE, linewidth=1.2)
    ax.scatter(x, y, s=[20 + 200 * b.size / total for b in bins], color=BLUE, zorder=3)
    for b in bins:
        ax.annotate(f"{b.size}", (b.confidence, b.accuracy), fontsize=7, xytext=(0, -14), textcoords="offset points")
    ax.set_xlim(0, 1.03)
    ax.set_ylim(0, 1.03)
    ax.set_xlabel("probability of the predicted class")
    ax.set_ylabel("share that is right")
    return figure


def shorten(name: str, longest: int = 22) -> str:
    """Return a name of at most this many characters, without what matplotlib would read as a formula."""
    name = name.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
