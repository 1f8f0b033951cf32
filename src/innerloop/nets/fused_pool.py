"""Batch norm and 2x2 max-pool in one, on the CPU: what is normalised is only what the pool keeps.

A norm's factor is the same for all positions of a channel, so that the largest stays the largest, or with a factor
below zero the smallest becomes it. The mean and the deviation are those of all positions, as ever.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from innerloop.nets.fused import by_torch, channels_last, factors, suits

aten = torch.ops.aten

WORTHWHILE = 2**17
"""Entries from which it is faster: with less to do, threads wait for each other where nodes are written in Python.

From the max-pool workloads of scripts/benchmark.py at two workers, with this at 1, at 2**17 and out of reach.
"""


def worthwhile(x: Tensor, weight: Tensor) -> bool:
    """Whether `batch_norm_max_pool` is faster than a norm and a pool, and has a rule for what is at work."""
    return x.numel() >= WORTHWHILE and suits(x, weight)


def batch_norm_max_pool(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The 2x2 max-pool of `innerloop.nets.fused.batch_norm`; x: (n, channels, height, width).

    To be differentiated twice; further derivatives are torch's, and there is no rule for the transforms of torch.func.
    """
    return _Pooled.apply(channels_last(x), weight, bias, eps)


def norm_then_pool(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The same by torch's functions."""
    return F.max_pool2d(F.batch_norm(x, None, None, weight, bias, training=True, eps=eps), 2)


def _each(channel: Tensor) -> Tensor:
    return channel.view(1, -1, 1, 1)


def _positions(x: Tensor) -> Tensor:
    """(n, channels, height, width) in channels_last -> a view (n, height * width, channels)."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, x.shape[1])


def _add_at(x: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """Adds values to x, in place, at the positions that the pool kept."""
    _positions(x).scatter_add_(1, _positions(index), _positions(values))
    return x


def _total(x: Tensor) -> Tensor:
    return x.sum((0, 2, 3))


class _Pooled(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        mean, variance = aten.batch_norm_update_stats(x, None, None, 0.0)
        r = (variance + eps).rsqrt()
        if (weight < 0).any():
            sign = _each(torch.where(weight < 0, -1.0, 1.0).to(x.dtype))
            kept, index = aten.max_pool2d_with_indices(x * sign, [2, 2])
            kept = kept * sign
        else:
            kept, index = aten.max_pool2d_with_indices(x, [2, 2])
        slope = weight * r
        ctx.eps = eps
        ctx.save_for_backward(x, weight, mean, r, kept, index)
        return torch.addcmul(_each(bias - mean * slope), kept, _each(slope))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return *_PooledGradient.apply(channels_last(g), *ctx.saved_tensors, ctx.eps), None


class _PooledGradient(Function):
    """The gradients of x, weight and bias, as a function of the upstream one, x and weight: see `fused._Gradient`.

    With S u = u at the positions kept, and S' g = g there and zero elsewhere, they are those of the norm for S' g.
    """

    @staticmethod
    def forward(
        ctx: Any,
        g: Tensor,
        x: Tensor,
        weight: Tensor,
        mean: Tensor,
        r: Tensor,
        kept: Tensor,
        index: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        n = x.numel() // x.shape[1]
        normal = (kept - _each(mean)).mul_(_each(r))
        g_x, g_sum, slope = _total(g * normal), _total(g), weight * r
        by_x = -slope * r * g_x / n
        of_x = torch.addcmul(_each(-slope * g_sum / n - mean * by_x), x, _each(by_x))
        ctx.eps = eps
        ctx.save_for_backward(g, x, weight, mean, r, normal, index, g_x, g_sum)
        return _add_at(of_x, index, g * _each(slope)), g_x, g_sum

    @staticmethod
    def backward(ctx: Any, v: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor | None, ...]:
        g, x, weight, mean, r, normal, index, g_x, g_sum = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated once more
            return *by_torch(norm_then_pool, (g, x, weight), (v, a, b), ctx.eps), *[None] * 5
        v = channels_last(v)
        # sum(v x') and sum(v), as in `fused._Gradient`, but not the gradient of x.
        sums = aten.native_batch_norm_backward(v, x, weight, None, None, mean, r, True, ctx.eps, [False, True, True])
        n = x.numel() // x.shape[1]
        v_x, v_mean, g_x, g_mean = sums[1] / n, sums[2] / n, g_x / n, g_sum / n
        v_kept = _positions(v).gather(1, _positions(index)).view(len(g), *g.shape[2:], -1).permute(0, 3, 1, 2)
        covariance = _total(v_kept * g) / n - v_mean * g_mean
        of_g = (v_kept - _each(v_mean)).mul_(_each(weight * r))
        of_g.addcmul_(normal, _each(a - weight * r * v_x)).add_(_each(b))
        by_v, by_g, by_normal = factors(weight, r, a, v_x, g_x, covariance)
        by_x = by_normal * r
        of_x = torch.addcmul(_each(-by_v * v_mean - by_g * g_mean - mean * by_x), x, _each(by_x))
        _add_at(of_x.addcmul_(v, _each(by_v)), index, g * _each(by_g))
        return of_g, of_x, n * r * (covariance - v_x * g_x), *[None] * 5
