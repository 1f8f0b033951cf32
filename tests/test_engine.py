"""Tasks in threads: the loop's numbers, whatever runs beside; and nets whose weights are given, not put in."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from conftest import class_batch, cross_entropy, randomise, regression_batch, squared
from test_meta_gradient import close
from torch import Tensor, nn
from torch.func import functional_call

from innerloop.adaptation import Engine
from innerloop.episodes import Episode, InputError, Samples, apply, tasks_of, weights_of, with_weights
from innerloop.learners import MAML, MetaLearner
from innerloop.nets import MLP, Conv4, ResNet12


def conv_learner(engine: str, chunk: int | None = None) -> MetaLearner:
    torch.manual_seed(0)
    return MAML(Conv4((1, 17, 17), 3, width=4), cross_entropy, inner_lr=0.3, inner_steps=2, engine=engine, chunk=chunk)


def all_of(learner: MetaLearner, batch: Episode | list[Episode]) -> list[Tensor]:
    """Value, meta-gradient and the evaluation's outputs."""
    value, gradient, _ = learner.engine.value_and_grad(learner.query_objective, list(learner.parameters()), batch)
    return [value, *gradient, learner.engine.map(learner.evaluate_episode, batch)["loss"]]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 3, 9])
def test_threads_are_the_loop(threads: int, ragged: bool) -> None:
    batch: Episode | list[Episode] = class_batch(tasks=5, ways=3, shots=2, queries=2)
    batch = tasks_of(batch) if ragged else batch
    found, again = (all_of(conv_learner("threads", threads), batch) for _ in range(2))
    for a, b, looped in zip(found, again, all_of(conv_learner("loop"), batch), strict=True):
        assert torch.equal(a, b), "not the same twice"
        torch.testing.assert_close(a, looped, rtol=1e-10, atol=1e-12)


def test_convolutions_take_the_threads_that_torch_has() -> None:
    seen, before = set(), torch.get_num_threads()

    def function(episode: Episode) -> dict[str, Tensor]:
        seen.add(threading.get_ident())
        meeting.wait(timeout=60)  # none ends before all have begun
        return {"inside": torch.tensor(float(torch.get_num_threads()))}

    engine, batch = conv_learner("auto").engine, class_batch(tasks=3, ways=3, shots=1, queries=1)
    assert engine.resolve(torch.device("cpu")) == "threads"
    try:
        torch.set_num_threads(3)
        meeting = threading.Barrier(3)
        inside = engine.map(function, batch)["inside"]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert len(seen) == 3
    assert inside.tolist() == [1, 1, 1]


