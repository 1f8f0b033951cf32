"""Nets that learners adapt, and the parts of hypernetworks. All norms here are exact under `torch.vmap`."""

from innerloop.nets.additive import Additive, PairEncoder, PairGenerator
from innerloop.nets.conv4 import Conv4, convolutional
from innerloop.nets.dense import MLP, Linear
from innerloop.nets.factors import Factors
from innerloop.nets.generator import Generator
from innerloop.nets.norm import BatchNorm, GroupNorm, LayerNorm
from innerloop.nets.per_task_conv import Conv2d
from innerloop.nets.policy import CategoricalPolicy, GaussianPolicy
from innerloop.nets.quadratic import QuadraticHead
from innerloop.nets.resnet12 import ResNet12
from innerloop.nets.set_encoder import SetEncoder

__all__ = [
    "MLP",
    "Additive",
    "BatchNorm",
    "CategoricalPolicy",
    "Conv2d",
    "Conv4",
    "Factors",
    "GaussianPolicy",
    "Generator",
    "GroupNorm",
    "LayerNorm",
    "Linear",
    "PairEncoder",
    "PairGenerator",
    "QuadraticHead",
    "ResNet12",
    "SetEncoder",
    "convolutional",
]
