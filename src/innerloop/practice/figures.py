"""The figures of a report: a confusion matrix, as HTML or PNG, a reliability diagram and thumbnails."""

import io
from collections.abc import Sequence
from html import escape

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from innerloop.practice.validation import Bin
from innerloop.runs.report.style import BLUE, GREY, panels

NAMED = 40
"""Up to this number of classes a confusion matrix has their names."""
LONGEST = 22
"""Characters of a class's name in it."""


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


def confusion_table(counts: np.ndarray, classes: Sequence[str]) -> str:
    """Return a confusion matrix as HTML, which has the letters of every language and scrolls on a telephone.

    counts: (classes, classes) int, rows are the true classes. classes: text without bytes that are no UTF-8.
    """
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [
        f"<th title='{escape(name)}'><span>"
        f"{escape(name if len(name) <= LONGEST else name[: LONGEST - 1] + '…')}</span></th>"
        for name in classes
    ]
    rows = [
        f"<tr>{name}"
        + "".join(
            f"<td style='background:rgba(0,114,178,{s:.2f});color:{'white' if s > 0.5 else 'inherit'}'>{n or ''}</td>"
            for n, s in zip(numbers.tolist(), of_row.tolist(), strict=True)
        )
        + "</tr>"
        for name, numbers, of_row in zip(names, counts, share, strict=True)
    ]
    corner = "<th><small>true ↓ predicted →</small></th>"
    head = f"<thead><tr>{corner}{''.join(names)}</tr></thead>"
    return f"<div class='scroll'><table class='matrix'>{head}<tbody>{''.join(rows)}</tbody></table></div>"


def confusion(counts: np.ndarray) -> Figure:
    """Return a confusion matrix without names. counts: (classes, classes) int, rows are the true classes."""
    figure, (ax,) = panels(1, 1, 4.5, 4.5)
    ax.grid(False)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    for side_name in ("left", "bottom"):
        ax.spines[side_name].set_visible(False)
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
    ax.scatter(x, y, s=[20 + 200 * b.size / total for b in bins], color=BLUE, zorder=3, clip_on=False)
    for b in bins:
        place = (0, -11 if b.accuracy > 0.5 else 11)  # on the inner side, away from the axis
        ax.annotate(
            f"{b.size}",
            (b.confidence, b.accuracy),
            fontsize=8,
            xytext=place,
            textcoords="offset points",
            ha="center",
            va="top" if b.accuracy > 0.5 else "bottom",
        )
    ax.set_xlim(0, 1.03)
    ax.set_ylim(0, 1.03)
    ax.set_xlabel("probability of the predicted class")
    ax.set_ylabel("share that is right")
    return figure
