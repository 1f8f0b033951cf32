"""Learners for tasks that differ in kind: Simple CNAPS, HyperMAML, and generators over a frozen body. float64."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from conftest import class_batch, cross_entropy, loader, randomise, squared, task, trainer
from test_meta_gradient import ENGINES, close, directional_check, every_engine, in_engine, meta_gradient
from torch import Tensor, nn

from innerloop.adaptation import MahalanobisHead, PrototypeHead
from innerloop.adaptation.generate import Generate
from innerloop.episodes import InputError, Samples, apply, weights_of
from innerloop.learners import (
    LEO,
    MAML,
    CNAPs,
    Hybrid,
    HyperMAML,
    HyperNet,
    MetaLearner,
    ProtoMAML,
    ProtoNet,
    SimpleCNAPs,
)
from innerloop.learners.simple_cnaps import with_quadratic_head
from innerloop.nets import MLP, Conv4, Linear

pytestmark = pytest.mark.usefixtures("float64")
SMALL: dict[str, Any] = {"width": 8}


def conv(ways: int = 3) -> Conv4:
    torch.manual_seed(0)
    return Conv4((1, 17, 17), ways, width=4, activation="tanh")


def batch(tasks: int = 3, shots: int = 2) -> Any:
    return class_batch(tasks=tasks, ways=3, shots=shots, queries=2)


# The Mahalanobis head.


class Spheres(MahalanobisHead):
    """With identity covariances."""

    def covariances(self, f: Tensor, labels: Tensor, means: Tensor) -> Tensor:
        return torch.eye(f.shape[-1]).expand(labels.shape[1], -1, -1)


@every_engine
@pytest.mark.parametrize("shots", [1, 3])
def test_with_identity_covariances_it_is_the_prototypical_network(shots: int, engine: str, chunk: int | None) -> None:
    """Probabilities, loss and meta-gradient. The generator writes zeros at its start."""
    net, tasks = conv(), batch(shots=shots)
    simple = SimpleCNAPs(net, cross_entropy, **SMALL)
    simple.adaptation.parts[1] = Spheres()  # type: ignore[union-attr]
    proto = ProtoNet(net, cross_entropy)
    for learner in (simple, proto):
        in_engine(learner, engine, chunk)
    (value, found), (expected_value, expected) = (meta_gradient(m, tasks) for m in (simple, proto))
    theta = dict(zip((n for n, _ in simple.named_parameters()), found, strict=True))
    close([value], [expected_value])
    close([theta[f"net.{name}"] for name, _ in net.named_parameters()], expected)
    logits = [learner.predict_episode(task(tasks, 0))[-1].softmax(-1) for learner in (simple, proto)]
    close(logits[:1], logits[1:])


def by_hand(f: np.ndarray, y: np.ndarray, queries: np.ndarray, ways: int, beta: float) -> np.ndarray:
    scores, whole = [], np.cov(f.T)
    for k in range(ways):
        mine = f[y == k]
        own = np.cov(mine.T) if len(mine) > 1 else np.zeros_like(whole)
        share = len(mine) / (len(mine) + 1)
        q = share * own + (1 - share) * whole + beta * np.eye(f.shape[1])
        apart = queries - mine.mean(0)
        scores.append(-np.einsum("nd,de,ne->n", apart, np.linalg.inv(q), apart))
    return np.stack(scores, 1)


@pytest.mark.parametrize("beta", [1.0, 0.05])
@pytest.mark.parametrize("shots", [(1, 1), (1, 1, 1), (4, 4, 4), (1, 2, 5)], ids=str)
def test_the_equations_of_the_paper(shots: tuple[int, ...], beta: float) -> None:
    """One shot, several, and different numbers of shots, against numpy's covariances and inverses."""
    ways = len(shots)
    net = with_quadratic_head(MLP(4, [5], ways, "tanh"))
    y = torch.arange(ways).repeat_interleave(torch.tensor(shots))
    x, queries = torch.randn(len(y), 4), torch.randn(6, 4)
    weights = MahalanobisHead(beta)(net, weights_of(net), Samples(x, y))
    f, g = (net.get_submodule("body")(part).detach().numpy() for part in (x, queries))
    logits = apply(net, weights, queries).detach()
    expected = torch.from_numpy(by_hand(f, y.numpy(), g, ways, beta))
    # |f|^2 is not the same for all classes here, so the logits themselves agree.
    close([logits], [expected])


