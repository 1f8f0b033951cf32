"""Our own kernels for images on the CPU, compiled for this machine: convolutions, and norms with max-pool and ReLU.

A convolution's first and second derivatives are made of three products, and a norm's second derivative, for which torch
composes dozens of operations, is one function. Third derivatives are torch's. Each call runs on the thread that makes
it. Images have channels last. As operations of torch they can be recorded: see `innerloop.adaptation.native`, which
calls them from C++. From Python they are slower than that.
"""

import ctypes
import functools
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.nn.grad import conv2d_input, conv2d_weight

from innerloop.devices.compiler import library
from innerloop.nets.fused import channels_last, composed_norm, second_derivative_by_torch

DTYPES = {torch.float32: "float", torch.float64: "double"}
SOURCES = ("convolution.cpp", "norm.cpp")


def sources() -> list[str]:
    """Return the kernels in C++, for a type T that must be defined before."""
    return [files(__name__).joinpath(name).read_text() for name in SOURCES]


@functools.cache
def compiled(dtype: torch.dtype) -> ctypes.CDLL:
    """Return the kernels for one of DTYPES, compiled at the first call. Raises CompilerError."""
    found = library("\n".join([f"typedef {DTYPES[dtype]} T;", *sources()]), level=3)
    pointer = ctypes.c_void_p
    for product in (found.convolution, found.convolution_input, found.convolution_weight):
        product.argtypes, product.restype = [pointer] * 4, None
    found.norm.argtypes = [pointer] * 6 + [ctypes.c_double, pointer]
    found.norm_backward.argtypes, found.norm_second.argtypes = [pointer] * 10, [pointer] * 15
    for function in (found.norm, found.norm_backward, found.norm_second):
        function.restype = None
    return found