def test_threads_are_in_the_modes_of_the_thread_that_asks() -> None:
    weight = torch.ones(3, 3, requires_grad=True)

    def objective(episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        product = episode.query.x @ weight
        half = torch.tensor(float(product.dtype == torch.bfloat16))
        return product.float().sum(), {"half": half, "gradients": torch.tensor(float(torch.is_grad_enabled()))}

    engine, batch = Engine("threads", [], 2), regression_batch(4, 2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, _, trained = engine.value_and_grad(objective, [weight], batch)
        evaluated = engine.map(lambda e: objective(e)[1], batch)
    assert trained["half"].tolist() == evaluated["half"].tolist() == [1] * 4
    assert (trained["gradients"].tolist(), evaluated["gradients"].tolist()) == ([1] * 4, [0] * 4)
    assert engine.map(lambda e: objective(e)[1], batch)["half"].tolist() == [0] * 4


@pytest.mark.parametrize("functional", [False, True])
def test_nets_that_draw_random_numbers_repeat_in_threads(functional: bool) -> None:
    class Functional(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x, training=self.training)

    batch = class_batch(tasks=6, ways=3, shots=2, queries=2)

    def found(engine: str, chunk: int | None, training: bool) -> list[Tensor]:
        learner = conv_learner(engine, chunk)
        learner.net.body.append(Functional() if functional else nn.Dropout())
        learner.train(training)
        torch.manual_seed(1)
        first, second = all_of(learner, batch), all_of(learner, batch)
        assert not training or not torch.equal(first[0], second[0]), "each meta-batch draws anew"
        return [*first, *second]

    for a, b in zip(found("threads", 3, True), found("loop", None, True), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(found("threads", 3, False), found("loop", None, False), strict=True):
        torch.testing.assert_close(a, b)


def test_nets_that_draw_nothing_stay_in_threads() -> None:
    seen = set()

    def function(episode: Episode) -> dict[str, Tensor]:
        seen.add(threading.get_ident())
        meeting.wait(timeout=60)
        return {"value": torch.zeros(())}

    engine, batch = conv_learner("threads", 2).engine, class_batch(tasks=2, ways=3, shots=1, queries=1)
    for _ in range(2):
        meeting = threading.Barrier(2)
        engine.map(function, batch)
    assert threading.get_ident() not in seen


# Nets that vmap cannot run.


class Recurrent(nn.Module):
    """Reads the entries of x one after the other, by an LSTM or a GRU."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.body, self.head = kind(1, 6, batch_first=True), nn.Linear(6, 1)  # type: ignore[call-arg]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x[..., None])[0][:, -1])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_nets_run_in_a_loop(kind: type[nn.Module]) -> None:
    found, batch = [], regression_batch(3, 4, 4)
    for engine in ("auto", "loop"):
        torch.manual_seed(0)
        found.append(all_of(MAML(Recurrent(kind), squared, inner_lr=0.1, inner_steps=2, engine=engine), batch))
    close(found[0], found[1])
    with pytest.raises(InputError, match="engine=vmap cannot run this net: use engine=loop"):
        all_of(MAML(Recurrent(kind), squared, inner_lr=0.1, engine="vmap"), batch)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("can't allocate memory")])
def test_a_full_memory_is_no_reason_for_a_loop(error: RuntimeError) -> None:
    def function(episode: Episode) -> dict[str, Tensor]:
        if torch._C._functorch.is_functorch_wrapped_tensor(episode.query.x):
            raise error
        return {}

    engine = Engine("auto", [])
    with pytest.raises(RuntimeError, match=str(error)):
        engine.map(function, regression_batch(3, 4, 4))
    assert engine.resolve(torch.device("cpu")) == "vmap"


def test_to_try_vmap_draws_nothing() -> None:
    batch = regression_batch(3, 4, 4)
    net = MLP(3, [5], 1)
    net.body.append(nn.Dropout())
    values = []
    for engine in ("auto", "loop"):
        learner = MAML(net, squared, engine=engine)
        torch.manual_seed(1)
        values.append(learner.engine.map(learner.evaluate_episode, batch)["loss"])
    torch.testing.assert_close(*values)


def test_what_fails_in_a_thread_fails() -> None:
    def function(episode: Episode) -> dict[str, Tensor]:
        raise InputError("no")

    before = torch.get_num_threads()
    with pytest.raises(InputError, match="no"):
        Engine("threads", [], 2).map(function, regression_batch(4, 2, 2))
    assert torch.get_num_threads() == before


def test_threads_are_for_the_cpu() -> None:
    with pytest.raises(InputError, match="engine=threads is for the CPU"):
        Engine("threads", []).resolve(torch.device("cuda"))


# What a GPU's memory holds. Here, a loss or a gradient that says it is full where too many tasks come at once.


def at_once(t: Tensor) -> int:
    """How many tasks' values this tensor holds under vmap."""
    layers = torch._C._functorch
    while layers.is_functorch_wrapped_tensor(t):
        batched, t = layers.is_batchedtensor(t), layers.get_unwrapped(t)
    return t.shape[0] if batched else 1


def small_gpu(room: int, seen: list[int]) -> MetaLearner:
    torch.manual_seed(0)

    def loss(net: nn.Module, weights: dict[str, Tensor], samples: Samples) -> Tensor:
        if samples.x.shape[0] == 4 and torch._C._functorch.is_functorch_wrapped_tensor(samples.x):
            seen.append(at_once(samples.x))
            if seen[-1] > room:
                raise torch.OutOfMemoryError
        return squared(net, weights, samples)

    return MAML(MLP(3, [5], 1), loss, inner_steps=1)


@pytest.mark.usefixtures("float64")
def test_tasks_that_exceed_the_memory_are_run_in_halves(caplog: pytest.LogCaptureFixture) -> None:
    batch, seen = regression_batch(9, 4, 2), list[int]()
    caplog.set_level("WARNING", "innerloop")
    learner = small_gpu(3, seen)
    found = all_of(learner, batch)
    assert seen[:6] == [1, 9, 5, 3, 3, 3], "one task, to see whether vmap can run it, and then as many as fit"
    assert [message.split(":")[0] for message in caplog.messages][:2] == [
        "9 tasks at once exceed the memory of the GPU",
        "5 tasks at once exceed the memory of the GPU",
    ]
    close(found, all_of(small_gpu(9, []), batch))
    seen.clear()
    all_of(learner, batch)
    assert max(seen) == 3, "what fitted is not remembered"


@pytest.mark.usefixtures("float64")
def test_a_single_task_is_the_least() -> None:
    batch, seen = regression_batch(4, 4, 2), list[int]()
    close(all_of(small_gpu(1, seen), batch), all_of(small_gpu(4, []), batch))
    assert seen[:5] == [1, 4, 2, 1, 1]


def test_a_gradient_that_exceeds_the_memory_halves_too(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, seen, raised = regression_batch(4, 4, 2), list[int](), list[bool]()
    whole = torch.autograd.grad

    def grad(*arguments: Any, **options: Any) -> tuple[Tensor, ...]:
        if options == {"allow_unused": True} and not raised:  # the meta-gradient, the first time
            raised.append(True)
            raise torch.OutOfMemoryError
        return whole(*arguments, **options)

    wanted = all_of(small_gpu(4, []), batch)
    monkeypatch.setattr(torch.autograd, "grad", grad)
    close(all_of(small_gpu(4, seen), batch), wanted, tolerance=1e-5)
    assert seen[:4] == [1, 4, 2, 2]


def test_a_gradient_of_one_task_that_does_not_fit_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, whole = list[int](), torch.autograd.grad

    def grad(*arguments: Any, **options: Any) -> tuple[Tensor, ...]:
        if options == {"allow_unused": True}:  # the meta-gradient
            assert seen.count(1) < 5, "it goes on for ever"
            raise torch.OutOfMemoryError
        return whole(*arguments, **options)

    learner = small_gpu(4, seen)
    monkeypatch.setattr(torch.autograd, "grad", grad)
    with pytest.raises(torch.OutOfMemoryError):
        all_of(learner, regression_batch(4, 4, 2))
    assert seen[:4] == [1, 4, 2, 1]


@pytest.mark.parametrize(("chunk", "room"), [(3, 2), (None, 0)])
def test_a_chunk_that_was_asked_for_and_a_single_task_are_not_halved(chunk: int | None, room: int) -> None:
    learner = small_gpu(room, [])
    learner.engine.chunk = chunk
    with pytest.raises(torch.OutOfMemoryError):
        all_of(learner, regression_batch(3, 4, 2))


@pytest.mark.parametrize("chunk", [0, -1])
def test_a_chunk_has_a_task(chunk: int) -> None:
    with pytest.raises(InputError, match=f"chunk must be above zero, got {chunk}"):
        conv_learner("vmap", chunk)


# Nets that vmap cannot run.


class Branching(nn.Module):
    """A net that asks for a value, which vmap does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.head(x)
        return h if h.sum() > 0 else h.tanh()


def branching(**settings: Any) -> MetaLearner:
    torch.manual_seed(0)
    return MAML(Branching(), squared, inner_lr=0.1, inner_steps=2, **settings)


def test_tasks_run_one_after_the_other_where_vmap_cannot(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "innerloop")
    learner, batch = branching(), regression_batch(3, 4, 2)
    expected = all_of(branching(engine="loop"), batch)
    for _ in range(2):
        assert all(map(torch.equal, all_of(learner, batch), expected))
    assert learner.engine.resolve(torch.device("cpu")) == "loop"
    (message,) = caplog.messages
    assert message.startswith("this net cannot run under torch.vmap, so tasks run one after the other (vmap: ")
    assert "data-dependent control flow" in message
    assert "\n" not in message


@pytest.mark.parametrize("settings", [{"engine": "vmap"}, {"compile": True}], ids=str)
def test_where_vmap_was_asked_for_such_a_net_is_refused(settings: dict[str, Any]) -> None:
    why = r"^engine=vmap cannot run this net: use engine=loop \(vmap: .*data-dependent control flow[^.]*\)$"
    with pytest.raises(InputError, match=why):
        all_of(branching(**settings), regression_batch(3, 4, 2))


# Nets with given weights.


class Tied(nn.Module):
    """The same layer twice, and a parameter of it a third time."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.layers = nn.Sequential(self.inner, nn.Tanh(), self.inner)
        self.again = self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) @ self.again


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (Conv4((1, 17, 17), 3, width=4), (6, 1, 17, 17)),
        (ResNet12((1, 17, 17), 3, widths=[2, 3, 4, 5]), (6, 1, 17, 17)),
        (MLP(3, [5], 2), (6, 3)),
        (Tied(), (6, 3)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_given_weights_are_those_of_a_functional_call(net: nn.Module, shape: tuple[int, ...]) -> None:
    randomise(net)
    weights = {name: (w.detach() + 0.1 * torch.randn_like(w)).requires_grad_() for name, w in weights_of(net).items()}
    x = torch.randn(shape)
    expected, found = functional_call(net, weights, (x,)), apply(net, weights, x)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, net(x))
    slopes = [torch.autograd.grad(y.square().sum(), list(weights.values())) for y in (found, expected)]
    torch.testing.assert_close(*slopes)


def test_a_part_of_the_weights_may_be_given() -> None:
    net, x = MLP(3, [5], 2), torch.randn(4, 3)
    bias = torch.tensor([1.0, -1.0])
    torch.testing.assert_close(apply(net, {"head.bias": bias}, x), net(x) - net.head.bias + bias)
    twin = with_weights(net, {"head.bias": bias})
    assert twin.head.weight is net.head.weight
    assert twin.head.bias is bias
    assert isinstance(net.head.bias, nn.Parameter)


def test_threads_may_call_one_net_with_weights_of_their_own() -> None:
    net, x = MLP(3, [16, 16], 1), torch.randn(2, 3)
    given = [{name: torch.full_like(w, 0.1 * i) for name, w in weights_of(net).items()} for i in range(8)]
    alone = [apply(net, weights, x) for weights in given]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: apply(net, given[i % 8], x), range(2000)))
    assert all(torch.equal(found, alone[i % 8]) for i, found in enumerate(together))
    assert not torch.equal(alone[1], alone[2])
