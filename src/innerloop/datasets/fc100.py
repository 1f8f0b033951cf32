"""FC100: CIFAR-100 split by superclass, so that test classes resemble no training class: harder than CIFAR-FS.

Oreshkin, Rodriguez, Lacoste: TADAM: Task dependent adaptive metric for improved few-shot learning. NeurIPS, 2018.
"""

from innerloop.datasets import cifar100
from innerloop.datasets.images import LabelledImages
from innerloop.episodes import Split

# Five classes each. By their numbers in CIFAR-100: 1-6, 9, 10, 15, 17-19 to train, 8, 11, 13, 16 to validate,
# 0, 7, 12, 14 to test.
SUPERCLASSES: dict[Split, tuple[str, ...]] = {
    "train": (
        "fish",
        "flowers",
        "food_containers",
        "fruit_and_vegetables",
        "household_electrical_devices",
        "household_furniture",
        "large_man-made_outdoor_things",
        "large_natural_outdoor_scenes",
        "reptiles",
        "trees",
        "vehicles_1",
        "vehicles_2",
    ),
    "validation": ("large_carnivores", "large_omnivores_and_herbivores", "non-insect_invertebrates", "small_mammals"),
    "test": ("aquatic_mammals", "insects", "medium_mammals", "people"),
}


def load(root: str | None = None) -> LabelledImages:
    """All of CIFAR-100, (N, 3, 32, 32), 600 pictures a class: 60 classes to train on, 20 to validate and 20 to test.

    root and errors: see `cifar100.load`.
    """
    return cifar100.load(root, SUPERCLASSES)
