"""Every episode is a pure function of (seed, split, index): workers, ranks, batch sizes and restarts change nothing."""

import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import squared, trainer
from lightning import Callback, Trainer
from test_few_shot_images import numbered
from torch import Tensor

from innerloop.datamodule import Blocks, EpisodeDataModule, Share
from innerloop.episodes import (
    SPLITS,
    Episode,
    EpisodeStreams,
    InputError,
    MetaBatch,
    Samples,
    episode_rng,
    number_of_tasks,
    stack,
    tasks_of,
)
from innerloop.learners import MAML
from innerloop.nets import MLP
from innerloop.tasks.hyperplane import Hyperplane
from innerloop.tasks.images import FewShotImages
from innerloop.tasks.multimodal import Multimodal
from innerloop.tasks.sinusoid import Sinusoid


class Noise:
    """Episodes that are nothing but their random stream."""

    def draw(self, split: str, rngs: Sequence[np.random.Generator]) -> Episode:
        def samples(rng: np.random.Generator) -> Samples:
            x, y = rng.standard_normal((3, 2)), rng.standard_normal((3, 1))
            return Samples(*(torch.from_numpy(v.astype(np.float32)) for v in (x, y)))

        return stack([Episode(samples(rng), samples(rng)) for rng in rngs])


FAMILIES = [
    Noise(),
    Sinusoid(4, 3),
    Multimodal(4, 3),
    Hyperplane(5, clusters=3, shots=4, queries=3),
    FewShotImages(numbered(), 3, 2, 4, rotations=True),
    FewShotImages(numbered(), 4, 3, 2, rotations=True, min_ways=2, min_shots=1, unbalanced=True),
]
every_family = pytest.mark.parametrize("tasks", FAMILIES, ids=lambda t: type(t).__name__)


def flat(batches: Iterator[MetaBatch] | Sequence[MetaBatch]) -> list[Tensor]:
    """Each episode as one row of numbers, meta-batch after meta-batch."""
    episodes = [episode for batch in batches for episode in tasks_of(batch)]
    return [torch.cat([t.flatten().double() for part in episode for t in part]) for episode in episodes]


