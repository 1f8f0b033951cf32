"""The laws that adaptations obey when they are composed, in values and in meta-gradients, and what a hypernetwork
must and must not see of a support set. float64, 1e-10."""

from math import prod

import pytest
import torch
import torch.nn.functional as F
from conftest import class_batch, cross_entropy, randomise, regression_batch, squared, task
from torch import Tensor, nn

from innerloop.adaptation import Adaptation, Chain, Generate, GradientSteps, Identity
from innerloop.episodes import Episode, InputError, Samples, Weights, weights_of
from innerloop.learners import MAML, Hybrid, HyperNet
from innerloop.learners.task_relation import TaskRelation
from innerloop.nets import MLP, Conv4, Generator, SetEncoder
from innerloop.nets.generator import ChunkedWriter

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def net(float64: None) -> MLP:
    torch.manual_seed(0)
    return MLP(3, [6, 5], 1, activation="tanh")


@pytest.fixture
def episode(float64: None) -> Episode:
    return task(regression_batch(tasks=1, shots=7, queries=5), 0)


def generate(net: nn.Module, encoder: str = "attention", zero: bool = False, writes: str = "auto") -> Generate:
    """A hypernetwork; unless `zero`, one that writes something."""
    torch.manual_seed(1)
    made = TaskRelation(encoder, 8, writes).model(net)
    if not zero:
        randomise(made)
    return made


def outcome(adaptation: Adaptation, net: nn.Module, episode: Episode) -> tuple[list[Tensor], list[Tensor]]:
    """Adapted weights; the meta-gradient in theta and in the adaptation's own parameters, in their order."""
    weights = adaptation(net, weights_of(net), episode.support)
    parameters = [*net.parameters(), *adaptation.parameters()]
    gradient = torch.autograd.grad(squared(net, weights, episode.query), parameters, allow_unused=True)
    given = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradient, strict=True)]
    return list(weights.values()), given


