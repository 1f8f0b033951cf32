"""Meta-learners: LightningModules that choose an adaptation and share one outer loop."""

from innerloop.learners.hybrid import Hybrid
from innerloop.learners.hypernet import HyperNet
from innerloop.learners.learner import MetaLearner
from innerloop.learners.maml import MAML

__all__ = ["MAML", "Hybrid", "HyperNet", "MetaLearner"]
