"""File locks between processes, which the system releases when their process ends, however it ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from innerloop.errors import InputError

LOCK = ".lock"
"""In a run directory: held by the process that trains the run. In a sweep's: by the one that runs the sweep."""


@contextmanager
def locked(path: Path, refusal: str | None = None) -> Iterator[None]:
    """Hold an exclusive lock on a file, which is created if needed and holds the process id.

    Waits for another holder. With a refusal, raises InputError with that message instead of waiting.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except BlockingIOError:
            raise InputError(str(refusal)) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def holder(path: Path) -> int | None:
    """Return the id of the process that holds a lock, None if nobody does.

    Looking takes a shared lock for a moment, so processes that only look never hinder each other.
    """
    if not path.exists():
        return None
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(file.read() or 0)
    return None
