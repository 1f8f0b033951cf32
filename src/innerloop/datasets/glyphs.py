"""Printed characters of many scripts, drawn with matplotlib's fonts: shaped like Omniglot, but without a download."""

import unicodedata
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont, features

from innerloop.datasets.images import LabelledImages, cache_folder, cached, fixed_splits
from innerloop.devices.files import user_path
from innerloop.episodes import InputError

SIZE = 28
RENDERINGS = 20
FACES_NEEDED = 3

# The faces with correct character maps. matplotlib's other faces are mathematical extensions in private encodings.
FACES = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10"),
)

# Unicode blocks: first and last code point. Accents are left out because 28 pixels do not show them. Scripts are left
# out if their characters are patterns of equal parts or rotations of one another (braille, box drawing, Canadian
# syllabics).
BLOCKS = (
    (0x0021, 0x007E),  # ASCII
    (0x00A1, 0x024F),  # Latin
    (0x0250, 0x02AF),  # phonetic
    (0x0370, 0x03FF),  # Greek and Coptic
    (0x0400, 0x052F),  # Cyrillic
    (0x0531, 0x0586),  # Armenian
    (0x05D0, 0x05EA),  # Hebrew
    (0x0621, 0x06D3),  # Arabic, isolated forms
    (0x07C0, 0x07E7),  # N'Ko
    (0x0E81, 0x0EDD),  # Lao
    (0x10A0, 0x10FA),  # Georgian
    (0x1680, 0x169C),  # Ogham
    (0x16A0, 0x16F0),  # Runic
    (0x1D00, 0x1D7F),  # phonetic extensions
    (0x20A0, 0x20BF),  # currencies
    (0x2100, 0x214F),  # letterlike
    (0x2190, 0x22FF),  # arrows, mathematical operators
    (0x2300, 0x2335),  # technical
    (0x25A0, 0x26FF),  # shapes and symbols
    (0x2701, 0x27BE),  # dingbats
    (0x2C60, 0x2D7F),  # Latin, Coptic, Georgian, Tifinagh
    (0xA4D0, 0xA4F7),  # Lisu
    (0xA640, 0xA66D),  # Cyrillic
    (0x10300, 0x1031E),  # Old Italic
)

# Characters whose plain renderings correlate more than this count as the same: Latin A, Greek Alpha, Cyrillic A.
SAME = 0.9

# Characters are drawn at three times the final size and then averaged down.
CANVAS = 3 * SIZE
POINTS = 60

# Part of the name of the cached file. Increase it when that file's contents change.
FORMAT = 1


def load(cache: str | None = None) -> LabelledImages:
    """Return 20 renderings of each character, (N, 1, 28, 28), with ink 255 on background 0.

    Renderings vary in face, slant, angle, size, position and thickness. They are drawn at the first use, which takes
    seconds, and depend on the versions of matplotlib, Pillow and FreeType only. 70 % of the characters are for
    training, 10 % for validation and 20 % for testing, whatever the seed.

    cache: folder where the images are cached. None: the user's cache folder.

    Raises InputError if matplotlib was installed without its fonts.
    """
    versions = f"matplotlib{matplotlib.__version__}-pillow{Image.__version__}-freetype{features.version('freetype2')}"
    folder = cache_folder("glyphs") if cache is None else user_path(cache)
    stored = cached(folder / f"glyphs-{versions}-v{FORMAT}.npz", draw_all)
    names = tuple(map(str, stored["names"]))
    return LabelledImages(
        images=torch.from_numpy(stored["images"]).reshape(-1, 1, SIZE, SIZE),
        classes=names,
        counts=np.full(len(names), RENDERINGS),
        splits=fixed_splits(names, train=round(0.7 * len(names)), validation=round(0.1 * len(names))),
        inverted=True,
    )


def draw_all() -> dict[str, np.ndarray]:
    """Return the arrays to cache, by name.

    names: (classes,), such as "U+0041 LATIN CAPITAL LETTER A". images: (classes, 20, 28, 28) uint8.
    """
    faces, fonts = _faces(), {}
    for character in _characters():
        inked = [font for font, known in faces if character in known and font.getmask(character).getbbox()]
        if len(inked) >= FACES_NEEDED:
            fonts[character] = inked
    characters = _distinct(fonts)
    return {
        "names": np.array([f"U+{ord(c):04X} {unicodedata.name(c)}" for c in characters]),
        "images": np.stack([_renderings(fonts[c], c) for c in characters]),
    }


