"""CUDA graphs, with a stand-in for the GPU's recorder: when they are recorded, used, compared and given up."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import cross_entropy, loader, randomise, regression_batch, squared, trainer
from test_compiled import LEARNERS, a_batch, made
from test_meta_gradient import close
from torch import Tensor
from torch import _inductor as inductor
from torch.utils._pytree import tree_leaves

from innerloop.adaptation import Engine, captured, native
from innerloop.adaptation.records import EAGER_CALLS, GRAPHS
from innerloop.episodes import Episode, InputError, tasks_of
from innerloop.learners import MAML, Hybrid, MAMLPlusPlus, MetaLearner
from innerloop.nets import Conv4

pytestmark = pytest.mark.usefixtures("float64")


class Recorder:
    """Stands in for `torch.cuda.graph`: a replay computes the function again and overwrites the recorded result."""

    def __init__(self) -> None:
        self.recorded, self.replays, self.error = 0, 0, ""

    def record(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        if self.error:
            raise RuntimeError(self.error)
        self.recorded += 1
        result = function()

        def replay() -> None:
            self.replays += 1
            with torch.no_grad():
                # A step that is logged reports more, which was not recorded.
                for place, t in zip(tree_leaves(result), tree_leaves(again()), strict=False):
                    place.copy_(t)

        def again() -> Any:
            with torch.enable_grad():
                return function()

        return replay, result


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """The CPU is taken for a GPU, and CUDA graphs for functions."""
    found = Recorder()
    monkeypatch.setattr(captured, "record", found.record)
    right = Engine.resolve
    on_gpu = torch.device("cuda")
    monkeypatch.setattr(
        Engine, "resolve", lambda self, device, *rest, **settings: right(self, on_gpu, *rest, **settings)
    )
    return found


def gradient_of(learner: MetaLearner, batch: Any, **how: bool) -> list[Tensor]:
    return [
        t.clone()
        for phase in learner.phases()
        for t in tree_leaves(
            learner.engine.value_and_grad(phase.objective, list(learner.parameters()), batch, **how)[:2]
        )
    ]


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize(("kind", "settings"), LEARNERS, ids=str)
def test_a_graph_computes_the_objective(
    kind: type[MetaLearner], settings: dict[str, Any], chunk: int | None, recorder: Recorder
) -> None:
    eager, fast = made(kind, engine="vmap", **settings), made(kind, chunk=chunk, **settings)
    for seed in range(6):
        for learner in (eager, fast):
            randomise(learner, seed=seed, scale=0.1)
        close(gradient_of(fast, a_batch(seed)), gradient_of(eager, a_batch(seed)))
    shapes = 1 if chunk is None else 2  # chunks of four and of two tasks
    assert recorder.recorded == shapes * len(eager.phases())
    # One more for each recording, which is compared with the function.
    assert recorder.replays == recorder.recorded * (6 - EAGER_CALLS + 1)


def test_it_is_of_the_compiled_function_if_there_is_one(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Callable] = []
    monkeypatch.setattr(native, "MOST", 0)
    monkeypatch.setattr(inductor, "compile", lambda function, _: compiled.append(function) or function)
    eager, fast = made(MAML, engine="vmap"), made(MAML, compile=True)
    for seed in range(5):
        close(gradient_of(fast, a_batch(seed)), gradient_of(eager, a_batch(seed)))
    assert (len(compiled), recorder.recorded) == (1, 1)


def test_training_is_the_same_and_logged_steps_are_compared(recorder: Recorder) -> None:
    found = []
    for engine in ("vmap", "graph"):
        learner = made(Hybrid, outer_lr=0.01, width=8, engine=engine)
        trainer(max_steps=8, log_every_n_steps=5).fit(learner, loader([a_batch(s) for s in range(8)]))
        found.append([p.detach().clone() for p in learner.parameters()])
    close(*found)
    # Steps 1 and 2 are eager. The graph is compared once with what it was recorded from, and once in the logged step 5.
    assert (recorder.recorded, recorder.replays) == (1, 1 + 6)


class Scaled(MAML):
    """Its objective depends on an attribute that may change, whatever it says."""

    steady = True
    scale = 1.0

    def query_objective(self, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        value, reported = super().query_objective(episode)
        return value * self.scale, reported


def test_what_changes_is_noticed_at_the_next_eager_step(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = made(Scaled)

    def frozen(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        recorder.recorded += 1
        return (lambda: None), function()

    monkeypatch.setattr(captured, "record", frozen)
    for _ in range(4):
        gradient_of(learner, a_batch())
    gradient_of(learner, a_batch(), eager=True)
    learner.scale = 2.0
    with pytest.raises(InputError, match=r"^engine=graph changes the loss or its gradient .*: use engine=vmap$"):
        gradient_of(learner, a_batch(), eager=True)
    assert recorder.recorded == 1


def test_only_learners_that_are_known_to_be_steady_are_recorded(recorder: Recorder) -> None:
    class Own(MAML):
        """A researcher's learner."""

    class Checked(Own):
        """One that says it is steady."""

        steady = True

    annealed = made(MAMLPlusPlus, multi_step_until=5)
    for learner, kind in ((made(Own), "vmap"), (annealed, "vmap"), (made(Checked), "graph"), (made(MAML), "graph")):
        assert learner.engine.resolve(torch.device("cuda")) == kind
    with pytest.raises(InputError, match=r"engine=graph needs an objective that stays the same"):
        made(MAMLPlusPlus, multi_step_until=5, engine="graph")


