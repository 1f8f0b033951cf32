"""The engine, which runs a function of one task over a meta-batch: task by task, in threads or by `torch.vmap`."""

import contextvars
import itertools
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from innerloop.adaptation import compiled, records
from innerloop.adaptation.compiled import Outputs
from innerloop.adaptation.recompute import thread_settings
from innerloop.adaptation.records import Records, compare
from innerloop.devices.random_state import random_state
from innerloop.episodes import Episode, InputError, MetaBatch, number_of_tasks, tasks_of
from innerloop.nets.conv4 import convolutional
from innerloop.nets.fused import fused_layers

log = logging.getLogger("innerloop")

ENGINES = ("auto", "loop", "threads", "vmap", "graph")
AT_ONCE = ("vmap", "graph")
"""The kinds that stack the tasks of a chunk."""

Objective = Callable[[Episode], tuple[Tensor, Outputs]]
"""(one task) -> its loss, and the outputs to report."""

Result = TypeVar("Result")


class Engine:
    """An engine that runs a function of one task over a meta-batch. All kinds compute the same, at different costs.

    kind: "loop" runs one task after the other and keeps the graph of one task at a time.
        "threads" runs `chunk` tasks at once (None: as many as torch has threads). Each thread loops over an equal,
        consecutive share of the tasks and gets an equal share of torch's threads. The gradients of the threads are
        added in order, so the same number of threads always gives the same numbers. Functions must not modify what
        tasks share: call nets by `innerloop.episodes.apply`.
        "vmap" runs `chunk` tasks at once (None: all tasks; if they exceed a GPU's memory, half as many, and so on).
        "auto" is threads for convolutions on the CPU, where vmap would turn them into slow grouped convolutions, and
        vmap otherwise.
    modules: the modules that are searched for convolutions.
    compile: compute meta-gradients by a compiled function, under vmap or of convolutions on the CPU: see `compiled`.

    A meta-batch that is a list of tasks, whose shapes may differ, never runs under vmap. For such a list "auto" uses a
    loop in place of vmap, and "vmap" raises InputError.
    """

    def __init__(
        self,
        kind: str,
        modules: Sequence[nn.Module],
        chunk: int | None = None,
        compile: bool = False,
        steady: bool = False,
    ) -> None:
        if kind not in ENGINES:
            raise InputError(f"unknown engine {kind!r}; choose one of {', '.join(ENGINES)}")
        if chunk is not None and chunk < 1:
            raise InputError(f"chunk must be above zero, got {chunk}")
        self.kind, self.modules, self.chunk, self.compile, self.steady = kind, modules, chunk, compile, steady
        self.convolutional = any(map(convolutional, modules))
        self._checked: set[Hashable] = set()
        self._without_vmap = False
        self._drawing: set[bool] = set()
        """Whether functions drew random numbers in training (True) and in evaluation (False)."""
        self.fitted: dict[Callable, int] = {}
        self.records = Records(compile, strict=kind == "graph")

    def resolve(self, device: torch.device, ragged: bool = False, gradient: bool = True) -> str:
        """Return the kind that runs a meta-batch on this device: what "auto" stands for, or the kind itself.

        ragged: the meta-batch is a list of tasks. gradient: for its meta-gradient, which may be compiled. Raises
        InputError if the kind cannot run it.
        """
        on_cpu = device.type == "cpu"
        possible = self._choose(on_cpu, ragged) in AT_ONCE or (on_cpu and self.convolutional)
        if self.compile and gradient and (ragged or not possible):
            raise InputError(
                "compile=true needs tasks of equal shape and, but for convolutions on the CPU, engine=vmap: use "
                "compile=false"
            )
        if ragged and self.kind in AT_ONCE:
            raise InputError(
                f"engine={self.kind} needs tasks of equal shape, and these differ in their number of samples: "
                "use engine=auto or engine=loop"
            )
        if self.kind == "threads" and not on_cpu:
            raise InputError("engine=threads is for the CPU: on a GPU use engine=auto, vmap or loop")
        if self.kind == "graph" and on_cpu:
            raise InputError("engine=graph is for GPUs: on the CPU use engine=auto, loop, threads or vmap")
        return self._choose(on_cpu, ragged)

    def _choose(self, on_cpu: bool, ragged: bool) -> str:
        if self.kind != "auto":
            return self.kind
        if on_cpu and self.convolutional:
            return "threads"
        if ragged or self._without_vmap:
            return "loop"
        return "graph" if self.steady and not on_cpu and not self.records.impossible else "vmap"

    def value_and_grad(
        self, objective: Objective, parameters: Sequence[Tensor], batch: MetaBatch, eager: bool = False
    ) -> tuple[Tensor, list[Tensor], Outputs]:
        """Return the mean loss over the tasks, its gradient, and the outputs stacked over the tasks.

        Each chunk's graph is freed before the next one is built. The gradient is zero for a parameter that the loss
        does not depend on.

        eager: do not use a compiled function or a graph in this call.
        """
        count = number_of_tasks(batch)

        def run_share(share: MetaBatch) -> tuple[Tensor, list[Tensor], list[Outputs]]:
            total = torch.zeros((), device=device_of(batch))
            gradient, outputs = [torch.zeros_like(p) for p in parameters], []
            for value, parts, out in self._run_chunks(run_chunk, objective, share):
                for g, part in zip(gradient, parts, strict=True):
                    if part is not None:
                        g += part
                total = total + value
                outputs.append(out)
            return total, gradient, outputs

        kind = self.resolve(device_of(batch), ragged=isinstance(batch, list))
        images = self.compile and kind not in AT_ONCE
        whole = None
        if images:
            assert isinstance(batch, Episode)
            whole = self.records.get(objective, objective, parameters, batch, count, False, eager, images=True)
            if whole is not None and not eager:
                value, found, reported = whole(parameters, batch)
                return value, list(found), reported
        chunk_objective = self._for_chunks(objective, batch)

        def run_chunk(chunk: Episode) -> tuple[Tensor, Sequence[Tensor | None], Outputs]:
            key = (objective, chunk_objective, parameters, chunk, count, kind == "graph", eager)
            record = None if images else self.records.get(*key)
            if record is not None and not eager:
                return record(parameters, chunk)
            losses, out = chunk_objective(chunk)
            if not losses.requires_grad:
                raise InputError("there is nothing to learn: the loss depends on no meta-parameter")
            parts = torch.autograd.grad(losses.sum() / count, parameters, allow_unused=True)
            value = losses.detach().sum() / count
            if record is not None:
                compare(
                    record, parameters, chunk, value, parts, records.SETTINGS if kind == "graph" else compiled.SETTINGS
                )
            return value, parts, tree_map(torch.detach, out)

        (total, gradient, outputs), *others = self._each_share(run_share, batch)
        for value, other, out in others:
            total = total + value
            gradient = [g + part for g, part in zip(gradient, other, strict=True)]
            outputs += out
        if whole is not None:
            assert isinstance(batch, Episode)
            compare(whole, parameters, batch, total, gradient, compiled.SETTINGS)
        return total, gradient, _join(outputs)

    def compile_now(
        self, objectives: Sequence[tuple[Objective, Sequence[Tensor]]], batch: MetaBatch, small: bool = False
    ) -> None:
        """Compile objectives, with the parameters of their gradients, for meta-batches of the shapes of this one.

        small: only if each takes seconds. Raises InputError if it is not possible, with nothing compiled: see
        `compiled`.
        """
        before = self.compile
        self.compile = self.records.compile = True
        self.records.small = small
        try:
            for objective, parameters in objectives:
                self.value_and_grad(objective, parameters, batch)
        except InputError:
            self.compile = self.records.compile = before
            raise
        finally:
            self.records.small = False

    def map(self, function: Callable[[Episode], Outputs], batch: MetaBatch) -> Outputs:
        """Return the function's outputs, stacked over the tasks. No graph to the meta-parameters is kept."""
        with torch.no_grad():
            run_chunk = self._for_chunks(function, batch)

        def run_share(share: MetaBatch) -> list[Outputs]:
            with torch.no_grad():
                return list(self._run_chunks(run_chunk, function, share))

        return _join([out for outputs in self._each_share(run_share, batch) for out in outputs])

    def _each_share(self, function: Callable[[MetaBatch], Result], batch: MetaBatch) -> list[Result]:
        """Return the function's results on consecutive shares of the tasks, in order: one share per worker.

        There is one worker for functions that draw random numbers, such as nets with dropout: threads would draw from
        torch's one stream in an order that is another one each time.
        """
        if self._kind_for(batch) != "threads":
            return [function(batch)]
        workers = min(self.chunk or torch.get_num_threads(), number_of_tasks(batch))
        training, before = any(module.training for module in self.modules), torch.get_rng_state()
        results = self._in_threads(function, batch, 1 if training in self._drawing else workers)
        if training not in self._drawing and not torch.equal(before, torch.get_rng_state()):
            self._drawing.add(training)
            log.warning("this net draws random numbers, so tasks run one after the other and not in threads")
            if workers > 1:
                torch.set_rng_state(before)
                return [function(batch)]
        return results

    def _in_threads(self, function: Callable[[MetaBatch], Result], batch: MetaBatch, workers: int) -> list[Result]:
        if workers == 1:
            return [function(batch)]
        tasks, threads = tasks_of(batch), torch.get_num_threads()
        edges = [len(tasks) * i // workers for i in range(workers + 1)]
        settings = thread_settings()

        def work(share: list[Episode]) -> Result:
            torch.set_num_threads(max(threads // workers, 1))
            with settings():
                return function(share)

        try:
            with ThreadPoolExecutor(workers) as pool:
                jobs = [
                    pool.submit(contextvars.copy_context().run, work, tasks[first:last])
                    for first, last in itertools.pairwise(edges)
                ]
            return [job.result() for job in jobs]
        finally:
            torch.set_num_threads(threads)  # what a thread has set is also the default of threads that start later

    def _kind_for(self, batch: MetaBatch) -> str:
        return self.resolve(device_of(batch), ragged=isinstance(batch, list), gradient=False)

    def _for_chunks(self, function: Callable, batch: MetaBatch) -> Callable[[Episode], Any]:
        """Return a function that runs this one on the tasks of a chunk, see `_run_chunks`, and stacks the results."""
        if self._kind_for(batch) in AT_ONCE and self._check_vmap(function, batch):
            return torch.vmap(function)

        def run_task(episode: Episode) -> Any:
            with fused_layers():
                result = function(episode)
            return tree_map(lambda t: t.unsqueeze(0), result)

        return run_task

    def _run_chunks(
        self, run_chunk: Callable[[Episode], Result], function: Callable, batch: MetaBatch
    ) -> Iterator[Result]:
        """Yield the result of `run_chunk` for each chunk in order: a single task or, under vmap, several stacked tasks.

        function: the function of one task that `run_chunk` calls. The chunk size that fits in a device's memory is
            remembered for it.
        """
        if self._kind_for(batch) not in AT_ONCE:
            yield from map(run_chunk, tasks_of(batch))
            return
        assert isinstance(batch, Episode)
        start, count = 0, number_of_tasks(batch)
        while start < count:
            size = min(self.chunk or self.fitted.get(function, count), count - start)
            chunk = batch
            if size < count:
                chunk = tree_map(lambda t, first=start, end=start + size: t[first:end], batch)
            try:
                result = run_chunk(chunk)
            except torch.OutOfMemoryError:
                if self.chunk is not None or size == 1:
                    raise
            else:
                yield result
                start += size
                continue
            # Not in the except clause, where the exception's frames still hold the graph in memory.
            self.fitted[function] = half = (size + 1) // 2
            log.warning("%d tasks at once exceed the memory of the GPU: from now on %d at once", size, half)

    def _check_vmap(self, function: Callable, batch: MetaBatch) -> bool:
        """Try a function under vmap once. If the net does not run there, "auto" uses a loop from then on.

        Returns whether it runs under vmap.

        Raises InputError for norms whose gradients would be wrong and, with kind "vmap", for such a net.
        """
        # A net may differ in training, by dropout for example.
        key = (function, any(module.training for module in self.modules))
        if key in self._checked:
            return not self._without_vmap
        with random_state()():  # a resumed run tries once more, and draws the same after that
            with RefuseInexact():
                function(tasks_of(batch)[0])
            try:
                torch.vmap(function)(tree_map(lambda t: t[:1], batch))
            except RuntimeError as error:  # whatever torch says: without vmap the function has just run
                if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
                    raise
                reason = (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0]
                if self.kind != "auto" or self.compile:
                    raise InputError(f"engine=vmap cannot run this net: use engine=loop ({reason})") from error
                log.warning("this net cannot run under torch.vmap, so tasks run one after the other (%s)", reason)
                self._without_vmap = True
        self._checked.add(key)
        return not self._without_vmap


class RefuseInexact(TorchFunctionMode):
    """A mode that raises InputError for norms with silently wrong second-order gradients under vmap (torch 2.13)."""

    inexact = frozenset({"batch_norm", "layer_norm", "instance_norm", "native_layer_norm", "native_batch_norm"})

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = getattr(func, "__name__", "")
        if name in self.inexact:
            raise InputError(
                f"engine=vmap would give wrong second-order gradients through {name}: use a norm of innerloop.nets, "
                "or engine=loop"
            )
        return func(*args, **(kwargs or {}))


def device_of(batch: MetaBatch) -> torch.device:
    """Return the device of a meta-batch of either form."""
    first = batch[0] if isinstance(batch, list) else batch
    return first.support.x.device


def _join(parts: list[Outputs]) -> Outputs:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
