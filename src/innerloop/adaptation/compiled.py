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
    """`torch.compile` of the vmapped objective and its gradient, for meta-batches of this one's shapes.

    The objective is a method of a module whose parameters these are. What it does is recorded once, operation by
    operation, inner gradients and all: so it may depend on parameters and episodes, and on nothing else that changes.
    Raises InputError if it is no method, if what was recorded has another gradient, or without a compiler.
    """
    owner = getattr(objective, "__self__", None)
    if not isinstance(owner, nn.Module):
        raise InputError("compile=true: the objective must be a method of the module that the parameters belong to")
    names = {id(p): name for name, p in owner.named_parameters()}
    leaves, structure = tree_flatten(batch)

    def value_and_grad(values: Sequence[Tensor], tensors: list[Tensor]) -> tuple[Tensor, Sequence[Tensor], Outputs]:
        given = [value.detach().requires_grad_() for value in values]
        twin = with_weights(owner, {names[id(p)]: g for p, g in zip(parameters, given, strict=True)})
        function = MethodType(objective.__func__, twin)  # type: ignore[attr-defined]
        losses, outputs = torch.vmap(function)(tree_unflatten(tensors, structure))
        gradient = torch.autograd.grad(losses.sum(), given, allow_unused=True, materialize_grads=True)
        return losses.detach().sum(), gradient, {name: value.detach() for name, value in outputs.items()}

    begin = time.perf_counter()
    values = [p.detach() for p in parameters]
    fast = torch.compile(make_fx(value_and_grad)(values, leaves), dynamic=False, fullgraph=True)
    losses = torch.vmap(objective)(batch)[0].sum()
    slope = torch.autograd.grad(losses, parameters, allow_unused=True, materialize_grads=True)
    try:
        found = fast(values, leaves)
    except InductorError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"compile=true needs what torch.compile needs, on the CPU a C++ compiler: {reason}") from error
    check(found, (losses, slope), 5e-2 if reduced() else 1e-3)
    log.info("compiled the meta-step in %.0f s", time.perf_counter() - begin)
    return lambda parameters, batch: fast([p.detach() for p in parameters], tree_flatten(batch)[0])


def check(found: tuple, expected: tuple, tolerance: float = 1e-3) -> None:
    """InputError if the recorded function is not the objective: that depends on parameters in a way of its own.

    tolerance: relative; more under autocast, which rounds where operations are fused in another way.
    """
    value, gradient, _ = found
    wanted, slope = expected
    size = torch.nn.utils.get_total_norm(slope)
    error = torch.nn.utils.get_total_norm([g - s for g, s in zip(gradient, slope, strict=True)])
    if not torch.allclose(value, wanted, rtol=tolerance, atol=1e-5) or error > tolerance * size + 1e-6:
        raise InputError(
            f"compile=true gives the gradient another value (it is off by {error:.2g} of {size:.2g}): use compile=false"
        )
