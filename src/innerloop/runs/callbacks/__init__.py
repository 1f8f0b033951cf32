"""Lightning callbacks of a run: progress, the session around the training steps, diagnostics, early ends."""

from innerloop.runs.callbacks.averaging import StochasticWeightAveraging
from innerloop.runs.callbacks.checkpoints import RunCheckpoint
from innerloop.runs.callbacks.debugging import InnerDiagnostics, LossMustFall
from innerloop.runs.callbacks.distributions import Histograms, InnerRates
from innerloop.runs.callbacks.progress import Progress
from innerloop.runs.callbacks.pruning import Pruning
from innerloop.runs.callbacks.session import SaveOnSignal, Session

__all__ = [
    "Histograms",
    "InnerDiagnostics",
    "InnerRates",
    "LossMustFall",
    "Progress",
    "Pruning",
    "RunCheckpoint",
    "SaveOnSignal",
    "Session",
    "StochasticWeightAveraging",
]
