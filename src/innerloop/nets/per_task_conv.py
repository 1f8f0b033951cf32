"""A convolution that stays fast under `torch.vmap` on a GPU, where every task has its own weights.

torch runs such a convolution as a grouped one, whose derivatives loop over the tasks. Here it is one batched matrix
product per batch of tasks, as are all its derivatives, whatever their order.
"""

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from innerloop.devices.precision import reduced
from innerloop.nets import fused, kernels


class Geometry(NamedTuple):
    """What a convolution does besides its numbers. height, width: of the input."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    height: int
    width: int

    def positions(self) -> tuple[int, int]:
        """Return height and width of the output."""
        rows, columns = self.height + 2 * self.padding[0], self.width + 2 * self.padding[1]
        return (rows - self.kernel[0]) // self.stride[0] + 1, (columns - self.kernel[1]) // self.stride[1] + 1


class Conv2d(nn.Conv2d):
    """torch's `Conv2d`, with the same numbers up to rounding, as matrix products under `torch.vmap` on a GPU.

    On the CPU it is one of `innerloop.nets.kernels` where these are compiled.

    x: (n, channels, height, width).
    """

    def forward(self, x: Tensor) -> Tensor:
        if self._is_plain() and worthwhile(x):
            y = per_task(x, self.weight, self.stride, self.padding)  # type: ignore[arg-type]
        elif self._is_plain() and self._is_square() and fused.use_kernels(x, self.weight):
            y = kernels.convolution(x, self.weight, self.stride[0], self.padding[0])  # type: ignore[arg-type]
        else:
            return super().forward(x)
        return y if self.bias is None else y + self.bias.view(1, -1, 1, 1)

    def _is_plain(self) -> bool:
        simple = self.groups == 1 and self.dilation == (1, 1) and self.padding_mode == "zeros"
        return simple and not isinstance(self.padding, str)

    def _is_square(self) -> bool:
        return self.stride[0] == self.stride[1] and self.padding[0] == self.padding[1]


def worthwhile(x: Tensor) -> bool:
    """Return True on a GPU inside a transform of torch.func, in full precision.

    In reduced precision torch's grouped kernels are the faster ones: see docs/speed.md.
    """
    return x.is_cuda and fused.inside_transform() and not reduced()


def per_task(x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """Return the convolution. x: (n, channels, h, w), weight: (width, channels, kh, kw) -> (n, width, h', w')."""
    kh, kw = weight.shape[-2:]
    geometry = Geometry((kh, kw), (stride[0], stride[1]), (padding[0], padding[1]), x.shape[-2], x.shape[-1])
    return Product.apply("output", geometry, x[None], weight[None])[0]


class Product(Function):
    """One of three bilinear maps, of which each one's derivatives are the other two.

    "output": (input, weight) -> the convolution. "input": (output, weight) -> its transpose with respect to the input.
    "weight": (input, output) -> its transpose with respect to the weight. All have a leading dimension of tasks:
    input (tasks, n, channels, h, w), weight (tasks, width, channels, kh, kw), output (tasks, n, width, h', w').
    """

    @staticmethod
    def forward(kind: str, geometry: Geometry, a: Tensor, b: Tensor) -> Tensor:
        return PRODUCTS[kind](geometry, a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.kind, ctx.geometry, a, b = inputs
        ctx.save_for_backward(a, b)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (a, b), (_, _, of_a, of_b) = upstream, ctx.saved_tensors, ctx.needs_input_grad
        first, second = OPERANDS[ctx.kind]

        def derivative(kind: str, other: str, value: Tensor) -> Tensor:
            known = {ctx.kind: g, other: value}
            return Product.apply(kind, ctx.geometry, *(known[name] for name in OPERANDS[kind]))

        return (
            None,
            None,
            derivative(first, second, b) if of_a else None,
            derivative(second, first, a) if of_b else None,
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], kind: str, geometry: Geometry, a: Tensor, b: Tensor) -> Any:
        tasks = info.batch_size

        def merged(t: Tensor, dim: int | None) -> Tensor:
            t = t.expand(tasks, *t.shape) if dim is None else t.movedim(dim, 0)
            return t.flatten(0, 1)

        result = Product.apply(kind, geometry, merged(a, in_dims[2]), merged(b, in_dims[3]))
        return result.unflatten(0, (tasks, -1)), 0


OPERANDS = {"output": ("input", "weight"), "input": ("output", "weight"), "weight": ("input", "output")}


def _output(geometry: Geometry, x: Tensor, weight: Tensor) -> Tensor:
    n = x.shape[1]
    return (weight.flatten(2) @ _patches(geometry, x)).unflatten(2, (n, *geometry.positions())).transpose(1, 2)


def _input(geometry: Geometry, y: Tensor, weight: Tensor) -> Tensor:
    tasks, n = y.shape[:2]
    patches = weight.flatten(2).mT @ _channels_first(y)
    patches = patches.unflatten(2, (n, -1)).transpose(1, 2).flatten(0, 1)
    size = (geometry.height, geometry.width)
    x = F.fold(patches, size, geometry.kernel, padding=geometry.padding, stride=geometry.stride)
    return x.unflatten(0, (tasks, n))


def _weight(geometry: Geometry, x: Tensor, y: Tensor) -> Tensor:
    return (_channels_first(y) @ _patches(geometry, x).mT).unflatten(2, (-1, *geometry.kernel))


PRODUCTS = {"output": _output, "input": _input, "weight": _weight}


def _channels_first(y: Tensor) -> Tensor:
    """(tasks, n, width, h', w') -> (tasks, width, n h' w')."""
    return y.transpose(1, 2).flatten(2)


def _patches(geometry: Geometry, x: Tensor) -> Tensor:
    """(tasks, n, channels, h, w) -> (tasks, channels kh kw, n h' w'), in one copy. `F.unfold` loops over the images."""
    (ph, pw), (sh, sw) = geometry.padding, geometry.stride
    x = F.pad(x, (pw, pw, ph, ph)).contiguous()
    tasks, n, channels = x.shape[:3]
    at, an, ac, ah, aw = x.stride()
    shape = (tasks, channels, *geometry.kernel, n, *geometry.positions())
    return x.as_strided(shape, (at, ac, ah, aw, an, ah * sh, aw * sw)).reshape(
        tasks, channels * shape[2] * shape[3], -1
    )
