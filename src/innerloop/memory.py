"""Memory of this process."""

import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


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
