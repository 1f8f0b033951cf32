"""Each learner against something outside it: other libraries, closed forms, copied models stepped by hand. float64."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import class_batch, cross_entropy, randomise, regression_batch, squared, task
from test_meta_gradient import ENGINES, close, directional_check, every_engine, meta_gradient
from torch import Tensor, nn

from innerloop.adaptation import GradientSteps, PrototypeHead, RidgeHead, RidgeStep
from innerloop.adaptation.heads import classes_present
from innerloop.episodes import Episode, InputError, Samples, apply, weights_of
from innerloop.learners import (
    CAVIA,
    IMAML,
    LEO,
    MAML,
    R2D2,
    CNAPs,
    FineTune,
    HyperNet,
    MAMLPlusPlus,
    MetaLearner,
    ProtoMAML,
    ProtoNet,
    Reptile,
)
from innerloop.learners.imaml import ProximalSteps, conjugate_gradient
from innerloop.nets import MLP, Conv4, Linear

pytestmark = pytest.mark.usefixtures("float64")


def conv(ways: int = 3, norm: str = "batch") -> Conv4:
    torch.manual_seed(0)
    return Conv4((1, 17, 17), ways, width=4, norm=norm, activation="tanh")


def dense(targets: int = 1) -> MLP:
    torch.manual_seed(0)
    return MLP(3, [6, 5], targets, activation="tanh")


# Gradients that are derivatives: finite differences, and every engine.


def made(name: str) -> MetaLearner:
    inner = {"inner_steps": 2, "inner_lr": 0.2}
    net = conv()
    reader = {"encoder": "attention", "width": 8}
    learners: dict[str, Any] = {
        "anil": lambda: MAML(net, cross_entropy, only="head", **inner),
        "boil": lambda: MAML(net, cross_entropy, only="body", **inner),
        "non-transductive": lambda: MAML(net, cross_entropy, transductive=False, **inner),
        "maml_pp": lambda: MAMLPlusPlus(
            net, cross_entropy, per_step_norms=True, learn_lr="tensor_step", multi_step_until=9, **inner
        ),
        "cavia": lambda: CAVIA(net, cross_entropy, learn_lr=True, **inner),
        "leo": lambda: LEO(net, cross_entropy, **reader, **inner),
        "cnaps": lambda: CNAPs(net, cross_entropy, **reader),
        "protonet": lambda: ProtoNet(net, cross_entropy),
        "proto_maml": lambda: ProtoMAML(net, cross_entropy, **inner),
        "r2d2": lambda: R2D2(net, cross_entropy),
    }
    learner = learners[name]()
    randomise(learner, scale=0.1)
    return learner


@pytest.mark.parametrize(
    "name",
    ["anil", "boil", "non-transductive", "maml_pp", "cavia", "leo", "cnaps", "protonet", "proto_maml", "r2d2"],
)
def test_meta_gradients_agree_with_finite_differences(name: str) -> None:
    directional_check(made(name), class_batch(tasks=3, ways=3, shots=2, queries=2), ENGINES[1:])


# Other libraries on the same net.


@pytest.mark.parametrize("kind", ["maml", "fomaml", "meta_sgd"])
@pytest.mark.parametrize("steps", [1, 3])
def test_higher_has_the_same_meta_gradient(kind: str, steps: int) -> None:
    higher = pytest.importorskip("higher")
    net, batch = dense(), regression_batch(tasks=3, shots=5, queries=4)
    learner = MAML(
        net,
        squared,
        inner_lr=0.2,
        inner_steps=steps,
        first_order=kind == "fomaml",
        learn_lr="parameter" if kind == "meta_sgd" else None,
    )
    if kind == "meta_sgd":
        randomise(learner.adaptation, scale=0.05)
    learned = learner.adaptation.rates
    rates = [learned[n.replace(".", "/")] for n, _ in net.named_parameters()] if learned is not None else []
    wanted = [*net.parameters(), *rates]
    value, gradient, _ = learner.engine.value_and_grad(learner.query_objective, wanted, batch)
    total, expected = torch.zeros(()), [torch.zeros_like(p) for p in wanted]
    for i in range(3):
        (xs, ys), (xq, yq) = task(batch, i)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
        with higher.innerloop_ctx(net, optimizer, copy_initial_weights=False, track_higher_grads=kind != "fomaml") as (
            fast,
            stepper,
        ):
            for _ in range(steps):
                loss = F.mse_loss(fast(xs), ys)
                if kind == "meta_sgd":  # higher's optimizers know no rate for each entry; its functional nets do
                    at = list(fast.parameters())
                    slopes = torch.autograd.grad(loss, at, create_graph=True)
                    fast.update_params([p - r * g for p, r, g in zip(at, rates, slopes, strict=True)])
                else:
                    stepper.step(loss)
            loss = F.mse_loss(fast(xq), yq)
            # Without its graph higher starts from detached copies: the gradient at the fast weights is first order's.
            parts = torch.autograd.grad(loss, list(fast.parameters()) if kind == "fomaml" else wanted)
        total += loss.detach() / 3
        expected = [e + part / 3 for e, part in zip(expected, parts, strict=True)]
    close([value, *gradient], [total, *expected])


@pytest.mark.parametrize("steps", [1, 3])
def test_torchopt_has_the_same_meta_gradient(steps: int) -> None:
    torchopt = pytest.importorskip("torchopt")
    net, batch = dense(), regression_batch(tasks=3, shots=5, queries=4)
    value, gradient = meta_gradient(MAML(net, squared, inner_lr=0.2, inner_steps=steps), batch)
    inner = torchopt.MetaSGD(net, lr=0.2)
    start = torchopt.extract_state_dict(net, by="reference")
    begun = torchopt.extract_state_dict(inner, by="reference")
    total, expected = torch.zeros(()), [torch.zeros_like(p) for p in net.parameters()]
    theta = list(net.parameters())
    for i in range(3):
        (xs, ys), (xq, yq) = task(batch, i)
        for _ in range(steps):
            inner.step(F.mse_loss(net(xs), ys))
        loss = F.mse_loss(net(xq), yq)
        expected = [e + g / 3 for e, g in zip(expected, torch.autograd.grad(loss, theta), strict=True)]
        total += loss.detach() / 3
        torchopt.recover_state_dict(net, start)
        torchopt.recover_state_dict(inner, begun)
    close([value, *gradient], [total, *expected])


# Inner loops on a part of the weights.


@every_engine
@pytest.mark.parametrize("only", ["head", "body"])
def test_adapting_a_part_is_a_rate_of_zero_elsewhere(only: str, engine: str, chunk: int | None) -> None:
    net, batch = conv(), class_batch(tasks=3, ways=3, shots=2, queries=2)
    settings: dict[str, Any] = {"inner_lr": 0.3, "inner_steps": 2, "engine": engine, "chunk": chunk}
    part = MAML(net, cross_entropy, only=only, **settings)
    whole = MAML(net, cross_entropy, learn_lr="tensor", **settings)
    with torch.no_grad():
        for name, rate in whole.adaptation.rates.items():  # type: ignore[union-attr,operator]
            rate.mul_(name.startswith(f"{only}/"))
    close(meta_gradient(part, batch)[1], meta_gradient(whole, batch)[1][: len(list(net.parameters()))])
    adapted = part.adaptation(net, weights_of(net), task(batch, 0).support)
    for name, w in net.named_parameters():
        assert torch.equal(adapted[name], w) != name.startswith(only), name


@pytest.mark.parametrize(
    ("learner", "setting", "message"),
    [
        (MAML, {"only": "neck"}, "only=neck: this net has no such part"),
        (MAML, {"learn_lr": "tensor_step", "inner_steps": 0}, "at least one inner step"),
        (CAVIA, {"context_size": 0}, "context_size must be above zero"),
        (CAVIA, {"inner_lr": -1.0}, "inner_lr must be above zero"),
        (LEO, {"inner_steps": -1}, "must not be negative"),
        (MAML, {"inner_steps": -1, "eval_inner_steps": 2}, "must not be negative, got -1 and 2"),
        (MAML, {"inner_steps": 2, "eval_inner_steps": -1}, "must not be negative, got 2 and -1"),
        (MAML, {"inner_lr": 0.0}, "inner_lr must be above zero"),
        (IMAML, {"proximal": 0.0}, "proximal must be above zero"),
        (IMAML, {"cg_steps": 0}, "cg_steps must be above zero"),
        (Reptile, {"minibatches": 0}, "minibatches must be above zero"),
        (R2D2, {"ridge": 0.0}, "ridge must be above zero"),
        (FineTune, {"head": "new"}, "choose one of auto, trained, zero, prototypes"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(learner: type[MetaLearner], setting: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        learner(dense(), squared, **setting)  # type: ignore[arg-type]


# Batch statistics of the support set.


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_without_transduction_no_query_sees_another(engine: str) -> None:
    net, episode = conv(), task(class_batch(tasks=1, ways=3, shots=3, queries=4), 0)
    blind = MAML(net, cross_entropy, inner_lr=0.3, transductive=False, engine=engine)
    one = Episode(episode.support, Samples(episode.query.x[:1], episode.query.y[:1]))
    close([p[:1] for p in blind.predict_episode(episode)], blind.predict_episode(one))
    # The statistics of the first norm can be taken by hand.
    blind = MAML(net, cross_entropy, inner_steps=0, transductive=False)
    block = net.body[0]
    maps, reference = block.conv(episode.query.x), block.conv(episode.support.x)
    mean, variance = reference.mean((0, 2, 3)), reference.var((0, 2, 3), correction=0)
    by_hand = (maps - mean[:, None, None]) / (variance[:, None, None] + block.norm.eps).sqrt()
    seen = {}
    handle = block.norm.register_forward_hook(lambda module, args, output: seen.update(y=output))
    blind.predict_episode(episode)
    handle.remove()
    close([seen["y"][len(episode.support.x) :]], [by_hand])
    # Without batch norms there is nothing to choose.
    group = MAML(conv(norm="group"), cross_entropy, transductive=False)
    assert group.query_net(episode) is group.net
    assert not group.transductive
    assert not blind.transductive
    assert MAML(conv(), cross_entropy).transductive


def test_a_norm_that_cannot_but_see_the_other_queries_is_refused() -> None:
    net = MLP(3, [5], 2)
    net.body.append(nn.BatchNorm1d(5, track_running_stats=False))
    with pytest.raises(InputError, match=r"transductive=false.*body\.3"):
        MAML(net, cross_entropy, transductive=False)


# Implicit gradients.


def homogeneous(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1)], 1)


@every_engine
def test_imaml_on_linear_regression_is_the_derivative_of_ridge(engine: str, chunk: int | None) -> None:
    strength, net, batch = 0.7, Linear(3, 1), regression_batch(tasks=4, shots=6, queries=5)
    theta = torch.cat([net.head.weight[0], net.head.bias]).detach()
    expected = torch.zeros(4)
    for i in range(4):
        (xs, ys), (xq, yq) = task(batch, i)
        xs, xq = homogeneous(xs), homogeneous(xq)
        hessian, regular = 2 * xs.T @ xs / len(xs), strength * torch.eye(4)
        solution = torch.linalg.solve(hessian + regular, 2 * xs.T @ ys[:, 0] / len(xs) + strength * theta)
        slope = 2 * xq.T @ (xq @ solution - yq[:, 0]) / len(xq)
        expected += strength * torch.linalg.solve(hessian + regular, slope) / 4
    learner = IMAML(
        net, squared, inner_lr=0.2, inner_steps=400, proximal=strength, cg_steps=4, engine=engine, chunk=chunk
    )
    _, (weight, bias) = meta_gradient(learner, batch)
    close([torch.cat([weight[0], bias])], [expected])


def test_imaml_converges_to_the_meta_gradient_through_a_long_inner_loop() -> None:
    """On a net that is no quadratic: unrolling MAML's proximal inner loop to its end gives the same."""
    net, batch = dense(), regression_batch(tasks=2, shots=6, queries=5)
    implicit = IMAML(net, squared, inner_lr=0.1, inner_steps=500, proximal=1.0, cg_steps=60)
    steps = ProximalSteps(squared, 500, 0.1)
    steps.proximal = 1.0
    unrolled = MetaLearner(net, squared, steps)
    close(meta_gradient(implicit, batch)[1], meta_gradient(unrolled, batch)[1], 1e-8)


