"""CIFAR-FS: the classes of CIFAR-100 at random, 64 to train on, 16 to validate and 20 to test.

Bertinetto, Henriques, Torr, Vedaldi: Meta-learning with differentiable closed-form solvers. ICLR, 2019.
"""

import json
from importlib import resources

from innerloop.datasets import cifar100
from innerloop.datasets.images import LabelledImages
from innerloop.episodes import SPLITS, Split


def load(root: str | None = None) -> LabelledImages:
    """All of CIFAR-100, (N, 3, 32, 32), 600 pictures a class, with the published split of the classes.

    root and errors: see `cifar100.load`.
    """
    return cifar100.load(root, published_split())


def published_split() -> dict[Split, list[str]]:
    """The names of the classes of each split, as the authors' own lists have them."""
    names = json.loads((resources.files("innerloop.datasets") / "splits" / "cifar_fs.json").read_text(encoding="utf-8"))
    return {split: names[key] for split, key in zip(SPLITS, ("train", "val", "test"), strict=True)}
