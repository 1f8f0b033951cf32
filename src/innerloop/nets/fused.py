"""Fused kernels: when layers may use them, the memory layout for them, and batch norm with a fast second derivative."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

aten = torch.ops.aten

WORTHWHILE = 2**14
"""Number of entries of an input from which `batch_norm` is faster than torch's batch norm.

Below it, autograd nodes written in Python cost more time than the second derivative saves.
Chosen from the workloads of scripts/benchmark.py on the CPU, by trying values from 2**13 to 2**17 and one that is
never reached.
"""


_on: ContextVar[bool] = ContextVar("_on", default=False)
_kernels: ContextVar[bool] = ContextVar("_kernels", default=False)


@contextmanager
def fused_layers(kernels: bool = False) -> Iterator[None]:
    """Let layers inside use fused kernels, torch's or our own. They are faster, and exact except under `torch.vmap`.

    The engine enters this context when it runs tasks one by one. kernels: also use `innerloop.nets.kernels`.
    """
    tokens = _on.set(True), _kernels.set(kernels)
    try:
        yield
    finally:
        _on.reset(tokens[0])
        _kernels.reset(tokens[1])


def on() -> bool:
    """Return True inside `fused_layers`."""
    return _on.get()


def inside_transform() -> bool:
    """Return True inside a transform of torch.func, such as vmap or grad."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def supported(x: Tensor, weight: Tensor) -> bool:
    """Return True if our own kernels may be used for x and this weight.

    They may be used inside `fused_layers` and outside transforms of torch.func, on the CPU, if x and weight have the
    same floating-point type.
    """
    fits = x.device.type == "cpu" and x.dtype == weight.dtype and x.dtype.is_floating_point
    return on() and fits and not inside_transform()


def use_kernels(x: Tensor, weight: Tensor) -> bool:
    """Return True if `innerloop.nets.kernels` may be used for images x and this weight, and were asked for."""
    return _kernels.get() and x.ndim == 4 and supported(x, weight) and x.dtype in (torch.float32, torch.float64)


def worthwhile(x: Tensor, weight: Tensor) -> bool:
    """Return True if `batch_norm` may be used and is faster than torch's."""
    return x.numel() >= WORTHWHILE and supported(x, weight)


def channels_last(x: Tensor) -> Tensor:
    """Return x, (n, channels, height, width), with the channels of each position side by side in memory.

    On the CPU, convolutions, norms and pools are faster in this layout, and their outputs have it too. For one channel
    torch takes both layouts to be the same, so the strides are set explicitly.
    """
    if x.shape[1] == 1:
        return x.contiguous().view(len(x), *x.shape[2:], 1).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return `torch.nn.functional.batch_norm` of x by its own statistics, with a fast second derivative.

    Torch composes the second derivative of many operations on tensors as large as x. Here it takes one fused kernel
    and a few such operations. Higher derivatives are computed by torch. Transforms of torch.func are not supported.

    x: (n, channels, *positions).
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
    """The gradients of x, weight and bias, as a differentiable function of the upstream gradient, x and weight.

    Notation: x' is the normalised x, r the inverse standard deviation, w the weight, g the upstream gradient, and
    P u = u - mean(u) - x' mean(u x') for each channel. The three gradients are w r P g, sum(g x') and sum(g).
    """

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, r: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        gradients = aten.native_batch_norm_backward(g, x, weight, None, None, mean, r, True, eps, [True] * 3)
        ctx.eps = eps
        ctx.save_for_backward(g, x, weight, mean, r, *gradients[1:])
        return gradients

    @staticmethod
    def backward(ctx: Any, v: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor | None, ...]:
        # v, a and b are the upstream gradients of the three gradients. This returns the gradient of
        # <v, w r P g> + <a, sum(g x')> + <b, sum(g)>, with dx' = r P dx and dr = -r^2 mean(x' dx).
        g, x, weight, mean, r, gx_sum, g_sum = ctx.saved_tensors
        if torch.is_grad_enabled():  # a third derivative will be taken
            return *second_derivative_by_torch(composed_norm, (g, x, weight), (v, a, b), ctx.eps), None, None, None
        projected, vx_sum, v_sum = aten.native_batch_norm_backward(
            v, x, weight, None, None, mean, r, True, ctx.eps, [True] * 3
        )  # w r P v, sum(v x') and sum(v)
        n = x.numel() // x.shape[1]
        gx_mean, g_mean, vx_mean, v_mean = gx_sum / n, g_sum / n, vx_sum / n, v_sum / n
        covariance = (v * g).sum([0, *range(2, x.ndim)]) / n - v_mean * g_mean

        def expand(per_channel: Tensor) -> Tensor:
            return per_channel.view(1, -1, *[1] * (x.ndim - 2))

        normal = torch.addcmul(expand(-mean * r), x, expand(r))
        grad_g = projected.addcmul_(normal, expand(a)).add_(expand(b))
        v_factor, g_factor, normal_factor = x_gradient_factors(weight, r, a, vx_mean, gx_mean, covariance)
        grad_x = torch.addcmul(expand(-v_factor * v_mean - g_factor * g_mean), normal, expand(normal_factor))
        grad_x.addcmul_(v, expand(v_factor)).addcmul_(g, expand(g_factor))
        return grad_g, grad_x, n * r * (covariance - vx_mean * gx_mean), None, None, None


def x_gradient_factors(
    weight: Tensor, r: Tensor, a: Tensor, vx_mean: Tensor, gx_mean: Tensor, covariance: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the factors per channel that multiply v, g and x' in the second derivative's gradient of x.

    For the notation see `_Gradient`. vx_mean, gx_mean: means of v x' and of g x'. covariance: of v and g.
    """
    slope, direct = weight * r * r, a * r
    return -slope * gx_mean, direct - slope * vx_mean, slope * (3 * vx_mean * gx_mean - covariance) - direct * gx_mean


def composed_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return the batch norm from elementary operations: third derivatives of torch's own are wrong (torch 2.13)."""
    dims, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
    centred = x - x.mean(dims, keepdim=True)
    scale = (centred.square().mean(dims, keepdim=True) + eps).rsqrt() * weight.view(shape)
    return centred * scale + bias.view(shape)


def second_derivative_by_torch(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], upstream: tuple[Tensor, ...], eps: float
) -> tuple[Tensor, ...]:
    """Return the second derivative of function(x, weight, bias, eps) as torch computes it, differentiable once more.

    The first derivative consists of the gradients of x, weight and bias for an upstream gradient g. The second
    derivative consists of the gradients of g, x and weight for upstream gradients of these three.

    inputs: g, x and weight. upstream: the upstream gradients of the gradients of x, weight and bias.
    """
    g, x, weight = inputs = tuple(t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in inputs)
    bias = torch.zeros_like(weight, requires_grad=True)
    gradient = torch.autograd.grad(function(x, weight, bias, eps), (x, weight, bias), g, create_graph=True)
    return torch.autograd.grad(gradient, inputs, upstream, create_graph=True)
