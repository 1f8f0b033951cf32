"""The value and the meta-gradient of a meta-batch as one compiled function."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch import _inductor as inductor
from torch._inductor.exc import InductorError
from torch.fx.experimental.proxy_tensor import make_fx

from innerloop.adaptation.native import native
from innerloop.adaptation.program import Unsupported
from innerloop.devices.compiler import CompilerError
from innerloop.devices.precision import reduced
from innerloop.episodes import Episode, InputError, Samples, tasks_of, with_weights
from innerloop.nets.fused import fused_layers

log = logging.getLogger(__name__)

Outputs = dict[str, Tensor]
ValueAndGrad = Callable[[Sequence[Tensor], Episode], tuple[Tensor, Sequence[Tensor], Outputs]]
"""(parameters, stacked tasks) -> the losses' sum over `count`, its gradient, and the outputs stacked over the tasks."""

SETTINGS = ("compile=true", "compile=false")
"""What a message on a compiled function calls it, and what to use instead."""

aten = torch.ops.aten


def compiled(
    objective: Callable,
    parameters: Sequence[Tensor],
    batch: Episode,
    count: int,
    small: bool = False,
    images: bool = False,
) -> ValueAndGrad:
    """Return the objective of each task with the gradient of their mean, compiled.

    The operations of the objective, including inner gradients, are recorded once. So the objective may depend on the
    parameters and the episodes, but on nothing else that changes. What is small and simple is compiled as it is for
    one task, see `native`, and all else by TorchInductor for the stacked tasks. Every call is for the same shapes and
    devices: `torch.compile` would test this anew at each call.

    objective: a method of the module that the parameters belong to. batch: the compiled function is for meta-batches
        that have the shapes of this one. count: divides the sum of the losses. small: only what is small and simple.
    images: the net has convolutions. On the CPU it is compiled for one task, with `innerloop.nets.kernels`, or not at
        all.
    Raises InputError if the objective is no such method, if the compiled function has another gradient, if there is no
    compiler, and with `small` if TorchInductor would be needed, which takes a minute.
    """
    owner = getattr(objective, "__self__", None)
    if not isinstance(owner, nn.Module):
        raise InputError("compile=true: the objective must be a method of the module that the parameters belong to")
    names = {id(p): name for name, p in owner.named_parameters()}
    names_of_outputs: list[str] = []

    def value_and_grad(*tensors: Tensor, over: Callable = torch.vmap) -> tuple[Tensor, ...]:
        variables = [value.detach().requires_grad_() for value in tensors[: len(parameters)]]
        copy = with_weights(owner, {names[id(p)]: v for p, v in zip(parameters, variables, strict=True)})
        function = MethodType(objective.__func__, copy)  # type: ignore[attr-defined]
        losses, outputs = over(function)(Episode(Samples(*tensors[-4:-2]), Samples(*tensors[-2:])))
        mean = losses.sum() / count
        gradient = torch.autograd.grad(mean, variables, allow_unused=True, materialize_grads=True)
        names_of_outputs[:] = outputs
        return mean.detach(), *gradient, *(value.detach() for value in outputs.values())

    begin = time.perf_counter()
    values, data = [p.detach() for p in parameters], [*batch.support, *batch.query]
    expected = _eager(objective, parameters, batch, count, images)
    try:
        fast = _compiled(value_and_grad, values, data, small, images)
        found = fast(*values, *data)
    except (InductorError, CompilerError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"compile=true needs a working torch.compile, on the CPU with a C++ compiler: {reason}"
        ) from error
    # In reduced precision, fused operations round in other places. Of images, a max-pool may take another of two values
    # that are equal but for rounding.
    tolerance = 5e-2 if reduced() or images else 1e-3
    check((found[0], found[1 : 1 + len(values)]), expected, SETTINGS, tolerance)
    log.info("compiled the meta-step in %.0f s", time.perf_counter() - begin)

    def run(parameters: Sequence[Tensor], batch: Episode) -> tuple[Tensor, Sequence[Tensor], Outputs]:
        value, *others = fast(*(p.detach() for p in parameters), *batch.support, *batch.query)
        return value, others[: len(parameters)], dict(zip(names_of_outputs, others[len(parameters) :], strict=True))

    return run


def _eager(
    objective: Callable, parameters: Sequence[Tensor], batch: Episode, count: int, images: bool
) -> tuple[Tensor, list[Tensor]]:
    """Return the sum of the losses over count, and its gradient: of images task by task, else under vmap."""
    run, chunks = (objective, tasks_of(batch)) if images else (torch.vmap(objective), [batch])
    found = []
    for chunk in chunks:
        with fused_layers() if images else nullcontext():
            value = run(chunk)[0].sum() / count
        parts = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
        found.append([value.detach(), *parts])
    value, *gradient = (sum(parts[1:], parts[0]) for parts in zip(*found, strict=True))
    return value, gradient


def _compiled(
    value_and_grad: Callable, values: list[Tensor], data: list[Tensor], small: bool, images: bool
) -> Callable[..., Sequence[Tensor]]:
    """Return the compiled function of these tensors: of one task in C++ if it is small and simple, else stacked."""

    def of_a_task(*tensors: Tensor) -> tuple[Tensor, ...]:
        with fused_layers(kernels=True) if images else nullcontext():
            found = value_and_grad(*tensors, over=lambda function: function)
        if len(found) > 1 + len(values):
            raise Unsupported("outputs of each task")
        return found

    try:
        return native(of_a_task, values, data, images)
    except Unsupported as error:
        if images:
            raise InputError(f"compile=true cannot translate this learner ({error}): use compile=false") from None
        if small:
            raise InputError(f"it is not small and simple ({error}): algo.compile=true takes a minute for it") from None
        log.debug("compiled by TorchInductor: %s", error)
    tensors: list[Any] = [*values, *data]
    return inductor.compile(make_fx(value_and_grad, decomposition_table=THIN_PRODUCTS)(*tensors), tensors)


def thin_product(a: Tensor, b: Tensor) -> Tensor:
    """Return the matrix product if one of its three sizes is 1 and it runs on the CPU, else NotImplemented.

    As products and sums of entries it is fused with the operations around it, which takes less time than a call of the
    library for matrix products.
    """
    if a.device.type == "cpu":
        if a.shape[-1] == 1:
            return a * b
        if b.shape[-1] == 1:
            return (a * b.mT).sum(-1, keepdim=True)
        if a.shape[-2] == 1:
            return (a.mT * b).sum(-2, keepdim=True)
    return NotImplemented


THIN_PRODUCTS = {aten.mm.default: thin_product, aten.bmm.default: thin_product}


def check(found: tuple, expected: tuple, settings: tuple[str, str], tolerance: float = 1e-3) -> None:
    """Raise InputError if a recorded function returns another value or gradient than the objective.

    This happens if the objective uses parameters in another way than as parameters of its module, because the recorded
    gradient does not include such uses, or if it depends on something else that changes.

    settings: the setting that recorded the function, and the one that would not have.
    tolerance: relative, of the gradient's norm.
    """
    value, gradient, *_ = found
    expected_value, expected_gradient, *_ = expected
    this, other = settings
    size = torch.nn.utils.get_total_norm(expected_gradient)
    error = torch.nn.utils.get_total_norm([g - e for g, e in zip(gradient, expected_gradient, strict=True)])
    if not torch.allclose(value, expected_value, rtol=tolerance, atol=1e-5) or error > tolerance * size + 1e-6:
        raise InputError(
            f"{this} changes the loss or its gradient (which has norm {size:.2g} and is off by {error:.2g}): "
            f"use {other}"
        )
