"""A person's own pictures or tables: adapt to labelled ones, predict new ones, report, keep the model."""

from innerloop.practice.adapted import Adapted, adapt
from innerloop.practice.model_file import load
from innerloop.practice.predictions import Predictions
from innerloop.practice.table_adapt import adapt_table

__all__ = ["Adapted", "Predictions", "adapt", "adapt_table", "load"]
