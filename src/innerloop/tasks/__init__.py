"""Task families: distributions over episodes with a loss, metrics and, if it is known, the Bayes prediction."""

from innerloop.tasks.bandits import Bandits
from innerloop.tasks.base import Classification, Regression, Tasks
from innerloop.tasks.hyperplane import Hyperplane
from innerloop.tasks.images import FewShotImages
from innerloop.tasks.multimodal import Multimodal
from innerloop.tasks.navigation import Navigation
from innerloop.tasks.sinusoid import Sinusoid

__all__ = [
    "Bandits",
    "Classification",
    "FewShotImages",
    "Hyperplane",
    "Multimodal",
    "Navigation",
    "Regression",
    "Sinusoid",
    "Tasks",
]
