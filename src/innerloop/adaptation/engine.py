"""Runs a function of one task over a meta-batch: one after the other, in threads, or all at once by `torch.vmap`."""

import contextvars
import itertools
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from innerloop.adaptation.compiled import Outputs, ValueAndGrad, compiled
from innerloop.adaptation.recompute import autocast
from innerloop.episodes import Episode, InputError, MetaBatch, number_of_tasks, tasks_of
from innerloop.nets.conv4 import convolutional
from innerloop.nets.fused import fused_layers

log = logging.getLogger("innerloop")

ENGINES = ("auto", "loop", "threads", "vmap")

Objective = Callable[[Episode], tuple[Tensor, Outputs]]
"""One task's loss and what to report of it."""

Result = TypeVar("Result")


class Engine:
    """Maps one task's function over a meta-batch. The engine changes cost, never the definition.

    kind: "loop" keeps one task's graph at a time. "threads" runs `chunk` tasks at once (None: as many as torch has
    threads), each in a thread that loops over an equal, consecutive share of the tasks with its part of torch's
    threads, and adds up their gradients in order: the same numbers each time, for one number of threads. What tasks
    share must then be left alone: call nets by `innerloop.episodes.apply`. "vmap" runs `chunk` tasks at once (None: all
    or, where they exceed a GPU's memory, half as many, and so on). "auto" is threads for convolutions on the CPU, where
    vmap would make slow grouped convolutions of them, and vmap otherwise.
    A meta-batch that is a list of tasks, whose shapes may differ, is never run by vmap; InputError if kind is "vmap".
    compile: meta-gradients under vmap by a compiled function, see `compiled`.
    """

    def __init__(
        self, kind: str, modules: Sequence[nn.Module], chunk: int | None = None, compile: bool = False
    ) -> None:
        if kind not in ENGINES:
            raise InputError(f"unknown engine {kind!r}; choose one of {', '.join(ENGINES)}")
        if chunk is not None and chunk < 1:
            raise InputError(f"chunk must be above zero, got {chunk}")
        self.kind, self.modules, self.chunk, self.compile = kind, modules, chunk, compile
        self._checked = False
        self.fitted: dict[Callable, int] = {}
        self._compiled: dict[Hashable, ValueAndGrad] = {}

    def resolve(self, device: torch.device, ragged: bool = False) -> str:
        """What "auto" is on this device; ragged: for a meta-batch that is a list of tasks."""
        on_cpu = device.type == "cpu"
        if self.compile and (ragged or self._choose(on_cpu, ragged) != "vmap"):
            raise InputError(
                "compile=true runs tasks of one shape at once by engine=vmap, which does not suit convolutions on the "
                "CPU: use compile=false"
            )
        if ragged and self.kind == "vmap":
            raise InputError(
                "engine=vmap runs tasks of one shape at once, and these differ in their number of samples: "
                "use engine=auto or engine=loop"
            )
        if self.kind == "threads" and not on_cpu:
            raise InputError("engine=threads is for the CPU: on a GPU use engine=auto, vmap or loop")
        return self._choose(on_cpu, ragged)

    def _choose(self, on_cpu: bool, ragged: bool) -> str:
        if self.kind != "auto":
            return self.kind
        if on_cpu and any(map(convolutional, self.modules)):
            return "threads"
        return "loop" if ragged else "vmap"

    def value_and_grad(
        self, objective: Objective, parameters: Sequence[Tensor], batch: MetaBatch, eager: bool = False
    ) -> tuple[Tensor, list[Tensor], Outputs]:
        """The mean loss over the tasks, its gradient, and the outputs stacked over the tasks.

        Each chunk's graph is freed before the next is built. A parameter that the loss does not reach gets zeros.
        eager: not by a compiled function this time.
        """
        count = number_of_tasks(batch)

        def of_share(share: MetaBatch) -> tuple[Tensor, list[Tensor], list[Outputs]]:
            total = torch.zeros((), device=tree_leaves(batch)[0].device)
            gradient, outputs = [torch.zeros_like(p) for p in parameters], []
            for value, parts, out in self._pieces(of_piece, objective, share):
                for g, part in zip(gradient, parts, strict=True):
                    if part is not None:
                        g += part
                total = total + value
                outputs.append(out)
            return total, gradient, outputs

        of_tasks = self._of_tasks(objective, batch)

        def of_piece(tasks: Episode) -> tuple[Tensor, Sequence[Tensor | None], Outputs]:
            if self.compile and not eager:
                value, sums, out = self._compiled_for(objective, parameters, tasks)(parameters, tasks)
                return value / count, [g / count for g in sums], out
            losses, out = of_tasks(tasks)
            parts = torch.autograd.grad(losses.sum() / count, parameters, allow_unused=True)
            return losses.detach().sum() / count, parts, tree_map(torch.detach, out)

        (total, gradient, outputs), *others = self._each_share(of_share, batch)
        for value, other, out in others:
            total = total + value
            gradient = [g + part for g, part in zip(gradient, other, strict=True)]
            outputs += out
        return total, gradient, _join(outputs)

    def map(self, function: Callable[[Episode], Outputs], batch: MetaBatch) -> Outputs:
        """The function's outputs, stacked over the tasks; no graph to the meta-parameters is kept."""
        with torch.no_grad():
            of_tasks = self._of_tasks(function, batch)

        def of_share(share: MetaBatch) -> list[Outputs]:
            with torch.no_grad():
                return list(self._pieces(of_tasks, function, share))

        return _join([out for outputs in self._each_share(of_share, batch) for out in outputs])

    def _each_share(self, function: Callable[[MetaBatch], Result], batch: MetaBatch) -> list[Result]:
        """The function's results on consecutive shares of the tasks, in order: one share, or one for each worker."""
        workers = 1
        if self._kind_for(batch) == "threads":
            workers = min(self.chunk or torch.get_num_threads(), number_of_tasks(batch))
        if workers == 1:
            return [function(batch)]
        tasks, threads = tasks_of(batch), torch.get_num_threads()
        edges = [len(tasks) * i // workers for i in range(workers + 1)]
        inside = thread_settings()

        def work(share: list[Episode]) -> Result:
            torch.set_num_threads(max(threads // workers, 1))
            with inside():
                return function(share)

        try:
            with ThreadPoolExecutor(workers) as pool:
                jobs = [
                    pool.submit(contextvars.copy_context().run, work, tasks[first:last])
                    for first, last in itertools.pairwise(edges)
                ]
            return [job.result() for job in jobs]
        finally:
            torch.set_num_threads(threads)  # what a thread sets is also what later threads start with

    def _kind_for(self, batch: MetaBatch) -> str:
        return self.resolve(tree_leaves(batch)[0].device, ragged=isinstance(batch, list))

    def _of_tasks(self, function: Callable, batch: MetaBatch) -> Callable[[Episode], Any]:
        """The function of a piece of this meta-batch, see `_pieces`, with the results stacked over its tasks."""
        if self._kind_for(batch) == "vmap":
            self._refuse_inexact(function, batch)
            return torch.vmap(function)

        def of_task(episode: Episode) -> Any:
            with fused_layers():
                result = function(episode)
            return tree_map(lambda t: t.unsqueeze(0), result)

        return of_task

    def _pieces(self, of_piece: Callable[[Episode], Result], function: Callable, batch: MetaBatch) -> Iterator[Result]:
        """What comes of each piece of the meta-batch in order: a task or, under vmap, a chunk of tasks.

        function: what is asked of each task; what fitted a device's memory once is remembered for it.
        """
        if self._kind_for(batch) != "vmap":
            yield from map(of_piece, tasks_of(batch))
            return
        start, count = 0, number_of_tasks(batch)
        while start < count:
            size = min(self.chunk or self.fitted.get(function, count), count - start)
            piece = tree_map(lambda t, first=start, end=start + size: t[first:end], batch)
            try:
                result = of_piece(piece)
            except torch.OutOfMemoryError:
                if self.chunk is not None or size == 1:
                    raise
            else:
                yield result
                start += size
                continue
            # Behind the except clause, where the graph is gone that the exception's frames hold.
            self.fitted[function] = half = (size + 1) // 2
            log.warning("%d tasks at once exceed the memory of the GPU: from now on %d at once", size, half)

    def _compiled_for(self, objective: Objective, parameters: Sequence[Tensor], chunk: Episode) -> ValueAndGrad:
        shapes = [(t.shape, t.dtype, t.device) for t in (*parameters, *tree_leaves(chunk))]
        autocast = [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")]
        key = (objective, *map(id, parameters), *shapes, *autocast)
        if key not in self._compiled:
            self._compiled[key] = compiled(objective, parameters, chunk)
        return self._compiled[key]

    def _refuse_inexact(self, function: Callable, batch: MetaBatch) -> None:
        if not self._checked:
            with RefuseInexact():
                function(tasks_of(batch)[0])
            self._checked = True


def thread_settings() -> Callable[[], AbstractContextManager[None]]:
    """A context manager with this thread's autograd and autocast modes, for other threads: they start with torch's."""
    gradients, inference, cast = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast()

    @contextmanager
    def settings() -> Iterator[None]:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients), cast():
            yield

    return settings


class RefuseInexact(TorchFunctionMode):
    """Refuses the norms whose second-order gradients torch's vmap gets silently wrong (torch 2.13)."""

    inexact = frozenset({"batch_norm", "layer_norm", "instance_norm", "native_layer_norm", "native_batch_norm"})

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = getattr(func, "__name__", "")
        if name in self.inexact:
            raise InputError(
                f"engine=vmap would give wrong second-order gradients through {name}: use a norm of innerloop.nets, "
                "or engine=loop"
            )
        return func(*args, **(kwargs or {}))


def _join(parts: list[Outputs]) -> Outputs:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
