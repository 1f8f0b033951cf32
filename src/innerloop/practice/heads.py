"""Classifiers on vectors in closed form: class means, whitened class means and ridge regression."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from innerloop.backbones import Standard, standard

RIDGES = (0.1, 1.0)
"""Penalties of ridge regression on vectors of unit length."""
CHUNK = 1024


class Scores(NamedTuple):
    """logits: (n, classes). distance: (n,), to the nearest class mean, from 0 to 2 on vectors of unit length."""

    logits: Tensor
    distance: Tensor


class Novelty(NamedTuple):
    """The distance of a vector to the nearest class mean, in a standard form. means: (classes, d)."""

    form: Standard
    means: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """x: (n, d) -> (n,)."""
        return torch.cdist(self.form(x), self.means, compute_mode="donot_use_mm_for_euclid_dist").min(1).values


@dataclass(frozen=True, eq=False)
class VectorModel:
    """A linear classifier on vectors in a standard form. weight: (classes, d). bias: (classes,)."""

    form: Standard
    weight: Tensor
    bias: Tensor
    novelty: Novelty

    def __call__(self, x: Tensor) -> Scores:
        """Return the scores of vectors. x: (n, d)."""
        parts = [(self.form(part) @ self.weight.T + self.bias, self.novelty(part)) for part in x.double().split(CHUNK)]
        logits, distances = zip(*parts, strict=True)
        return Scores(torch.cat(logits), torch.cat(distances))


def class_means(z: Tensor, y: Tensor, classes: int) -> Tensor:
    """Return the mean of each class. z: (n, d), y: (n,) -> (classes, d)."""
    labels = F.one_hot(y, classes).to(z.dtype)
    return labels.T @ z / labels.sum(0).unsqueeze(1)


def nearest_mean(z: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return weight and bias whose logits are -|z - mean|^2, but for a term that is the same for all classes."""
    means = class_means(z, y, classes)
    return 2 * means, -means.square().sum(1)


def ridge(z: Tensor, y: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Return weight and bias of ridge regression on one-hot rows, whose bias is not penalised."""
    centre, target = z.mean(0), F.one_hot(y, classes).to(z.dtype)
    share = target.mean(0)
    z, target = z - centre, target - share
    n, d = z.shape
    eye = penalty * torch.eye(min(n, d), dtype=z.dtype)
    weight = (
        z.T @ torch.linalg.solve(z @ z.T + eye, target) if n <= d else torch.linalg.solve(z.T @ z + eye, z.T @ target)
    )
    return weight.T, share - centre @ weight


def in_their_span(x: Tensor) -> Tensor:
    """Return vectors by their coordinates in the space that they span: (n, d) -> (n, min(n, d)).

    Lengths and angles are kept, so whatever depends on these alone is found in less time.
    """
    x = x.double()
    return torch.linalg.qr(x.T).R.T if len(x) < x.shape[1] else x


def closed_form(x: Tensor, y: Tensor, classes: int, dimensions: int | None = None) -> dict[str, VectorModel]:
    """Return name -> classifier of each kind, fitted to vectors x (n, d) with labels y (n,).

    dimensions: of the space that the vectors are a part of: see `standard`.

    All of them score how unlike a vector is to every class by the distance to the nearest class mean, in whitened form
    where a class has several pictures that differ.
    """
    x = x.double()
    plain = standard(x, y, whiten=False)
    z = plain(x)
    scatter = (x - class_means(x, y, classes)[y]).square().sum()
    best = standard(x, y, True, dimensions) if scatter > 1e-12 * x.square().sum() else plain
    white = best(x)
    novelty = Novelty(best, class_means(white, y, classes))
    found = {MEANS: VectorModel(plain, *nearest_mean(z, y, classes), novelty)}
    if best is not plain:
        found["whitened class means"] = VectorModel(best, *nearest_mean(white, y, classes), novelty)
    for penalty in RIDGES:
        found[f"ridge regression ({penalty:g})"] = VectorModel(plain, *ridge(z, y, classes, penalty), novelty)
    return found


def only_means(x: Tensor, y: Tensor, classes: int) -> dict[str, VectorModel]:
    """Return the class means of vectors alone, as `closed_form` has them. x: (n, d)."""
    x = x.double()
    form = standard(x, y, whiten=False)
    z = form(x)
    return {MEANS: VectorModel(form, *nearest_mean(z, y, classes), Novelty(form, class_means(z, y, classes)))}


def pixel_means(x: Tensor, y: Tensor, classes: int) -> dict[str, VectorModel]:
    """Return the nearest class mean of raw pixels, the simplest baseline. x: (n, pixels)."""
    x = x.double()
    form = Identity(torch.zeros(x.shape[1], dtype=x.dtype))
    return {PIXELS: VectorModel(form, *nearest_mean(x, y, classes), Novelty(form, class_means(x, y, classes)))}


class Identity(Standard):
    """The form that changes nothing."""

    def __call__(self, x: Tensor) -> Tensor:
        return x


MEANS, PIXELS = "class means", "class means of raw pixels"
PIXEL_SIZE = 28


def raw_pixels(images: Tensor) -> Tensor:
    """Return pictures as vectors of 28 x 28 pixels from 0 to 1: (n, channels, h, w) uint8 -> (n, pixels)."""
    return F.interpolate(images.float(), (PIXEL_SIZE, PIXEL_SIZE), mode="bilinear", antialias=True).flatten(1) / 255
