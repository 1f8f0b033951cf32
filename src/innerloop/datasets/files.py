"""What loaders share about files: fetched and verified, told apart, read from a folder or a zip file, decoded."""

import hashlib
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pooch
from PIL import Image, ImageOps

from innerloop.episodes import InputError

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")


def fetch(url: str, md5: str, folder: Path, otherwise: str) -> Path:
    """The file behind `url` in `folder`, downloaded unless it is there already; verified either way.

    Raises InputError, which ends with `otherwise`, if it cannot be had; no part of it is left under its name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = pooch.retrieve(url, f"md5:{md5}", fname=url.rpartition("/")[2], path=folder, progressbar=True)
    # A wrong checksum is a ValueError, everything about the network and the disk an OSError.
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{url} could not be fetched into {folder}: {reason}. {otherwise}") from error
    return Path(path)


def digest(source: Path, names: Iterable[str]) -> str:
    """What tells one state of a file, or of the files of these names in a folder, from another: 32 hex digits."""
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
    """What a folder or a zip file holds at any depth, as sorted paths "a/b.png" within it; those of folders end in "/".

    What systems put there for themselves (.DS_Store, __MACOSX) is left out. Raises InputError if it cannot be read.
    """
    if source.is_dir():
        entries = list(_walk(source))
    else:
        with _zip(source) as archive:
            entries = archive.namelist()
    return sorted({e for e in entries if not any(part.startswith((".", "__MACOSX")) for part in e.split("/"))})


def _walk(folder: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise InputError(f"{folder} cannot be read: {error}") from error

    # Plain strings: with Omniglot's 32,460 files as Paths every start would take two seconds.
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        inside = os.path.relpath(place, folder).replace(os.sep, "/")
        above = "" if inside == "." else f"{inside}/"
        yield from (f"{above}{name}/" for name in folders)
        yield from (f"{above}{name}" for name in files)


def read(source: Path, names: Iterable[str]) -> Iterator[bytes]:
    """The bytes of these files of a folder or a zip file, one after the other; InputError if one cannot be read."""
    if source.is_dir():
        for name in names:
            try:
                yield (source / name).read_bytes()
            except OSError as error:
                raise InputError(f"{source / name} cannot be read: {error}") from error
    else:
        with _zip(source) as archive:
            yield from map(archive.read, names)


@contextmanager
def _zip(file: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    # RuntimeError: an entry is encrypted, or packed in a way that Python does not know.
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, struct.error) as error:
        raise InputError(f"{file} is not a whole zip file: {error}") from error


def decode(data: bytes, origin: str) -> Image.Image:
    """A picture, read to its end. Raises InputError with `origin`, its path, if it is broken."""
    try:
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
    ) as error:
        raise InputError(f"{origin} is not a readable {origin.rpartition('.')[2].upper()}: {error}") from error
    return image


def pictures(source: Path, names: Sequence[str], size: int, channels: int) -> np.ndarray:
    """These pictures of a folder or a zip file, (n, channels, size, size) uint8, squeezed to squares.

    Upright as the camera says, on white where they are transparent. channels: 1 for grey, 3 for colour.
    Raises InputError naming the picture that cannot be read.
    """
    images = np.empty((len(names), channels, size, size), np.uint8)
    for i, (name, data) in enumerate(zip(names, read(source, names), strict=True)):
        image = decode(data, f"{source}: {name}")
        if image.mode.startswith(("I", "F")):  # Pillow would clip them at 255
            raise InputError(f"{source}: {name} has more than 8 bits a pixel; save it with 8")
        ImageOps.exif_transpose(image, in_place=True)
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        image = image.convert("L" if channels == 1 else "RGB").resize((size, size), Image.Resampling.LANCZOS)
        images[i] = np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)
    return images
