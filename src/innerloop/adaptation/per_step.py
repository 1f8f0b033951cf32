"""Inner steps of MAML++, each of which has its own norm weights and its own running statistics."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from innerloop.adaptation.gradient import GradientSteps
from innerloop.episodes import Samples, Weights, apply
from innerloop.nets.norm import BatchNorm, Moments, Source, moments, statistics_from


class PerStepNorms(GradientSteps):
    """Inner steps with batch-norm weights and statistics per step (MAML++, Antoniou et al., 2019, section 4).

    Step k, counted from 0, computes the support loss with the norm weights w + d_k. The query is evaluated with w + d_K
    after K steps. The offsets d_k are learned in the outer loop and start at zero, which gives plain `GradientSteps`.
    Running statistics are kept of the queries after each step. Evaluation can use them for the queries, but the inner
    steps always use the statistics of the support set. Additional steps in evaluation use the last offsets and
    statistics. Offsets are off until `learn_norms` is called, and running statistics until `keep_statistics` is called.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.offsets: nn.ParameterDict | None = None
        self.running: nn.Module | None = None

    def learn_norms(self, weights: Mapping[str, Tensor]) -> None:
        """Add learned offsets, (steps + 1, channels), to the norm weights among `weights`."""
        self.offsets = nn.ParameterDict(
            {
                name.replace(".", "/"): torch.zeros(self.steps + 1, *w.shape, dtype=w.dtype, device=w.device)
                for name, w in weights.items()
                if ".norm." in name
            }
        )

    def keep_statistics(self, net: nn.Module) -> None:
        """Add running means and variances, (steps + 1, channels), for every batch norm of the net."""
        self.running = nn.Module()
        for name, norm in batch_norms(net).items():
            shape = (self.steps + 1, len(norm.weight))
            self.running.register_buffer(_key("mean", name), norm.weight.new_zeros(shape))
            self.running.register_buffer(_key("variance", name), norm.weight.new_ones(shape))

    def path(self, net: nn.Module, weights: Weights, support: Samples, steps: int) -> list[Weights]:
        return [self._with_offsets(w, k) for k, w in enumerate(super().path(net, weights, support, steps))]

    def objective(self, net: nn.Module, weights: Weights, support: Samples, k: int, start: Weights) -> Tensor:
        return super().objective(net, self._with_offsets(weights, k), support, k, start)

    def running_at(self, net: nn.Module, k: int) -> Source:
        """Return the running statistics of step k as a source for `statistics_from`."""
        assert self.running is not None
        names = {norm.identity: name for name, norm in batch_norms(net).items()}
        rows = {name: buffer[min(k, self.steps)] for name, buffer in self.running.named_buffers()}

        def source(norm: BatchNorm, x: Tensor) -> Moments:
            name = names[norm.identity]
            return rows[_key("mean", name)], rows[_key("variance", name)]

        return source

    def observe(self, net: nn.Module, weights: Weights, support: Samples, query: Samples) -> dict[str, Tensor]:
        """Return the batch statistics of one task's query after each inner step, by the names of the buffers."""
        norms = batch_norms(net)
        rows: dict[str, list[Tensor]] = {}
        for w in self.path(net, weights, support, self.steps):
            seen: dict[object, Moments] = {}

            def record(norm: BatchNorm, x: Tensor, seen: dict[object, Moments] = seen) -> Moments:
                seen[norm.identity] = moments(x)
                return seen[norm.identity]

            with statistics_from(record):
                apply(net, w, query.x)
            for name, norm in norms.items():
                for moment, value in zip(("mean", "variance"), seen[norm.identity], strict=True):
                    rows.setdefault(_key(moment, name), []).append(value)
        return {name: torch.stack(values) for name, values in rows.items()}

    @torch.no_grad()
    def keep(self, observed: Mapping[str, Tensor], momentum: float = 0.1) -> None:
        """Move the running statistics towards observed ones, (steps + 1, channels), by the fraction `momentum`."""
        assert self.running is not None
        for name, value in observed.items():
            self.running.get_buffer(name).lerp_(value, momentum)

    def _with_offsets(self, weights: Weights, k: int) -> Weights:
        if self.offsets is None:
            return weights
        at = min(k, self.steps)
        return {
            n: w + self.offsets[key][at] if (key := n.replace(".", "/")) in self.offsets else w
            for n, w in weights.items()
        }


def batch_norms(net: nn.Module) -> dict[str, BatchNorm]:
    """Return the net's batch norms by name."""
    return {name: module for name, module in net.named_modules() if isinstance(module, BatchNorm)}


def _key(moment: str, name: str) -> str:
    return f"{moment}/{name.replace('.', '/')}"
