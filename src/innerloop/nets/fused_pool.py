"""Batch norm and 2x2 max-pool as one function on the CPU, which normalises only the entries that the pool keeps.

Batch norm multiplies all positions of a channel by the same factor. So the largest entry of a window stays the largest,
or, if the factor is negative, the smallest entry becomes the largest. The pool can therefore come first. The mean and
the deviation are still those of all positions.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from innerloop.nets.fused import channels_last, composed_norm, second_derivative_by_torch, supported, x_gradient_factors

aten = torch.ops.aten

WORTHWHILE = 2**17
"""Number of entries of an input from which `batch_norm_max_pool` is faster than a norm and a pool.

With smaller inputs, threads wait for each other in autograd nodes that are written in Python. Chosen from the max-pool
workloads of scripts/benchmark.py with two workers, by trying 1, 2**17 and a value that is never reached.
"""


def worthwhile(x: Tensor, weight: Tensor) -> bool:
    """Return True if `batch_norm_max_pool` may be used and is faster than a norm and a pool."""
    return x.numel() >= WORTHWHILE and supported(x, weight)


def batch_norm_max_pool(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return the 2x2 max-pool of `innerloop.nets.fused.batch_norm` of x, (n, channels, height, width).

    First and second derivatives are our own, and higher derivatives are computed by torch. Transforms of torch.func are
    not supported.
    """
    return _Pooled.apply(channels_last(x), weight, bias, eps)


def norm_then_pool(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return the same as `batch_norm_max_pool`, computed by torch's functions."""
    return F.max_pool2d(composed_norm(x, weight, bias, eps), 2)


def _expand(per_channel: Tensor) -> Tensor:
    return per_channel.view(1, -1, 1, 1)


def _positions(x: Tensor) -> Tensor:
    """Return x, (n, channels, height, width) in channels_last, as a view (n, height * width, channels)."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, x.shape[1])


def _add_at(x: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """Return x after adding the values to it, in place, at the positions that the pool kept."""
    _positions(x).scatter_add_(1, _positions(index), _positions(values))
    return x


def _channel_sums(x: Tensor) -> Tensor:
    return x.sum((0, 2, 3))


class _Pooled(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        mean, variance = aten.batch_norm_update_stats(x, None, None, 0.0)
        r = (variance + eps).rsqrt()
        if (weight < 0).any():
            sign = _expand(torch.where(weight < 0, -1.0, 1.0).to(x.dtype))
            kept, index = aten.max_pool2d_with_indices(x * sign, [2, 2])
            kept = kept * sign
        else:
            kept, index = aten.max_pool2d_with_indices(x, [2, 2])
        slope = weight * r
        ctx.eps = eps
        ctx.save_for_backward(x, weight, mean, r, kept, index)
        return torch.addcmul(_expand(bias - mean * slope), kept, _expand(slope))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return *_PooledGradient.apply(channels_last(g), *ctx.saved_tensors, ctx.eps), None


class _PooledGradient(Function):
    """The gradients of x, weight and bias, as a differentiable function of the upstream gradient, x and weight.

    Let S u be u at the positions that the pool kept, and S' g a tensor that is g at these positions and zero elsewhere.
    The gradients are those of the norm for the upstream gradient S' g: see `fused._Gradient`, also for the notation.
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
        normal = (kept - _expand(mean)).mul_(_expand(r))
        gx_sum, g_sum, slope = _channel_sums(g * normal), _channel_sums(g), weight * r
        x_factor = -slope * r * gx_sum / n
        grad_x = torch.addcmul(_expand(-slope * g_sum / n - mean * x_factor), x, _expand(x_factor))
        ctx.eps = eps
        ctx.save_for_backward(g, x, weight, mean, r, normal, index, gx_sum, g_sum)
        return _add_at(grad_x, index, g * _expand(slope)), gx_sum, g_sum

    @staticmethod
    def backward(ctx: Any, v: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor | None, ...]:
        g, x, weight, mean, r, normal, index, gx_sum, g_sum = ctx.saved_tensors
        if torch.is_grad_enabled():  # a third derivative will be taken
            return *second_derivative_by_torch(norm_then_pool, (g, x, weight), (v, a, b), ctx.eps), *[None] * 5
        v = channels_last(v)
        # sum(v x') and sum(v) as in `fused._Gradient`, but not w r P v, which is needed only where the pool kept x.
        sums = aten.native_batch_norm_backward(v, x, weight, None, None, mean, r, True, ctx.eps, [False, True, True])
        n = x.numel() // x.shape[1]
        vx_mean, v_mean, gx_mean, g_mean = sums[1] / n, sums[2] / n, gx_sum / n, g_sum / n
        v_kept = _positions(v).gather(1, _positions(index)).view(len(g), *g.shape[2:], -1).permute(0, 3, 1, 2)
        covariance = _channel_sums(v_kept * g) / n - v_mean * g_mean
        grad_g = (v_kept - _expand(v_mean)).mul_(_expand(weight * r))
        grad_g.addcmul_(normal, _expand(a - weight * r * vx_mean)).add_(_expand(b))
        v_factor, g_factor, normal_factor = x_gradient_factors(weight, r, a, vx_mean, gx_mean, covariance)
        x_factor = normal_factor * r
        grad_x = torch.addcmul(_expand(-v_factor * v_mean - g_factor * g_mean - mean * x_factor), x, _expand(x_factor))
        _add_at(grad_x.addcmul_(v, _expand(v_factor)), index, g * _expand(g_factor))
        return grad_g, grad_x, n * r * (covariance - vx_mean * gx_mean), *[None] * 5
