"""Nothing leaks: noise is at chance, no learner beats the Bayes oracle, and a wrong support ruins a trained learner."""

from typing import Any

import pytest
import torch
from conftest import class_batch, cross_entropy, loader, randomise, trainer
from torch import Tensor

from innerloop.datamodule import EpisodeDataModule
from innerloop.episodes import Episode, Samples, Weights, episode_rng
from innerloop.learners import MAML, Hybrid, HyperNet, MetaLearner
from innerloop.metrics import summarize
from innerloop.nets import MLP, Conv4, Linear
from innerloop.tasks.base import Tasks, predict_class
from innerloop.tasks.hyperplane import Hyperplane
from innerloop.tasks.multimodal import Multimodal

# Noise.


def accuracy(net: torch.nn.Module, weights: Weights, samples: Samples) -> dict[str, Tensor]:
    logits = torch.func.functional_call(net, weights, (samples.x,))
    return {"accuracy": (predict_class(logits) == samples.y).float().mean()}


@pytest.mark.parametrize("kind", [MAML, HyperNet, Hybrid])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_noise_queries_score_chance(kind: type[MetaLearner], norm: str) -> None:
    """Also through batch statistics, which see all queries of a task at once."""
    torch.manual_seed(0)
    net = Conv4((1, 17, 17), 3, width=6, norm=norm)
    settings = {} if kind is HyperNet else {"inner_steps": 4, "inner_lr": 0.5}
    learner = kind(net, cross_entropy, accuracy, **settings)  # type: ignore[arg-type]
    randomise(learner, scale=0.1)
    clean = class_batch(tasks=25, ways=3, shots=2, queries=8)
    noise = torch.randn(clean.query.x.shape, generator=torch.Generator().manual_seed(1))
    batch = Episode(clean.support, Samples(noise, clean.query.y))
    trainer().test(learner, loader([batch]), verbose=False)
    for found in learner.last_curve["accuracy"]:
        assert abs(found["mean"] - 1 / 3) < 2 * max(found["ci95"], 0.02)
    # The support itself, asked as query, is known by then, and so are true queries.
    if norm == "batch" and kind is not HyperNet:
        trainer().test(learner, loader([Episode(clean.support, clean.support), clean]), verbose=False)
        assert learner.last_curve["accuracy"][-1]["mean"] > 0.7


# The Bayes oracle, and wrong supports.


def drawn(tasks: Tasks, count: int) -> Episode:
    return tasks.draw("test", [episode_rng(0, "test", i) for i in range(count)])


def scores(learner: MetaLearner, batch: Episode) -> Tensor:
    """Each episode's metric after adaptation."""
    metric = learner.metrics.__self__.metric  # type: ignore[attr-defined]
    return learner.engine.map(learner.evaluate_episode, batch)[metric][:, -1].double()


def foreign(batch: Episode) -> Episode:
    """Each task with the support of another one."""
    return Episode(Samples(*(t.roll(1, 0) for t in batch.support)), batch.query)


def permuted(batch: Episode) -> Episode:
    """Labels that belong to other points of the same support."""
    x, y = batch.support
    rng = torch.Generator().manual_seed(0)
    order = torch.stack([torch.randperm(x.shape[1], generator=rng) for _ in x])
    return Episode(Samples(x, torch.stack([row[o] for row, o in zip(y, order, strict=True)])), batch.query)


def trained(tasks: Tasks, net: torch.nn.Module, meta_batches: int, **settings: Any) -> Hybrid:
    learner = Hybrid(net, tasks.loss, tasks.metrics, schedule="cosine", **settings)
    data = EpisodeDataModule(tasks, meta_batch_size=25)
    trainer(max_steps=meta_batches, limit_val_batches=0, log_every_n_steps=10**6).fit(learner, data)
    return learner


@pytest.fixture(scope="module")
def hyperplanes() -> tuple[Hyperplane, Hybrid]:
    torch.manual_seed(0)
    tasks = Hyperplane(dimensions=6, clusters=4)
    net = Linear(tasks.input_shape, tasks.output_size)
    return tasks, trained(tasks, net, 300, width=32, inner_lr=0.3, outer_lr=3e-3)