def test_conjugate_gradient_solves_and_then_stays() -> None:
    rng = torch.Generator().manual_seed(0)
    root = torch.randn(5, 5, generator=rng)
    matrix, target = root @ root.T + torch.eye(5), torch.randn(5, generator=rng)
    for steps in (5, 50):
        found = conjugate_gradient(lambda v: {"w": matrix @ v["w"]}, {"w": target}, steps)
        close([found["w"]], [torch.linalg.solve(matrix, target)])


# Reptile.


@every_engine
@pytest.mark.parametrize("minibatches", [1, 2])
def test_reptile_equals_a_copied_model_stepped_by_sgd(minibatches: int, engine: str, chunk: int | None) -> None:
    net, batch = dense(), regression_batch(tasks=3, shots=5, queries=3)
    expected = [torch.zeros_like(p) for p in net.parameters()]
    for i in range(3):
        x, y = (torch.cat(parts) for parts in zip(*task(batch, i), strict=True))
        model = copy.deepcopy(net)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for k in range(5):
            rows = torch.arange(len(x)) % minibatches == k % minibatches
            optimizer.zero_grad()
            F.mse_loss(model(x[rows]), y[rows]).backward()
            optimizer.step()
        expected = [e + (p - q) / 3 for e, p, q in zip(expected, net.parameters(), model.parameters(), strict=True)]
    learner = Reptile(net, squared, inner_lr=0.1, inner_steps=5, minibatches=minibatches, engine=engine, chunk=chunk)
    value, gradient = meta_gradient(learner, batch)
    close(gradient, [e.detach() for e in expected])
    assert value > 0


