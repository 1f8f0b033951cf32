"""The words that everything else speaks: samples, episodes, weights, and the random stream an episode is drawn from."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from innerloop.devices.precision import full
from innerloop.errors import InputError as InputError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

Weights = dict[str, Tensor]
"""The named parameters of a net for one task: theta, or what an adaptation made of it."""


class Samples(NamedTuple):
    """Labelled points of one task; a meta-batch has one leading dimension of tasks on both.

    x: (n, *features). y: (n,) class ids (int64), or (n, *targets) real values.
    """

    x: Tensor
    y: Tensor


class Episode(NamedTuple):
    """One task: the support set that it is learned from and the query set that it is judged by."""

    support: Samples
    query: Samples


MetaBatch = Episode | list[Episode]
"""Several tasks: stacked, with a leading dimension of tasks; or a list of single tasks, whose shapes may differ."""


Loss = Callable[[nn.Module, Weights, Samples], Tensor]
"""loss(net, weights, samples) -> scalar. A task family owns it; adaptations and learners see only this function."""

Metrics = Callable[[nn.Module, Weights, Samples], dict[str, Tensor]]
"""metrics(net, weights, samples) -> named scalars of one task."""


def apply(net: nn.Module, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The net's output on x under the given weights; differentiable in them, and the net itself is left alone.

    In full precision, under autocast too: so are the losses, metrics and heads that are made of it.
    """
    return full(with_weights(net, weights)(x))


def with_weights(net: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A net of the same modules with these tensors for its parameters of the same names; it shares everything else.

    `torch.func.functional_call` puts the tensors into the net for as long as it runs: two threads cannot use it on the
    same net.
    """
    tensors = {id(p): weights[name] for name, p in net.named_parameters() if name in weights}
    return _twin(net, tensors, {})


def _twin(module: nn.Module, tensors: Mapping[int, Tensor], made: dict[int, nn.Module]) -> nn.Module:
    if id(module) not in made:
        twin = made[id(module)] = object.__new__(type(module))
        state = vars(twin)
        state.update(vars(module))
        # By identity, so that modules and parameters that occur twice in a net still do.
        state["_parameters"] = {name: tensors.get(id(p), p) for name, p in module._parameters.items()}
        state["_modules"] = {
            name: child if child is None else _twin(child, tensors, made) for name, child in module._modules.items()
        }
    return made[id(module)]


def features(net: nn.Module, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """What the net's body makes of x under the given weights: what its head reads. (n, feature_size)."""
    body = {name.removeprefix("body."): w for name, w in weights.items() if name.startswith("body.")}
    return apply(net.get_submodule("body"), body, x)


def weights_of(net: nn.Module) -> Weights:
    """The net's own parameters by name: theta."""
    return dict(net.named_parameters())


def episode_rng(seed: int, split: Split, index: int) -> np.random.Generator:
    """The random stream of one episode: a pure function of (seed, split, index), distinct for distinct triples.

    Philox is counter-based (Salmon et al., 2011): seed and split are its key, the index is the third word of its
    counter, so no two episodes overlap before 2**128 draws.
    """
    if seed < 0 or index < 0:
        raise InputError(f"seed and episode index must not be negative, got seed={seed}, index={index}")
    return np.random.Generator(np.random.Philox(key=[seed, SPLITS.index(split)], counter=[0, 0, index, 0]))


def number_of_tasks(batch: MetaBatch) -> int:
    """How many tasks a meta-batch of either form holds."""
    return len(batch) if isinstance(batch, list) else len(batch.support.x)


def tasks_of(batch: MetaBatch) -> list[Episode]:
    """The single tasks of a meta-batch of either form."""
    if isinstance(batch, list):
        return batch
    return [Episode(*(Samples(part.x[i], part.y[i]) for part in batch)) for i in range(number_of_tasks(batch))]


def stack(episodes: list[Episode]) -> Episode:
    """Episodes of equal shape as one meta-batch, a leading dimension of tasks on all four tensors."""
    support, query = zip(*episodes, strict=True)
    return Episode(*(Samples(*map(torch.stack, zip(*part, strict=True))) for part in (support, query)))
