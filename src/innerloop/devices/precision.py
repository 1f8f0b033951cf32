"""Reduced precision: the possible settings, and the computations that stay in full precision under each of them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

TENSOR_FLOAT = "tf32"
CHOICES = ("32-true", TENSOR_FLOAT, "bf16-mixed", "64-true")
"""Possible values of trainer.precision. bf16-true is excluded because bfloat16 weights round inner steps away, 16-mixed
because float16 gradients vanish in the inner loop, where no gradient scaler acts."""
AUTOCAST = ("cpu", "cuda")
"""The devices that autocast may be enabled on."""


def full(t: Tensor) -> Tensor:
    """Return a half-precision tensor as float32, and any other tensor unchanged."""
    return t.float() if t.dtype in (torch.bfloat16, torch.float16) else t


def tensor_float() -> bool:
    """Return True if GPUs round the factors of float32 products to TensorFloat-32, which has a 10-bit mantissa."""
    return torch.backends.cuda.matmul.fp32_precision == TENSOR_FLOAT


def set_tensor_float(on: bool) -> None:
    """Switch TensorFloat-32 on or off for the whole process, in matrix products and in convolutions.

    torch's own default is on for convolutions only.
    """
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on


def reduced() -> bool:
    """Return True if autocast or TensorFloat-32 is enabled."""
    return tensor_float() or any(map(torch.is_autocast_enabled, AUTOCAST))


def exact(t: Tensor) -> Tensor:
    """Return the tensor in float64 if autocast or TensorFloat-32 is enabled, because neither rounds float64.

    For solvers. Under `torch.vmap` there is no other way to avoid autocast: its state at the call of vmap applies
    inside as well, and changes made inside have no effect.
    """
    return t.double() if reduced() else t


@contextmanager
def full_precision() -> Iterator[None]:
    """Disable autocast and TensorFloat-32 inside. Enter it outside of torch.func transforms: see `exact`."""
    with ExitStack() as stack:
        for device in AUTOCAST:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if tensor_float():
            set_tensor_float(False)
            stack.callback(set_tensor_float, True)
        yield