# Heads in closed form.


def test_protonet_is_the_softmax_over_squared_distances_to_class_means() -> None:
    net, (support, query) = conv(ways=4), task(class_batch(tasks=1, ways=4, shots=3, queries=2), 0)
    weights = ProtoNet(net, cross_entropy).adaptation(net, weights_of(net), support)
    f, g = (net.body(s.x).detach().numpy() for s in (support, query))
    means = np.stack([f[support.y.numpy() == k].mean(0) for k in range(4)])
    scores = -((g[:, None] - means[None]) ** 2).sum(-1)
    expected = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    found = apply(net, weights, query.x).softmax(-1)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("head", [PrototypeHead(), RidgeHead()])
def test_a_single_logit_tells_two_classes_apart_as_two_logits_do(head: Any) -> None:
    support = task(class_batch(tasks=1, ways=2, shots=3, queries=1, shape=(4,)), 0).support
    one, two = Linear(4, 1), Linear(4, 2)
    weights = head(one, weights_of(one), support)
    assert {name: w.shape for name, w in weights.items()} == {name: w.shape for name, w in weights_of(one).items()}
    logit = apply(one, weights, support.x)[:, 0]
    logits = apply(two, head(two, weights_of(two), support), support.x)
    difference = logits[:, 1] - logits[:, 0]
    close([logit], [difference])


