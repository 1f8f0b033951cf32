"""Functions that are computed a second time for their derivative, instead of being kept in memory until then."""

import contextvars
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]


def recomputed(function: Function, *tensors: Tensor) -> tuple[Tensor, ...]:
    """function(*tensors), which is to depend on nothing else that is differentiated or that varies under vmap.

    Only the tensors are kept for the first derivative, for which the function runs again (Chen et al., 2016); a second
    derivative there is not. Inside the function `torch.func.grad` may take derivatives of its own. Unlike
    `torch.utils.checkpoint`, which has no part in these transforms, it works under `torch.vmap`.
    """
    return _Recomputed.apply(function, contextvars.copy_context(), autocast(), *tensors)


def autocast() -> Callable[[], AbstractContextManager[None]]:
    """A context manager with the autocast modes of here and now, for another time or another thread."""
    modes = [
        (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)) for device in ("cpu", "cuda")
    ]
    cached = torch.is_autocast_cache_enabled()

    @contextmanager
    def same() -> Iterator[None]:
        with ExitStack() as stack:
            for device, dtype, enabled in modes:
                if enabled or torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=cached))
            yield

    return same


class _Recomputed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(function: Function, context: Any, modes: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return function(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.function, ctx.context, ctx.modes, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        tensors, wanted = ctx.saved_tensors, ctx.needs_input_grad[3:]

        def of_wanted(*moving: Tensor) -> tuple[Tensor, ...]:
            rest = iter(moving)
            return ctx.function(*(next(rest) if w else t for t, w in zip(tensors, wanted, strict=True)))

        def pull() -> tuple[Tensor, ...]:
            with ctx.modes():
                moving = [t for t, w in zip(tensors, wanted, strict=True) if w]
                return torch.func.vjp(of_wanted, *moving)[1](upstream)

        found = iter(ctx.context.run(pull))
        return None, None, None, *(next(found) if w else None for w in wanted)