def _distinct(fonts: dict[str, list[ImageFont.FreeTypeFont]]) -> list[str]:
    """Return the characters without those that look like an earlier one.

    Characters are compared in the first of their faces, which is the plainest.
    """
    plain = np.stack([_render(faces[0], character) for character, faces in fonts.items()]).astype(np.float32)
    plain = plain.reshape(len(plain), -1)
    plain -= plain.mean(axis=1, keepdims=True)
    plain /= np.linalg.norm(plain, axis=1, keepdims=True)
    same = plain @ plain.T > SAME
    kept: list[int] = []
    for i in range(len(plain)):
        if not same[i, kept].any():
            kept.append(i)
    characters = list(fonts)
    return [characters[i] for i in kept]


def _characters() -> Iterator[str]:
    """Yield letters, digits, punctuation and symbols, none composed of others (accents, ligatures, superscripts)."""
    for first, last in BLOCKS:
        for character in map(chr, range(first, last + 1)):
            category = unicodedata.category(character)
            if category[0] in "LNPS" and category not in ("Lm", "Sk") and not unicodedata.decomposition(character):
                yield character


def _faces() -> list[tuple[ImageFont.FreeTypeFont, set[str]]]:
    """Return each face with the set of characters that it contains."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    faces = []
    for name in FACES:
        path = folder / f"{name}.ttf"
        if not path.is_file():
            raise InputError(f"{path} is missing: matplotlib was installed without its fonts; install it from PyPI")
        known = {chr(code) for code, glyph in FT2Font(str(path)).get_charmap().items() if glyph}
        if name.startswith("cm"):  # TeX's own encodings, which are right for these characters only
            known = {c for c in known if c.isascii() and c.isalnum()}
        # Basic layout: the default would use Raqm if that library is installed, and shapes would depend on it.
        faces.append((ImageFont.truetype(path, POINTS, layout_engine=ImageFont.Layout.BASIC), known))
    return faces


def _renderings(fonts: list[ImageFont.FreeTypeFont], character: str) -> np.ndarray:
    """Return 20 renderings (20, 28, 28) uint8. The random stream depends on the character only, not on the others."""
    rng = np.random.Generator(np.random.Philox(key=ord(character)))
    order = rng.random(len(fonts)).argsort()
    images = []
    for i in range(RENDERINGS):
        angle, shear, size, right, down, thick = rng.uniform(-1, 1, 6)
        images.append(
            _render(
                fonts[order[i % len(fonts)]],
                character,
                angle=np.deg2rad(10) * angle,
                shear=0.15 * shear,
                side=SIZE * (0.71 + 0.11 * size),
                shift=(1.5 * right, 1.5 * down),
                stroke=int(1 + thick),
            )
        )
    return np.stack(images)


def _render(
    font: ImageFont.FreeTypeFont,
    character: str,
    angle: float = 0.0,
    shear: float = 0.0,
    side: float = 0.75 * SIZE,
    shift: tuple[float, float] = (0.0, 0.0),
    stroke: int = 0,
) -> np.ndarray:
    """Return the character as (28, 28) uint8, sheared and rotated about its centre.

    angle: in radians. side: length of the longer side, in pixels. shift: in pixels, right and down. stroke: additional
    thickness on either side of a line, in thirds of a pixel.
    """
    ink = _draw(font, character, stroke)
    scale = max(ink.size) / (3 * side)  # pixels of `ink` per pixel of the canvas
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    to_ink = scale * np.array([[1.0, shear], [0.0, 1.0]]) @ rotation  # from coordinates of the canvas
    offset = np.array(ink.size) / 2 - to_ink @ (CANVAS / 2 + 3 * np.array(shift))
    matrix = (*to_ink[0], offset[0], *to_ink[1], offset[1])
    canvas = ink.transform((CANVAS, CANVAS), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.asarray(canvas.reduce(3))


def _draw(font: ImageFont.FreeTypeFont, character: str, stroke: int) -> Image.Image:
    """Return the inked part of the character at the size of the font, with a blank margin of one pixel."""
    left, top, right, bottom = map(round, font.getbbox(character, stroke_width=stroke))
    image = Image.new("L", (max(right - left, 1) + 4, max(bottom - top, 1) + 4))
    ImageDraw.Draw(image).text((2 - left, 2 - top), character, fill=255, font=font, stroke_width=stroke)
    box = image.getbbox()
    assert box is not None, "draw_all leaves out characters without ink"
    # With the blank margin, the affine transformation fades to the background at the edges.
    return image.crop((box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1))
