"""Task families: distributions over episodes with a loss, metrics and, if it is known, the Bayes prediction."""

from innerloop.tasks.arrays import ArrayTasks
from innerloop.tasks.bandits import Bandits
from innerloop.tasks.base import Classification, Regression, Tasks
from innerloop.tasks.hyperplane import Hyperplane
from innerloop.tasks.images import FewShotImages
from innerloop.tasks.mixture import Mixture, RegressionMixture
from innerloop.tasks.multimodal import Multimodal
from innerloop.tasks.navigation import Navigation
from innerloop.tasks.ratings import Ratings
from innerloop.tasks.sinusoid import Sinusoid

__all__ = [
    "ArrayTasks",
    "Bandits",
    "Classification",
    "FewShotImages",
    "Hyperplane",
    "Mixture",
    "Multimodal",
    "Navigation",
    "Ratings",
    "Regression",
    "RegressionMixture",
    "Sinusoid",
    "Tasks",
]
