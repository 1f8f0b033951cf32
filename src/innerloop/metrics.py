"""Statistics over evaluation episodes, along the adaptation curve."""

from math import sqrt
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class AdaptationCurve(Metric):
    """The metrics of every episode before adaptation and after 0, 1, …, K inner steps.

    The values of each episode are kept, in the order of the episodes, so that runs can be compared in pairs. This is
    correct under DDP, too: torchmetrics gathers the lists, and ranks hold consecutive blocks of episodes.
    """

    full_state_update = False
    values: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names: tuple[str, ...] = ()
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def update(self, outputs: dict[str, Tensor]) -> None:
        """Add the values of some episodes.

        outputs: metric name -> (episodes, 1 + K + 1). The first column is before any adaptation.
        """
        self.names = tuple(outputs)
        stacked = torch.stack([outputs[name].detach() for name in self.names], -1)
        self.values.append(stacked if stacked.device.type == "mps" else stacked.double())  # MPS has no float64

    def compute(self) -> Tensor:
        """Return the values of all episodes: (episodes, 1 + K + 1, metrics)."""
        return dim_zero_cat(self.values)


def summarize(values: Tensor) -> dict[str, float]:
    """Return the mean, the half-width of its normal 95 % confidence interval, and the median of values (episodes,)."""
    n = len(values)
    spread = values.std(correction=1).item() if n > 1 else float("nan")
    return {"mean": values.mean().item(), "ci95": 1.96 * spread / sqrt(n), "median": values.quantile(0.5).item()}
