"""Augmentation of training pictures by torchvision's transforms, chosen by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from innerloop.episodes import InputError

Transform = Callable[[Tensor], Tensor]


def transforms(names: Sequence[Any], shape: Sequence[int]) -> list[Transform]:
    """Return the transforms of torchvision.transforms.v2 with these names, after trying them on one picture.

    names: a name, or a mapping from a name to its keyword arguments, for each. shape: (channels, h, w) of the pictures.
    Raises InputError for a name that is no transform, for keyword arguments that it does not take, for a transform that
    fails on a picture or changes its size or kind, and if torchvision is not installed.
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise InputError(f"augment must be a list of transforms, such as [RandomHorizontalFlip], got {names}")
    if not names:
        return []
    try:
        from torchvision.transforms import v2
    except (ImportError, RuntimeError) as error:  # RuntimeError: it is built for another torch
        raise InputError(f"augment needs torchvision, of the version that fits torch: {error}") from error
    found = [_transform(v2, item) for item in names]
    with torch.random.fork_rng(devices=[]):
        augment(np.zeros((1, *shape), np.uint8), found)
    return found


def _transform(v2: Any, item: Any) -> Transform:
    name, kwargs = next(iter(item.items())) if isinstance(item, Mapping) and len(item) == 1 else (item, None)
    kind = getattr(v2, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, v2.Transform)):
        raise InputError(f"augment: {item} is no transform of torchvision.transforms.v2, as RandomHorizontalFlip is")
    try:
        return kind(**(kwargs or {}))
    except (TypeError, ValueError) as error:
        raise InputError(f"augment: {name} cannot be made with {kwargs or {}}: {error}") from error


def augment(images: np.ndarray, transforms: Sequence[Transform]) -> np.ndarray:
    """Return pictures, each transformed by itself: (n, channels, h, w) uint8 -> the same shape.

    Raises InputError for transforms that fail on a picture, or change its size or its kind.
    """
    found = []
    for image in torch.from_numpy(images):
        for transform in transforms:
            try:
                image = transform(image)
            except Exception as error:  # of any type: some are for labels, boxes or extensions that are not there
                name, reason = type(transform).__name__, (str(error).splitlines() or [""])[0]
                raise InputError(f"augment: {name} fails on a picture: {type(error).__name__}: {reason}") from error
        if image.shape != images.shape[1:] or image.dtype != torch.uint8:
            raise InputError(
                f"augment makes pictures of {tuple(image.shape)}, {image.dtype}; they must stay uint8 of "
                f"{images.shape[1:]}"
            )
        found.append(image)
    return torch.stack(found).numpy()
