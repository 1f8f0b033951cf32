"""Adaptations: maps from a task's support set to its weights, and the engine that runs them over a meta-batch."""

from innerloop.adaptation.adaptation import Adaptation, Chain, Identity
from innerloop.adaptation.engine import Engine
from innerloop.adaptation.generate import Generate
from innerloop.adaptation.gradient import GradientSteps

__all__ = ["Adaptation", "Chain", "Engine", "Generate", "GradientSteps", "Identity"]
