"""Norms that stay exact when tasks run under `torch.vmap` and the result is differentiated twice.

If `F.batch_norm`, `F.layer_norm` or `F.instance_norm` runs under `torch.vmap` and the result is differentiated outside
of it, second-order gradients are wrong, without a warning (torch 2.13). A batch norm composed of elementary operations
is exact, and so is `F.group_norm`. Layer norm is a group norm with one group.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from innerloop.devices.precision import full
from innerloop.nets import fused, fused_pool, kernels

Moments = tuple[Tensor, Tensor]
Source = Callable[["BatchNorm", Tensor], Moments]
"""(batch norm, or a copy of it with other weights; its input) -> the mean and variance per channel to use."""

_source: ContextVar[Source | None] = ContextVar("_source", default=None)


@contextmanager
def statistics_from(source: Source) -> Iterator[None]:
    """Let batch norms inside take their mean and variance from `source` instead of from the current batch."""
    token = _source.set(source)
    try:
        yield
    finally:
        _source.reset(token)


def moments(x: Tensor) -> Moments:
    """Return the mean and the biased variance per channel. x: (n, channels, *positions) -> (channels,) twice."""
    dims = [0, *range(2, x.ndim)]
    mean = x.mean(dims)
    return mean, (x - mean.view(_channel_shape(x))).square().mean(dims)


def with_statistics_from(net: nn.Module, source: Source) -> nn.Module:
    """Return the net with batch norms that always take their statistics from `source`. The weights are shared."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        with statistics_from(source):
            return type(net).forward(self, x)

    return _with_forward(net, forward)


def with_statistics_of(net: nn.Module, reference: Tensor) -> nn.Module:
    """Return the net with batch norms that always use the statistics of `reference`. The weights are shared.

    The prediction for one x then does not depend on any other x ("non-transductive").

    reference: (m, *features), such as a support set.
    """
    m = len(reference)

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        with statistics_from(lambda norm, features: moments(features[:m])):
            return type(net).forward(self, torch.cat([reference, x]))[m:]

    return _with_forward(net, forward)


def _with_forward(net: nn.Module, forward: Callable[[nn.Module, Tensor], Tensor]) -> nn.Module:
    # A shallow copy shares the registries of parameters and submodules. `forward` is set in its class. As an attribute
    # of the object it would still use the net's own weights in copies with other weights.
    view = copy.copy(net)
    view.__class__ = type(type(net).__name__, (type(net),), {"forward": forward})
    return view


class BatchNorm(nn.Module):
    """Batch norm that uses the statistics of the current batch in training and in evaluation (Finn et al., 2017).

    It keeps no running statistics, so no information passes from one task to another and evaluation changes no buffer.
    In exchange, the prediction for a query depends on the other queries of its task ("transductive"), unless
    `with_statistics_of` or `statistics_from` sets other statistics.
    x: (n, channels, *positions).
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps
        self.identity = object()
        """The same object in all copies of this norm with other weights: see `innerloop.episodes.with_weights`."""

    def forward(self, x: Tensor) -> Tensor:
        x, source = full(x), _source.get()
        if source is None and fused.use_kernels(x, self.weight):
            return kernels.norm(x, self.weight, self.bias, self.eps)
        if source is None and fused.on():
            if fused.worthwhile(x, self.weight):
                return fused.batch_norm(x, self.weight, self.bias, self.eps)
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        mean, variance = moments(x) if source is None else source(self, x)
        scale = (variance + self.eps).rsqrt() * self.weight
        return (x - mean.view(_channel_shape(x))) * scale.view(_channel_shape(x)) + self.bias.view(_channel_shape(x))


def recorded_statistics(
    net: nn.Module, forward: Callable[[], object], source: Source | None = None
) -> dict[str, Moments]:
    """Return name of a batch norm of the net -> its statistics while `forward()` runs the net, or a copy of it.

    source: of the statistics; None: of the batch.
    """
    names, found = _names(net), dict[str, Moments]()

    def record(norm: BatchNorm, x: Tensor) -> Moments:
        found[names[norm.identity]] = moments(x) if source is None else source(norm, x)
        return found[names[norm.identity]]

    with statistics_from(record):
        forward()
    return found


def fixed_statistics(net: nn.Module, statistics: Mapping[str, Moments]) -> Source:
    """Return the source of these statistics: name of a batch norm of the net -> mean and variance."""
    names = _names(net)
    return lambda norm, x: statistics[names[norm.identity]]


def _names(net: nn.Module) -> dict[object, str]:
    return {module.identity: name for name, module in net.named_modules() if isinstance(module, BatchNorm)}


class FixedNorms(nn.Module):
    """A net whose batch norms have the statistics of a reference, computed once, so that each x is mapped by itself.

    reference: (m, *features). The net's norms become part of it as buffers, by their places in the net.
    """

    def __init__(self, net: nn.Module, reference: Tensor) -> None:
        super().__init__()
        self.net = net
        with torch.no_grad():
            found = recorded_statistics(net, lambda: net(reference))
        self.norms = list(found)
        for i, (mean, variance) in enumerate(found.values()):
            self.register_buffer(f"mean_{i}", mean)
            self.register_buffer(f"variance_{i}", variance)

    def forward(self, x: Tensor) -> Tensor:
        kept = {n: (self.get_buffer(f"mean_{i}"), self.get_buffer(f"variance_{i}")) for i, n in enumerate(self.norms)}
        with statistics_from(fixed_statistics(self.net, kept)):
            return self.net(x)


def norm_then(norm: nn.Module, x: Tensor, pool: bool, activation: nn.Module) -> Tensor:
    """Return the activation of norm(x), after a 2x2 max-pool with `pool`. x: (n, channels, height, width).

    activation: not decreasing. So pooling before it gives the same values and costs a quarter.
    """
    if (
        isinstance(norm, BatchNorm)
        and type(activation) is nn.ReLU
        and _source.get() is None
        and fused.use_kernels(full(x), norm.weight)
    ):
        return kernels.norm(full(x), norm.weight, norm.bias, norm.eps, pool, relu=True)
    return activation(norm_max_pool(norm, x) if pool else norm(x))


def norm_max_pool(norm: nn.Module, x: Tensor) -> Tensor:
    """Return the 2x2 max-pool of norm(x). x: (n, channels, height, width)."""
    if isinstance(norm, BatchNorm) and _source.get() is None:
        if fused.use_kernels(full(x), norm.weight):
            return kernels.norm(full(x), norm.weight, norm.bias, norm.eps, pool=True)
        if fused_pool.worthwhile(full(x), norm.weight):
            return fused_pool.batch_norm_max_pool(full(x), norm.weight, norm.bias, norm.eps)
    return F.max_pool2d(norm(x), 2)


def _channel_shape(x: Tensor) -> tuple[int, ...]:
    """Return the shape in which one value per channel broadcasts over x, (n, channels, *positions)."""
    return (1, -1) + (1,) * (x.ndim - 2)


class GroupNorm(nn.GroupNorm):
    """Group norm with as many groups as possible, at most 8. x: (n, channels, *positions)."""

    def __init__(self, channels: int) -> None:
        super().__init__(max(g for g in range(1, 9) if channels % g == 0), channels)


class LayerNorm(nn.GroupNorm):
    """Layer norm over all dimensions but the first, with scale and shift per channel. x: (n, channels, *positions)."""

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels)


NORMS: dict[str, type[nn.Module]] = {"batch": BatchNorm, "group": GroupNorm, "layer": LayerNorm}
