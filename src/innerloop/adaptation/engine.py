"""Runs a function of one task over a meta-batch: one task after the other, or all at once under `torch.vmap`."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from innerloop.episodes import Episode, InputError, MetaBatch, number_of_tasks, tasks_of
from innerloop.nets.conv4 import convolutional
from innerloop.nets.norm import fused_norms

ENGINES = ("auto", "loop", "vmap")

Outputs = dict[str, Tensor]
Objective = Callable[[Episode], tuple[Tensor, Outputs]]
"""One task's loss and what to report of it."""


class Engine:
    """Maps one task's function over a meta-batch. The engine changes cost, never the definition.

    kind: "loop" keeps one task's graph at a time; "vmap" runs `chunk` tasks at once (None: all of them); "auto" is
    loop for convolutions on the CPU, where vmap would make slow grouped convolutions of them, and vmap otherwise.
    A meta-batch that is a list of tasks, whose shapes may differ, runs in the loop; InputError if kind is "vmap".
    """

    def __init__(self, kind: str, modules: Sequence[nn.Module], chunk: int | None = None) -> None:
        if kind not in ENGINES:
            raise InputError(f"unknown engine {kind!r}; choose one of {', '.join(ENGINES)}")
        if chunk is not None and chunk < 1:
            raise InputError(f"chunk must be above zero, got {chunk}")
        self.kind, self.modules, self.chunk = kind, modules, chunk
        self._checked = False

    def resolve(self, device: torch.device, ragged: bool = False) -> str:
        """ "loop" or "vmap", as "auto" decides on this device; ragged: for a meta-batch that is a list of tasks."""
        if ragged and self.kind == "vmap":
            raise InputError(
                "engine=vmap runs tasks of one shape at once, and these differ in their number of samples: "
                "use engine=auto or engine=loop"
            )
        if ragged:
            return "loop"
        if self.kind != "auto":
            return self.kind
        return "loop" if any(map(convolutional, self.modules)) and device.type == "cpu" else "vmap"

    def value_and_grad(
        self, objective: Objective, parameters: Sequence[Tensor], batch: MetaBatch
    ) -> tuple[Tensor, list[Tensor], Outputs]:
        """The mean loss over the tasks, its gradient, and the outputs stacked over the tasks.

        Each chunk's graph is freed before the next is built. A parameter that the loss does not reach gets zeros.
        """
        total = torch.zeros((), device=tree_leaves(batch)[0].device)
        gradient = [torch.zeros_like(p) for p in parameters]
        outputs = []
        count = number_of_tasks(batch)
        for losses, out in self._run(objective, batch):
            parts = torch.autograd.grad(losses.sum() / count, parameters, allow_unused=True)
            for g, part in zip(gradient, parts, strict=True):
                if part is not None:
                    g += part
            total = total + losses.detach().sum() / count
            outputs.append(tree_map(torch.detach, out))
        return total, gradient, _join(outputs)

    def map(self, function: Callable[[Episode], Outputs], batch: MetaBatch) -> Outputs:
        """The function's outputs, stacked over the tasks; no graph to the meta-parameters is kept."""
        with torch.no_grad():
            return _join(list(self._run(function, batch)))

    def _run(self, function: Callable, batch: MetaBatch) -> Iterator:
        if self.resolve(tree_leaves(batch)[0].device, ragged=isinstance(batch, list)) == "loop":
            for episode in tasks_of(batch):
                with fused_norms():
                    result = function(episode)
                yield tree_map(lambda t: t.unsqueeze(0), result)
            return
        if not self._checked:
            with RefuseInexact():
                function(tasks_of(batch)[0])
            self._checked = True
        count = number_of_tasks(batch)
        size = self.chunk or count
        for start in range(0, count, size):
            chunk = tree_map(lambda t, start=start: t[start : start + size], batch)
            yield torch.vmap(function)(chunk)


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