def test_a_single_sample_has_no_covariance() -> None:
    net = with_quadratic_head(Linear(4, 1))
    weights = MahalanobisHead()(net, weights_of(net), Samples(torch.randn(1, 4), torch.tensor([1])))
    assert all(w.isfinite().all() for w in weights.values())


def test_a_single_logit_is_the_difference_of_two() -> None:
    support = task(class_batch(tasks=1, ways=2, shots=4, queries=1, shape=(4,)), 0).support
    one, two = (with_quadratic_head(Linear(4, outputs)) for outputs in (1, 2))
    logit, logits = (apply(n, MahalanobisHead()(n, weights_of(n), support), support.x) for n in (one, two))
    assert logit.shape == (8, 1)
    close([logit[:, 0]], [logits[:, 1] - logits[:, 0]])


def test_absent_classes_have_no_influence() -> None:
    support, query = task(class_batch(tasks=1, ways=3, shots=2, queries=2, shape=(4,)), 0)
    narrow, wide = (with_quadratic_head(Linear(4, outputs)) for outputs in (3, 7))
    few, many = (apply(n, MahalanobisHead()(n, weights_of(n), support), query.x).softmax(-1) for n in (narrow, wide))
    close([few], [many[:, :3]])
    assert (many[:, 3:] == 0).all()


def test_a_quadratic_head_without_factors_is_the_linear_head() -> None:
    net, support = conv(), task(batch(), 0).support
    other = with_quadratic_head(net)
    assert torch.equal(net(support.x), other(support.x))
    weights = [PrototypeHead()(n, weights_of(n), support) for n in (net, other)]
    assert torch.equal(*(apply(n, w, support.x) for n, w in zip((net, other), weights, strict=True)))
    assert type(net.head) is nn.Linear, "the given net is not changed"


@pytest.mark.parametrize("present", [[0, 1, 2], [1, 4]])
def test_absent_classes_change_nothing_that_is_written_for_all(present: list[int]) -> None:
    """FiLM comes from the mean code of the classes that are there, whatever the number of outputs."""
    support, query = task(class_batch(tasks=1, ways=len(present), shots=2, queries=2), 0)
    narrow, wide = (HyperNet(conv(ways=n), cross_entropy, writes="head+film", **SMALL) for n in (len(present), 6))
    randomise(narrow.adaptation, scale=0.3)
    wide.adaptation.load_state_dict(narrow.adaptation.state_dict())
    wide.net.body.load_state_dict(narrow.net.body.state_dict())  # type: ignore[union-attr, arg-type]
    for name in ("weight", "bias"):
        getattr(wide.net.head, name).data[present] = getattr(narrow.net.head, name).data
    named = support._replace(y=torch.tensor(present)[support.y])
    few, many = (
        apply(m.net, m.adaptation(m.net, weights_of(m.net), s), query.x).softmax(-1)
        for m, s in ((narrow, support), (wide, named))
    )
    close([few], [many[:, present]])


# HyperMAML.


@every_engine
def test_without_predictions_it_is_the_hypernetwork_of_the_head(engine: str, chunk: int | None) -> None:
    net, tasks = conv(), batch()
    hyper = HyperNet(net, cross_entropy, writes="head", **SMALL)
    randomise(hyper.adaptation)
    blind = HyperMAML(net, cross_entropy, reads_predictions=False, **SMALL)
    blind.load_state_dict(hyper.state_dict())
    # What reads the predictions, with zeros for their columns.
    seeing = HyperMAML(net, cross_entropy, **SMALL)
    state = hyper.state_dict()
    lift = state["adaptation.encoder.lift.weight"]
    state["adaptation.encoder.lift.weight"] = torch.cat([lift, torch.zeros(len(lift), 3)], 1)
    seeing.load_state_dict(state)
    found = [meta_gradient(in_engine(learner, engine, chunk), tasks) for learner in (hyper, blind, seeing)]
    names = [name for name, _ in hyper.named_parameters()]
    for value, gradient in found[1:]:
        close([value], [found[0][0]])
        for name, mine, expected in zip(names, gradient, found[0][1], strict=True):
            close([mine[..., : expected.shape[-1]] if name.endswith("lift.weight") else mine], [expected])
    (changed,) = (g for n, g in zip(names, found[2][1], strict=True) if n.endswith("lift.weight"))
    assert changed[:, lift.shape[1] :].abs().max() > 1e-4, "the predictions teach"


