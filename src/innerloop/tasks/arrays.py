"""Tasks from the user's own arrays: series, spectra, sensor readings, tables."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from innerloop.datasets import task_arrays
from innerloop.datasets.task_arrays import TaskTable
from innerloop.episodes import SPLITS, Episode, InputError, MetaBatch, Samples, Split, episode_index, stack
from innerloop.errors import some
from innerloop.tasks.base import Classification, Regression, Tasks, positive

log = logging.getLogger("innerloop")


class ArrayTasks(Tasks):
    """The tasks of a file. x: (n, *features). y: (n, targets), or (n,) classes that mean the same in every task.

    Tasks may have different numbers of rows; then meta-batches are lists of episodes. Training draws tasks at random.
    Validation and test have one episode of each task, in order: see `limit`.

    shots: number of support rows, drawn anew for each episode. queries: number of query rows, drawn from the others;
    None: all others. Where the file fixes support and query, both must be None.
    A task with too few rows for an episode is left out; the log names it. Raises InputError if a split has none left.
    """

    def __new__(cls, dataset: TaskTable, *args: Any, **kwargs: Any) -> Self:
        chosen: Any = cls if cls is not ArrayTasks else ClassArrays if dataset.classes else RealArrays
        return object.__new__(chosen)

    def __init__(self, dataset: TaskTable, shots: int | None = None, queries: int | None = None) -> None:
        if dataset.in_support is None and shots is None:
            raise InputError("shots must be given, the number of support rows; or data.part, a column that fixes them")
        if dataset.in_support is not None and (shots is not None or queries is not None):
            raise InputError(f"data.part fixes support and query: shots={shots} and queries={queries} must be null")
        positive(shots=1 if shots is None else shots, queries=1 if queries is None else queries)
        self.dataset, self.shots, self.queries = dataset, shots, queries
        self.input_shape = dataset.x.shape[1:]
        self.output_size = len(dataset.classes) or dataset.y.shape[1]
        self.sizes_of = self._sizes()
        self.members = {split: self._usable(split) for split in SPLITS}
        everything = np.concatenate(list(self.members.values()))
        self.ragged = len(np.unique(self.sizes_of[everything], axis=0)) > 1
        self.x_range = float(dataset.x.min()), float(dataset.x.max())

    @classmethod
    def variant(cls, settings: Mapping[str, Any]) -> type[Tasks]:
        kind = settings.get("kind", "auto")
        if kind == "auto":
            known = {name: settings[name] for name in task_arrays.load.__annotations__ if name in settings}
            kind = "classification" if task_arrays.load(**known).classes else "regression"
        return ClassArrays if kind == "classification" else RealArrays

    def _sizes(self) -> np.ndarray:
        """Return the numbers of support and query rows of each task's episodes, (tasks, 2)."""
        data, counts = self.dataset, np.diff(self.dataset.first)
        if data.in_support is not None:
            support = np.add.reduceat(data.in_support.astype(np.int64), data.first[:-1])
            return np.stack([support, counts - support], 1)
        assert self.shots is not None
        rest = counts - self.shots
        query = rest if self.queries is None else rest.clip(max=self.queries)
        return np.stack([np.full_like(counts, self.shots), query], 1)

    def _usable(self, split: Split) -> np.ndarray:
        ids = self.dataset.splits[split]
        enough = (self.sizes_of[ids] >= [1, self.queries or 1]).all(1)
        few = [self.dataset.tasks[i] for i in ids[~enough]]
        need = "one row each of support and query"
        if self.shots is not None:
            need = f"shots={self.shots} support rows and {self.queries or 1} more for the query"
        named = some(few, 10)
        if not enough.any():
            raise InputError(f"no task of the {split} split has {need}: {named}")
        if few:
            log.warning("%d of %d %s tasks are left out, without %s: %s", len(few), len(ids), split, need, named)
        return ids[enough]

    def class_names(self, split: Split) -> list[str]:
        return [self.dataset.tasks[task] for task in self.members[split]]

    def limit(self, split: Split) -> int | None:
        return None if split == "train" else len(self.members[split])

    def draw(self, split: Split, rngs: Sequence[np.random.Generator]) -> MetaBatch:
        episodes = [self._episode(split, rng) for rng in rngs]
        return episodes if self.ragged else stack(episodes)

    def _episode(self, split: Split, rng: np.random.Generator) -> Episode:
        members, data = self.members[split], self.dataset
        task = members[rng.integers(len(members)) if split == "train" else episode_index(rng) % len(members)]
        first, end = data.first[task : task + 2]
        if data.in_support is None:
            rows = first + rng.permutation(end - first)
        else:
            rows = np.arange(first, end)
            rows = np.concatenate([rows[data.in_support[rows]], rows[~data.in_support[rows]]])
        support, query = self.sizes_of[task]
        parts = rows[:support], rows[support : support + query]
        return Episode(*(Samples(self._tensor(data.x[part]), self._tensor(data.y[part])) for part in parts))

    @staticmethod
    def _tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values)


class RealArrays(ArrayTasks, Regression):
    """Tasks of a file with real targets."""


class ClassArrays(ArrayTasks, Classification):
    """Tasks of a file with classes."""
