"""The value and the meta-gradient of a meta-batch as one compiled function."""

import logging
import time
from collections.abc import Callable, Sequence
from types import MethodType

import torch
from torch import Tensor, nn
from torch._inductor.exc import InductorError
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from innerloop.devices.precision import reduced
from innerloop.episodes import Episode, InputError, with_weights

log = logging.getLogger(__name__)

Outputs = dict[str, Tensor]
ValueAndGrad = Callable[[Sequence[Tensor], Episode], tuple[Tensor, Sequence[Tensor], Outputs]]
"""(parameters, stacked tasks) -> the sum of the losses, its gradient, and the outputs stacked over the tasks."""


def compiled(objective: Callable, parameters: Sequence[Tensor], batch: Episode) -> ValueAndGrad:
    """Return the vmapped objective with its gradient, compiled by `torch.compile`.

    The operations of the objective, including inner gradients, are recorded once. So the objective may depend on the
    parameters and the episodes, but on nothing else that changes.

    objective: a method of the module that the parameters belong to. batch: the compiled function is for meta-batches
        that have the shapes of this one.
    Raises InputError if the objective is no such method, if the compiled function has another gradient, or if there is
    no compiler.
    """
    owner = getattr(objective, "__self__", None)
    if not isinstance(owner, nn.Module):
        raise InputError("compile=true: the objective must be a method of the module that the parameters belong to")
    names = {id(p): name for name, p in owner.named_parameters()}
    example, structure = tree_flatten(batch)

    def value_and_grad(values: Sequence[Tensor], tensors: list[Tensor]) -> tuple[Tensor, Sequence[Tensor], Outputs]:
        variables = [value.detach().requires_grad_() for value in values]
        copy = with_weights(owner, {names[id(p)]: v for p, v in zip(parameters, variables, strict=True)})
        function = MethodType(objective.__func__, copy)  # type: ignore[attr-defined]
        losses, outputs = torch.vmap(function)(tree_unflatten(tensors, structure))
        gradient = torch.autograd.grad(losses.sum(), variables, allow_unused=True, materialize_grads=True)
        return losses.detach().sum(), gradient, {name: value.detach() for name, value in outputs.items()}

    begin = time.perf_counter()
    values = [p.detach() for p in parameters]
    fast = torch.compile(make_fx(value_and_grad)(values, example), dynamic=False, fullgraph=True)
    expected_value = torch.vmap(objective)(batch)[0].sum()
    expected_gradient = torch.autograd.grad(expected_value, parameters, allow_unused=True, materialize_grads=True)
    try:
        found = fast(values, example)
    except InductorError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"compile=true needs a working torch.compile, on the CPU with a C++ compiler: {reason}"
        ) from error
    check(found, (expected_value, expected_gradient), ("compile=true", "compile=false"), 5e-2 if reduced() else 1e-3)
    log.info("compiled the meta-step in %.0f s", time.perf_counter() - begin)
    return lambda parameters, batch: fast([p.detach() for p in parameters], tree_flatten(batch)[0])


def check(found: tuple, expected: tuple, settings: tuple[str, str], tolerance: float = 1e-3) -> None:
    """Raise InputError if a recorded function returns another value or gradient than the objective.

    This happens if the objective uses parameters in another way than as parameters of its module, because the recorded
    gradient does not include such uses, or if it depends on something else that changes.

    settings: the setting that recorded the function, and the one that would not have.
    tolerance: relative. In reduced precision it must be larger, because fused operations round in other places.
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