def test_the_generator_reads_the_probabilities_of_the_task_s_own_classes() -> None:
    net, support = conv(ways=5), task(batch(), 0).support
    generate = HyperMAML(net, cross_entropy, **SMALL).adaptation
    assert isinstance(generate, Generate)
    f = net.body(support.x)
    found = generate.predictions(net, weights_of(net), f, support)
    close([found[:, :3]], [net.head(f)[:, :3].softmax(-1).detach()])
    assert (found[:, 3:] == 0).all()
    assert not found.requires_grad


# Meta-gradients.


@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("settings", [{}, {"film": False}, {"freeze": "body"}, {"beta": 0.1, "encoder": "attention"}])
def test_meta_gradients_of_simple_cnaps(settings: dict[str, Any], shots: int) -> None:
    learner = SimpleCNAPs(conv(), cross_entropy, **SMALL | settings)
    randomise(learner, scale=0.1)
    if "freeze" in settings:
        learner.parameters = lambda: (p for _, p in learner.named_parameters() if p.requires_grad)  # type: ignore
    directional_check(learner, batch(shots=shots), ENGINES[1:])


def test_meta_gradients_of_hypermaml_hold_the_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = HyperMAML(conv(), cross_entropy, **SMALL)
    randomise(learner, scale=0.3)
    tasks, generate = batch(), learner.adaptation
    assert isinstance(generate, Generate)
    # Wherever the check goes, the predictions are those of the point at which it takes the gradient.
    real = generate.predictions
    expected = meta_gradient(in_engine(learner, "loop", None), tasks)
    held = [copy.deepcopy(learner.net)]

    def predictions(net: nn.Module, weights: Any, x: Tensor, support: Samples) -> Tensor:
        f = apply(held[0].get_submodule("body"), dict(held[0].get_submodule("body").named_parameters()), support.x)
        return real(held[0], weights_of(held[0]), f, support)

    monkeypatch.setattr(generate, "predictions", predictions)
    constant = meta_gradient(learner, tasks)
    close([constant[0], *constant[1]], [expected[0], *expected[1]])
    directional_check(learner, tasks, [])
    monkeypatch.undo()
    reference = meta_gradient(in_engine(learner, "loop", None), tasks)
    for engine, chunk in ENGINES[1:]:
        found = meta_gradient(in_engine(learner, engine, chunk), tasks)
        close([found[0], *found[1]], [reference[0], *reference[1]])


# A written head that is added to the class means'.


@every_engine
@pytest.mark.parametrize("writes", ["head", "head+film"])
def test_a_generator_of_zeros_leaves_the_prototypes(writes: str, engine: str, chunk: int | None) -> None:
    """The hypernetwork is then the prototypical network, and the hybrid Proto-MAML: value and gradient of theta."""
    net, tasks, inner = conv(), batch(), {"inner_lr": 0.1, "inner_steps": 2}
    for learner, other in (
        (HyperNet(net, cross_entropy, head="prototypes", writes=writes, **SMALL), ProtoNet(net, cross_entropy)),
        (
            Hybrid(net, cross_entropy, head="prototypes", writes=writes, **SMALL, **inner),
            ProtoMAML(net, cross_entropy, **inner),
        ),
    ):
        (value, found), (expected_value, expected) = (
            meta_gradient(in_engine(m, engine, chunk), tasks) for m in (learner, other)
        )
        theta = dict(zip((n for n, _ in learner.named_parameters()), found, strict=True))
        close([value], [expected_value])
        close([theta[f"net.{name}"] for name, _ in net.named_parameters()], expected)


@pytest.mark.parametrize("settings", [{"writes": "head"}, {}, {"freeze": "body", "encoder": "attention"}], ids=str)
def test_meta_gradients_of_what_is_added_to_prototypes(settings: dict[str, Any]) -> None:
    learner = HyperNet(conv(), cross_entropy, head="prototypes", **SMALL | settings)
    randomise(learner, scale=0.1)
    if "freeze" in settings:
        learner.parameters = lambda: (p for _, p in learner.named_parameters() if p.requires_grad)  # type: ignore
    directional_check(learner, batch(), ENGINES[1:])