def convolution(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Return `torch.nn.functional.conv2d`. x: (n, channels, h, w), weight: (width, channels, kh, kw)."""
    return _Convolution.apply(channels_last(x), weight, stride, padding)


def norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, pool: bool = False, relu: bool = False) -> Tensor:
    """Return the batch norm of x by its own statistics, then its 2x2 max-pool with `pool`, then its ReLU with `relu`.

    Where values of a window are equal, the gradient goes to the first. x: (n, channels, height, width).
    """
    return _Norm.apply(channels_last(x), weight.contiguous(), bias.contiguous(), eps, pool, relu)


def _images(like: Tensor, n: int, channels: int, height: int, width: int) -> Tensor:
    """Return new memory for images, (n, channels, height, width) with channels last."""
    return like.new_empty((n, height, width, channels)).permute(0, 3, 1, 2)


def _output(x: Tensor, weight: Tensor, stride: int, padding: int) -> tuple[int, int, int, int]:
    """Return the shape of a convolution's output."""
    rows, columns = ((n + 2 * padding - k) // stride + 1 for n, k in zip(x.shape[2:], weight.shape[2:], strict=True))
    return len(x), len(weight), rows, columns


def _geometry(x: Tensor, weight: Tensor, y: Tensor, stride: int, padding: int) -> list[int]:
    n, channels, rows, columns = x.shape
    _, width, *size = y.shape
    return [n, rows, columns, channels, *size, width, *weight.shape[2:], stride, padding, *weight.stride()]


def call(
    operation: Any, inputs: Sequence[Tensor], results: Sequence[Tensor], numbers: Sequence[Any]
) -> tuple[str, list[float], list[int]]:
    """Return the name in C++ of one of OPERATIONS, which further numbers it takes, and its geometry.

    inputs, numbers: the operation's arguments, and `results` what it returns.
    """
    if operation in (norm_forward, norm_backward, norm_second):
        *others, pool, relu = numbers
        x = inputs[{norm_forward: 0, norm_backward: 1, norm_second: 4}[operation]]
        n, channels, rows, columns = x.shape
        return operation._name.removeprefix("innerloop::"), others, [n, rows, columns, channels, pool, relu]
    a, b, (c,) = *inputs, results
    x, weight, y = {of_input: (a, b, c), to_input: (c, b, a), to_weight: (a, c, b)}[operation]
    return operation._name.removeprefix("innerloop::"), [], _geometry(x, weight, y, *numbers[-2:])


def _run(operation: Any, inputs: Sequence[Tensor], results: Sequence[Tensor], *numbers: Any) -> None:
    name, others, geometry = call(operation, inputs, results, numbers)
    memory = (ctypes.c_int64 * len(geometry))(*geometry)
    pointers = [t.data_ptr() for t in (*inputs, *results)]
    getattr(compiled(inputs[0].dtype), name)(*pointers, *others, ctypes.addressof(memory))


@torch.library.custom_op("innerloop::convolution", mutates_args=())
def of_input(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """The convolution. x and the result have channels last, as in all operations here."""
    y = _images(x, *_output(x, weight, stride, padding))
    _run(of_input, [x, weight], [y], stride, padding)
    return y


@torch.library.custom_op("innerloop::convolution_input", mutates_args=())
def to_input(y: Tensor, weight: Tensor, rows: int, columns: int, stride: int, padding: int) -> Tensor:
    """The transpose of the convolution with respect to its input, which has these rows and columns."""
    x = _images(y, len(y), weight.shape[1], rows, columns)
    _run(to_input, [y, weight], [x], stride, padding)
    return x


@torch.library.custom_op("innerloop::convolution_weight", mutates_args=())
def to_weight(x: Tensor, y: Tensor, height: int, width: int, stride: int, padding: int) -> Tensor:
    """The transpose of the convolution with respect to its weight, which has this height and width."""
    weight = x.new_empty(y.shape[1], x.shape[1], height, width)
    _run(to_weight, [x, y], [weight], stride, padding)
    return weight


@torch.library.custom_op("innerloop::norm", mutates_args=())
def norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, pool: bool, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The norm with its pool and ReLU, and the mean and the inverse deviation of each channel."""
    halves = 2 if pool else 1
    n, channels, rows, columns = x.shape
    y = _images(x, n, channels, rows // halves, columns // halves)
    mean, r = torch.empty_like(weight), torch.empty_like(weight)
    _run(norm_forward, [x, weight, bias], [y, mean, r], eps, pool, relu)
    return y, mean, r


@torch.library.custom_op("innerloop::norm_backward", mutates_args=())
def norm_backward(
    g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, r: Tensor, pool: bool, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias."""
    found = _images(x, *x.shape), torch.empty_like(weight), torch.empty_like(weight)
    _run(norm_backward, [g, x, weight, bias, mean, r], found, pool, relu)
    return found


@torch.library.custom_op("innerloop::norm_second", mutates_args=())
def norm_second(
    v: Tensor,
    a: Tensor,
    b: Tensor,
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    r: Tensor,
    gx_sum: Tensor,
    g_sum: Tensor,
    pool: bool,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of <v, of_x> + <a, of_weight> + <b, of_bias> with respect to g, x and weight."""
    found = _images(g, *g.shape), _images(x, *x.shape), torch.empty_like(weight)
    _run(norm_second, [v, a, b, g, x, weight, bias, mean, r, gx_sum, g_sum], found, pool, relu)
    return found


OPERATIONS = (of_input, to_input, to_weight, norm_forward, norm_backward, norm_second)


class _Convolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.settings = stride, padding
        return of_input(x, weight, stride, padding)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        of_x, of_weight, *_ = ctx.needs_input_grad
        found = _ConvolutionGradient.apply(channels_last(g), *ctx.saved_tensors, *ctx.settings, of_x, of_weight)
        return *found, None, None


class _ConvolutionGradient(Function):
    """The gradients of x and weight, those that are wanted, as a differentiable function of g, x and weight."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, of_x: bool, of_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(g, x, weight)
        ctx.settings = stride, padding
        ctx.set_materialize_grads(False)
        return (
            to_input(g, weight, *x.shape[2:], stride, padding) if of_x else None,
            to_weight(x, g, *weight.shape[2:], stride, padding) if of_weight else None,
        )

    @staticmethod
    def backward(ctx: Any, v: Tensor | None, u: Tensor | None) -> tuple[Tensor | None, ...]:
        # v and u are the upstream gradients of the two gradients. This returns the gradient of
        # <v, to_input(g, weight)> + <u, to_weight(x, g)> = <g, of_input(v, weight) + of_input(x, u)>.
        g, x, weight = ctx.saved_tensors
        for_g, for_x, for_weight, *_ = ctx.needs_input_grad
        if torch.is_grad_enabled():  # a third derivative will be taken
            return *_second_by_torch(g, x, weight, v, u, *ctx.settings), *[None] * 4
        of_g = of_x = of_weight = None
        if v is not None:
            v = channels_last(v)
            of_g = of_input(v, weight, *ctx.settings) if for_g else None
            of_weight = to_weight(v, g, *weight.shape[2:], *ctx.settings) if for_weight else None
        if u is not None:
            of_u = of_input(x, u, *ctx.settings) if for_g else None
            of_g = of_u if of_g is None else of_g + of_u
            of_x = to_input(g, u, *x.shape[2:], *ctx.settings) if for_x else None
        return of_g, of_x, of_weight, *[None] * 4


def _second_by_torch(
    g: Tensor, x: Tensor, weight: Tensor, v: Tensor | None, u: Tensor | None, stride: int, padding: int
) -> tuple[Tensor | None, ...]:
    of_g = of_x = of_weight = None
    if v is not None:
        of_g = F.conv2d(v, weight, stride=stride, padding=padding)
        of_weight = conv2d_weight(v, weight.shape, g, stride, padding)
    if u is not None:
        of_u = F.conv2d(x, u, stride=stride, padding=padding)
        of_g = of_u if of_g is None else of_g + of_u
        of_x = conv2d_input(x.shape, u, g, stride, padding)
    return of_g, of_x, of_weight


class _Norm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, pool: bool, relu: bool) -> Tensor:
        y, mean, r = norm_forward(x, weight, bias, eps, pool, relu)
        ctx.save_for_backward(x, weight, bias, mean, r)
        ctx.settings = eps, pool, relu
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return *_NormGradient.apply(channels_last(g), *ctx.saved_tensors, *ctx.settings), *[None] * 3


class _NormGradient(Function):
    """The gradients of x, weight and bias, as a differentiable function of g, x and weight."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
        *tensors, eps, pool, relu = others
        found = norm_backward(g, *tensors, pool, relu)
        ctx.save_for_backward(g, *tensors, *found[1:])
        ctx.settings = eps, pool, relu
        return found

    @staticmethod
    def backward(ctx: Any, v: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor | None, ...]:
        eps, pool, relu = ctx.settings
        g, x, weight, bias, *_ = ctx.saved_tensors
        if torch.is_grad_enabled():  # a third derivative will be taken

            def composed(x: Tensor, weight: Tensor, zero: Tensor, eps: float) -> Tensor:
                y = composed_norm(x, weight, bias + zero, eps)
                y = F.max_pool2d(y, 2) if pool else y
                return y.relu() if relu else y

            return *second_derivative_by_torch(composed, (g, x, weight), (v, a, b), eps), *[None] * 6
        found = norm_second(channels_last(v), a.contiguous(), b.contiguous(), *ctx.saved_tensors, pool, relu)
        return *found, *[None] * 6
