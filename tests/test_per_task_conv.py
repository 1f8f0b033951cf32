"""Convolutions with a task's own weights: torch's numbers, in every derivative, under vmap and outside."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conftest import class_batch, cross_entropy
from test_meta_gradient import close
from torch import Tensor

from innerloop.learners import MAML
from innerloop.nets import Conv2d, Conv4, per_task_conv
from innerloop.nets.per_task_conv import per_task

pytestmark = pytest.mark.usefixtures("float64")

GEOMETRIES = [
    (3, (1, 1), (1, 1), 7, 6),
    (3, (2, 2), (1, 1), 7, 8),
    (3, (1, 1), (0, 0), 5, 5),
    (1, (2, 2), (0, 0), 6, 5),  # the last rows are not read
    (5, (3, 2), (2, 1), 9, 8),
]
geometries = pytest.mark.parametrize(("kernel", "stride", "padding", "height", "width"), GEOMETRIES)


@geometries
def test_one_convolution_and_its_derivatives(
    kernel: int, stride: tuple[int, int], padding: tuple[int, int], height: int, width: int
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, height, width, requires_grad=True)
    weight = torch.randn(4, 3, kernel, kernel, requires_grad=True)

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return per_task(x, weight, stride, padding)

    torch.testing.assert_close(function(x, weight), F.conv2d(x, weight, stride=stride, padding=padding))
    assert torch.autograd.gradcheck(function, (x, weight))
    assert torch.autograd.gradgradcheck(function, (x, weight))


@geometries
@pytest.mark.parametrize("in_dims", [(0, 0), (None, 0), (0, None)])
def test_inner_steps_of_many_tasks(
    kernel: int, stride: tuple[int, int], padding: tuple[int, int], height: int, width: int, in_dims: tuple
) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(3, 2, 3, height, width), torch.randn(3, 4, 3, kernel, kernel)
    x, w = (t if dim == 0 else t[0] for t, dim in zip((x, w), in_dims, strict=True))

    def gradients(convolution: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        def task(x: Tensor, w: Tensor) -> Tensor:
            def loss(w: Tensor) -> Tensor:
                return convolution(x, w).tanh().square().mean()

            for _ in range(2):
                w = w - 0.5 * torch.func.grad(loss)(w)
            return loss(w)

        variables = x.clone().requires_grad_(), w.clone().requires_grad_()
        value = torch.vmap(task, in_dims)(*variables).sum()
        return value, *torch.autograd.grad(value, variables)

    found = gradients(lambda x, w: per_task(x, w, stride, padding))
    close(found, gradients(lambda x, w: F.conv2d(x, w, stride=stride, padding=padding)))


@pytest.mark.parametrize("downsample", ["stride", "pool"])
def test_a_learner_with_them(downsample: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, found, used = class_batch(tasks=3, ways=3, shots=2, queries=2), [], []
    right = per_task_conv.per_task
    monkeypatch.setattr(per_task_conv, "per_task", lambda *a: used.append(1) or right(*a))
    for on_gpu in (False, True):
        torch.manual_seed(0)
        learner = MAML(Conv4((1, 17, 17), 3, width=4, downsample=downsample), cross_entropy, engine="vmap")
        monkeypatch.setattr(per_task_conv, "worthwhile", lambda x, on_gpu=on_gpu: on_gpu)
        value, gradient, _ = learner.engine.value_and_grad(learner.query_objective, list(learner.parameters()), batch)
        found.append([value, *gradient])
        assert bool(used) is on_gpu
    close(*found)


def test_only_plain_convolutions_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(per_task_conv, "worthwhile", lambda x: True)
    monkeypatch.setattr(per_task_conv, "per_task", lambda *a: pytest.fail("not for this one"))
    x = torch.randn(2, 1, 4, 8, 8)
    for other in ({"groups": 2}, {"dilation": 2}, {"padding_mode": "circular", "padding": 1}, {"padding": "same"}):
        module = Conv2d(4, 4, 3, **other)  # type: ignore[arg-type]
        assert torch.vmap(module)(x).shape[0] == 2
