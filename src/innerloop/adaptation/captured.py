"""The meta-step as a CUDA graph: recorded once, then launched as a whole instead of kernel by kernel."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from innerloop.adaptation.compiled import Outputs, ValueAndGrad
from innerloop.episodes import Episode


def captured(function: ValueAndGrad, parameters: Sequence[Tensor], batch: Episode) -> ValueAndGrad:
    """Return the function as a CUDA graph, for these parameters and for meta-batches of this one's shapes.

    A small kernel takes a GPU less time than it takes Python to launch it, and a meta-step has hundreds. The recorded
    kernels read the parameters where they are in memory, so updates in place are seen. The function may depend on
    nothing else that changes, and may not wait for the GPU. Raises RuntimeError if it cannot be recorded.

    The gradient that is returned is overwritten by the next call.
    """
    example, structure = tree_flatten(batch)
    example = [t.clone() for t in example]
    inputs = tree_unflatten(example, structure)
    replay, (value, gradient, outputs) = record(lambda: function(parameters, inputs))

    def run(_: Sequence[Tensor], batch: Episode) -> tuple[Tensor, Sequence[Tensor], Outputs]:
        for place, t in zip(example, tree_leaves(batch), strict=True):
            place.copy_(t)
        replay()
        return value.clone(), gradient, {name: out.clone() for name, out in outputs.items()}

    return run


def record(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Return a function that runs the kernels of this one again, and the result, which is overwritten by each run."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    # Weights that autocast has cast before would be read as they were then.
    dtype, enabled = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
    with torch.autocast("cuda", dtype=dtype, enabled=enabled, cache_enabled=False):
        with torch.cuda.stream(stream):  # libraries allocate their workspaces at the first call on a stream
            function()
        torch.cuda.current_stream().wait_stream(stream)
        # Other threads, such as one that pins memory, may use the GPU meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = function()
    return graph.replay, result
