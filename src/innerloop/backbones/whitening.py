"""Vectors in a standard form: centred, of unit length, and whitened if asked for."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from innerloop.errors import InputError

SHRINKAGE = 0.1
"""Share of the identity in the covariance that whitens, since there are often fewer pictures than dimensions."""


class Standard(NamedTuple):
    """x -> x - mean, whitened if there are axes, and then of unit length.

    The matrix that whitens is scale I + axes' diag(extra) axes: few pictures span few axes, and it is the same number
    in all other directions.

    mean: (d,). axes: (r, d), orthonormal, or None. extra: (r,). scale: ().
    """

    mean: Tensor
    axes: Tensor | None = None
    extra: Tensor | None = None
    scale: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """x: (n, d) -> (n, d)."""
        x = x - self.mean
        if self.axes is not None and self.extra is not None and self.scale is not None:
            x = self.scale * x + (x @ self.axes.T * self.extra) @ self.axes
        return F.normalize(x, dim=1)


def standard(x: Tensor, labels: Tensor, whiten: bool, dimensions: int | None = None) -> Standard:
    """Return the standard form by the mean of some vectors and, to whiten, their scatter within the classes.

    x: (n, d). labels: (n,) class ids. The matrix is the inverse square root of the covariance within the classes,
    shrunk towards a multiple of the identity (Ledoit and Wolf, 2004, with a fixed share).

    dimensions: of the space that these vectors are a part of, whose covariance is zero elsewhere; None: d.
    Raises InputError if there is no scatter within any class.
    """
    kind, x = x.dtype, x.double()
    mean = x.mean(0)
    if not whiten:
        return Standard(mean.to(kind))
    _, places = labels.unique(return_inverse=True)
    sums = torch.zeros(int(places.max()) + 1, x.shape[1], dtype=x.dtype).index_add_(0, places, x)
    within = x - (sums / places.bincount().unsqueeze(1))[places]
    if not within.square().sum() > 0:
        raise InputError("standardize=whiten needs classes with pictures that differ")
    variances, axes = _principal(within)
    scale = variances.sum() / (dimensions or x.shape[1])
    inverse_root = ((1 - SHRINKAGE) * variances + SHRINKAGE * scale).rsqrt()
    elsewhere = (SHRINKAGE * scale).rsqrt()
    return Standard(mean.to(kind), axes.to(kind), (inverse_root - elsewhere).to(kind), elsewhere.to(kind))


def _principal(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variances (r,) of centred vectors (n, d) along orthonormal axes (r, d), where they are not zero."""
    n, d = x.shape
    values, vectors = torch.linalg.eigh((x @ x.T if n <= d else x.T @ x) / n)
    kept = values > 1e-10 * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    axes = (x.T @ vectors / (n * values).sqrt()).T if n <= d else vectors.T
    return values, axes
