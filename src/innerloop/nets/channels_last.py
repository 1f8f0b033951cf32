"""Convolution on the CPU with the channels of a position side by side in memory, and a second derivative that is one.

Torch's own second derivative of a convolution transposes its tensors out of this layout, and takes the gradient of the
weights for a convolution with a kernel as large as the image.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

aten = torch.ops.aten


def channels_last(x: Tensor) -> Tensor:
    """x, (n, channels, height, width), in this layout; with one channel, too, where torch sees no difference."""
    if x.shape[1] == 1:
        return x.contiguous().view(len(x), *x.shape[2:], 1).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)


def conv2d(x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """`torch.nn.functional.conv2d` without bias, to be differentiated as often as that, but not by torch.func.

    The result, and gradients, come in the layout of `channels_last`.
    """
    return _Conv.apply(channels_last(x), channels_last(weight), stride, padding)


def _gradient(g: Tensor, x: Tensor, weight: Tensor, geometry: Sequence[Any], wanted: Sequence[bool]) -> Any:
    """Of x and the weight, as far as wanted: each by its own kernel."""
    stride, padding = geometry
    mask = [*wanted, False]
    return aten.convolution_backward(g, x, weight, None, stride, padding, [1, 1], False, [0, 0], 1, mask)[:2]


class _Conv(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, *geometry: Any) -> Tensor:
        ctx.geometry = geometry
        ctx.save_for_backward(x, weight)
        return torch.conv2d(x, weight, None, *geometry)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        return *_ConvGradient.apply(channels_last(g), x, weight, ctx.geometry, wanted), None, None


class _ConvGradient(Function):
    """The gradients of x and the weight: bilinear in the upstream one and the other of the two."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, geometry: Any, wanted: Any) -> tuple[Tensor, ...]:
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g, x, weight)
        return _gradient(g, x, weight, geometry, wanted)

    @staticmethod
    def backward(ctx: Any, v: Tensor | None, u: Tensor | None) -> tuple[Tensor | None, ...]:
        # The gradient of <v, gradient of x> + <u, gradient of the weight>.
        g, x, weight = ctx.saved_tensors
        _, of_x_wanted, of_weight_wanted, *_ = ctx.needs_input_grad
        of_g = of_x = of_weight = None
        if u is not None:
            u = channels_last(u)
            of_g = torch.conv2d(x, u, None, *ctx.geometry)
            if of_x_wanted:
                of_x, _ = _gradient(g, x, u, ctx.geometry, (True, False))
        if v is not None:
            v = channels_last(v)
            through_x = torch.conv2d(v, weight, None, *ctx.geometry)
            of_g = through_x if of_g is None else of_g + through_x
            if of_weight_wanted:
                _, of_weight = _gradient(g, v, weight, ctx.geometry, (False, True))
        return of_g, of_x, of_weight, None, None
