"""Meta-learners: LightningModules that choose an adaptation and share one outer loop."""

from innerloop.learners.closed_form import R2D2, ProtoNet
from innerloop.learners.finetune import FineTune
from innerloop.learners.hybrid import Hybrid
from innerloop.learners.hypermaml import HyperMAML
from innerloop.learners.hypernet import CNAPs, HyperNet
from innerloop.learners.imaml import IMAML
from innerloop.learners.latent import CAVIA, LEO
from innerloop.learners.learner import MetaLearner
from innerloop.learners.maml import MAML, ProtoMAML
from innerloop.learners.maml_pp import MAMLPlusPlus
from innerloop.learners.reptile import Reptile
from innerloop.learners.simple_cnaps import SimpleCNAPs

__all__ = [
    "CAVIA",
    "IMAML",
    "LEO",
    "MAML",
    "R2D2",
    "CNAPs",
    "FineTune",
    "Hybrid",
    "HyperMAML",
    "HyperNet",
    "MAMLPlusPlus",
    "MetaLearner",
    "ProtoMAML",
    "ProtoNet",
    "Reptile",
    "SimpleCNAPs",
]