def train_stream(count: int, **settings: Any) -> list[Tensor]:
    """The first `count` training episodes."""
    module = EpisodeDataModule(**{"tasks": Noise(), "meta_batch_size": 4} | settings)
    batches = -(-count // module.meta_batch_size)
    return flat(islice(module.train_dataloader(), batches))[:count]


def equal(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture
def forking() -> Iterator[None]:
    with warnings.catch_warnings():
        # From Python 3.12 on, a process with threads that forks is warned; torch's loader forks on purpose here.
        warnings.filterwarnings("ignore", message=".*use of fork.*may lead to deadlocks", category=DeprecationWarning)
        # Two workers are two, whatever the cores that this process may use.
        warnings.filterwarnings("ignore", message="This DataLoader will create 2 worker processes")
        yield


@every_family
def test_workers_and_the_size_of_evaluations_change_nothing(tasks: Any, forking: None) -> None:
    assert equal(train_stream(20, tasks=tasks, num_workers=2), train_stream(20, tasks=tasks))
    # 11 episodes in 3 meta-batches: more than the workers, and the last is cut.
    for loader in ("val_dataloader", "test_dataloader"):
        few = {"tasks": tasks, "meta_batch_size": 4, "val_episodes": 11, "test_episodes": 11}
        one, two = (flat(getattr(EpisodeDataModule(**few, num_workers=n), loader)()) for n in (0, 2))
        assert len(one) == 11
        assert equal(one, two)
        wide = EpisodeDataModule(**few, eval_meta_batches=2)
        assert equal(one, flat(getattr(wide, loader)()))
        assert [number_of_tasks(batch) for batch in getattr(wide, loader)()] == [8, 3]


@every_family
@pytest.mark.parametrize("size", [1, 3, 12, 50])
def test_the_meta_batch_size_changes_nothing(size: int, tasks: Any) -> None:
    assert equal(train_stream(24, tasks=tasks, meta_batch_size=size), train_stream(24, tasks=tasks))
    module = EpisodeDataModule(tasks, meta_batch_size=size, test_episodes=24)
    other = EpisodeDataModule(tasks, meta_batch_size=4, test_episodes=24)
    assert equal(flat(module.test_dataloader()), flat(other.test_dataloader()))


@every_family
def test_an_episode_is_what_its_index_says(tasks: Any) -> None:
    module = EpisodeDataModule(tasks, meta_batch_size=5, seed=3, eval_seed=4, val_episodes=10, test_episodes=10)
    loaders = module.train_dataloader(), module.val_dataloader(), module.test_dataloader()
    for split, loader in zip(SPLITS, loaders, strict=True):
        found = flat(islice(loader, 2))
        alone = flat([[module.episode(split, i) for i in range(10)]])
        assert equal(found, alone)
        assert len({tuple(row.tolist()) for row in found}) == 10


@every_family
def test_a_family_draws_each_episode_from_its_own_stream_alone(tasks: Any) -> None:
    """Neither the other episodes of a meta-batch, nor what was drawn before, nor torch's and numpy's global state."""

    def draw(indices: list[int]) -> list[Tensor]:
        return flat([tasks.draw("train", [episode_rng(0, "train", i) for i in indices])])

    torch.manual_seed(0)
    together = draw([0, 1, 2])
    torch.manual_seed(1)
    apart = [draw([i])[0] for i in (2, 1, 0)][::-1]
    assert equal(together, apart)
    assert equal(draw([7, 1, 9])[1:2], together[1:2])


@every_family
def test_ranks_together_draw_what_one_rank_draws(tasks: Any) -> None:
    def module(rank: int, world: int) -> EpisodeDataModule:
        made = EpisodeDataModule(tasks, meta_batch_size=6, val_episodes=7, test_episodes=13)
        progress = SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(ready=2, completed=2)))
        loop = SimpleNamespace(epoch_loop=progress)
        made.trainer = SimpleNamespace(  # type: ignore[assignment]
            global_rank=rank, world_size=world, fit_loop=loop, strategy=SimpleNamespace(root_device=torch.device("cpu"))
        )
        return made

    alone = module(0, 1)
    for world in (2, 3, 4, 6):
        ranks = [module(rank, world) for rank in range(world)]
        for parts, whole in zip(
            zip(*(islice(r.train_dataloader(), 3) for r in ranks), strict=True), alone.train_dataloader(), strict=False
        ):
            assert equal(flat(parts), flat([whole]))
        for name in ("val_dataloader", "test_dataloader"):
            shares = [flat(getattr(r, name)()) for r in ranks]
            assert equal([row for share in shares for row in share], flat(getattr(alone, name)()))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("total", [1, 4, 17])
def test_blocks_and_shares_partition(total: int, world: int) -> None:
    shares = [[list(Share(total, 3, rank, world)(t)) for t in range(total + 1)] for rank in range(world)]
    assert [i for share in shares for part in share for i in part] == list(range(total))
    assert all(not share[-1] for share in shares)
    blocks = [Blocks(31, rank, world) for rank in range(world)]
    assert [i for t in range(3) for block in blocks for i in block(t)] == list(range(93))


def test_streams_differ_by_split_seed_and_index() -> None:
    keys = [(seed, split, i) for seed in (0, 1, 2) for split in SPLITS for i in (0, 1, 2**40)]
    drawn = [tuple(episode_rng(*key).random(4)) for key in keys]
    assert len(set(drawn)) == len(keys)
    assert tuple(episode_rng(1, "validation", 2**40).random(4)) == drawn[keys.index((1, "validation", 2**40))]
    # No stream is another one further on.
    first, second = (episode_rng(0, "train", i).random(20_000) for i in (0, 1))
    assert not np.intersect1d(first, second).size


def test_streams_in_generators_that_are_used_again_are_the_same() -> None:
    """To the last bit, whatever was drawn from them before: odd numbers of 32-bit words, normals, permutations."""
    streams = EpisodeStreams()
    for seed, split, indices in ((3, "train", range(5)), (0, "test", range(2**40, 2**40 + 7)), (3, "train", range(2))):
        found = streams(seed, split, indices)  # type: ignore[arg-type]
        assert len(found) == len(indices)
        for index, stream in zip(indices, found, strict=True):
            fresh = episode_rng(seed, split, index)  # type: ignore[arg-type]
            draws = [
                [g.integers(7, size=3, dtype=np.int32), g.normal(size=5), g.permutation(9), g.random(3)]
                for g in (stream, fresh)
            ]
            assert [values.tolist() for values in draws[0]] == [values.tolist() for values in draws[1]]


