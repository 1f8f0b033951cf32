"""Two gloo processes do what one process does: the same meta-gradient, the same test values in the same order."""

import os
import socket
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from conftest import squared, trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import Tensor

from innerloop.datamodule import EpisodeDataModule
from innerloop.episodes import Episode, MetaBatch, Samples, Split, tasks_of
from innerloop.errors import DivergedError
from innerloop.learners import MAML, Hybrid, HyperNet, MetaLearner
from innerloop.nets import MLP
from innerloop.runs.callbacks.session import Session
from innerloop.tasks.sinusoid import Sinusoid

TEST_EPISODES = 13


def learners() -> dict[str, MetaLearner]:
    """SGD with rate 1, so that one step's change is the meta-gradient; two steps, so that nothing stays behind."""

    def made(kind: type[MetaLearner], **settings: Any) -> MetaLearner:
        torch.manual_seed(0)
        net = MLP(1, [6], 1, activation="tanh")
        return kind(net, squared, **{"optimizer": "sgd", "outer_lr": 1.0} | settings)  # type: ignore[arg-type]

    inner: dict[str, Any] = {"inner_lr": 0.1, "inner_steps": 2}
    return {
        "maml": made(MAML, **inner),
        "clipped": made(MAML, outer_clip=0.1, learn_lr="tensor", **inner),
        "accumulated": made(MAML, accumulate=2, **inner),
        "hypernet": made(HyperNet, width=8, encoder="attention"),
        "hybrid joint": made(Hybrid, width=8, **inner),
        "hybrid alternating": made(Hybrid, width=8, update="alternating", generator_lr=0.5, **inner),
        "ragged": made(MAML, **inner),
        "unequal": made(MAML, learn_lr="tensor", **inner),
        "head alone": made(HyperNet, width=8, update="alternating"),
    }


def double(episode: Episode) -> Episode:
    return Episode(*(Samples(part.x.double(), part.y.double()) for part in episode))


class DoubleSinusoid(Sinusoid):
    def draw(self, *args: Any) -> Episode:
        return double(super().draw(*args))


class RaggedSinusoid(DoubleSinusoid):
    """Each episode keeps 1 to 5 of its support points."""

    def draw(self, split: Split, rngs: Sequence[np.random.Generator]) -> MetaBatch:
        episodes = tasks_of(super().draw(split, rngs))
        kept = [rng.integers(1, 6) for rng in rngs]
        return [Episode(Samples(s.x[:n], s.y[:n]), query) for (s, query), n in zip(episodes, kept, strict=True)]


class Broken(Sinusoid):
    """Targets that are no numbers."""

    def draw(self, split: Split, rngs: Sequence[np.random.Generator]) -> Episode:
        support, query = super().draw(split, rngs)
        return Episode(support, Samples(query.x, query.y * torch.nan))


Result = dict[str, tuple[list[Tensor], int, Tensor, dict[str, float]]]


def results(**options: Any) -> Result:
    """For each learner: its parameters after two updates, global_step, and the test's values and what it logs."""
    found: Result = {}
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    try:
        for name, learner in learners().items():
            tasks = RaggedSinusoid(5, 4) if name == "ragged" else DoubleSinusoid(5, 4)
            data = EpisodeDataModule(tasks, meta_batch_size=7 if name == "unequal" else 6, test_episodes=TEST_EPISODES)
            t = trainer(max_steps=2, limit_val_batches=0, **options)
            t.fit(learner, data)
            parameters = [p.detach().clone() for p in learner.parameters()]
            (logged,) = t.test(learner, data, verbose=False)
            found[name] = parameters, t.global_step, learner.curve.compute(), logged
    finally:
        torch.set_default_dtype(torch.float32)
    return found


def one_of_two(rank: int, port: int, folder: str) -> None:
    warnings.simplefilter("error")
    # Every rank has gathered all episodes: what they log is equal already.
    warnings.filterwarnings("ignore", message="It is recommended to use .*sync_dist=True")
    os.environ |= {
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    # Lightning takes gloo on the CPU; the environment says that both processes are running already.
    options = {"devices": 2, "strategy": "ddp", "plugins": [LightningEnvironment()]}
    found = results(**options)
    assert torch.distributed.get_backend() == "gloo"
    torch.save(found, Path(folder) / f"{rank}.pt")
    checkpoint = Path(folder) / "last.ckpt"
    data = EpisodeDataModule(Broken(5, 4) if rank == 0 else Sinusoid(5, 4), meta_batch_size=6)
    learner = MAML(MLP(1, [6], 1), squared, accumulate=2)
    with pytest.raises(DivergedError) as error:
        trainer(max_steps=2, limit_val_batches=0, callbacks=[Session(checkpoint, 2)], **options).fit(learner, data)
    torch.distributed.barrier()  # neither waits for the other, nor has gone
    (Path(folder) / f"{rank}.txt").write_text(f"{error.value}\n{checkpoint.exists()}")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the two ranks of two leave: all learners in one start of the processes."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.spawn(one_of_two, (port, str(folder)), nprocs=2, join=False)
    end = time.monotonic() + 180
    while not context.join(timeout=5):
        if time.monotonic() > end:
            for process in context.processes:
                process.kill()
            pytest.fail("the two processes wait for each other")
    return folder


@pytest.fixture(scope="module")
def runs(folder: Path) -> tuple[Result, Result, Result]:
    """One process, and the two ranks of two."""
    return results(), *(torch.load(folder / f"{rank}.pt") for rank in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("name", list(learners()))
def test_two_processes_take_the_outer_steps_of_one(name: str, runs: tuple[Result, Result, Result]) -> None:
    (alone, steps, *_), first, second = (run[name] for run in runs)
    assert steps == first[1] == second[1] == 2
    for a, b, c in zip(alone, first[0], second[0], strict=True):
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-10)
        assert torch.equal(b, c)


def test_the_outer_steps_moved_something(runs: tuple[Result, Result, Result]) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        before = learners()
    finally:
        torch.set_default_dtype(torch.float32)
    for name, (after, *_) in runs[0].items():
        change = max((a - p).abs().max().item() for a, p in zip(after, before[name].parameters(), strict=True))
        assert change > 1e-3, name


@pytest.mark.parametrize("name", list(learners()))
def test_two_processes_report_the_test_of_one(name: str, runs: tuple[Result, Result, Result]) -> None:
    (*_, values, logged), first, second = (run[name] for run in runs)
    assert len(values) == TEST_EPISODES
    assert len(values[:, -1].unique()) == TEST_EPISODES
    for rank in (first, second):
        torch.testing.assert_close(rank[2], values, rtol=1e-8, atol=1e-10)
        assert rank[3] == pytest.approx(logged, rel=1e-8)


def test_what_diverges_on_one_rank_ends_training_on_both(folder: Path) -> None:
    first, second = ((folder / f"{rank}.txt").read_text().splitlines() for rank in range(2))
    assert first[0].startswith("the loss is nan at step 0")
    assert second[0].startswith("the meta-gradient is nan at step 0")
    assert first[1] == second[1] == "True"  # the state before it is saved
