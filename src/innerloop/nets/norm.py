"""Normalisation that stays exact when tasks run under `torch.vmap` and its result is differentiated twice.

`torch.vmap` over `F.batch_norm`, `F.layer_norm` or `F.instance_norm`, differentiated from outside, gives wrong
second-order gradients without a word (torch 2.13). A batch norm composed of elementary operations is exact, and so is
`F.group_norm`; layer norm is a group norm of one group.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_fused: ContextVar[bool] = ContextVar("_fused", default=False)


@contextmanager
def fused_norms() -> Iterator[None]:
    """Inside, batch norm uses torch's fused kernel: faster, exact without vmap, wrong under it. The loop engine's."""
    token = _fused.set(True)
    try:
        yield
    finally:
        _fused.reset(token)


class BatchNorm(nn.Module):
    """Batch norm by the statistics of the batch at hand, in training and evaluation alike (Finn et al., 2017).

    It keeps no running statistics, so nothing leaks from one task into another and no buffer changes in evaluation;
    in exchange the prediction for a query depends on the other queries of its task ("transductive").
    x: (n, channels, *positions).
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if _fused.get():
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        dims = [0, *range(2, x.ndim)]
        per_channel = (1, -1) + (1,) * (x.ndim - 2)
        centred = x - x.mean(dims, keepdim=True)
        variance = centred.square().mean(dims, keepdim=True)
        scale = (variance + self.eps).rsqrt() * self.weight.view(per_channel)
        return centred * scale + self.bias.view(per_channel)


class GroupNorm(nn.GroupNorm):
    """Group norm with at most 8 groups. x: (n, channels, *positions)."""

    def __init__(self, channels: int) -> None:
        super().__init__(max(g for g in range(1, 9) if channels % g == 0), channels)


class LayerNorm(nn.GroupNorm):
    """Layer norm over everything but the first dimension, with a scale and shift per channel. x: (n, channels, *)."""

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels)


NORMS: dict[str, type[nn.Module]] = {"batch": BatchNorm, "group": GroupNorm, "layer": LayerNorm}
