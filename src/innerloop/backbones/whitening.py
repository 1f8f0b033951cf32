"""Vectors in a standard form: centred, of unit length, and whitened if asked for."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from innerloop.errors import InputError

SHRINKAGE = 0.1
"""Share of the identity in the covariance that whitens, since there are often fewer pictures than dimensions."""


class Standard(NamedTuple):
    """x -> (x - mean) matrix, of unit length. mean: (d,). matrix: (d, d), or None for the identity."""

    mean: Tensor
    matrix: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """x: (n, d) -> (n, d)."""
        x = x - self.mean
        return F.normalize(x if self.matrix is None else x @ self.matrix, dim=1)


def standard(x: Tensor, labels: Tensor, whiten: bool) -> Standard:
    """Return the standard form by the mean of some vectors and, to whiten, their scatter within the classes.

    x: (n, d). labels: (n,) class ids. The matrix is the inverse square root of the covariance within the classes,
    shrunk towards a multiple of the identity (Ledoit and Wolf, 2004, with a fixed share).
    Raises InputError if there is no scatter within any class.
    """
    x = x.double()
    mean = x.mean(0)
    if not whiten:
        return Standard(mean.float(), None)
    _, places = labels.unique(return_inverse=True)
    sums = torch.zeros(int(places.max()) + 1, x.shape[1], dtype=x.dtype).index_add_(0, places, x)
    within = x - (sums / places.bincount().unsqueeze(1))[places]
    covariance = within.T @ within / len(x)
    scale = covariance.trace() / len(covariance)
    if not scale > 0:
        raise InputError("standardize=whiten needs classes with pictures that differ")
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * scale * torch.eye(len(covariance), dtype=x.dtype)
    values, vectors = torch.linalg.eigh(covariance)
    return Standard(mean.float(), (vectors * values.rsqrt() @ vectors.T).float())
