"""What an engine has recorded of its objectives: compiled functions and CUDA graphs, one for each set of shapes."""

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from innerloop.adaptation.captured import captured
from innerloop.adaptation.compiled import Outputs, ValueAndGrad, check, compiled
from innerloop.episodes import Episode, InputError

log = logging.getLogger("innerloop")

EAGER_CALLS = 2
"""Number of meta-batches of the same shapes that run as they are before a CUDA graph is recorded for them."""
GRAPHS = 4
"""Limit on the number of CUDA graphs, each of which keeps the memory of a whole meta-step."""
SETTINGS = ("engine=graph", "engine=vmap")
TOLERANCE = 0.1
"""Relative. The same kernels ran, but their rounding may differ from run to run, and inner steps amplify it."""


class Records:
    """The recorded functions of one engine.

    compile: record compiled functions. strict: raise InputError if a CUDA graph cannot be recorded, instead of doing
        without graphs from then on.
    """

    def __init__(self, compile: bool, strict: bool) -> None:
        self.compile, self.strict, self.small = compile, strict, False
        """`small`: compile only what takes seconds: see `compiled`."""
        self.impossible = False
        """Whether a CUDA graph could not be recorded."""
        self._compiled: dict[Hashable, ValueAndGrad] = {}
        self._graphs: dict[Hashable, ValueAndGrad] = {}
        self._calls: Counter[Hashable] = Counter()

    def get(
        self,
        objective: Callable,
        run_chunk: Callable,
        parameters: Sequence[Tensor],
        chunk: Episode,
        count: int,
        graph: bool,
        eager: bool,
        images: bool = False,
    ) -> ValueAndGrad | None:
        """Return the recorded function for chunks of this one's shapes. None: there is none.

        run_chunk: the objective under vmap. count: divides the sum of the losses.
        graph: record CUDA graphs, from the third call on.
        eager: the call computes the gradient itself. Nothing is recorded, and what was is returned to be compared.
        images: see `compiled`.
        """
        if not graph and not self.compile:
            return None
        shapes = [(t.shape, t.dtype, t.device) for t in (*parameters, *chunk.support, *chunk.query)]
        autocast_enabled = [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")]
        key = (objective, count, *map(id, parameters), *shapes, *autocast_enabled)
        if graph:  # it reads the parameters where they were in memory
            key += tuple(p.data_ptr() for p in parameters)
        if key in self._graphs or eager:
            return self._graphs.get(key) or self._compiled.get(key)
        if self.compile and key not in self._compiled:
            self._compiled[key] = compiled(objective, parameters, chunk, count, self.small, images)
        if graph:
            self._calls[key] += 1
            if self._calls[key] > EAGER_CALLS and len(self._graphs) < GRAPHS:
                self._capture(key, self._compiled.get(key) or averaged(run_chunk, count), parameters, chunk)
        return self._graphs.get(key) or self._compiled.get(key)

    def _capture(self, key: Hashable, function: ValueAndGrad, parameters: Sequence[Tensor], chunk: Episode) -> None:
        try:
            graph = captured(function, parameters, chunk)
            check(graph(parameters, chunk), function(parameters, chunk), SETTINGS, TOLERANCE)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, InputError) as error:
            reason = str(error).strip().splitlines()[0]
            if self.strict:
                raise InputError(f"engine=graph cannot record this learner: use engine=vmap ({reason})") from error
            log.info("no CUDA graph can be recorded for this learner, so each of its steps takes longer (%s)", reason)
            self.impossible = True
        else:
            self._graphs[key] = graph


def compare(
    record: ValueAndGrad,
    parameters: Sequence[Tensor],
    chunk: Episode,
    value: Tensor,
    gradient: Sequence[Tensor | None],
    settings: tuple[str, str] = SETTINGS,
) -> None:
    """Raise InputError if a recorded function computes another value or gradient than an eager call did."""
    expected = [torch.zeros_like(p) if g is None else g for g, p in zip(gradient, parameters, strict=True)]
    check(record(parameters, chunk), (value, expected), settings, TOLERANCE)


def averaged(run_chunk: Callable, count: int) -> ValueAndGrad:
    """Return the function that has the sum of the losses of a chunk over count, its gradient, and the outputs."""

    def value_and_grad(parameters: Sequence[Tensor], chunk: Episode) -> tuple[Tensor, Sequence[Tensor], Outputs]:
        losses, out = run_chunk(chunk)
        mean = losses.sum() / count
        gradient = torch.autograd.grad(mean, parameters, allow_unused=True, materialize_grads=True)
        return mean.detach(), gradient, tree_map(torch.detach, out)

    return value_and_grad
