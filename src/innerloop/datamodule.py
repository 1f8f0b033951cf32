"""The one data module that all learners share. It draws episodes, each a pure function of (seed, split, index)."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from innerloop.episodes import Episode, EpisodeStreams, InputError, MetaBatch, Split, episode_rng, tasks_of

MOST = 10**8
"""Limit on numbers of episodes, far above what is sensible: a larger number is a mistake, and would take for ever."""


class Draws(Protocol):
    """The part of a task family that the data module uses."""

    def draw(self, split: Split, rngs: list[np.random.Generator]) -> MetaBatch: ...


@runtime_checkable
class Limited(Protocol):
    """A task family that knows how many different tasks a split has: see `innerloop.tasks.base.Tasks.limit`."""

    def limit(self, split: Split) -> int | None: ...


class EpisodeStream(IterableDataset):
    """Meta-batches of consecutive episodes. Worker w of W draws every W-th, so their order does not depend on W.

    ranges: returns, for meta-batch t, the range of episode indices that this rank draws. An empty range ends the
        stream.
    start: the first meta-batch.
    """

    def __init__(self, tasks: Draws, split: Split, seed: int, ranges: Callable[[int], range]) -> None:
        self.tasks, self.split, self.seed, self.ranges = tasks, split, seed, ranges
        self.start = 0

    def __iter__(self) -> Iterator[MetaBatch]:
        worker, streams = get_worker_info(), EpisodeStreams()
        t, stride = (self.start, 1) if worker is None else (self.start + worker.id, worker.num_workers)
        while indices := self.ranges(t):
            yield self.tasks.draw(self.split, streams(self.seed, self.split, indices))
            t += stride


class EpisodeLoader(DataLoader):
    """A loader that asks for the next meta-batch's number when a pass starts, so a resumed run continues its stream."""

    def __init__(self, stream: EpisodeStream, position: Callable[[], int], num_workers: int, pin_memory: bool) -> None:
        super().__init__(
            stream,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=pin_memory,
            # joblib and submitit start jobs in threads and subprocesses, where spawn would import everything again.
            multiprocessing_context="fork" if num_workers else None,
        )
        self.position = position

    def __iter__(self) -> Iterator[MetaBatch]:  # type: ignore[override]
        self.dataset.start = self.position()  # type: ignore[attr-defined]
        return super().__iter__()


class Blocks:
    """The episodes t * size to (t + 1) * size - 1 for meta-batch t, of which each rank draws a consecutive part.

    period: the meta-batches repeat after this many; None: they never do.
    """

    def __init__(self, size: int, rank: int, world: int, period: int | None = None) -> None:
        self.size, self.first, self.end = size, size * rank // world, size * (rank + 1) // world
        self.period = period

    def __call__(self, t: int) -> range:
        t = t if self.period is None else t % self.period
        return range(t * self.size + self.first, t * self.size + self.end)


class Share:
    """A rank's consecutive share of `total` episodes, in meta-batches of at most `size`."""

    def __init__(self, total: int, size: int, rank: int, world: int) -> None:
        self.size, self.first, self.end = size, total * rank // world, total * (rank + 1) // world

    def __call__(self, t: int) -> range:
        first = self.first + t * self.size
        return range(min(first, self.end), min(first + self.size, self.end))


class EpisodeDataModule(LightningDataModule):
    """Draw meta-batches of episodes from a task family, for any learner.

    meta_batch_size: number of tasks in a training meta-batch, over all ranks. seed: of the training stream.
    eval_seed: of the validation and test episodes, which are a fixed list, the same for every run on the same data.
    val_episodes, test_episodes: the lengths of these lists.
    eval_meta_batches: size of an evaluated meta-batch, as a multiple of meta_batch_size. Like num_workers, it changes
        only the speed.
    overfit_batches: number of meta-batches that training repeats again and again. None: every meta-batch is new.
    """

    def __init__(
        self,
        tasks: Draws,
        meta_batch_size: int = 25,
        seed: int = 0,
        eval_seed: int = 0,
        val_episodes: int = 200,
        test_episodes: int = 1000,
        num_workers: int = 0,
        eval_meta_batches: int = 1,
        overfit_batches: int | None = None,
    ) -> None:
        super().__init__()
        sizes = {"meta_batch_size": meta_batch_size, "eval_meta_batches": eval_meta_batches}
        sizes |= {"val_episodes": val_episodes, "test_episodes": test_episodes}
        for name, value in {**sizes, "overfit_batches": overfit_batches}.items():
            if value is not None and value < 1:
                raise InputError(f"{name} must be above zero, got {value}")
            if value is not None and value > MOST:
                raise InputError(f"{name} must be at most {MOST:,}, got {value}")
        for name, value in {"seed": seed, "eval_seed": eval_seed, "num_workers": num_workers}.items():
            if value < 0:
                raise InputError(f"{name} must not be negative, got {value}")
        self.tasks, self.meta_batch_size, self.seed, self.eval_seed = tasks, meta_batch_size, seed, eval_seed
        self.val_episodes, self.test_episodes, self.num_workers = val_episodes, test_episodes, num_workers
        self.eval_meta_batches, self.overfit_batches = eval_meta_batches, overfit_batches

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave batches on the CPU as they are, where Lightning's search for tensors takes longer than a small draw."""
        return batch if device.type == "cpu" else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def train_dataloader(self) -> EpisodeLoader:
        rank, world = self._rank_and_world()
        if self.meta_batch_size < world:
            raise InputError(f"data.meta_batch_size={self.meta_batch_size} cannot be shared by {world} ranks")
        blocks = Blocks(self.meta_batch_size, rank, world, self.overfit_batches)
        return self._loader("train", self.seed, blocks, self._position)

    def val_dataloader(self) -> EpisodeLoader:
        return self._evaluation("validation", self.val_episodes)

    def test_dataloader(self) -> EpisodeLoader:
        return self._evaluation("test", self.test_episodes)

    def meta_batch(self, split: Split, indices: Iterable[int]) -> MetaBatch:
        """Return the episodes of these indices."""
        seed = self.seed if split == "train" else self.eval_seed
        return self.tasks.draw(split, [episode_rng(seed, split, i) for i in indices])

    def episode(self, split: Split, index: int) -> Episode:
        """Return the episode of an index, a single task."""
        return tasks_of(self.meta_batch(split, [index]))[0]

    def episodes_of(self, split: Split, wanted: int) -> int:
        """Return the number of evaluated episodes: as many as wanted, but no task twice where tasks are limited."""
        limit = self.tasks.limit(split) if isinstance(self.tasks, Limited) else None
        return wanted if limit is None else min(wanted, limit)

    def _evaluation(self, split: Split, total: int) -> EpisodeLoader:
        rank, world = self._rank_and_world()
        total = self.episodes_of(split, total)
        if total < world:
            raise InputError(f"{total} {split} episodes cannot be shared by {world} ranks")
        size = self.eval_meta_batches * self.meta_batch_size
        return self._loader(split, self.eval_seed, Share(total, size, rank, world), lambda: 0)

    def _loader(
        self, split: Split, seed: int, ranges: Callable[[int], range], position: Callable[[], int]
    ) -> EpisodeLoader:
        # Pinning memory for a CPU would start CUDA for nothing.
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return EpisodeLoader(EpisodeStream(self.tasks, split, seed, ranges), position, self.num_workers, on_gpu)

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _position(self) -> int:
        if self.trainer is None:
            return 0
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
