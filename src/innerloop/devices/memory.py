"""Memory of this process: its peak, and whether freed memory is kept for the next tensor."""

import ctypes
import os
import platform
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

STATUS = Path("/proc/self/status")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # from malloc.h
LARGE = 2**14
"""Number of entries from which an input is large: 84x84 colour images are, 28x28 are not (scripts/benchmark.py)."""


def largest_resident_set() -> float:
    """Return the peak resident set of this process so far, in 10^6 bytes.

    Linux's `ru_maxrss` starts with the peak of the parent process (getrusage(2): it is kept across execve), so the
    kernel's own high-water mark is read where it exists. Elsewhere the number may be the parent's.
    """
    if STATUS.is_file():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux counts kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def keep_freed(image_entries: int = 0) -> None:
    """Make glibc's malloc keep freed memory for the next tensor instead of returning it to the kernel.

    Activations of image nets take megabytes. Returning and requesting them again, page by page, costs time in every
    step (docs/speed.md).

    image_entries: number of entries of one input. From LARGE on, all threads share one malloc arena, because a
        thread's own arena returns memory beyond 64 MB. For smaller inputs threads would wait for each other in a shared
        arena. The first large input decides this for all threads of the process.

    Does nothing without glibc, or if the environment sets a MALLOC_ variable, which means that the user has chosen.
    """
    kept = {M_MMAP_THRESHOLD: 2**30, M_TRIM_THRESHOLD: 2**31 - 1}
    _set_malloc_options(kept | ({M_ARENA_MAX: 1} if image_entries >= LARGE else {}))


def return_freed() -> None:
    """Make glibc's malloc return each freed block of 64 KiB or more to the kernel at once, unlike `keep_freed`.

    This is slow. In exchange the resident set shows the memory in use, whatever the order of allocations.
    """
    _set_malloc_options({M_MMAP_THRESHOLD: 2**16})


def _set_malloc_options(options: Mapping[int, int]) -> None:
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    libc = ctypes.CDLL(None)
    for option, value in options.items():
        libc.mallopt(option, value)
