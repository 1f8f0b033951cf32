"""Reduced precision: what it may be, and what is computed in full precision whatever is set around it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

TENSOR_FLOAT = "tf32"
CHOICES = ("32-true", TENSOR_FLOAT, "bf16-mixed", "64-true")
"""What trainer.precision may be. Not bf16-true: inner steps are lost in the last digit of bfloat16 weights. Nor
16-mixed: float16's gradients vanish in the inner loop, where no scaler sees them."""
AUTOCAST = ("cpu", "cuda")
"""The devices on which autocast may be at work."""


def full(t: Tensor) -> Tensor:
    """A tensor in half precision as float32; any other as it is."""
    return t.float() if t.dtype in (torch.bfloat16, torch.float16) else t


def tensor_float() -> bool:
    """Whether GPUs round the factors of float32 products to TensorFloat-32's 10 bits behind the point."""
    return torch.backends.cuda.matmul.fp32_precision == TENSOR_FLOAT


def set_tensor_float(on: bool) -> None:
    """Of matrix products and convolutions alike, in the whole process. torch's own default is the latter only."""
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on


def reduced() -> bool:
    """Whether autocast or TensorFloat-32 is at work."""
    return tensor_float() or any(map(torch.is_autocast_enabled, AUTOCAST))


def exact(t: Tensor) -> Tensor:
    """What neither autocast nor TensorFloat-32 rounds, float64, where one is at work; elsewhere the tensor as it is.

    For solvers. Under `torch.vmap` nothing else keeps autocast away: there it is that of where the vmap began, whatever
    is said inside.
    """
    return t.double() if reduced() else t


@contextmanager
def full_precision() -> Iterator[None]:
    """Inside, there is neither autocast nor TensorFloat-32. To be entered outside of transforms, see `exact`."""
    with ExitStack() as stack:
        for device in AUTOCAST:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if tensor_float():
            set_tensor_float(False)
            stack.callback(set_tensor_float, True)
        yield
