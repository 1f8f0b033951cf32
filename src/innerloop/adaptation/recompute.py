"""Functions that are computed a second time for their derivative, so that their graph need not be kept in memory."""

import contextvars
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from innerloop.devices.random_state import random_state

Function = Callable[..., tuple[Tensor, ...]]


def recomputed(function: Function, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return function(*tensors), keeping only the tensors in memory for the derivative.

    The function runs a second time for the first derivative (Chen et al., 2016), in which it draws the same random
    numbers, such as those of dropout. A second derivative is not supported, but the function itself may take
    derivatives by `torch.func.grad`. It must not depend on anything other than the tensors that is differentiated or
    that varies under vmap. Unlike `torch.utils.checkpoint`, which does not support
    transforms of torch.func, this works under `torch.vmap`.
    """
    return _Recomputed.apply(function, contextvars.copy_context(), (autocast_settings(), random_state()), *tensors)


def autocast_settings() -> Callable[[], AbstractContextManager[None]]:
    """Return a context manager that sets the current autocast modes again, later or in another thread."""
    modes = [
        (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)) for device in ("cpu", "cuda")
    ]
    cached = torch.is_autocast_cache_enabled()

    @contextmanager
    def settings() -> Iterator[None]:
        with ExitStack() as stack:
            for device, dtype, enabled in modes:
                if enabled or torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=cached))
            yield

    return settings


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
        tensors, needed = ctx.saved_tensors, ctx.needs_input_grad[3:]

        def function(*variables: Tensor) -> tuple[Tensor, ...]:
            values = iter(variables)
            return ctx.function(*(next(values) if n else t for t, n in zip(tensors, needed, strict=True)))

        def vjp() -> tuple[Tensor, ...]:
            autocast, random = ctx.modes
            with autocast(), random():
                variables = [t for t, n in zip(tensors, needed, strict=True) if n]
                return torch.func.vjp(function, *variables)[1](upstream)

        gradients = iter(ctx.context.run(vjp))
        return None, None, None, *(next(gradients) if n else None for n in needed)


def thread_settings() -> Callable[[], AbstractContextManager[None]]:
    """Return a context manager that sets this thread's autograd and autocast modes in another thread.

    A new thread starts with torch's defaults.
    """
    gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    autocast = autocast_settings()

    @contextmanager
    def settings() -> Iterator[None]:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients), autocast():
            yield

    return settings
