"""The CPU's convolution, and norm with max-pool, in derivatives of our own: against torch's, and finite differences."""

import pytest
import torch
import torch.nn.functional as F
from conftest import class_batch, cross_entropy
from test_meta_gradient import close, meta_gradient
from torch import Tensor

from innerloop.learners import MAML
from innerloop.nets import Conv4, channels_last, conv4, fused_pool
from innerloop.nets.fused import fused_layers
from innerloop.nets.norm import BatchNorm, norm_max_pool

EPS = 1e-5


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pooled_inputs(shape: tuple[int, ...], factors: str) -> list[Tensor]:
    weight = normal(shape[1], seed=1).abs() + 0.1
    if factors == "mixed":
        weight[::2] *= -1
    return [normal(*shape).requires_grad_(), weight.requires_grad_(), normal(shape[1], seed=2).requires_grad_()]


def pooled(*given: Tensor) -> Tensor:
    return fused_pool.batch_norm_max_pool(*given, EPS)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("frozen", [None, 0, 1])
def test_convolution_by_finite_differences(stride: int, channels: int, frozen: int | None) -> None:
    given = [normal(2, channels, 5, 4).requires_grad_(), normal(2, channels, 3, 3, seed=1).requires_grad_()]
    if frozen is not None:
        given[frozen].requires_grad_(False)

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return channels_last.conv2d(x, weight, (stride, stride), (1, 1))

    close([ours(*given)], [F.conv2d(*given, stride=stride, padding=1)], tolerance=1e-12)
    assert torch.autograd.gradcheck(ours, given)
    assert torch.autograd.gradgradcheck(ours, given)


def test_results_and_gradients_have_the_layout() -> None:
    x, weight = normal(2, 1, 6, 6).requires_grad_(), normal(4, 1, 3, 3).requires_grad_()
    y = channels_last.conv2d(x, weight, (1, 1), (1, 1))
    (of_y,) = torch.autograd.grad(pooled(y, torch.ones(4).double(), torch.zeros(4).double()).square().sum(), y)
    for tensor in (y, of_y):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert channels_last.channels_last(x).stride() == (36, 1, 6, 1)  # one channel, where torch would change nothing


@pytest.mark.parametrize("shape", [(3, 4, 4, 6), (2, 3, 5, 7), (2, 1, 2, 3)])
@pytest.mark.parametrize("factors", ["positive", "mixed"])
@pytest.mark.parametrize("frozen", [None, 0, 1, 2])
def test_norm_and_pool_by_finite_differences(shape: tuple[int, ...], factors: str, frozen: int | None) -> None:
    given = pooled_inputs(shape, factors)
    if frozen is not None:
        given[frozen].requires_grad_(False)
    close([pooled(*given)], [fused_pool.by_elements(*given, EPS)], tolerance=1e-12)
    assert torch.autograd.gradcheck(pooled, given, eps=1e-7, check_undefined_grad=False)
    assert torch.autograd.gradgradcheck(pooled, given, eps=1e-7, check_undefined_grad=False)


@pytest.mark.parametrize("what", ["convolution", "norm and pool"])
def test_third_derivative(what: str) -> None:
    functions = (pooled, lambda *given: fused_pool.by_elements(*given, EPS))
    given = pooled_inputs((2, 3, 4, 4), "mixed")
    if what == "convolution":
        given = [normal(2, 2, 4, 4).requires_grad_(), normal(3, 2, 3, 3, seed=1).requires_grad_()]
        functions = (
            lambda x, weight: channels_last.conv2d(x, weight, (1, 1), (1, 1)),
            lambda x, weight: F.conv2d(x, weight, padding=1),
        )
    found = []
    for function in functions:
        slopes = tuple(given)
        y = function(*given)
        value = (y**3 * normal(*y.shape, seed=5)).sum()
        for _ in range(3):
            slopes = torch.autograd.grad(value, given, create_graph=True)
            value = sum(((g + g**2) * k).sum() for k, g in enumerate(slopes, 1))
        found.append([g / g.abs().max() for g in slopes])
    close(*found, tolerance=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("engine", ["loop", "threads"])
@pytest.mark.parametrize("only", [None, "head", "body"])
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("downsample", ["stride", "pool"])
def test_meta_gradient_is_that_of_torchs_layers(
    engine: str, only: str | None, checkpoint: bool, downsample: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which the vmap engine has, where nothing is fused."""
    batch, found = class_batch(tasks=2, ways=3, shots=2, queries=2, shape=(3, 17, 17)), []
    used: list[str] = []
    conv2d, norm = channels_last.conv2d, fused_pool.batch_norm_max_pool
    monkeypatch.setattr(conv4, "conv2d", lambda *args: used.append("conv2d") or conv2d(*args))  # type: ignore[func-returns-value]
    monkeypatch.setattr(fused_pool, "batch_norm_max_pool", lambda *args: used.append("pool") or norm(*args))  # type: ignore[func-returns-value]
    for kind in (engine, "vmap"):
        torch.manual_seed(0)
        net = Conv4((3, 17, 17), 3, width=4, downsample=downsample).double()
        with torch.no_grad():
            for p in net.parameters():
                p += 0.3 * torch.randn_like(p)
        steps = {"inner_lr": 0.1, "inner_steps": 2, "only": only, "checkpoint_inner_steps": checkpoint}
        used.clear()
        found.append(meta_gradient(MAML(net, cross_entropy, engine=kind, **steps), batch)[1])
        assert set(used) == (set() if kind == "vmap" else {"conv2d"} | ({"pool"} if downsample == "pool" else set()))
    close(*found, tolerance=1e-10)


def test_mixed_precision_transforms_and_other_norms_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv4, "conv2d", lambda *_: pytest.fail("was used"))
    monkeypatch.setattr(fused_pool, "batch_norm_max_pool", lambda *_: pytest.fail("was used"))
    x = torch.randn(2, 1, 16, 16)
    plain, group = (Conv4((1, 16, 16), 3, 4, "pool", norm=norm) for norm in ("batch", "group"))
    plain(x)
    with fused_layers():
        group(x)
        torch.func.grad(lambda images: plain(images).square().sum())(x)
        with pytest.raises(pytest.fail.Exception):
            plain(x)
    monkeypatch.undo()
    norm, y = BatchNorm(4), torch.randn(2, 4, 6, 6)
    with fused_layers(), torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(plain(x)).all()
        torch.testing.assert_close(norm_max_pool(norm, y.bfloat16()), F.max_pool2d(norm(y.bfloat16()), 2))
