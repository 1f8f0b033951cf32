"""innerloop.nets.kernels: convolutions and norms in C++ equal torch's, as do all their derivatives, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradgradcheck

from innerloop.nets import kernels

# images, channels, rows, columns, width, kernel, stride, padding
LAYERS = [
    (3, 1, 9, 8, 20, 3, 2, 1),
    (2, 3, 7, 10, 16, 3, 1, 1),
    (2, 8, 5, 5, 33, 3, 2, 1),
    (1, 20, 6, 4, 13, 3, 3, 0),
    (2, 5, 9, 9, 7, 5, 2, 2),
    (2, 9, 4, 4, 40, 1, 1, 0),
    (2, 11, 3, 3, 17, 1, 2, 0),
    (70, 9, 3, 2, 9, 3, 1, 1),
]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def layer(n: int, channels: int, rows: int, columns: int, width: int, kernel: int) -> tuple[Tensor, Tensor]:
    x, weight = random(n, channels, rows, columns), random(width, channels, kernel, kernel, seed=1)
    return x.requires_grad_(), weight.requires_grad_()


def derivatives(y: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Return y, its gradients and the gradients of these, for random upstream gradients."""
    g = random(*y.shape, seed=2).requires_grad_()
    first = torch.autograd.grad(y, inputs, g, create_graph=True)
    upstream = [random(*t.shape, seed=3 + i) for i, t in enumerate(first)]
    return [y, *first, *torch.autograd.grad(first, [g, *inputs], upstream, allow_unused=True, materialize_grads=True)]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sizes", LAYERS)
def test_a_convolution_and_its_derivatives_are_torchs(sizes: tuple[int, ...]) -> None:
    *shape, stride, padding = sizes
    x, weight = layer(*shape)
    expected = derivatives(F.conv2d(x, weight, stride=stride, padding=padding), [x, weight])
    assert_equal(derivatives(kernels.convolution(x, weight, stride, padding), [x, weight]), expected)


def test_a_weight_of_any_layout_has_a_gradient() -> None:
    x, weight = layer(2, 9, 5, 5, 10, 3)
    turned = weight.detach().permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0).requires_grad_()
    assert turned.stride() != weight.stride()
    expected = derivatives(F.conv2d(x, weight, padding=1), [x, weight])
    assert_equal(derivatives(kernels.convolution(x, turned, 1, 1), [x, turned]), expected)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("size", [(3, 5, 4, 6), (2, 17, 5, 7), (40, 3, 3, 2)])
def test_a_norm_and_its_derivatives_are_torchs(size: tuple[int, ...], relu: bool, pool: bool) -> None:
    x, weight, bias = random(*size), random(size[1], seed=1), random(size[1], seed=2)
    weight[0] = -1.0  # the smallest value of a window is kept
    inputs = [t.requires_grad_() for t in (x, weight, bias)]

    def composed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = F.batch_norm(x, None, None, weight, bias, training=True, eps=1e-3)
        y = F.max_pool2d(y, 2) if pool else y
        return y.relu() if relu else y

    expected = derivatives(composed(*inputs), inputs)
    assert_equal(derivatives(kernels.norm(*inputs, 1e-3, pool, relu), inputs), expected)


def test_equal_values_of_a_window_give_the_gradient_to_the_first() -> None:
    x = torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    x[0, :, 0, 0] = 1
    x.requires_grad_()
    weight, bias = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    y = F.max_pool2d(F.batch_norm(x, None, None, weight, bias, training=True), 2)
    (expected,) = torch.autograd.grad(y[..., 1, 1].sum(), x)
    (found,) = torch.autograd.grad(kernels.norm(x, weight, bias, 1e-5, pool=True)[..., 1, 1].sum(), x)
    torch.testing.assert_close(found, expected)


def test_third_derivatives_are_right() -> None:
    x, weight = layer(2, 3, 4, 4, 3, 3)
    scale, shift = random(3, seed=4).requires_grad_(), random(3, seed=5).requires_grad_()

    def slope(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        y = kernels.norm(kernels.convolution(x, weight, 1, 1), scale, shift, 1e-2, pool=True, relu=True)
        return torch.autograd.grad(y.square().sum(), weight, create_graph=True)[0]

    assert gradgradcheck(slope, (x, weight, scale, shift))


def test_infinity_and_nan_are_kept() -> None:
    x = random(2, 9, 4, 4)
    x[0, 0, 1, 1] = float("nan")
    weight, scale, shift = random(4, 9, 3, 3), torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    y = kernels.convolution(x, weight, 1, 1)
    assert y[0].isnan().any()
    assert not y[1].isnan().any()
    assert kernels.norm(y, scale, shift, 1e-5, relu=True).isnan().all()


def test_long_sums_are_as_accurate_as_torchs() -> None:
    x = (100 + random(64, 4, 40, 40)).to(torch.float32)
    weight, bias = torch.ones(4), torch.zeros(4)
    exact = F.batch_norm(x.double(), None, None, weight.double(), bias.double(), training=True)
    error = (kernels.norm(x, weight, bias, 1e-5) - exact).abs().max()
    assert error < 2 * (F.batch_norm(x, None, None, weight, bias, training=True) - exact).abs().max() + 1e-4
