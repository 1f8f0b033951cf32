"""A person's own pictures: adapt to labelled ones, predict new ones with probabilities, report, keep the model."""

from innerloop.practice.adapted import Adapted, adapt
from innerloop.practice.model_file import load
from innerloop.practice.predictions import Predictions

__all__ = ["Adapted", "Predictions", "adapt", "load"]
