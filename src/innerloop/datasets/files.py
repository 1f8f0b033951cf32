"""File functions of the loaders: download and verify, detect changes, read folders and zip files, decode images."""

import hashlib
import io
import os
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import pooch
from PIL import Image, ImageOps

from innerloop.episodes import InputError

MOST_FILES = 5_000_000
LARGEST_FILE = 256 * 2**20
"""Limits on somebody else's data: the number of files in a folder or archive, and the bytes of one picture."""

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")


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
    out. Raises InputError if the source cannot be read.
    """
    if source.is_dir():
        entries = list(_walk(str(source), ""))
    else:
        with _open_zip(source) as archive:
            for entry in archive.infolist():
                _refuse_entry(source, entry)
            entries = [name for name in archive.namelist() if not _is_hidden(name)]
    if len(entries) > MOST_FILES:
        raise InputError(f"{source} has {len(entries):,} files, more than the {MOST_FILES:,} that are read")
    return sorted(set(entries))


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _walk(root: str, folder: str) -> Iterator[str]:
    """Yield the paths of all files and folders in `folder`, which is relative to the root and ends in "/" or is ""."""
    # Plain strings, because Path objects for Omniglot's 32,460 files would take two seconds at every start.
    try:
        with os.scandir(os.path.join(root, folder)) as found:
            entries = [entry for entry in found if not _is_hidden(entry.name)]
    except OSError as error:
        raise InputError(f"{root} cannot be read: {error}") from error
    for entry in entries:
        path = f"{folder}{entry.name}"
        if entry.is_symlink():
            # It may lead to the same pictures again, to private ones, or in circles.
            raise InputError(f"{root}: {path} is a link; put the files themselves there")
        if entry.is_dir(follow_symlinks=False):
            yield f"{path}/"
            yield from _walk(root, f"{path}/")
        elif entry.is_file(follow_symlinks=False):
            yield path
        else:
            raise InputError(f"{root}: {path} is no file but a pipe, a socket or a device")


def _refuse_entry(source: Path, entry: zipfile.ZipInfo) -> None:
    """Raise InputError for an entry of a zip file that is a link, leads out of it, or is too large."""
    name = entry.filename
    if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or name[1:2] == ":":
        raise InputError(f"{source}: the path {name} leads out of the zip file")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise InputError(f"{source}: {name} is a link; put the file itself there")


def read(source: Path, names: Iterable[str]) -> Iterator[bytes]:
    """Yield the bytes of each of these files of a folder or a zip file.

    Raises InputError if one cannot be read or is larger than `LARGEST_FILE`.
    """
    if source.is_dir():
        for name in names:
            try:
                with open(source / name, "rb") as file:
                    yield _bounded(file, f"{source / name}")
            except OSError as error:
                raise InputError(f"{source / name} cannot be read: {error}") from error
    else:
        with _open_zip(source) as archive:
            for name in names:
                # The size in the entry's header may be wrong, so reading is bounded too.
                if archive.getinfo(name).file_size > LARGEST_FILE:
                    raise InputError(too_large(f"{source}: {name}"))
                with archive.open(name) as file:
                    yield _bounded(file, f"{source}: {name}")


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
        with zipfile.ZipFile(file) as archive:
            yield archive
    # RuntimeError: an entry is encrypted, or compressed by a method that Python does not support.
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, struct.error) as error:
        raise InputError(f"{file} is not a valid zip file: {error}") from error


def decode(data: bytes, origin: str) -> Image.Image:
    """Return the fully decoded image.

    origin: path of the image, for error messages. Raises InputError if the image is broken.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of a picture with more pixels than this, and refuses one with twice as many.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
        image.load()
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise InputError(f"{origin} is not a readable {origin.rpartition('.')[2].upper()}: {error}") from error
    return image


def pictures(source: Path, names: Sequence[str], size: int, channels: int) -> np.ndarray:
    """Return these images of a folder or a zip file, (n, channels, size, size) uint8.

    Images are turned upright according to their EXIF data, placed on white if they are transparent, and resized to
    squares without keeping the aspect ratio. channels: 1 for grey, 3 for colour.
    Raises InputError, naming the image, if one cannot be read or has more than 8 bits per channel.
    """
    images = np.empty((len(names), channels, size, size), np.uint8)
    for i, (name, data) in enumerate(zip(names, read(source, names), strict=True)):
        image = decode(data, f"{source}: {name}")
        if image.mode.startswith(("I", "F")):  # Pillow would clip its values at 255
            raise InputError(f"{source}: {name} has more than 8 bits per channel; save it with 8")
        ImageOps.exif_transpose(image, in_place=True)
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        image = image.convert("L" if channels == 1 else "RGB").resize((size, size), Image.Resampling.LANCZOS)
        images[i] = np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)
    return images