@pytest.fixture(scope="module")
def functions() -> tuple[Multimodal, Hybrid]:
    torch.manual_seed(0)
    tasks = Multimodal()
    net = MLP(tasks.input_shape, [40, 40], tasks.output_size)
    settings = {"encoder": "attention", "learn_lr": "parameter", "inner_clip": 10.0, "outer_clip": 10.0}
    return tasks, trained(tasks, net, 400, eval_inner_steps=3, outer_lr=2e-3, **settings)


def oracle_accuracy(tasks: Hyperplane, batch: Episode) -> Tensor:
    return ((tasks.oracle(batch) > 0.5).long() == batch.query.y).double().mean(1)


def oracle_error(tasks: Multimodal, batch: Episode) -> Tensor:
    return (tasks.oracle(batch) - batch.query.y).double().square().mean((1, 2))


def excess(better: Tensor, worse: Tensor) -> tuple[float, float]:
    """The mean of paired differences, and the half-width of its 95 % interval."""
    found = summarize(better - worse)
    return found["mean"], found["ci95"]


def test_no_learner_beats_the_oracle_of_hyperplane(hyperplanes: tuple[Hyperplane, Hybrid]) -> None:
    tasks, learner = hyperplanes
    batch = drawn(tasks, 300)
    found, bayes = scores(learner, batch), oracle_accuracy(tasks, batch)
    more, interval = excess(found, bayes)
    assert more < interval
    # It came near: the check is of a learner that learned.
    assert found.mean() > 0.7
    # And it would see a leak: adapted to the query's own labels, the learner beats the oracle.
    more, interval = excess(scores(learner, Episode(batch.query, batch.query)), bayes)
    assert more > interval


def test_no_learner_beats_the_oracle_of_multimodal(functions: tuple[Multimodal, Hybrid]) -> None:
    tasks, learner = functions
    batch = drawn(tasks, 150)
    error, bayes = scores(learner, batch), oracle_error(tasks, batch)
    less, interval = excess(bayes, error)
    assert less < interval
    assert error.mean() < 5


@pytest.mark.parametrize("wrong", [foreign, permuted])
def test_a_wrong_support_ruins_a_trained_learner(
    wrong: Any, hyperplanes: tuple[Hyperplane, Hybrid], functions: tuple[Multimodal, Hybrid]
) -> None:
    tasks, classifier = hyperplanes
    batch = drawn(tasks, 400)
    right = scores(classifier, batch).mean()
    assert scores(classifier, wrong(batch)).mean() < right - 0.1
    tasks, regressor = functions  # type: ignore[assignment]
    batch = drawn(tasks, 400)
    assert scores(regressor, wrong(batch)).mean() > 2 * scores(regressor, batch).mean()


def test_the_order_of_queries_and_of_other_tasks_says_nothing(hyperplanes: tuple[Hyperplane, Hybrid]) -> None:
    tasks, learner = hyperplanes
    batch = drawn(tasks, 20)
    order, among = torch.randperm(tasks.queries), torch.randperm(20)
    shuffled = Episode(batch.support, Samples(batch.query.x[:, order], batch.query.y[:, order]))
    moved = Episode(*(Samples(part.x[among], part.y[among]) for part in shuffled))
    torch.testing.assert_close(scores(learner, moved), scores(learner, batch)[among])


@pytest.mark.slow
@pytest.mark.parametrize("clusters", [0, 5])
def test_long_training_does_not_beat_the_oracle(clusters: int) -> None:
    torch.manual_seed(0)
    tasks = Hyperplane(clusters=clusters)
    net = Linear(tasks.input_shape, tasks.output_size)
    learner = trained(tasks, net, 1500, inner_lr=0.5, inner_steps=2, learn_lr="parameter", outer_lr=3e-3)
    batch = drawn(tasks, 1000)
    more, interval = excess(scores(learner, batch), oracle_accuracy(tasks, batch))
    assert -0.05 < more < interval
