"""MAML++: each part against MAML with the part off, at its trivial value, and by hand. float64."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import class_batch, cross_entropy, randomise, task
from test_family import conv
from test_meta_gradient import close, meta_gradient

from innerloop.adaptation import GradientSteps
from innerloop.episodes import Episode, Samples, weights_of
from innerloop.learners import MAML, Hybrid, MAMLPlusPlus, ProtoMAML

pytestmark = pytest.mark.usefixtures("float64")


def plus(**parts: Any) -> tuple[MAMLPlusPlus, MAML]:
    net = conv()
    settings: dict[str, Any] = {"inner_lr": 0.3, "inner_steps": 3}
    return MAMLPlusPlus(net, cross_entropy, **settings, **parts), MAML(net, cross_entropy, **settings)


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"per_step_norms": True},
        {"learn_lr": "tensor_step"},
        {"running_statistics": True},
        {"multi_step_until": 100},
        {"first_order_until": 100},
    ],
    ids=str,
)
def test_each_part_at_its_trivial_value_is_maml(parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    learner, maml = plus(**parts)
    batch = class_batch(tasks=2, ways=3, shots=2, queries=2)
    # The annealed parts are trivial once they have been annealed.
    monkeypatch.setattr(MAMLPlusPlus, "global_step", 100)
    expected, found = meta_gradient(maml, batch), meta_gradient(learner, batch)
    close([found[0], *found[1][: len(expected[1])]], [expected[0], *expected[1]])
    assert len(found[1]) > len(expected[1]) or not {"per_step_norms", "learn_lr"} & set(parts)


def test_multi_step_loss_is_the_weighted_sum_of_the_losses_after_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, _ = plus(multi_step_until=100)
    batch = class_batch(tasks=2, ways=3, shots=2, queries=2)
    for step, weights in {0: [1 / 3] * 3, 50: [1 / 6, 1 / 6, 2 / 3], 100: [0, 0, 1], 150: [0, 0, 1]}.items():
        monkeypatch.setattr(MAMLPlusPlus, "global_step", step)
        assert learner.loss_weights() == pytest.approx(weights)
        single = [
            meta_gradient(MAML(learner.net, cross_entropy, inner_lr=0.3, inner_steps=k), batch)[1] for k in (1, 2, 3)
        ]
        expected = [sum(w * g for w, g in zip(weights, gs, strict=True)) for gs in zip(*single, strict=True)]
        close(meta_gradient(learner, batch)[1], expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "first"), [(MAML, 1), (ProtoMAML, 1), (MAMLPlusPlus, 1), (Hybrid, 0)])
@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_multi_step_is_the_mean_of_the_losses_after_each_step_for_good(
    kind: type[MAML], first: int, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first step on or, where the weights are written before it, from those."""
    monkeypatch.setattr(MAMLPlusPlus, "global_step", 10**6)
    batch = class_batch(tasks=2, ways=3, shots=2, queries=2)
    learner = kind(conv(), cross_entropy, inner_lr=0.3, inner_steps=3, multi_step=True, engine=engine)
    randomise(learner.adaptation, scale=0.1)
    value, gradient = meta_gradient(learner, batch)
    learner.multi_step, single = False, []
    steps = next(part for part in learner.adaptation.modules() if isinstance(part, GradientSteps))
    for steps.steps in range(first, 4):
        single.append(meta_gradient(learner, batch))
    close([value], [torch.stack([v for v, _ in single]).mean()])
    close(gradient, [torch.stack(each).mean(0) for each in zip(*(g for _, g in single), strict=True)])
    assert (single[0][0] - single[-1][0]).abs() > 1e-3


def test_norms_and_rates_of_each_step_are_those_of_that_step() -> None:
    """Against the same net rebuilt by hand before each step."""
    net, (support, query) = conv(), task(class_batch(tasks=1, ways=3, shots=2, queries=2), 0)
    learner = MAMLPlusPlus(
        net, cross_entropy, inner_lr=0.3, inner_steps=2, eval_inner_steps=3, per_step_norms=True, learn_lr="tensor_step"
    )
    randomise(learner.adaptation, scale=0.1)
    offsets, rates = learner.adaptation.offsets, learner.adaptation.rates
    assert offsets is not None
    assert rates is not None
    fast, logits = copy.deepcopy(net), []
    for k in range(4):
        at = min(k, 2)
        shown = copy.deepcopy(fast)
        with torch.no_grad():
            for name, p in shown.named_parameters():
                if (key := name.replace(".", "/")) in offsets:
                    p += offsets[key][at]
        logits.append(shown(query.x))
        loss = cross_entropy(shown, weights_of(shown), support)
        gradient = torch.autograd.grad(loss, list(shown.parameters()))
        with torch.no_grad():
            for (name, p), g in zip(fast.named_parameters(), gradient, strict=True):
                p -= rates[name.replace(".", "/")][min(k, 1)] * g
    learner.eval()
    predicted = learner.predict_episode(Episode(support, query))
    close(predicted[1:], logits)
    assert (logits[3] - logits[2]).abs().max() > 1e-3


def test_running_statistics_become_those_after_each_step_and_part_the_queries() -> None:
    learner, maml = plus(running_statistics=True)
    batch = class_batch(tasks=1, ways=3, shots=2, queries=2)
    episode = task(batch, 0)
    for _ in range(2):
        seen = learner.engine.map(learner._observe, batch)
        learner.adaptation.keep({name: value.mean(0) for name, value in seen.items()}, momentum=0.5)
    first = next(v for name, v in learner.adaptation.running.named_buffers() if "mean" in name)  # type: ignore[union-attr]
    path = maml.adaptation.trajectory(maml.net, weights_of(maml.net), episode.support)
    means = [F.conv2d(episode.query.x, w["body.0.conv.weight"], None, 2, 1).mean((0, 2, 3)) for w in path]
    close([first], [0.75 * torch.stack(means)])
    learner.adaptation.keep({name: value.mean(0) for name, value in seen.items()})
    close([first], [(0.9 * 0.75 + 0.1) * torch.stack(means)])
    learner.adaptation.keep({name: value.mean(0) for name, value in seen.items()}, momentum=1.0)
    before = copy.deepcopy(learner.state_dict())
    learner.eval()
    assert maml.transductive
    assert not learner.transductive
    # Statistics of this very task: they give what batch statistics give.
    close(learner.predict_episode(episode)[1:], maml.predict_episode(episode)[1:])
    one = Episode(episode.support, Samples(episode.query.x[:1], episode.query.y[:1]))
    close(learner.predict_episode(one), [p[:1] for p in learner.predict_episode(episode)])
    assert (maml.predict_episode(one)[-1] - maml.predict_episode(episode)[-1][:1]).abs().max() > 1e-3
    assert all(torch.equal(v, learner.state_dict()[k]) for k, v in before.items())
