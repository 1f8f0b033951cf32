"""File functions of the loaders: download and verify, detect changes, read folders, zip files and lines of text."""

import codecs
import hashlib
import io
import lzma
import math
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pooch

from innerloop.episodes import InputError

MOST_FILES = 5_000_000
LARGEST_FILE = 256 * 2**20
"""Limits on somebody else's data: the number of files in a folder or archive, and the bytes of one picture."""

LONGEST_LINE = 10 * 2**20
"""Characters of a line, above which a text is no table."""

SYSTEM_FILES = ("Thumbs.db", "desktop.ini", "Icon\r")
"""Files that Windows and macOS put into folders of pictures, besides hidden ones."""

OTHER_ARCHIVES = (".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
"""Suffixes of archives that are not read, because each has its own ways to do harm."""

ENCRYPTED = 1
"""The flag of an entry of a zip file that is encrypted."""

# RuntimeError: an entry is encrypted, or compressed by a method that Python does not support.
BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError, struct.error)


def fetch(url: str, md5: str, folder: Path, advice: str) -> Path:
    """Download `url` to `folder`, unless the file is there already. Verify it in both cases and return its path.

    Raises InputError, whose message ends with `advice`, if this fails. No partial file is left under its name then.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = pooch.retrieve(url, f"md5:{md5}", fname=url.rpartition("/")[2], path=folder, progressbar=True)
    # pooch raises ValueError for a wrong checksum. All errors of the network and the disk are OSErrors.
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{url} could not be downloaded to {folder}: {reason}. {advice}") from error
    return Path(path)


def digest(source: Path, names: Iterable[str]) -> str:
    """Return 32 hex digits that identify the state of a file, or of the files with these names in a folder.

    They depend on the content of a file, or on the path of the folder and the files' names, sizes and modification
    times. Raises InputError if the source cannot be read.
    """
    try:
        if source.is_file():
            with open(source, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()[:32]
        state = hashlib.sha256(str(source.resolve()).encode())
        for name in sorted(names):
            status = os.stat(os.path.join(source, name))
            state.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        return state.hexdigest()[:32]
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error}") from error


def listing(source: Path) -> list[str]:
    """Return the sorted relative paths, such as "a/b.png", of everything in a folder or a zip file, at any depth.

    The paths of folders end in "/". Hidden entries and those that operating systems add (.DS_Store, __MACOSX) are left
    out. Raises InputError if the source cannot be read, or holds a link, a pipe or the like.
    """
    names, refused = entries(source)
    for name, reason in refused.items():
        raise InputError(f"{source}: {name} {reason}")
    return names


def entries(source: Path) -> tuple[list[str], dict[str, str]]:
    """Return what `listing` returns, and what it refuses: path -> reason, such as "is a link".

    Raises InputError if the source itself cannot be read.
    """
    refused: dict[str, str] = {}
    if source.is_dir():
        names = list(_walk(str(source), "", refused))
        if "" in refused:
            raise InputError(f"{source} {refused['']}")
    else:
        with _open_zip(source) as archive:
            files = [entry for entry in archive.infolist() if not entry.is_dir()]
            if files and all(entry.flag_bits & ENCRYPTED for entry in files):
                raise InputError(f"{source} is encrypted: unpack it first and give the folder")
            refused = {e.filename: reason for e in archive.infolist() if (reason := _refusal(e))}
            # Old tools for Windows write backslashes.
            names = [n.replace("\\", "/") for n in archive.namelist() if n not in refused]
            names = [n for n in names if not _is_hidden(n)]
    if len(names) > MOST_FILES:
        raise InputError(f"{source} has {len(names):,} files, more than the {MOST_FILES:,} that are read")
    return sorted(set(names)), dict(sorted(refused.items()))


def _is_hidden(name: str) -> bool:
    *folders, last = name.split("/")
    return any(part.startswith((".", "__MACOSX")) for part in (*folders, last)) or last in SYSTEM_FILES


def _walk(root: str, folder: str, refused: dict[str, str]) -> Iterator[str]:
    """Yield the paths of all files and folders in `folder`, which is relative to the root and ends in "/" or is ""."""
    # Plain strings, because Path objects for Omniglot's 32,460 files would take two seconds at every start.
    try:
        with os.scandir(os.path.join(root, folder)) as found:
            entries = [entry for entry in found if not _is_hidden(entry.name)]
    except OSError as error:
        refused[folder] = f"cannot be read: {error.strerror}"
        return
    for entry in entries:
        path = f"{folder}{entry.name}"
        if entry.is_symlink():
            # It may lead to the same pictures again, to private ones, or in circles.
            refused[path] = "is a link; put the files themselves there"
        elif entry.is_dir(follow_symlinks=False):
            yield f"{path}/"
            yield from _walk(root, f"{path}/", refused)
        elif entry.is_file(follow_symlinks=False):
            yield path
        else:
            refused[path] = "is no file but a pipe, a socket or a device"


def _refusal(entry: zipfile.ZipInfo) -> str | None:
    """Return why an entry of a zip file is refused: it is a link or leads out of it. None if it is not."""
    name = entry.filename
    if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or name[1:2] == ":":
        return "is a path that leads out of the zip file"
    return "is a link; put the file itself there" if stat.S_ISLNK(entry.external_attr >> 16) else None


def read(source: Path, names: Iterable[str]) -> Iterator[bytes]:
    """Yield the bytes of each of these files of a folder or a zip file.

    Raises InputError if one cannot be read or is larger than `LARGEST_FILE`.
    """
    with reader(source) as content:
        yield from map(content, names)


@contextmanager
def reader(source: Path) -> Iterator[Callable[[str], bytes]]:
    """Return a function that returns the bytes of a file in a folder or a zip file, by its path there.

    It raises InputError for a file that cannot be read, is none, or is larger than `LARGEST_FILE`.
    """
    if source.is_dir():
        yield lambda name: _content(source / name)
        return
    with _open_zip(source) as archive:
        written = {name.replace("\\", "/"): name for name in archive.namelist()}

        def content(name: str) -> bytes:
            try:
                entry = archive.getinfo(written.get(name, name))
                # The size in the entry's header may be wrong, so reading is bounded too.
                if entry.file_size > LARGEST_FILE:
                    raise InputError(too_large(f"{source}: {name}"))
                with archive.open(entry) as file:
                    return _bounded(file, f"{source}: {name}")
            except InputError:
                raise
            except (KeyError, *BROKEN_ZIP) as error:
                raise InputError(f"{source}: {name} cannot be read: {error}") from error

        yield content


def _content(path: Path) -> bytes:
    with opened(path) as file:
        return _bounded(file, f"{path}")


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading. One in a zip file has a path such as pictures.zip/labels.csv.

    Raises InputError if that fails, or it is no file but a folder, a pipe or a device.
    """
    archive = next((folder for folder in path.parents if folder.suffix.lower() == ".zip" and folder.is_file()), None)
    if archive is not None:
        with reader(archive) as content:
            yield io.BytesIO(content(path.relative_to(archive).as_posix()))
        return
    try:
        # Without waiting, which opening a pipe does otherwise.
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(number).st_mode):
                raise InputError(f"{path} is no file")
            with open(number, "rb", closefd=False) as file:
                yield file
        finally:
            os.close(number)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL character in the path
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read: {error}") from error


