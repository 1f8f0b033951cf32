"""The vocabulary of the package: samples, episodes, weights, and the random stream that an episode is drawn from."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from innerloop.devices.precision import full
from innerloop.errors import InputError as InputError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

Weights = dict[str, Tensor]
"""The named parameters of a net for one task: theta, or the result of adapting theta to the task."""


class Samples(NamedTuple):
    """Labelled points of one task. In a meta-batch, x and y both have an additional leading dimension of tasks.

    x: (n, *features). y: (n,) class ids (int64), or (n, *targets) real values.
    """

    x: Tensor
    y: Tensor


class Episode(NamedTuple):
    """One task: the support set for adaptation and the query set for evaluation."""

    support: Samples
    query: Samples


MetaBatch = Episode | list[Episode]
"""Several tasks: one stacked episode with a leading dimension of tasks, or a list of tasks whose shapes may differ."""


Loss = Callable[[nn.Module, Weights, Samples], Tensor]
"""loss(net, weights, samples) -> scalar. Task families define it. Adaptations and learners see only this function."""

Metrics = Callable[[nn.Module, Weights, Samples], dict[str, Tensor]]
"""metrics(net, weights, samples) -> named scalars of one task."""


SupportAt = Callable[[Samples, int], Samples]
"""support_at(support, k) -> what inner step k, counted from 0, sees of a support set, if steps see different parts."""


class Observation(NamedTuple):
    """What a hypernetwork reads of a task in which one acts, in place of the task's samples.

    read: (net, weights, samples) -> points with x (n, x_size) and y (n, y_size), which depend on no gradient.
    """

    read: Callable[[nn.Module, Weights, Samples], Samples]
    x_size: int
    y_size: int


def apply(net: nn.Module, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return the net's output on x under the given weights. It is differentiable in them; the net is not changed.

    The output is in full precision, even under autocast. So are the losses, metrics and heads computed from it.
    """
    return full(with_weights(net, weights)(x))


def with_weights(net: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of the net in which these tensors replace the parameters of the same names.

    The copy shares everything else with the net. `torch.func.functional_call` is not used because it puts the tensors
    into the net itself during the call, so two threads could not use the same net.
    """
    tensors = {id(p): weights[name] for name, p in net.named_parameters() if name in weights}
    return _copy(net, tensors, {})


def _copy(module: nn.Module, tensors: Mapping[int, Tensor], copies: dict[int, nn.Module]) -> nn.Module:
    if id(module) not in copies:
        copy = copies[id(module)] = object.__new__(type(module))
        state = vars(copy)
        state.update(vars(module))
        # A module or parameter that occurs twice in the net must do so in the copy too, so identity is compared.
        state["_parameters"] = {name: tensors.get(id(p), p) for name, p in module._parameters.items()}
        state["_modules"] = {
            name: child if child is None else _copy(child, tensors, copies) for name, child in module._modules.items()
        }
    return copies[id(module)]


def features(net: nn.Module, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return the output of the net's body under the given weights, the input of its head: (n, feature_size)."""
    body = {name.removeprefix("body."): w for name, w in weights.items() if name.startswith("body.")}
    return apply(net.get_submodule("body"), body, x)


def weights_of(net: nn.Module) -> Weights:
    """Return the net's own parameters by name: theta."""
    return dict(net.named_parameters())


def task_weights(net: nn.Module) -> Weights:
    """Return the parameters of a net that a task may have its own of; the others are the same for all tasks.

    They are those of the part that the net names in `task_part`, or all of them.
    """
    part = getattr(net, "task_part", None)
    return {name: w for name, w in net.named_parameters() if part is None or name.startswith(f"{part}.")}


def episode_rng(seed: int, split: Split, index: int) -> np.random.Generator:
    """Return the random stream of one episode: a pure function of (seed, split, index), distinct for distinct triples.

    Philox is a counter-based generator (Salmon et al., 2011). Its key is the seed and the split, and the third word of
    its counter is the index. So no two episodes overlap before 2**128 draws. Raises InputError for a negative seed or
    index.
    """
    if seed < 0 or index < 0:
        raise InputError(f"seed and episode index must not be negative, got seed={seed}, index={index}")
    return np.random.Generator(np.random.Philox(key=[seed, SPLITS.index(split)], counter=[0, 0, index, 0]))


def episode_index(rng: np.random.Generator) -> int:
    """Return the index of the episode that a random stream was made for, whatever has been drawn from it since."""
    return int(rng.bit_generator.state["state"]["counter"][2])


class EpisodeStreams:
    """The random streams of many episodes, in generators that are used again, since new ones take longer than a draw.

    The streams of one call are those of `episode_rng` to the last bit, and are valid until the next call.
    """

    def __init__(self) -> None:
        self.generators: list[np.random.Generator] = []

    def __call__(self, seed: int, split: Split, indices: Sequence[int]) -> list[np.random.Generator]:
        """Return the stream of each episode."""
        while len(self.generators) < len(indices):
            self.generators.append(episode_rng(seed, split, 0))
        state: dict[str, Any] = {
            "bit_generator": "Philox",
            "state": {"key": np.array([seed, SPLITS.index(split)], np.uint64), "counter": np.zeros(4, np.uint64)},
            "buffer": np.zeros(4, np.uint64),
            "buffer_pos": 4,  # nothing of the buffer is left
            "has_uint32": 0,
            "uinteger": 0,
        }
        for generator, index in zip(self.generators, indices, strict=False):
            state["state"]["counter"][2] = index
            generator.bit_generator.state = state
        return self.generators[: len(indices)]


def number_of_tasks(batch: MetaBatch) -> int:
    """Return the number of tasks in a meta-batch of either form."""
    return len(batch) if isinstance(batch, list) else len(batch.support.x)


def tasks_of(batch: MetaBatch) -> list[Episode]:
    """Return the single tasks of a meta-batch of either form."""
    if isinstance(batch, list):
        return batch
    return [Episode(*(Samples(part.x[i], part.y[i]) for part in batch)) for i in range(number_of_tasks(batch))]


def stack(episodes: list[Episode]) -> Episode:
    """Return episodes of equal shape as one meta-batch: all four tensors have a leading dimension of tasks."""
    support, query = zip(*episodes, strict=True)
    return Episode(*(Samples(*map(torch.stack, zip(*part, strict=True))) for part in (support, query)))