def same(a: tuple[list[Tensor], list[Tensor]], b: tuple[list[Tensor], list[Tensor]]) -> None:
    for x, y in zip([*a[0], *a[1]], [*b[0], *b[1]], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


def apart(a: list[Tensor] | Weights, b: list[Tensor] | Weights) -> float:
    a, b = (list(w.values()) if isinstance(w, dict) else w for w in (a, b))
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


# Composition.


@pytest.mark.parametrize("kind", ["steps", "generate", "chain"])
def test_identity_is_neutral(kind: str, net: MLP, episode: Episode) -> None:
    parts = {"steps": [GradientSteps(squared, 3, 0.1)], "generate": [generate(net)]}
    part = Chain(*parts["generate"], *parts["steps"]) if kind == "chain" else parts[kind][0]
    alone = outcome(part, net, episode)
    assert apart(alone[0], list(net.parameters())) > 1e-2
    same(outcome(Chain(Identity(), part), net, episode), alone)
    same(outcome(Chain(part, Identity()), net, episode), alone)
    theta = list(net.parameters())
    same((outcome(Chain(), net, episode)[0], []), (theta, []))
    same(outcome(Identity(), net, episode), outcome(Chain(), net, episode))


def test_chain_is_associative_and_ordered(net: MLP, episode: Episode) -> None:
    a, b, c = generate(net), GradientSteps(squared, 2, 0.1), GradientSteps(squared, 1, 0.3, clip=0.2)
    flat = outcome(Chain(a, b, c), net, episode)
    same(outcome(Chain(Chain(a, b), c), net, episode), flat)
    same(outcome(Chain(a, Chain(b, c)), net, episode), flat)
    assert apart(outcome(Chain(b, a, c), net, episode)[0], flat[0]) > 1e-3
    # Each part starts where the last one ended.
    by_hand = weights_of(net)
    for part in (a, b, c):
        by_hand = part(net, by_hand, episode.support)
    same((list(by_hand.values()), []), (flat[0], []))


def test_two_chained_inner_loops_are_one_longer_one(net: MLP, episode: Episode) -> None:
    two = Chain(GradientSteps(squared, 2, 0.1), GradientSteps(squared, 3, 0.1))
    same(outcome(two, net, episode), outcome(GradientSteps(squared, 5, 0.1), net, episode))


@pytest.mark.parametrize("first_order", [False, True])
def test_no_steps_are_identity(first_order: bool, net: MLP, episode: Episode) -> None:
    steps = GradientSteps(squared, 0, 0.1, first_order=first_order)
    same(outcome(steps, net, episode), outcome(Identity(), net, episode))


@pytest.mark.parametrize("encoder", ["deepsets", "attention"])
def test_a_generator_that_writes_zeros_is_identity(encoder: str, net: MLP, episode: Episode) -> None:
    zero = outcome(generate(net, encoder, zero=True), net, episode)
    identity = outcome(Identity(), net, episode)
    theta = len(identity[1])
    same((zero[0], zero[1][:theta]), identity)
    # ... and yet phi learns: its last layer has a gradient.
    assert zero[1][-1].abs().max() > 1e-3


@pytest.mark.parametrize("encoder", ["deepsets", "attention"])
def test_hybrid_without_inner_steps_is_the_hypernetwork(encoder: str, net: MLP, episode: Episode) -> None:
    settings = {"encoder": encoder, "width": 8}
    hyper, hybrid = HyperNet(net, squared, **settings), Hybrid(net, squared, inner_steps=0, **settings)
    randomise(hyper.adaptation)
    hybrid.adaptation.parts[0].load_state_dict(hyper.adaptation.state_dict())
    same(outcome(hybrid.adaptation, net, episode), outcome(hyper.adaptation, net, episode))


@pytest.mark.parametrize("inner", [{}, {"first_order": True}, {"learn_lr": "parameter"}, {"inner_clip": 0.1}])
def test_hybrid_with_a_zero_generator_is_maml(inner: dict, net: MLP, episode: Episode) -> None:
    inner = {"inner_steps": 3, "inner_lr": 0.1} | inner
    hybrid, maml = Hybrid(net, squared, width=8, **inner), MAML(net, squared, **inner)
    mixed, pure = (outcome(learner.adaptation, net, episode) for learner in (hybrid, maml))
    theta, phi = len(list(net.parameters())), len(list(hybrid.adaptation.parts[0].parameters()))
    same((mixed[0], mixed[1][:theta] + mixed[1][theta + phi :]), pure)


# Trajectories.


def test_trajectories(net: MLP, episode: Episode) -> None:
    theta, g, steps = weights_of(net), generate(net), GradientSteps(squared, 3, 0.1)
    cases = [(Identity(), 1), (g, 1), (steps, 4), (Chain(g, steps), 4), (Chain(steps, g), 4), (Chain(steps, steps), 7)]
    for adaptation, length in cases:
        path = adaptation.trajectory(net, theta, episode.support)
        assert len(path) == length
        assert apart(path[-1], adaptation(net, theta, episode.support)) < 1e-12
        assert all(list(weights) == list(theta) for weights in path)


def test_trajectory_of_the_hybrid_starts_where_the_generator_ends(net: MLP, episode: Episode) -> None:
    theta, g = weights_of(net), generate(net)
    path = Chain(g, GradientSteps(squared, 1, 0.1, eval_steps=4)).trajectory(net, theta, episode.support)
    assert len(path) == 5
    weights = g(net, theta, episode.support)
    one_step = GradientSteps(squared, 1, 0.1)
    for seen in path:
        assert apart(seen, weights) < 1e-12
        weights = one_step(net, weights, episode.support)


# The support is a set of (x, y) pairs.

READERS = [("deepsets", "all"), ("attention", "all"), ("deepsets", "head+film"), ("attention", "head+film")]
every_reader = pytest.mark.parametrize(("encoder", "writes"), READERS)


def reader(encoder: str, writes: str) -> tuple[nn.Module, Generate, Samples]:
    torch.manual_seed(0)
    if writes == "all":
        net: nn.Module = MLP(3, [6, 5], 1, activation="tanh")
        return net, generate(net, encoder), task(regression_batch(tasks=1, shots=7, queries=1), 0).support
    # Group norm: points are read one by one, so that duplicating them leaves the features of each as they are.
    net = Conv4((1, 17, 17), 3, width=4, norm="group")
    return net, generate(net, encoder, writes=writes), task(class_batch(1, 3, 3, 1), 0).support


@every_reader
def test_the_order_of_the_support_does_not_matter(encoder: str, writes: str) -> None:
    net, g, (x, y) = reader(encoder, writes)
    written = g(net, weights_of(net), Samples(x, y))
    assert apart(written, weights_of(net)) > 1e-2
    for seed in range(5):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        assert apart(g(net, weights_of(net), Samples(x[order], y[order])), written) < 1e-10


@every_reader
def test_which_label_goes_with_which_point_matters(encoder: str, writes: str) -> None:
    """Weights made from the points and the labels apart would be at chance."""
    net, g, (x, y) = reader(encoder, writes)
    written = g(net, weights_of(net), Samples(x, y))
    assert apart(g(net, weights_of(net), Samples(x, y.roll(1, 0))), written) > 1e-3
    assert apart(g(net, weights_of(net), Samples(x.roll(1, 0), y)), written) > 1e-3


@every_reader
def test_a_duplicated_support_is_the_same_set(encoder: str, writes: str) -> None:
    net, g, (x, y) = reader(encoder, writes)
    twice = Samples(torch.cat([x, x]), torch.cat([y, y]))
    assert apart(g(net, weights_of(net), twice), g(net, weights_of(net), Samples(x, y))) < 1e-10
    loss = squared if writes == "all" else cross_entropy
    step = GradientSteps(loss, 2, 0.1)
    assert apart(step(net, weights_of(net), twice), step(net, weights_of(net), Samples(x, y))) < 1e-10


@pytest.mark.parametrize("attention", [False, True])
def test_class_codes_follow_a_relabelling(attention: bool) -> None:
    torch.manual_seed(0)
    encoder = SetEncoder(5, 4, 8, attention, by_class=True)
    x, y = torch.randn(9, 5), torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 1])
    codes = encoder(x, y)
    assert apart([codes[0]], [codes[1]]) > 1e-2
    relabel = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(encoder(x, relabel[y])[relabel], codes, rtol=1e-10, atol=1e-10)