def other_format(binary: IO[bytes]) -> str:
    """Return what to do about a file that is a workbook or an array, whatever its name is; "" for any other.

    The file is at its beginning afterwards.
    """
    head = binary.read(8)
    binary.seek(0)
    if head.startswith(b"\x93NUMPY"):
        return "is one array of numpy: save task, x and y by numpy.savez, as .npz"
    workbook = head == b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # .xls
    if head.startswith(b"PK"):
        try:
            with zipfile.ZipFile(binary) as archive:
                workbook = any(name.startswith("xl/") for name in archive.namelist())
        except BROKEN_ZIP:
            pass
        binary.seek(0)
    return "is a workbook of Excel: in Excel, File, Save as, CSV UTF-8" if workbook else ""


@contextmanager
def lines_of(path: Path, largest: float = math.inf) -> Iterator[Iterator[str]]:
    """Open a text in UTF-8, or in UTF-16 with a byte order mark, and return its lines with their ends.

    largest: bytes of the largest file that is read. Raises InputError, also while lines are read, for a file that
    cannot be read, is larger, is no such text, or has a line above `LONGEST_LINE`.
    """
    with opened(path) as binary:
        if binary.seek(0, os.SEEK_END) > largest:
            raise InputError(too_large(f"{path}"))
        binary.seek(0)
        if other := other_format(binary):
            raise InputError(f"{path} {other}")
        wide = binary.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        binary.seek(0)
        text = io.TextIOWrapper(binary, encoding="utf-16" if wide else "utf-8-sig", newline="")

        def read() -> Iterator[str]:
            try:
                while line := text.readline(LONGEST_LINE):
                    if len(line) == LONGEST_LINE:
                        raise InputError(f"{path} has a line of {LONGEST_LINE:,} characters or more, so it is no table")
                    yield line
            except UnicodeDecodeError as error:
                byte = binary.tell() - len(error.object) + error.start
                raise InputError(f"{path} is no UTF-8 text (byte {byte}); save it as UTF-8") from error

        try:
            yield read()
        finally:
            text.detach()


def _bounded(file: IO[bytes], origin: str) -> bytes:
    data = file.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise InputError(too_large(origin))
    return data


def too_large(origin: str) -> str:
    """Return the message for a file that is larger than what is read."""
    return f"{origin} is larger than {LARGEST_FILE // 2**20} MB, the largest file that is read"


@contextmanager
def _open_zip(file: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with opened(file) as content, zipfile.ZipFile(content) as archive:
            yield archive
    except InputError:
        raise
    except BROKEN_ZIP as error:
        advice = "; unpack it and give the folder" if file.suffix.lower() in OTHER_ARCHIVES else ""
        raise InputError(f"{file} is not a valid zip file: {error}{advice}") from error