def test_the_means_are_those_of_the_modulated_body() -> None:
    """By hand: norms, then class means, then what is written for the features of the modulated body."""
    net, support = conv(), task(batch(), 0).support
    learner = HyperNet(net, cross_entropy, head="prototypes", **SMALL)
    randomise(learner.adaptation, scale=0.3)
    film, _, head = learner.adaptation.parts  # type: ignore[union-attr]
    modulated = film(net, weights_of(net), support)
    f = apply(net.body, {n.removeprefix("body."): w for n, w in modulated.items() if n.startswith("body.")}, support.x)
    c = torch.stack([f[support.y == k].mean(0) for k in range(3)])
    delta = head.generator(head.encoder(f, support.y))
    found = learner.adaptation(net, weights_of(net), support)
    close(
        [found["head.weight"], found["head.bias"]],
        [2 * c + delta["head.weight"], delta["head.bias"] - c.square().sum(1)],
    )


# A frozen body.


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(SimpleCNAPs, SMALL), (CNAPs, SMALL), (HyperNet, SMALL | {"writes": "film"}), (MAML, {"inner_lr": 0.1})],
)
def test_a_frozen_body_stays_to_the_last_bit(kind: type[MetaLearner], settings: dict[str, Any]) -> None:
    net = conv()
    learner = kind(net, cross_entropy, freeze="body", outer_lr=0.1, **settings)
    before = {name: w.detach().clone() for name, w in learner.state_dict().items()}
    trainer(max_steps=3).fit(learner, loader([batch()] * 3))
    after = learner.state_dict()
    body = [name for name in after if name.startswith("net.body.")]
    assert len(body) > 4
    assert all(torch.equal(after[name], before[name]) for name in body)
    assert any(not torch.equal(after[name], before[name]) for name in after)
    if kind is SimpleCNAPs:  # its head is computed, so all of theta stays
        assert all(torch.equal(after[n], before[n]) for n in after if n.startswith("net."))
    adapted = learner.adaptation(learner.net, weights_of(learner.net), task(batch(), 0).support)
    modulated = [n for n, p in net.named_parameters() if n.startswith("body.") and not torch.equal(adapted[n], p)]
    assert modulated == [n for n, _ in net.named_parameters() if ".norm." in n and kind is not MAML]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: SimpleCNAPs(Linear(3, 2), cross_entropy), "writes=film: this net has no such weights"),
        (lambda: SimpleCNAPs(conv(), cross_entropy, beta=0.0), "beta must be above zero"),
        (lambda: SimpleCNAPs(conv(), cross_entropy, film=False, update="alternating"), "use update=joint"),
        (lambda: HyperMAML(conv(), cross_entropy, encoder="gru"), "deepsets, attention"),
        (lambda: HyperNet(conv(), cross_entropy, head="means"), "choose one of trained, prototypes"),
        (lambda: HyperNet(conv(), cross_entropy, head="prototypes", writes="film"), "must be head or head"),
        (lambda: HyperNet(conv(), cross_entropy, head="prototypes", init="hyperfan_in"), "must be head or head"),
        (lambda: Hybrid(Linear(3, 2), cross_entropy, head="prototypes", encoder="pairs"), "leave head=prototypes out"),
        (lambda: LEO(conv(), cross_entropy, head="prototypes"), "head=prototypes is for learners whose inner steps"),
        (lambda: ProtoNet(conv(), cross_entropy, freeze="head"), "unknown freeze 'head'; choose one of null, body"),
        (lambda: ProtoNet(nn.Linear(3, 2), cross_entropy, freeze="body"), "this net has no such part"),
    ],
)
def test_what_cannot_be_is_refused(made: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        made()


@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_predictions_are_probabilities_whatever_the_number_of_logits(outputs: int) -> None:
    """By hand, with five samples and four features, so that no two sizes are the same."""
    net, x, y = Linear(4, outputs), torch.randn(5, 4), torch.arange(5) % max(outputs, 2)
    generate = HyperMAML(net, cross_entropy, **SMALL).adaptation
    found = generate.predictions(net, weights_of(net), x, Samples(x, y))  # type: ignore[operator]
    z = (x @ net.head.weight.T + net.head.bias).detach().numpy()
    expected = 1 / (1 + np.exp(-z)) if outputs == 1 else np.exp(z) / np.exp(z).sum(1, keepdims=True)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_the_head_needs_classes_and_a_quadratic_net() -> None:
    support = task(batch(), 0).support
    with pytest.raises(InputError, match="QuadraticHead"):
        MahalanobisHead()(conv(), weights_of(conv()), support)
    net = with_quadratic_head(MLP(3, [4], 1))
    with pytest.raises(InputError, match="class ids"):
        SimpleCNAPs(net, squared, film=False).adaptation(net, weights_of(net), Samples(support.x, support.y.double()))