def test_head_rows_follow_a_relabelling() -> None:
    net, g, (x, y) = reader("deepsets", "head+film")
    relabel, theta = torch.tensor([2, 0, 1]), weights_of(net)
    before, after = (
        {k: v - theta[k] for k, v in g(net, theta, s).items()} for s in (Samples(x, y), Samples(x, relabel[y]))
    )
    for name, change in before.items():
        expected = after[name][relabel] if name.startswith("head.") else after[name]
        torch.testing.assert_close(expected, change, rtol=1e-10, atol=1e-10)


def test_a_class_without_points_gets_a_finite_code() -> None:
    encoder = SetEncoder(5, 3, 8, by_class=True)
    assert encoder(torch.randn(4, 5), torch.tensor([0, 2, 0, 2])).isfinite().all()


# The generator.

SHAPES = {"body.1.weight": torch.Size([6, 3]), "body.1.norm.weight": torch.Size([6]), "head.weight": torch.Size([4, 6])}


@pytest.mark.parametrize("classes", [None, 4])
@pytest.mark.parametrize("chunk_size", [None, 1, 5, 1000])
def test_zero_init_writes_exactly_zero(chunk_size: int | None, classes: int | None) -> None:
    torch.manual_seed(0)
    code = torch.randn(8) if classes is None else torch.randn(classes, 8)
    written = Generator(SHAPES, 8, classes, chunk_size)(code)
    assert {name: w.shape for name, w in written.items()} == SHAPES
    assert all(bool((w == 0).all()) for w in written.values())


