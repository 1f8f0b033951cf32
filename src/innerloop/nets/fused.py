"""Where layers may use fused kernels and which layout suits them; batch norm with a quicker second derivative."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

aten = torch.ops.aten

WORTHWHILE = 2**14
"""Entries from which the second derivative gains more than nodes written in Python cost.

From the workloads of scripts/benchmark.py on the CPU, with this at 2**13 to 2**17 and out of reach.
"""


_on: ContextVar[bool] = ContextVar("_on", default=False)


@contextmanager
def fused_layers() -> Iterator[None]:
    """Inside, layers use fused kernels, torch's or ours: faster, and exact but for vmap. The loop engine's."""
    token = _on.set(True)
    try:
        yield
    finally:
        _on.reset(token)


def on() -> bool:
    """Whether this is inside of `fused_layers`."""
    return _on.get()


def inside_transform() -> bool:
    """Whether a transform of torch.func, such as vmap or grad, is at work."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def suits(x: Tensor, weight: Tensor) -> bool:
    """Whether kernels of ours have a rule for x and for what is at work: see `fused_layers`."""
    fits = x.device.type == "cpu" and x.dtype == weight.dtype and x.dtype.is_floating_point
    return on() and fits and not inside_transform()


def worthwhile(x: Tensor, weight: Tensor) -> bool:
    """Whether `batch_norm` is faster than torch's, too."""
    return x.numel() >= WORTHWHILE and suits(x, weight)


def channels_last(x: Tensor) -> Tensor:
    """x, (n, channels, height, width), with the channels of a position side by side in memory; with one channel, too,
    where torch sees no difference. Convolutions, norms and pools on the CPU hand the layout on, and are faster in it.
    """
    if x.shape[1] == 1:
        return x.contiguous().view(len(x), *x.shape[2:], 1).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`torch.nn.functional.batch_norm` by the statistics of x, (n, channels, *positions), to be differentiated twice.

    Torch composes the second derivative of many operations as large as x; here it is one fused call and a few more.
    Further derivatives are torch's; there is no rule for the transforms of torch.func.
    """
    return _BatchNorm.apply(x, weight, bias, eps)


class _BatchNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, mean, inverse_deviation = aten.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
        ctx.eps = eps
        ctx.save_for_backward(x, weight, mean, inverse_deviation)
        return y

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return *_Gradient.apply(upstream, *ctx.saved_tensors, ctx.eps), None


class _Gradient(Function):
    """The gradients of x, weight and bias, as a function of the upstream one, x and weight.

    With x' the normalised x, r the inverse deviation, w the weight, g the upstream gradient and, channel by channel,
    P u = u - mean(u) - x' mean(u x'): they are w r P g, sum(g x') and sum(g).
    """

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, r: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = aten.native_batch_norm_backward(g, x, weight, None, None, mean, r, True, eps, [True] * 3)
        ctx.eps = eps
        ctx.save_for_backward(g, x, weight, mean, r, *found[1:])
        return found

    @staticmethod
    def backward(ctx: Any, v: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor | None, ...]:
        # The gradient of <v, w r P g> + <a, sum(g x')> + <b, sum(g)>, with dx' = r P dx and dr = -r^2 mean(x' dx).
        g, x, weight, mean, r, g_x, g_sum = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated once more
            return *by_torch(_norm, (g, x, weight), (v, a, b), ctx.eps), None, None, None
        of_v, v_x, v_sum = aten.native_batch_norm_backward(
            v, x, weight, None, None, mean, r, True, ctx.eps, [True] * 3
        )  # w r P v, sum(v x') and sum(v)
        n = x.numel() // x.shape[1]
        g_x, g_mean, v_x, v_mean = g_x / n, g_sum / n, v_x / n, v_sum / n
        covariance = (v * g).sum([0, *range(2, x.ndim)]) / n - v_mean * g_mean

        def each(channel: Tensor) -> Tensor:
            return channel.view(1, -1, *[1] * (x.ndim - 2))

        normal = torch.addcmul(each(-mean * r), x, each(r))
        of_g = of_v.addcmul_(normal, each(a)).add_(each(b))
        by_v, by_g, by_normal = factors(weight, r, a, v_x, g_x, covariance)
        of_x = torch.addcmul(each(-by_v * v_mean - by_g * g_mean), normal, each(by_normal))
        of_x.addcmul_(v, each(by_v)).addcmul_(g, each(by_g))
        return of_g, of_x, n * r * (covariance - v_x * g_x), None, None, None


def factors(
    weight: Tensor, r: Tensor, a: Tensor, v_x: Tensor, g_x: Tensor, covariance: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What v, g and x' are multiplied by, a channel at a time, in the gradient of x of the second derivative.

    See `_Gradient`. v_x and g_x: the means of v x' and g x'; covariance: that of v and g.
    """
    slope, direct = weight * r * r, a * r
    return -slope * g_x, direct - slope * v_x, slope * (3 * v_x * g_x - covariance) - direct * g_x


def _norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)


def by_torch(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], upstream: tuple[Tensor, ...], eps: float
) -> tuple[Tensor, ...]:
    """What upstream gradients of the gradient of function(x, weight, bias, eps) are for g, x and weight, by torch.

    inputs: g, x and weight; upstream: of the gradients of x, weight and bias. To be differentiated further.
    """
    g, x, weight = inputs = tuple(t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in inputs)
    bias = torch.zeros_like(weight, requires_grad=True)
    gradient = torch.autograd.grad(function(x, weight, bias, eps), (x, weight, bias), g, create_graph=True)
    return torch.autograd.grad(gradient, inputs, upstream, create_graph=True)
