"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from innerloop.errors import WriteError


def user_path(text: "str | Path") -> Path:
    """Return a path whose leading ~ or ~user is that user's home, if there is such a user."""
    return Path(os.path.expanduser(text))


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all, even if the process is killed or the machine loses power meanwhile.

    The content goes to a temporary file beside the target, since a rename is atomic only within a file system. Raises
    WriteError, which names the file, if this fails. An earlier file of this name is then as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            with draft.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            with suppress(OSError):
                draft.unlink()
            raise
        _sync_folder(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of the system, such as a full disk, into a WriteError that names the file."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"{path} cannot be written: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    # The rename is on the disk once its folder is. Some network file systems refuse this, and lose nothing by it.
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