@pytest.mark.parametrize("size", [1, 7, 10, 11])
@pytest.mark.parametrize("chunk_size", [1, 3, 10, 64])
def test_chunked_writer(size: int, chunk_size: int) -> None:
    torch.manual_seed(0)
    writer = ChunkedWriter(8, size, chunk_size)
    nn.init.normal_(writer.out.weight)
    a, b = writer(torch.randn(8)), writer(torch.randn(8))
    assert a.shape == (size,)
    assert (a != b).all()
    # Chunks differ from each other.
    assert len(a.unique()) == size
    assert writer.chunks.shape == (-(-size // chunk_size), 8)


def test_chunks_keep_the_generator_small() -> None:
    def count(width: int, chunk_size: int | None) -> int:
        shapes = {"w": torch.Size([width, width])}
        return sum(p.numel() for p in Generator(shapes, 8, chunk_size=chunk_size).parameters())

    assert count(100, None) == 100 * 100 * 9
    assert count(100, 100) - count(50, 100) == 8 * (100 * 100 - 50 * 50) // 100
    assert count(100, 100) < 4000


def activations(net: MLP, weights: Weights, x: Tensor) -> list[float]:
    """The mean square of the numbers before each ReLU."""
    seen, h = [], x
    for name in (n.removesuffix(".weight") for n in weights if n.startswith("body") and n.endswith("weight")):
        h = F.linear(h, weights[f"{name}.weight"], weights[f"{name}.bias"])
        seen.append(h.square().mean().item())
        h = h.relu()
    return seen


def mean_over(curves: list[list[float]]) -> Tensor:
    return torch.tensor(curves).mean(0)


def test_hyperfan_in_keeps_activations_even() -> None:
    torch.manual_seed(0)
    net = MLP(32, [64] * 8, 1)
    shapes, x = {n: w.shape for n, w in weights_of(net).items()}, torch.randn(20, 32)
    curves = {}
    for init in ("hyperfan_in", "plain"):
        generator = Generator(shapes, 16, init="hyperfan_in")
        if init == "plain":
            assert isinstance(generator.writer, nn.Linear)
            generator.writer.reset_parameters()
        codes = F.normalize(torch.randn(30, 16), dim=-1) * 16**0.5
        curves[init] = mean_over([activations(net, generator(code), x) for code in codes])
    ratio = {init: (curve[-1] / curve[0]).item() for init, curve in curves.items()}
    assert 0.5 < ratio["hyperfan_in"] < 2
    assert 1.0 < curves["hyperfan_in"][0] < 4.0
    assert not 0.1 < ratio["plain"] < 10


@pytest.mark.parametrize("encoder", ["deepsets", "attention"])
def test_hyperfan_in_behind_the_encoder_keeps_activations_even(encoder: str) -> None:
    """What a user gets of `init=hyperfan_in`: signals neither vanish nor blow up in a deep net."""
    torch.manual_seed(0)
    net = MLP(4, [64] * 6, 1)
    batch = regression_batch(tasks=20, shots=10, queries=10, size=4)
    g = TaskRelation(encoder, 64, "all", None, "hyperfan_in").model(net)
    episodes = [task(batch, i) for i in range(20)]
    curve = mean_over([activations(net, g(net, weights_of(net), e.support), e.query.x) for e in episodes])
    assert 0.1 < curve[-1] / curve[0] < 10


def test_hyperfan_in_drops_theta_and_zero_keeps_it(net: MLP, episode: Episode) -> None:
    shifted = {name: w + 1 for name, w in weights_of(net).items()}
    for init, moves in (("zero", 1.0), ("hyperfan_in", 0.0)):
        g = TaskRelation("deepsets", 8, "all", None, init).model(net)
        here, there = (g(net, theta, episode.support) for theta in (weights_of(net), shifted))
        for name, w in here.items():
            torch.testing.assert_close(there[name] - w, torch.full_like(w, moves))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"encoder": "transformer"}, "deepsets, attention"),
        ({"writes": "body"}, "head\\+film"),
        ({"writes": "film"}, "no such weights"),
        ({"init": "ones"}, "hyperfan_in"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"chunk_size": 5, "init": "hyperfan_in"}, "chunk_size"),
        ({"width": 0}, "width"),
        ({"width": 6, "encoder": "attention"}, "multiple of 4"),
    ],
)
def test_bad_settings_say_what_is_possible(settings: dict, named: str, net: MLP) -> None:
    with pytest.raises(InputError, match=named):
        TaskRelation(**settings).model(net)


def test_writes_choose_the_weights_that_are_written() -> None:
    for writes, expected in {"head": {"head.weight", "head.bias"}, "film": {"norm"}, "all": None}.items():
        torch.manual_seed(0)
        net = Conv4((1, 17, 17), 3, width=4)
        support = task(class_batch(1, 3, 2, 1), 0).support
        theta, written = weights_of(net), generate(net, "deepsets", writes=writes)(net, weights_of(net), support)
        changed = {name for name in theta if not torch.equal(theta[name], written[name])}
        if writes == "film":
            assert changed == {name for name in theta if ".norm." in name}
        else:
            assert changed == (expected or set(theta))
        assert sum(map(prod, (w.shape for w in written.values()))) == sum(w.numel() for w in theta.values())


@pytest.mark.parametrize("clip", [0.0, -1.0])
def test_a_limit_of_the_inner_gradient_is_above_zero(clip: float) -> None:
    with pytest.raises(InputError, match="inner_clip must be above zero, got"):
        GradientSteps(squared, 1, 0.1, clip=clip)