def test_what_cannot_be_recorded(recorder: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    recorder.error = "operation not permitted when stream is capturing\nand more"
    learner = made(MAML, engine="graph")
    for _ in range(EAGER_CALLS):
        gradient_of(learner, a_batch())
    with pytest.raises(InputError, match=r"^engine=graph cannot record this learner: use engine=vmap \(operation not"):
        gradient_of(learner, a_batch())
    eager, auto = made(MAML, engine="vmap"), made(MAML)
    with caplog.at_level("INFO", "innerloop"):
        for seed in range(4):
            close(gradient_of(auto, a_batch(seed)), gradient_of(eager, a_batch(seed)))
    assert [r.getMessage() for r in caplog.records if "no CUDA graph" in r.getMessage()] == [
        "no CUDA graph can be recorded for this learner, so each of its steps takes longer "
        "(operation not permitted when stream is capturing)"
    ]


def test_graphs_are_for_a_few_shapes_and_follow_parameters_that_move(recorder: Recorder) -> None:
    eager, learner = made(MAML, engine="vmap"), made(MAML)
    for tasks in range(1, GRAPHS + 3):
        for _ in range(4):
            batch = regression_batch(tasks=tasks, shots=3, queries=2)
            close(gradient_of(learner, batch), gradient_of(eager, batch))
    assert recorder.recorded == GRAPHS
    learner = made(MAML)
    for round_ in range(2):
        for _ in range(4):
            close(gradient_of(learner, a_batch()), gradient_of(eager, a_batch()))
        assert recorder.recorded == GRAPHS + round_ + 1
        for p in learner.parameters():
            p.data = p.data.clone()


def test_a_ragged_meta_batch_and_a_cpu_have_none() -> None:
    learner = made(MAML, engine="graph")
    with pytest.raises(InputError, match=r"^engine=graph is for GPUs"):
        gradient_of(learner, a_batch())
    with pytest.raises(InputError, match=r"^engine=graph needs tasks of equal shape"):
        gradient_of(learner, tasks_of(a_batch()))
    conv = MAML(Conv4((1, 17, 17), 3, width=4), cross_entropy)
    assert [conv.engine.resolve(torch.device(d)) for d in ("cpu", "cuda")] == ["threads", "graph"]
    assert conv.engine.resolve(torch.device("cuda"), ragged=True) == "loop"
    assert MAML(conv.net, squared).engine.steady