@pytest.mark.parametrize(
    ("labels", "outputs", "expected"),
    [([0, 0], 2, [True, False]), ([1], 2, [False, True]), ([0, 2, 2], 4, [True, False, True, False]), ([1], 1, [True])],
)
def test_absent_classes_are_known(labels: list[int], outputs: int, expected: list[bool]) -> None:
    assert classes_present(torch.tensor(labels), outputs).tolist() == expected
    assert classes_present(torch.tensor(labels).double(), outputs).all()


@pytest.mark.parametrize("head", [RidgeHead, RidgeStep])
def test_the_ridge_is_above_zero(head: Any) -> None:
    assert head(0.5).log_ridge.exp().item() == pytest.approx(0.5)
    assert head().log_ridge.exp().item() == pytest.approx(1.0)
    for wrong in (0.0, -0.5):
        with pytest.raises(InputError, match="ridge must be above zero, got"):
            head(wrong)


def test_one_inner_step_may_have_rates_for_each_step() -> None:
    learner = MAML(dense(), squared, inner_steps=1, learn_lr="tensor_step")
    assert {rate.numel() for rate in learner.adaptation.rates.values()} == {1}  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("shots", [1, 9])
@pytest.mark.parametrize("targets", ["classes", "real"])
def test_ridge_head_meets_the_optimality_condition(targets: str, shots: int) -> None:
    """F'(F W - Y) + lambda W = 0, with fewer and with more points than features."""
    net = dense(targets=3)
    if targets == "real":
        support = task(regression_batch(tasks=1, shots=3 * shots, queries=1, targets=3), 0).support
        y, scale = support.y, 1.0
    else:
        support = task(class_batch(tasks=1, ways=3, shots=shots, queries=1, shape=(3,)), 0).support
        y, scale = F.one_hot(support.y).double(), 10.0
    head = RidgeHead(ridge=0.3)
    weights = head(net, weights_of(net), support)
    w = torch.cat([weights["head.weight"].T, weights["head.bias"][None]]) / scale
    f = homogeneous(net.body(support.x))
    close([f.T @ (f @ w - y) + 0.3 * w], [torch.zeros_like(w)])


