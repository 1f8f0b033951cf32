"""Pictures that are nearly another: saved again, resized, turned by a right angle or mirrored. And their groups."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from innerloop.practice.reading import Pictures
from innerloop.practice.validation import joined_groups

SIDE = 32
"""Greys on a side of a print."""
UNLIKE = 1.1e-3
"""Largest 1 - correlation of the prints of two pictures of which one is a copy. Measured on the 1,600 silhouettes of
100 species of leaves, which are more alike than photographs are: of all pairs the two most alike have 1.5e-3, the next
3e-3. Copies of every sixth as JPEG of quality 85 or 50, at 150 pixels, turned, mirrored or 15 % brighter have at most
3.1e-4. Copies of parts of photographs (scikit-learn's samples, 210 pixels) have at most 1e-3 as JPEG of quality 50 or
at half the size, and at a third of it 1.6e-3, which is too far. One that is cropped by 5 % is as far as another leaf.
"""
LEAST_CONTRAST = 1.0
"""Standard deviation of the greys, of 255, below which a picture has no print."""
BLOCK = 1024


def prints_of(thumbnails: Tensor) -> Tensor:
    """Return the prints of pictures: (n, channels, h, w) uint8 -> (n, 32, 32) float32 of mean 0 and length 1.

    A picture of one colour has a print of zeros, which is like none.
    """
    if not len(thumbnails):
        return torch.empty(0, SIDE, SIDE)
    grey = thumbnails.float().mean(1, keepdim=True)
    small = F.interpolate(grey, (SIDE, SIDE), mode="bilinear", antialias=True)[:, 0]
    centred = small - small.mean((1, 2), keepdim=True)
    length = centred.flatten(1).norm(dim=1)[:, None, None]
    return torch.where(length >= LEAST_CONTRAST * SIDE, centred / length.clamp_min(1e-9), 0.0)


def near(a: Tensor, b: Tensor) -> list[tuple[int, int]]:
    """Return the pairs (i, j) for which print a[i] is that of a copy of b[j]. a: (n, 32, 32), b: (m, 32, 32)."""
    found: list[tuple[int, int]] = []
    if not len(a) or not len(b):
        return found
    # The mean over all turned and mirrored forms is the same for a copy, so it rules out nearly all pairs.
    of_b = _mean_form(b)
    for start in range(0, len(a), BLOCK):
        part = a[start : start + BLOCK]
        means = _mean_form(part)
        distance = means.square().sum(1)[:, None] + of_b.square().sum(1) - 2 * means @ of_b.T
        for pairs in torch.nonzero(distance <= 2 * UNLIKE + 1e-5).split(BLOCK):
            one, two = part[pairs[:, 0]], b[pairs[:, 1]]
            alike = torch.stack([(form * two).sum((1, 2)) for form in _forms(one)]).amax(0) >= 1 - UNLIKE
            found += [(start + i, j) for i, j in pairs[alike].tolist()]
    return found


def _forms(prints: Tensor) -> Iterator[Tensor]:
    for turns in range(4):
        turned = torch.rot90(prints, turns, (1, 2))
        yield turned
        yield turned.flip(2)


def _mean_form(prints: Tensor) -> Tensor:
    return torch.stack(list(_forms(prints))).mean(0).flatten(1)


def copies_in(pictures: Pictures) -> list[tuple[int, int]]:
    """Return the pairs (i, j), i < j, of pictures of which one looks like a copy of the other."""
    prints = prints_of(pictures.thumbnails)
    return [(i, j) for i, j in near(prints, prints) if i < j]


def groups_of(copies: Sequence[tuple[int, int]], individuals: Sequence[str | None], n: int) -> Tensor | None:
    """Return the number of each picture's group, (n,): copies and pictures of one individual are in one.

    individuals: what each picture is of, or empty. None if every picture is a group of its own.
    """
    first: dict[str, int] = {}
    same = [(first.setdefault(name, i), i) for i, name in enumerate(individuals) if name is not None]
    found = joined_groups([*copies, *same], n)
    return found if len(found.unique()) < n else None


def warnings_of_copies(copies: Sequence[tuple[int, int]], pictures: Pictures) -> list[str]:
    """Return what a user must know of copies among the labelled pictures, in sentences."""
    if not copies:
        return []
    count = len({j for _, j in copies})
    i, j = copies[0]
    example = f"{pictures.files[j]} of {pictures.files[i]}"
    found = [
        f"{count} picture{'s look' if count > 1 else ' looks'} like a copy of another (saved again, resized, turned), "
        f"such as {example}. Copies are left out together."
    ]
    across = [(i, j) for i, j in copies if pictures.labels[i] != pictures.labels[j]]
    if across:
        i, j = across[0]
        found.append(
            f"Copies have different labels, such as {pictures.files[i]} ({pictures.labels[i]}) and {pictures.files[j]} "
            f"({pictures.labels[j]})."
        )
    return found
