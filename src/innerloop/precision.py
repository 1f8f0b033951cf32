"""Mixed precision: what is computed in full precision whatever autocast says around it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

CHOICES = ("32-true", "bf16-mixed", "64-true")
"""What trainer.precision may be. Not bf16-true: inner steps are lost in the last digit of bfloat16 weights. Nor
16-mixed: float16's gradients vanish in the inner loop, where no scaler sees them."""
AUTOCAST = ("cpu", "cuda")
"""The devices on which autocast may be at work."""


def full(t: Tensor) -> Tensor:
    """A tensor in half precision as float32; any other as it is."""
    return t.float() if t.dtype in (torch.bfloat16, torch.float16) else t


def exact(t: Tensor) -> Tensor:
    """What autocast leaves alone, float64, where it is at work; elsewhere the tensor as it is. For solvers.

    Under `torch.vmap` nothing else keeps it away: there it is that of where the vmap began, whatever is said inside.
    """
    return t.double() if any(map(torch.is_autocast_enabled, AUTOCAST)) else t


@contextmanager
def full_precision() -> Iterator[None]:
    """Inside, there is no autocast. To be entered outside of transforms such as vmap, see `exact`."""
    with ExitStack() as stack:
        for device in AUTOCAST:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