def test_prototypes_of_real_targets_are_refused() -> None:
    net, batch = dense(), regression_batch(tasks=1, shots=5, queries=3)
    with pytest.raises(InputError, match="class ids"):
        ProtoNet(net, squared).evaluate_episode(task(batch, 0))


@every_engine
def test_proto_maml_without_steps_is_the_prototypical_network(engine: str, chunk: int | None) -> None:
    net, batch = conv(), class_batch(tasks=3, ways=3, shots=2, queries=2)
    engine_of: dict[str, Any] = {"engine": engine, "chunk": chunk}
    close(
        meta_gradient(ProtoMAML(net, cross_entropy, inner_steps=0, **engine_of), batch)[1],
        meta_gradient(ProtoNet(net, cross_entropy, **engine_of), batch)[1],
    )


# Codes and contexts.


def test_cavia_on_a_dense_net_is_a_net_with_further_inputs() -> None:
    """Zintgraf et al.: the context is concatenated to the input; one step on it by hand."""
    net, (support, query) = dense(), task(regression_batch(tasks=1, shots=6, queries=4), 0)
    learner = CAVIA(net, squared, context_size=2, inner_lr=0.7, inner_steps=1)
    writer = learner.adaptation.generate.generator.writer
    first = net.body[1]
    wide = nn.Linear(5, 6)
    wide.weight.data, wide.bias.data = torch.cat([first.weight, writer.weight], 1), first.bias
    body = [wide, *list(net.body)[2:], net.head]

    def predict(context: Tensor, x: Tensor) -> Tensor:
        return nn.Sequential(*body)(torch.cat([x, context.expand(len(x), -1)], 1))

    context = torch.zeros(2, requires_grad=True)
    (slope,) = torch.autograd.grad(F.mse_loss(predict(context, support.x), support.y), context)
    assert slope.abs().max() > 1e-3
    found = learner.predict_episode(Episode(support, query))
    close(found, [predict(c, query.x).detach() for c in (context, context, context - 0.7 * slope)])


@pytest.mark.parametrize("kind", [CAVIA, LEO])
def test_each_step_on_the_code_starts_from_the_last(kind: type[MetaLearner]) -> None:
    """Three steps by hand, with the gradients of the last code and not of the first."""
    net, (support, query) = dense(), task(regression_batch(tasks=1, shots=6, queries=4), 0)
    learner = kind(net, squared, inner_lr=0.3, inner_steps=3)  # type: ignore[call-arg]
    randomise(learner, scale=0.3)
    latent, theta = learner.adaptation, weights_of(net)
    codes = [latent.generate.code(net, theta, support).detach()]  # type: ignore[operator, union-attr]
    for _ in range(3):
        at = codes[-1].clone().requires_grad_()
        written = latent.generate.write(theta, at, support)  # type: ignore[operator, union-attr]
        (slope,) = torch.autograd.grad(F.mse_loss(apply(net, written, support.x), support.y), at)
        codes.append(codes[-1] - latent.rate * slope)  # type: ignore[operator]
    assert (codes[2] - codes[1] - (codes[1] - codes[0])).abs().max() > 1e-6, "the gradients do not differ"
    close(latent(net, theta, support).values(), latent.generate.write(theta, codes[-1], support).values())  # type: ignore[operator, union-attr]
    expected = [apply(net, latent.generate.write(theta, code, support), query.x) for code in codes]  # type: ignore[operator, union-attr]
    close(learner.predict_episode(Episode(support, query))[-4:], expected)


