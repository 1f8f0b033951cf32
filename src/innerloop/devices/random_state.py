"""The state of torch's generators of random numbers: seeded anew for each meta-batch, and restored for a repetition."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch


def random_state() -> Callable[[], AbstractContextManager[None]]:
    """Return a context manager that draws again what is drawn from now on, and then leaves the generators as found.

    It covers the CPU's generator and that of the current GPU, which nothing can read while a CUDA graph is captured.
    """
    on_gpu = torch.cuda.is_initialized() and not torch.cuda.is_current_stream_capturing()
    on_cpu, on_gpus = torch.get_rng_state(), {}
    if on_gpu:
        on_gpus[torch.cuda.current_device()] = torch.cuda.get_rng_state()

    @contextmanager
    def restored() -> Iterator[None]:
        with torch.random.fork_rng(devices=list(on_gpus)):
            torch.set_rng_state(on_cpu)
            for device, state in on_gpus.items():
                torch.cuda.set_rng_state(state, device)
            yield

    return restored


def seed_torch(device: torch.device, *key: int) -> None:
    """Seed torch's generators of the CPU and of this device by numbers, so that distinct ones give distinct streams.

    Unlike `torch.manual_seed`, it leaves other devices as they are.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    seed = int.from_bytes(digest, "little") >> 1
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
