"""Norm and max-pool in one, with derivatives of their own, against torch's and finite differences; their layout."""

import pytest
import torch
import torch.nn.functional as F
from conftest import class_batch, cross_entropy
from test_meta_gradient import close, meta_gradient
from torch import Tensor

from innerloop.learners import MAML
from innerloop.nets import Conv4, fused_pool
from innerloop.nets.fused import channels_last, fused_layers
from innerloop.nets.norm import BatchNorm, norm_max_pool

EPS = 1e-5
POOLED = fused_pool.batch_norm_max_pool


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pooled_inputs(shape: tuple[int, ...], factors: str) -> list[Tensor]:
    weight = normal(shape[1], seed=1).abs() + 0.1
    if factors == "mixed":
        weight[::2] *= -1
    return [normal(*shape).requires_grad_(), weight.requires_grad_(), normal(shape[1], seed=2).requires_grad_()]


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What was normalised and pooled in one, which is worthwhile for any input."""
    used: list[Tensor] = []
    function = fused_pool.batch_norm_max_pool
    monkeypatch.setattr(fused_pool, "WORTHWHILE", 0)
    monkeypatch.setattr(fused_pool, "batch_norm_max_pool", lambda *args: used.append(args[0]) or function(*args))  # type: ignore[func-returns-value]
    return used


def pooled(*given: Tensor) -> Tensor:
    return POOLED(*given, EPS)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_layout_is_handed_on(channels: int, pools: list[Tensor]) -> None:
    images, net = torch.randn(2, channels, 16, 16, requires_grad=True), Conv4((channels, 16, 16), 3, 4, "pool")
    assert channels_last(images).stride() == (256 * channels, 1, 16 * channels, channels)
    with fused_layers():
        net(images)
    given = pools[0]
    (of_pool,) = torch.autograd.grad(pooled(given, torch.ones(4), torch.zeros(4)).square().sum(), given)
    for tensor in (given, of_pool):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert not tensor.is_contiguous()


@pytest.mark.parametrize("shape", [(3, 4, 4, 6), (2, 3, 5, 7), (2, 1, 2, 3)])
@pytest.mark.parametrize("factors", ["positive", "mixed"])
@pytest.mark.parametrize("frozen", [None, 0, 1, 2])
def test_norm_and_pool_by_finite_differences(shape: tuple[int, ...], factors: str, frozen: int | None) -> None:
    given = pooled_inputs(shape, factors)
    if frozen is not None:
        given[frozen].requires_grad_(False)
    close([pooled(*given)], [fused_pool.norm_then_pool(*given, EPS)], tolerance=1e-12)
    assert torch.autograd.gradcheck(pooled, given, eps=1e-7, check_undefined_grad=False)
    assert torch.autograd.gradgradcheck(pooled, given, eps=1e-7, check_undefined_grad=False)


def test_third_derivative() -> None:
    functions = (pooled, lambda *given: fused_pool.norm_then_pool(*given, EPS))
    given = pooled_inputs((2, 3, 4, 4), "mixed")
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
    engine: str, only: str | None, checkpoint: bool, downsample: str, pools: list[Tensor]
) -> None:
    """Which the vmap engine has, where nothing is fused."""
    batch, found = class_batch(tasks=2, ways=3, shots=2, queries=2, shape=(3, 17, 17)), []
    for kind in (engine, "vmap"):
        torch.manual_seed(0)
        net = Conv4((3, 17, 17), 3, width=4, downsample=downsample).double()
        with torch.no_grad():
            for p in net.parameters():
                p += 0.3 * torch.randn_like(p)
        steps = {"inner_lr": 0.1, "inner_steps": 2, "only": only, "checkpoint_inner_steps": checkpoint}
        pools.clear()
        found.append(meta_gradient(MAML(net, cross_entropy, engine=kind, **steps), batch)[1])
        assert bool(pools) == (kind != "vmap" and downsample == "pool")
    close(*found, tolerance=1e-10)


def test_small_inputs_transforms_and_other_norms_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_pool, "batch_norm_max_pool", lambda *_: pytest.fail("was used"))
    x = torch.randn(32, 1, 64, 64)
    plain, group = (Conv4((1, 64, 64), 3, 4, "pool", norm=norm) for norm in ("batch", "group"))
    plain(x)
    with fused_layers():
        plain(x[:2])
        group(x)
        torch.func.grad(lambda images: plain(images).square().sum())(x)
        with pytest.raises(pytest.fail.Exception):
            plain(x)


@pytest.mark.usefixtures("pools")
def test_a_half_precision_input_is_normalised_in_float32() -> None:
    norm, x = BatchNorm(4), torch.randn(2, 4, 6, 6).bfloat16()
    with fused_layers():
        torch.testing.assert_close(norm_max_pool(norm, x), F.max_pool2d(norm(x.float()), 2))
