"""Pictures of any common format, decoded by Pillow to arrays of one size."""

import io
import logging
import threading
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from innerloop.datasets.files import reader
from innerloop.episodes import InputError
from innerloop.errors import some

log = logging.getLogger("innerloop")

HEIC = (".heic", ".heif")
"""Formats that need the extra `heic`."""
PICTURES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    *(".pbm", ".pgm", ".pnm", ".ppm", ".jp2", ".avif"),
    *HEIC,
)
NAMED = 10
"""The largest number of broken pictures that a message names."""

FORMATS = ("PNG", "JPEG", "MPO", "BMP", "GIF", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000", "HEIF")
"""What Pillow may take a file for, whatever its name. Its other formats start programs, such as Ghostscript, or are not
for pictures."""


Image.init()  # all plug-ins, so that the known formats are found in `Image.OPEN`
OPENING = threading.Lock()
"""Held while warnings are turned into errors, which concerns all threads of the process."""


def decode(data: bytes, origin: str) -> Image.Image:
    """Return the fully decoded image, the first one of an animation.

    origin: path of the image, for error messages. Raises InputError if the image is broken, or has so many pixels that
    Pillow warns of a decompression bomb.
    """
    if origin.lower().endswith(HEIC):
        _register_heic(origin)
    try:
        with OPENING, warnings.catch_warnings():
            # Pillow warns of a picture with more pixels than its limit, and refuses one with twice as many.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
        image.load()
    except Exception as error:  # Pillow and the libraries below it raise nearly anything for damaged bytes
        if not data:
            reason = "the file is empty"
        elif isinstance(error, Image.UnidentifiedImageError):
            reason = "it is of no known format, or damaged at its start"
        elif isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
            reason = f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller"
        else:
            reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{origin} is not a readable {origin.rpartition('.')[2].upper()}: {reason}") from error
    return image


def picture(
    data: bytes, origin: str, size: int, channels: int, least: int = 1, several: set[str] | None = None
) -> np.ndarray:
    """Return a picture as (channels, size, size) uint8, from the bytes of its file.

    It is turned upright according to its EXIF data, placed on white if it is transparent, and resized to a square
    without keeping the aspect ratio. 16-bit grey is scaled to 8 bits over its whole range.

    channels: 1 for grey, 3 for colour. least: pixels that each side must have. several: gets the origin of a picture
    with several pages or frames, of which the first is read.
    Raises InputError, naming the origin, if it cannot be read or is smaller.
    """
    image = decode(data, origin)
    if several is not None and _has_several(image):
        several.add(origin)
    try:
        if image.mode.startswith(("I", "F")):
            image = _eight_bits(image, origin)
        if min(image.size) < least:
            raise InputError(f"{origin} has {image.width}x{image.height} pixels, and each side must have {least}")
        ImageOps.exif_transpose(image, in_place=True)
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        image = image.convert("L" if channels == 1 else "RGB").resize((size, size), Image.Resampling.LANCZOS)
    except InputError:
        raise
    except Exception as error:  # for damage that is found only here
        raise InputError(f"{origin} cannot be converted: {error}") from error
    return np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)


def pictures(source: Path, names: Sequence[str], size: int, channels: int) -> np.ndarray:
    """Return these pictures of a folder or a zip file, (n, channels, size, size) uint8: see `picture`.

    Raises InputError that counts and names the pictures that cannot be read, if there are any.
    """
    images = np.empty((len(names), channels, size, size), np.uint8)
    broken, several = list[str](), set[str]()
    with reader(source) as content:
        for i, name in enumerate(names):
            try:
                images[i] = picture(content(name), f"{source}: {name}", size, channels, several=several)
            except InputError as error:
                broken.append(str(error))
    if broken:
        more = f"; and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        count = f"{len(broken)} of {len(names)} pictures cannot be used: " if len(broken) > 1 else ""
        raise InputError(count + "; ".join(broken[:NAMED]) + more)
    if several:
        log.warning("%s", several_pages(several))
    return images


def several_pages(names: Iterable[str]) -> str:
    """Return what is said of pictures with several pages or frames."""
    listed = sorted(names)
    count = "1 picture has" if len(listed) == 1 else f"{len(listed)} pictures have"
    return f"{count} several pages or frames, of which the first is used: {some(listed)}"


def fitted(images: np.ndarray, size: int, channels: int) -> np.ndarray:
    """Return images (n, C, h, w) uint8 in another size and mode: (n, channels, size, size).

    channels: 1 for grey, 3 for colour.
    """
    found = np.empty((len(images), channels, size, size), np.uint8)
    for i, image in enumerate(images):
        whole = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
        whole = whole.convert("L" if channels == 1 else "RGB").resize((size, size), Image.Resampling.LANCZOS)
        found[i] = np.asarray(whole).reshape(size, size, channels).transpose(2, 0, 1)
    return found


def _has_several(image: Image.Image) -> bool:
    """Return whether a decoded picture has several pages or frames. MPO's others are previews and second eyes."""
    try:
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except Exception:  # of damage behind the first one, which is not read
        return False


def _eight_bits(image: Image.Image, origin: str) -> Image.Image:
    """Return a grey image of 16 bits, or of real values from 0 to 1, with 8 bits. Raises InputError for others."""
    values = np.asarray(image)
    if image.mode == "F":
        scale, largest, expected = 255.0, 1.0, "real values that are not from 0 to 1"
    else:
        scale, largest, expected = 1 / 257, 65535, "more than 16 bits per channel"
    if not (values.min() >= 0 and values.max() <= largest):
        raise InputError(f"{origin} has {expected}; save it with 8 or 16 bits")
    grey = Image.fromarray(np.rint(values * scale).astype(np.uint8))
    if (orientation := image.getexif().get(ORIENTATION)) is not None:
        grey.getexif()[ORIENTATION] = orientation
    return grey


ORIENTATION = 0x0112
"""The tag of EXIF that says how a picture is turned."""


def _register_heic(origin: str) -> None:
    try:
        import pillow_heif
    except ImportError as error:
        raise InputError(f'{origin} is HEIC, which needs a package: pip install -e ".[heic]"') from error
    pillow_heif.register_heif_opener()
