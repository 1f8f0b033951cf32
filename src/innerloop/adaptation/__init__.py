"""Adaptations, which map a task's support set to its weights, and the engine that runs them over a meta-batch."""

from innerloop.adaptation.adaptation import Adaptation, Chain, Identity
from innerloop.adaptation.engine import Engine
from innerloop.adaptation.generate import Generate, ZeroCode
from innerloop.adaptation.gradient import GradientSteps
from innerloop.adaptation.heads import PrototypeHead, RidgeHead, RidgeStep, ZeroHead
from innerloop.adaptation.latent import LatentSteps
from innerloop.adaptation.mahalanobis import MahalanobisHead
from innerloop.adaptation.per_step import PerStepNorms

__all__ = [
    "Adaptation",
    "Chain",
    "Engine",
    "Generate",
    "GradientSteps",
    "Identity",
    "LatentSteps",
    "MahalanobisHead",
    "PerStepNorms",
    "PrototypeHead",
    "RidgeHead",
    "RidgeStep",
    "ZeroCode",
    "ZeroHead",
]
