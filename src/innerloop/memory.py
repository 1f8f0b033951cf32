"""Memory of this process: how much it took, and what happens to what it no longer needs."""

import ctypes
import os
import platform
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

STATUS = Path("/proc/self/status")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of malloc.h
LARGE = 2**14
"""Entries of a large input: 84x84 pixels in colour are measured to be, 28x28 not to be (scripts/benchmark.py)."""


def largest_resident_set() -> float:
    """Of this process so far, in 10^6 bytes.

    Linux's `ru_maxrss` begins with that of the process that started this one (getrusage(2), execve keeps it), so the
    kernel's own high-water mark comes first, where it is told; elsewhere the number may be the parent's.
    """
    if STATUS.is_file():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def keep_freed(image_entries: int = 0) -> None:
    """Makes glibc's malloc keep what is freed for the next tensor, where by default it is given back to the kernel.

    The activations of image nets are megabytes; giving them back and taking them anew, page by page, takes time of
    every step (README, "Speed and memory"). image_entries: of one input. From LARGE on, all threads share one arena,
    since a thread's own gives back beyond 64 MB; with smaller ones they would wait for each other. The first large one
    decides for the threads of this process.
    Nothing happens without glibc, or where the environment sets a MALLOC_ variable: whoever does that has chosen.
    """
    kept = {M_MMAP_THRESHOLD: 2**30, M_TRIM_THRESHOLD: 2**31 - 1}
    _malloc_options(kept | ({M_ARENA_MAX: 1} if image_entries >= LARGE else {}))


def return_freed() -> None:
    """Makes glibc's malloc give each freed block of 64 KiB or more back to the kernel at once: the opposite.

    Slow, and the resident set is then what is held, whatever the order of sizes made of the heap. See `keep_freed`.
    """
    _malloc_options({M_MMAP_THRESHOLD: 2**16})


def _malloc_options(options: Mapping[int, int]) -> None:
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    libc = ctypes.CDLL(None)
    for option, value in options.items():
        libc.mallopt(option, value)
