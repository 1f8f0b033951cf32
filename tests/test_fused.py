"""Batch norm with a second derivative of its own, against torch's, and finite differences."""

import pytest
import torch
import torch.nn.functional as F
from conftest import class_batch, cross_entropy
from test_meta_gradient import close, meta_gradient
from torch import Tensor

from innerloop.adaptation.gradient import gradient_of
from innerloop.learners import MAML
from innerloop.nets import Conv4, fused
from innerloop.nets.fused import fused_layers
from innerloop.nets.norm import BatchNorm


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return fused.batch_norm(x, weight, bias, 1e-5)


def inputs(shape: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    sizes = [shape, shape[1:2], shape[1:2]]
    return [torch.randn(size, dtype=torch.float64).requires_grad_() for size in sizes]


@pytest.mark.parametrize("shape", [(3, 4, 2, 3), (5, 2), (3, 2, 4), (2, 1, 1, 3)])
@pytest.mark.parametrize("frozen", [None, 0, 1, 2])
def test_first_and_second_derivative_by_finite_differences(shape: tuple[int, ...], frozen: int | None) -> None:
    given = inputs(shape)
    if frozen is not None:
        given[frozen].requires_grad_(False)
    torch.testing.assert_close(norm(*given), F.batch_norm(given[0], None, None, *given[1:], training=True))
    assert torch.autograd.gradcheck(norm, given, check_undefined_grad=False)
    assert torch.autograd.gradgradcheck(norm, given, check_undefined_grad=False)


def test_a_weight_of_zero_and_other_layouts() -> None:
    x, weight, bias = inputs((2, 3, 4, 4))
    with torch.no_grad():
        weight[1] = 0
    last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    for given in ([x, weight, bias], [last, weight, bias]):
        assert torch.autograd.gradgradcheck(norm, given, check_undefined_grad=False)


def test_third_derivative_is_that_of_finite_differences() -> None:
    """Torch's own is wrong: its second derivative takes the mean and the deviation to be constants."""
    given = inputs((3, 2, 2, 2))

    def slopes(*given: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((norm(*given) ** 3).sum(), given, create_graph=True)

    assert torch.autograd.gradgradcheck(slopes, given, check_undefined_grad=False)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("engine", ["loop", "threads"])
@pytest.mark.parametrize("downsample", ["stride", "pool"])
def test_meta_gradient_is_the_elementary_norms(engine: str, downsample: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the vmap engine has, where nothing is fused."""
    batch, found = class_batch(tasks=2, ways=3, shots=2, queries=2, shape=(1, 17, 17)), []
    used: list[Tensor] = []
    batch_norm = fused.batch_norm
    monkeypatch.setattr(fused, "WORTHWHILE", 0)
    monkeypatch.setattr(fused, "batch_norm", lambda *args: used.append(args[0]) or batch_norm(*args))  # type: ignore[func-returns-value]
    for kind in (engine, "vmap"):
        torch.manual_seed(0)
        net = Conv4((1, 17, 17), 3, width=4, downsample=downsample).double()
        learner = MAML(net, cross_entropy, inner_lr=0.1, inner_steps=2, engine=kind)
        used.clear()
        found.append(meta_gradient(learner, batch)[1])
        assert bool(used) == (kind != "vmap")
    close(*found, tolerance=1e-10)


def test_small_inputs_mixed_types_and_transforms_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "batch_norm", lambda *_: pytest.fail("was used"))
    layer = BatchNorm(2)
    with fused_layers():
        layer(torch.randn(3, 2, 4, 4))
        assert not fused.worthwhile(torch.randn(8, 2, 64, 64, dtype=torch.bfloat16), layer.weight)
        torch.func.grad(lambda x: layer(x).square().sum())(torch.randn(8, 2, 64, 64))
        with pytest.raises(pytest.fail.Exception):
            layer(torch.randn(8, 2, 64, 64))


# The gradient of the inner loop, which outside of transforms is autograd's own.


@pytest.mark.parametrize("graph", [True, False])
def test_gradient_inside_and_outside_of_transforms_is_one(graph: bool) -> None:
    w = {"a": torch.tensor([0.3, -0.8], requires_grad=True), "unused": torch.ones(2, requires_grad=True)}

    def objective(at: dict[str, Tensor]) -> Tensor:
        return (at["a"] ** 3).sum() * w["a"].sum()  # and what is not of these weights is a constant

    def inside(a: Tensor) -> Tensor:
        return gradient_of(objective, w | {"a": a})["a"]

    with torch.set_grad_enabled(graph):
        outside = gradient_of(objective, w)
        transformed = torch.vmap(inside)(w["a"][None])[0]
    torch.testing.assert_close(outside["a"], transformed)
    assert outside["unused"].tolist() == [0, 0]
    assert outside["a"].requires_grad == graph
    if graph:
        close(*(torch.autograd.grad(g.sum(), w["a"]) for g in (outside["a"], transformed)))
    assert not gradient_of(objective, w, again=False)["a"].requires_grad
