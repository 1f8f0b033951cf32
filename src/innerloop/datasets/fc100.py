"""FC100: CIFAR-100 split by superclass. It is harder than CIFAR-FS because test classes resemble no training class.

Oreshkin, Rodriguez, Lacoste: TADAM: Task dependent adaptive metric for improved few-shot learning. NeurIPS, 2018.
"""

from innerloop.datasets import cifar100
from innerloop.datasets.images import LabelledImages
from innerloop.episodes import Split

# Each superclass has five classes. The numbers of the superclasses in CIFAR-100 are 1-6, 9, 10, 15 and 17-19 for
# training, 8, 11, 13 and 16 for validation, and 0, 7, 12 and 14 for testing.
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
    """Return all of CIFAR-100, (N, 3, 32, 32), 600 images per class: 60 training, 20 validation and 20 test classes.

    root and errors: see `cifar100.load`.
    """
    return cifar100.load(root, SUPERCLASSES)
