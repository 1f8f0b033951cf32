"""CIFAR-FS: a random split of the classes of CIFAR-100 into 64 training, 16 validation and 20 test classes.

Bertinetto, Henriques, Torr, Vedaldi: Meta-learning with differentiable closed-form solvers. ICLR, 2019.
"""

import json
from importlib import resources

from innerloop.datasets import cifar100
from innerloop.datasets.images import LabelledImages
from innerloop.episodes import SPLITS, Split


def load(root: str | None = None) -> LabelledImages:
    """Return all of CIFAR-100, (N, 3, 32, 32), 600 images per class, with the published split of the classes.

    root and errors: see `cifar100.load`.
    """
    return cifar100.load(root, published_split())


def published_split() -> dict[Split, list[str]]:
    """Return the names of the classes of each split, from the authors' own lists."""
    names = json.loads((resources.files("innerloop.datasets") / "splits" / "cifar_fs.json").read_text(encoding="utf-8"))
    return {split: names[key] for split, key in zip(SPLITS, ("train", "val", "test"), strict=True)}