@every_engine
def test_leo_without_steps_is_the_hypernetwork(engine: str, chunk: int | None) -> None:
    net, batch = conv(), class_batch(tasks=3, ways=3, shots=2, queries=2)
    settings: dict[str, Any] = {"width": 8, "engine": engine, "chunk": chunk}
    leo, hyper = LEO(net, cross_entropy, inner_steps=0, **settings), HyperNet(net, cross_entropy, **settings)
    randomise(hyper.adaptation)
    leo.adaptation.generate.load_state_dict(hyper.adaptation.state_dict())  # type: ignore[union-attr]
    close(meta_gradient(leo, batch)[1], meta_gradient(hyper, batch)[1])


# The baseline.


@pytest.mark.parametrize("head", ["auto", "zero"])
def test_finetune_pools_what_it_trains_on(head: str) -> None:
    net, batch = dense(), regression_batch(tasks=3, shots=5, queries=4)
    learner = FineTune(net, squared, head=head)
    found: dict[str, Episode] = {}
    learner._backward = lambda phase, whole, step: found.setdefault("batch", whole)  # type: ignore
    learner._update = lambda *args, **kwargs: None  # type: ignore[method-assign]
    learner.optimizers = lambda: torch.optim.SGD(net.parameters(), 0.1)  # type: ignore
    learner.lr_schedulers = lambda: []  # type: ignore
    learner.training_step(batch, 0)
    value, gradient = meta_gradient(learner, found["batch"])
    x, y = (torch.cat([part.flatten(0, 1) for part in parts]) for parts in zip(*batch, strict=True))
    loss = F.mse_loss(net(x), y)
    close([value, *gradient], [loss, *torch.autograd.grad(loss, list(net.parameters()))])


def test_finetune_in_evaluation_is_a_copied_model_stepped_by_sgd() -> None:
    net, episode = dense(), task(regression_batch(tasks=1, shots=5, queries=4), 0)
    learner = FineTune(net, squared, inner_lr=0.1, eval_inner_steps=2)
    model = copy.deepcopy(net)
    optimizer, expected = torch.optim.SGD(model.parameters(), lr=0.1), [model(episode.query.x)]
    for _ in range(2):
        optimizer.zero_grad()
        F.mse_loss(model(episode.support.x), episode.support.y).backward()
        optimizer.step()
        expected.append(model(episode.query.x))
    close(learner.predict_episode(episode)[1:], expected)


def test_finetune_drops_the_training_classifier_and_starts_from_prototypes() -> None:
    net, batch = conv(), class_batch(tasks=1, ways=3, shots=2, queries=2)
    learner = FineTune(net, cross_entropy, training_outputs=40, eval_inner_steps=1, inner_lr=0.1)
    assert learner.query_objective(task(batch, 0))[0] > 3.0  # log 40 is 3.7
    episode = task(batch, 0)
    close(learner.predict_episode(episode)[1:2], ProtoNet(net, cross_entropy).predict_episode(episode)[1:2])
    other = FineTune(conv(), cross_entropy, training_outputs=7)
    other.load_state_dict(learner.state_dict())
    close(other.predict_episode(episode)[1:2], learner.predict_episode(episode)[1:2])


def test_gradient_steps_of_a_part_need_its_rates_only() -> None:
    net = conv()
    steps = GradientSteps(cross_entropy, 1, 0.1, only="head", learn_lr="parameter", weights=weights_of(net))
    assert steps.rates is not None
    assert sorted(steps.rates) == ["head/bias", "head/weight"]
