"""Task families: distributions over episodes with a loss, metrics and, if it is known, the Bayes prediction."""

from innerloop.tasks.base import Classification, Regression, Tasks
from innerloop.tasks.hyperplane import Hyperplane
from innerloop.tasks.images import FewShotImages
from innerloop.tasks.mixture import Mixture, RegressionMixture
from innerloop.tasks.multimodal import Multimodal
from innerloop.tasks.sinusoid import Sinusoid

__all__ = [
    "Classification",
    "FewShotImages",
    "Hyperplane",
    "Mixture",
    "Multimodal",
    "Regression",
    "RegressionMixture",
    "Sinusoid",
    "Tasks",
]
