"""Recorded operations of one task as a C++ function that loops over the tasks, so that a task stays in the cache."""

import ctypes
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from innerloop.adaptation.program import MOST, Program, Unsupported
from innerloop.devices.compiler import library

aten = torch.ops.aten


def native(
    function: Callable, shared: Sequence[Tensor], stacked: Sequence[Tensor], images: bool = False
) -> Callable[..., list[Tensor]]:
    """Return (*shared, *stacked) -> the sums over the tasks of the tensors that the function returns for each.

    function: of the shared tensors and those of one task. stacked: the tensors of all tasks. The returned function is
        for tensors of these shapes.
    images: the tasks may be large, and are shared among as many threads as torch has. Otherwise one thread runs all.
    Raises Unsupported for operations that cannot be recorded or are not translated, and CompilerError if there is no
    working compiler.
    """
    dtypes = {t.dtype for t in (*shared, *stacked)} - {torch.int64}
    if dtypes not in ({torch.float32}, {torch.float64}) or any(t.device.type != "cpu" for t in (*shared, *stacked)):
        raise Unsupported("only float32 or float64 on the CPU")
    (dtype,) = dtypes
    one = [*(t.contiguous() for t in shared), *(t[0].contiguous() for t in stacked)]
    record = make_fx(function, decomposition_table={**core_aten_decompositions(), **DECOMPOSITIONS})
    try:
        recorded = record(*one)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # such as for code that depends on values of tensors
        raise Unsupported(str(error).partition("\n")[0].partition(". ")[0]) from error
    recorded.graph.eliminate_dead_code()
    program = Program(recorded, dtype, len(shared))
    if program.numbers > MOST and not images:
        raise Unsupported("a task is too large")
    run = library(program.source, 3 if images else 2).run
    run.argtypes, run.restype = [ctypes.c_void_p] * 3 + [ctypes.c_int], None

    def share(tensors: Sequence[Tensor], first: int, last: int) -> list[Tensor]:
        own = (t[first:last] for t in tensors[len(shared) :])
        inputs = [t.to(dtype).contiguous() for t in (*tensors[: len(shared)], *own)]
        outputs = [torch.empty(shape, dtype=dtype) for shape in program.shapes]
        scratch = torch.empty(program.size, dtype=dtype)
        run(_pointers(inputs), _pointers(outputs), scratch.data_ptr(), last - first)
        return outputs

    def sums(*tensors: Tensor) -> list[Tensor]:
        tasks = len(tensors[-1])
        workers = min(torch.get_num_threads(), tasks) if images else 1
        if workers == 1:
            return share(tensors, 0, tasks)
        edges = [tasks * i // workers for i in range(workers + 1)]
        with ThreadPoolExecutor(workers) as pool:
            parts = list(pool.map(lambda edge: share(tensors, *edge), itertools.pairwise(edges)))
        return [functools.reduce(torch.add, part) for part in zip(*parts, strict=True)]

    return sums


def _addmm(bias: Tensor, a: Tensor, b: Tensor, beta: float = 1, alpha: float = 1) -> Any:
    return torch.mm(a, b) + bias if beta == alpha == 1 else NotImplemented


def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    x = x - x.amax(dim, keepdim=True)
    return x - x.exp().sum(dim, keepdim=True).log()


def _mean(x: Tensor, dim: list[int], keepdim: bool = False, dtype: torch.dtype | None = None) -> Any:
    return x.sum(dim, keepdim=keepdim) / math.prod(x.shape[d] for d in dim) if dtype is None and dim else NotImplemented


DECOMPOSITIONS: dict[Any, Any] = {
    aten.addmm.default: _addmm,
    aten._log_softmax.default: _log_softmax,
    aten.mean.dim: _mean,
}


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
