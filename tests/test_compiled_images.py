"""compile=true of nets with convolutions on the CPU: the meta-gradient is the eager one."""

import random
from typing import Any

import pytest
import torch
from conftest import cross_entropy, randomise
from torch import Tensor, nn

from innerloop.adaptation import program
from innerloop.adaptation.lines import planned
from innerloop.episodes import Episode, InputError, MetaBatch, Samples, apply, tasks_of
from innerloop.learners import MAML, MetaLearner, ProtoNet, Reptile
from innerloop.nets import Conv4

LEARNERS: list[tuple[type[MetaLearner], str, dict[str, Any]]] = [
    (MAML, "stride", {"inner_steps": 2, "learn_lr": "tensor_step", "inner_clip": 1.0}),
    (MAML, "pool", {"inner_steps": 1, "first_order": True}),
    (MAML, "stride", {"inner_steps": 1, "learn_lr": "parameter"}),
    (MAML, "pool", {"inner_steps": 2, "only": "head"}),
    (Reptile, "stride", {"inner_steps": 2}),
    (ProtoNet, "stride", {}),
]


def images(tasks: int = 3, ways: int = 3, queries: int = 4) -> Episode:
    rng = torch.Generator().manual_seed(0)

    def samples(n: int) -> Samples:
        x = torch.randn(tasks, ways * n, 1, 17, 18, generator=rng)
        return Samples(x, torch.arange(ways).repeat_interleave(n).repeat(tasks, 1))

    return Episode(samples(2), samples(queries))


def made(kind: type[MetaLearner], form: str = "stride", norm: str = "batch", **settings: Any) -> MetaLearner:
    torch.manual_seed(0)
    learner = kind(Conv4((1, 17, 18), 3, width=9, downsample=form, norm=norm), cross_entropy, **settings)
    randomise(learner, scale=0.1)
    return learner


def meta_gradient(learner: MetaLearner, batch: MetaBatch) -> list[Tensor]:
    parameters = list(learner.parameters())
    value, gradient, _ = learner.engine.value_and_grad(learner.query_objective, parameters, batch)
    return [value, *gradient]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("kind", "form", "settings"), LEARNERS, ids=str)
def test_the_meta_gradient_is_the_eager_one(
    kind: type[MetaLearner], form: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "MOST", 0)  # as of large images
    batch = images()
    expected = meta_gradient(made(kind, form, **settings), batch)
    compiled = made(kind, form, compile=True, **settings)
    assert_equal(meta_gradient(compiled, batch), expected)
    with torch.no_grad():
        changed = [p.mul_(1.1) for p in compiled.parameters()]
    eager = made(kind, form, **settings)
    with torch.no_grad():
        for p, value in zip(eager.parameters(), changed, strict=True):
            p.copy_(value)
    assert_equal(meta_gradient(compiled, batch), meta_gradient(eager, batch))


def test_threads_share_the_tasks_and_repeat_their_numbers() -> None:
    learner, batch, before = made(MAML, compile=True, inner_steps=1), images(tasks=5), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = meta_gradient(learner, batch)
        torch.set_num_threads(2)
        first, second = meta_gradient(learner, batch), meta_gradient(learner, batch)
    finally:
        torch.set_num_threads(before)
    for a, b, c in zip(alone, first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        assert torch.equal(b, c)


def test_what_cannot_be_translated_is_refused_with_its_name() -> None:
    with pytest.raises(InputError, match=r"compile=true cannot translate this learner \(.*group_norm.*: use compile"):
        meta_gradient(made(MAML, norm="group", compile=True), images())
    with pytest.raises(InputError, match=r"compile=true cannot translate this learner \(aten.convolution"):
        meta_gradient(made(MAML, checkpoint_inner_steps=True, compile=True), images())
    learner, batch = made(MAML, compile=True), images()
    with pytest.raises(InputError, match="compile=true needs tasks of equal shape"):
        meta_gradient(learner, tasks_of(batch))


def test_ragged_episodes_may_be_evaluated() -> None:
    """As of a mixture, whose sources have different sizes in validation."""
    learner, batch = made(MAML, compile=True, inner_steps=1), images()
    meta_gradient(learner, batch)
    tasks = [
        task if i else Episode(task.support, Samples(*(t[:5] for t in task.query)))
        for i, task in enumerate(tasks_of(batch))
    ]
    found = learner.engine.map(lambda episode: {"loss": learner.query_objective(episode)[0].detach()}, tasks)
    assert found["loss"].shape == (3,)


class Fading(MAML):
    """MAML whose loss loses weight: an objective that changes."""

    share = 1.0

    def query_objective(self, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        loss, outputs = super().query_objective(episode)
        return self.share * loss, outputs


@pytest.mark.parametrize("net", [Conv4((1, 17, 18), 3, width=4), nn.Sequential(nn.Flatten(), nn.Linear(306, 3))])
def test_an_objective_that_changes_is_noticed_at_the_next_eager_step(net: nn.Module) -> None:
    learner, batch = Fading(net, cross_entropy, compile=True, inner_steps=1), images()
    parameters = list(learner.parameters())

    def step(eager: bool) -> Tensor:
        return learner.engine.value_and_grad(learner.query_objective, parameters, batch, eager=eager)[0]

    torch.testing.assert_close(step(eager=False), step(eager=True), rtol=1e-4, atol=1e-5)
    learner.share = 0.5
    with pytest.raises(InputError, match=r"compile=true changes the loss or its gradient .* use compile=false"):
        step(eager=True)


def test_evaluations_are_not_compiled() -> None:
    """They keep their numbers to the last bit."""
    batch, found = images(), []
    for compile in (False, True):
        learner = made(MAML, inner_steps=1, compile=compile)
        learner.metrics = lambda net, weights, query: {"logits": apply(net, weights, query.x).sum()}
        meta_gradient(learner, batch)
        found.append(learner.engine.map(learner.evaluate_episode, batch)["logits"])
    assert torch.equal(*found)


@pytest.mark.parametrize("seed", range(20))
def test_results_that_are_needed_at_one_time_never_share_memory(seed: int) -> None:
    rng = random.Random(seed)
    sizes = [rng.randint(1, 100) for _ in range(40)]
    lines, born = [], 0
    while born < len(sizes):
        results = range(born, min(born + rng.randint(1, 3), len(sizes)))
        operands = rng.sample(range(born), min(born, rng.randint(0, 3)))
        lines.append(" ".join(f"b{i}" for i in (*results, *operands)))
        born = results.stop
    offsets, size = planned(lines, sizes)
    uses = {b: [i for i, line in enumerate(lines) if f"b{b}" in line.split()] for b in range(len(sizes))}
    for a in range(len(sizes)):
        assert offsets[a] + sizes[a] <= size
        for b in range(a):
            at_one_time = uses[a][0] <= uses[b][-1] and uses[b][0] <= uses[a][-1]
            apart = offsets[a] + sizes[a] <= offsets[b] or offsets[b] + sizes[b] <= offsets[a]
            assert apart or not at_one_time
    assert size < sum(sizes)