def test_evaluation_episodes_are_fixed_across_seeds() -> None:
    def stream(loader: str, **seeds: int) -> list[Tensor]:
        module = EpisodeDataModule(Noise(), meta_batch_size=4, val_episodes=8, test_episodes=8, **seeds)
        return flat(islice(getattr(module, loader)(), 2))

    for loader in ("val_dataloader", "test_dataloader"):
        assert equal(stream(loader, seed=0), stream(loader, seed=1))
        assert not equal(stream(loader, eval_seed=0), stream(loader, eval_seed=1))
    assert not equal(stream("train_dataloader", seed=0), stream("train_dataloader", seed=1))
    assert equal(stream("train_dataloader", eval_seed=0), stream("train_dataloader", eval_seed=1))
    lists = [stream(loader) for loader in ("train_dataloader", "val_dataloader", "test_dataloader")]
    assert len({tuple(row.tolist()) for rows in lists for row in rows}) == 24


# Restarts.


class Seen(Callback):
    """The training episodes that a fit was given."""

    def __init__(self) -> None:
        self.rows: list[list[Tensor]] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Episode, batch_idx: int) -> None:
        self.rows.append(flat([batch]))


class Save(Callback):
    """Saves a checkpoint after the sixth step: between two meta-batches, or when a validation ends."""

    def __init__(self, path: Path, hook: str) -> None:
        self.path = path
        setattr(self, hook, self.save)

    def save(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 6:
            trainer.save_checkpoint(self.path)


def run(steps: int, path: Path, hook: str, resume: bool = False, workers: int = 0, **options: Any) -> tuple[MAML, Seen]:
    """Trains to `steps` in all."""
    torch.manual_seed(0)
    learner, seen = MAML(MLP(2, [4], 1), squared, outer_lr=0.01), Seen()
    module = EpisodeDataModule(Noise(), meta_batch_size=4, val_episodes=5, num_workers=workers)
    t = trainer(max_steps=steps, callbacks=[seen, Save(path, hook)], num_sanity_val_steps=0, **options)
    t.fit(learner, module, ckpt_path=path if resume else None)
    return learner, seen


ENDLESS = {"check_val_every_n_epoch": None}


@pytest.mark.parametrize(
    ("hook", "workers", "options"),
    [
        # The checkpoint falls on the end of an epoch, into an epoch, into the only and endless one.
        ("on_train_batch_end", 0, {"limit_train_batches": 3}),
        ("on_validation_end", 0, {"limit_train_batches": 3}),
        ("on_train_batch_end", 0, {"limit_train_batches": 4}),
        ("on_train_batch_end", 0, {"val_check_interval": 4} | ENDLESS),
        ("on_train_batch_end", 2, {"val_check_interval": 3} | ENDLESS),
        ("on_validation_end", 2, {"val_check_interval": 3} | ENDLESS),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_run(
    hook: str, workers: int, options: dict, tmp_path: Path, forking: None
) -> None:
    # That a resumed epoch needs a loader which knows its place is just what ours does.
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
    whole, all_seen = run(12, tmp_path / "whole.ckpt", hook, workers=workers, **options)
    _, before = run(6, tmp_path / "part.ckpt", hook, workers=workers, **options)
    resumed, after = run(12, tmp_path / "part.ckpt", hook, resume=True, workers=workers, **options)
    assert len(before.rows) == len(after.rows) == 6
    expected = train_stream(48)
    for t, rows in enumerate(before.rows + after.rows):
        assert equal(rows, expected[4 * t : 4 * t + 4]), t
    assert all(map(equal, before.rows + after.rows, all_seen.rows))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


# Bad input.


def test_a_meta_batch_that_ranks_cannot_share_is_refused() -> None:
    module = EpisodeDataModule(Noise(), meta_batch_size=2)
    module.trainer = SimpleNamespace(global_rank=0, world_size=3)  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"meta_batch_size=2 .* 3 ranks"):
        module.train_dataloader()


SIZES = ["meta_batch_size", "eval_meta_batches", "val_episodes", "test_episodes", "seed", "eval_seed", "num_workers"]


@pytest.mark.parametrize("name", SIZES)
def test_bad_sizes_are_named(name: str) -> None:
    with pytest.raises(InputError, match=name):
        EpisodeDataModule(Noise(), **{name: -1})


def test_negative_seeds_and_indices_are_refused() -> None:
    for seed, index in ((-1, 0), (0, -1)):
        with pytest.raises(InputError, match="must not be negative"):
            episode_rng(seed, "train", index)
