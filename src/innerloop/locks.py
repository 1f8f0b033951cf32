"""Locks between processes: a file that one process holds, and that nobody holds once the process is gone."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from innerloop.errors import InputError


@contextmanager
def locked(path: Path, refusal: str | None = None) -> Iterator[None]:
    """Holds a lock that dies with the process. Waits for it; with a refusal, raises InputError saying that instead."""
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
    """The id of the process that holds a lock. It only looks: nobody is refused meanwhile who looks as well."""
    if not path.exists():
        return None
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(file.read() or 0)
    return None
