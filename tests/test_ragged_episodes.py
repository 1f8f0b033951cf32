"""Tasks whose numbers of classes and shots vary: how they are drawn, run as a list, and which learners fit them."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import class_batch, loader, randomise, regression_batch, squared, task, trainer
from hydra import compose, initialize_config_dir
from test_few_shot_images import SPLIT_IDS, numbered, read, same
from torch import Tensor

from innerloop.adaptation import Adaptation, Chain, GradientSteps, Identity, PrototypeHead, RidgeHead
from innerloop.datasets.images import LabelledImages
from innerloop.episodes import Episode, InputError, Samples, Split, episode_rng, stack, tasks_of, weights_of
from innerloop.learners import (
    CAVIA,
    IMAML,
    LEO,
    MAML,
    R2D2,
    CNAPs,
    FineTune,
    Hybrid,
    HyperMAML,
    HyperNet,
    MAMLPlusPlus,
    MetaLearner,
    ProtoMAML,
    ProtoNet,
    Reptile,
    SimpleCNAPs,
)
from innerloop.nets import MLP, Conv4
from innerloop.runs import schemas
from innerloop.runs.build import build
from innerloop.tasks.base import Classification
from innerloop.tasks.images import FewShotImages

schemas.register()
ROOT = Path(__file__).resolve().parents[1]


def draw(tasks: FewShotImages, count: int, split: Split = "test") -> list[Episode]:
    return tasks_of(tasks.draw(split, [episode_rng(0, split, i) for i in range(count)]))


def varied(**settings: Any) -> FewShotImages:
    return FewShotImages(numbered(), **{"ways": 5, "shots": 4, "queries": 3, "rotations": True} | settings)


def shots_of(episode: Episode) -> list[int]:
    return torch.bincount(episode.support.y).tolist()


def uniform(values: list[int], low: int, high: int) -> bool:
    """Whether each of low..high occurs as often as the others, to five standard deviations, and nothing else does."""
    counts = np.bincount(values, minlength=high + 1)
    expected = len(values) / (high - low + 1)
    return (
        counts[:low].sum() == 0 and len(counts) == high + 1 and abs(counts[low:] - expected).max() < 5 * expected**0.5
    )


# Episodes.


def test_ways_and_shots_cover_their_ranges() -> None:
    episodes = draw(varied(min_ways=2, min_shots=1), 1000)
    shots = [shots_of(e) for e in episodes]
    assert uniform([len(s) for s in shots], 2, 5)
    assert all(len({*s}) == 1 for s in shots), "balanced"
    assert uniform([s[0] for s in shots], 1, 4)
    # Neither tells anything of the other.
    assert abs(np.corrcoef([len(s) for s in shots], [s[0] for s in shots])[0, 1]) < 0.15


def test_unbalanced_episodes_draw_shots_for_each_class() -> None:
    shots = [shots_of(e) for e in draw(varied(min_shots=2, unbalanced=True), 600)]
    assert {len(s) for s in shots} == {5}
    for c in range(5):
        assert uniform([s[c] for s in shots], 2, 4)
    assert abs(np.corrcoef(np.array(shots).T)[np.triu_indices(5, 1)]).max() < 0.2


@pytest.mark.parametrize("split", ["train", "test"])
def test_what_a_varied_episode_is_made_of(split: Split) -> None:
    settings = {"train_queries": 2}
    episodes = draw(varied(min_ways=2, min_shots=1, unbalanced=True, **settings), 60, split)
    whole = draw(varied(**settings), 60, split)
    for (support, query), full in zip(episodes, whole, strict=True):
        ways = int(query.y.max()) + 1
        assert torch.bincount(query.y).tolist() == [2 if split == "train" else 3] * ways, "queries are balanced"
        assert {*support.y.tolist()} == {*range(ways)}
        s, q = read(support.x), read(query.x)
        assert len({*map(tuple, s), *map(tuple, q)}) == len(s) + len(q), "an image occurs twice in a task"
        assert {*s[:, 0]} <= {*SPLIT_IDS[split]}
        # The episode of the same index at full size, thinned.
        for c in range(ways):
            kept = support.x[support.y == c]
            assert torch.equal(kept, full.support.x[full.support.y == c][: len(kept)])
            assert torch.equal(query.x[query.y == c], full.query.x[full.query.y == c])


def test_bounds_that_leave_no_choice_are_fixed_sizes() -> None:
    rngs = [[episode_rng(0, "test", i) for i in range(4)] for _ in range(2)]
    fixed, bounded = varied(), varied(min_ways=5, min_shots=4, unbalanced=True)
    a, b = fixed.draw("test", rngs[0]), bounded.draw("test", rngs[1])
    assert isinstance(a, Episode)
    assert isinstance(b, Episode)
    assert same(a, b)
    assert not fixed.varied_ways
    assert not bounded.varied_ways


def test_the_form_of_a_meta_batch_does_not_depend_on_the_episodes_in_it() -> None:
    tasks = varied(min_shots=3)
    assert all(isinstance(tasks.draw("test", [episode_rng(0, "test", i)]), list) for i in range(8))
    assert not tasks.varied_ways
    assert varied(min_ways=4).varied_ways


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_ways": 1}, "min_ways must be from 2 to ways=5, got 1"),
        ({"min_ways": 6}, "min_ways must be from 2 to ways=5, got 6"),
        ({"min_shots": 0}, "min_shots must be from 1 to shots=4, got 0"),
        ({"min_shots": 5}, "min_shots must be from 1 to shots=4, got 5"),
        ({"unbalanced": True}, "give min_shots too"),
    ],
)
def test_what_cannot_be(settings: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        varied(**settings)
    assert message in str(error.value)


# The engine.


def gradients(learner: MetaLearner, batch: Episode | list[Episode]) -> list[Tensor]:
    """Value, meta-gradient and reported outputs."""

    def objective(episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        loss, _ = learner.query_objective(episode)
        return loss, {"twice": 2 * loss}

    value, gradient, outputs = learner.engine.value_and_grad(objective, list(learner.parameters()), batch)
    return [value, *gradient, outputs["twice"]]


@pytest.mark.usefixtures("float64")
def test_a_list_is_run_task_by_task() -> None:
    torch.manual_seed(0)
    learner = MAML(MLP(3, [6], 1, activation="tanh"), squared, inner_lr=0.1, inner_steps=3)
    episodes = [task(regression_batch(1, shots, queries, seed=shots), 0) for shots, queries in ((2, 5), (7, 1), (4, 4))]
    assert learner.engine.resolve(torch.device("cpu")) == "vmap"
    *found, twice = gradients(learner, episodes)
    alone = [gradients(learner, stack([episode])) for episode in episodes]
    for value, parts in zip(found, zip(*(a[:-1] for a in alone), strict=True), strict=True):
        torch.testing.assert_close(value, torch.stack(parts).mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(twice, torch.cat([a[-1] for a in alone]), rtol=1e-12, atol=1e-12)
    curves = learner.engine.map(learner.evaluate_episode, episodes)["loss"]
    for row, episode in zip(curves, episodes, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(row, learner.evaluate_episode(episode)["loss"], rtol=1e-12, atol=1e-12)


def test_vmap_refuses_a_list() -> None:
    learner, batch = MAML(MLP(3, [6], 1), squared, engine="vmap"), regression_batch(3, 4, 4)
    gradients(learner, batch)
    with pytest.raises(InputError, match=r"engine=vmap .* differ in their number of samples: use engine=auto"):
        gradients(learner, tasks_of(batch))


# Learners.


class FiveWays(Classification):
    """The loss and the metrics of five-way classification."""

    output_size, input_shape = 5, (1, 17, 17)

    def draw(self, *_: Any) -> Episode:
        return pytest.fail("the episodes of these tests are made by hand")


INNER: dict[str, Any] = {"inner_lr": 0.2, "inner_steps": 2}
SMALL: dict[str, Any] = {"width": 8}
LEARNERS: dict[str, tuple[type[MetaLearner], dict[str, Any]]] = {
    "maml": (MAML, INNER),
    "fomaml": (MAML, INNER | {"first_order": True, "transductive": False}),
    "maml_pp": (MAMLPlusPlus, INNER | {"per_step_norms": True, "running_statistics": True, "multi_step_until": 5}),
    "reptile": (Reptile, INNER),
    "imaml": (IMAML, INNER),
    "cavia": (CAVIA, INNER),
    "leo": (LEO, INNER | SMALL),
    "proto_maml": (ProtoMAML, INNER | {"learn_lr": "parameter"}),
    "protonet": (ProtoNet, {}),
    "r2d2": (R2D2, {}),
    "hypernet": (HyperNet, SMALL | {"encoder": "attention"}),
    "hyperfan": (HyperNet, SMALL | {"init": "hyperfan_in"}),
    "head": (HyperNet, SMALL | {"writes": "head"}),
    "film": (HyperNet, SMALL | {"writes": "film"}),
    "all": (HyperNet, SMALL | {"writes": "all"}),
    "cnaps": (CNAPs, SMALL | {"update": "alternating"}),
    "simple_cnaps": (SimpleCNAPs, SMALL | {"update": "alternating"}),
    "hypermaml": (HyperMAML, SMALL),
    "hybrid": (Hybrid, INNER | SMALL),
    "finetune": (FineTune, {"inner_lr": 0.1, "eval_inner_steps": 2}),
    "finetune prototypes": (FineTune, {"inner_lr": 0.1, "eval_inner_steps": 2, "head": "prototypes"}),
}
FREE = {
    "leo",
    "proto_maml",
    "protonet",
    "r2d2",
    "hypernet",
    "hyperfan",
    "head",
    "cnaps",
    "simple_cnaps",
    "hypermaml",
    "hybrid",
    "finetune prototypes",
}
every_learner = pytest.mark.parametrize("name", list(LEARNERS))
every_free_learner = pytest.mark.parametrize("name", sorted(FREE))


def made(name: str, ways: int = 5, **settings: Any) -> MetaLearner:
    """Like all that ships, except for its small and smooth net; its adaptation away from where it starts."""
    torch.manual_seed(0)
    net = Conv4((1, 17, 17), ways, width=4, activation="tanh")
    kind, given = LEARNERS[name]
    family = FiveWays()
    torch.manual_seed(1)
    learner = kind(net, family.loss, family.metrics, **given | {"engine": "loop"} | settings)  # type: ignore[arg-type]
    if not name.startswith("maml_pp"):
        randomise(learner.adaptation, scale=0.1)
    return learner


@every_learner
def test_who_fits_fewer_ways(name: str) -> None:
    assert made(name).adaptation.frees_ways == (name in FREE)


def test_a_chain_fits_fewer_ways_if_any_part_does() -> None:
    steps: Callable[[], Adaptation] = lambda: GradientSteps(squared, 1, 0.1)  # noqa: E731
    assert not Chain(Identity(), steps()).frees_ways
    assert Chain(PrototypeHead(), steps()).frees_ways
    assert Chain(steps(), Chain(Identity(), RidgeHead())).frees_ways


def fitted(learner: MetaLearner, batches: list) -> tuple[list[Tensor], Tensor]:
    """Parameters and running statistics after an outer step for each meta-batch, and the values of a test on them."""
    t = trainer(max_steps=len(batches), limit_val_batches=1)
    t.fit(learner, loader(batches), loader(batches))
    warnings.filterwarnings("ignore", message="It is recommended to use .*sync_dist=True")
    t.test(learner, loader(batches), verbose=False)
    return [v.detach().clone() for v in learner.state_dict().values()], learner.curve.compute()


@pytest.mark.usefixtures("float64")
@every_learner
def test_a_list_of_equal_shapes_is_the_stacked_meta_batch(name: str) -> None:
    batches = [class_batch(tasks=3, ways=5, shots=2, queries=2, seed=seed) for seed in (0, 1)]
    first, second = (fitted(made(name), given) for given in (batches, [tasks_of(b) for b in batches]))
    start = list(made(name).state_dict().values())
    assert max((a - b).abs().max() for a, b in zip(first[0], start, strict=True) if a.numel()) > 1e-4
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    assert torch.equal(first[1], second[1])
    # ... and so is its meta-gradient, before any optimizer.
    for a, b in zip(*(gradients(made(name), b) for b in (batches[0], tasks_of(batches[0]))), strict=True):
        assert torch.equal(a, b)


def thinned(batch: Episode, seed: int) -> list[Episode]:
    """Support sets that keep one to three samples of each class."""
    rng = np.random.default_rng(seed)
    episodes = []
    for support, query in tasks_of(batch):
        kept = torch.cat([(support.y == c).nonzero()[: rng.integers(1, 4), 0] for c in range(5)])
        episodes.append(Episode(Samples(support.x[kept], support.y[kept]), query))
    return episodes


@pytest.mark.usefixtures("float64")
@every_learner
def test_every_learner_trains_on_varied_shots(name: str) -> None:
    batches = [thinned(class_batch(tasks=3, ways=5, shots=3, queries=2, seed=seed), seed) for seed in (0, 1)]
    parameters, values = fitted(made(name, engine="auto"), batches)
    assert all(p.isfinite().all() for p in parameters)
    assert values.isfinite().all()
    assert len(values) == 6


def outputs(values: Tensor, which: Tensor) -> Tensor:
    """The rows of these of five outputs, or what is read of predictions: the last five columns, beside all others."""
    if values.shape[0] == 5:
        return values[which]
    others = values.shape[1] - 5
    return values[:, torch.cat([torch.arange(others), others + which])]


@pytest.mark.usefixtures("float64")
@every_free_learner
def test_outputs_to_spare_change_nothing(name: str) -> None:
    """A five-way net on a task of classes 0, 2 and 4 is the three-way net of these outputs: loss, curve, gradient."""
    present = torch.tensor([0, 2, 4])
    three, five = made(name, ways=3), made(name, ways=5)
    state = five.state_dict() | {k: v for k, v in three.state_dict().items() if v.shape == five.state_dict()[k].shape}
    five.load_state_dict(state)
    of_three = three.state_dict()
    cut = {k: outputs(v, present) if v.shape != of_three[k].shape else v for k, v in five.state_dict().items()}
    three.load_state_dict(cut)
    narrow = class_batch(tasks=2, ways=3, shots=2, queries=2)
    wide = Episode(*(Samples(part.x, present[part.y]) for part in narrow))

    def outer(learner: MetaLearner, batch: Episode) -> dict[str, Tensor]:
        names, parameters = zip(*learner.named_parameters(), strict=True)
        objective: Callable = learner.query_objective
        if isinstance(learner, FineTune):  # whose training adapts nothing: the gradient of its evaluation

            def objective(episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
                path = learner.adaptation.trajectory(learner.net, weights_of(learner.net), episode.support)
                return learner.query_loss(path[-1], episode), {}

        value, gradient, _ = learner.engine.value_and_grad(objective, list(parameters), batch)
        return {"value": value} | dict(zip(names, gradient, strict=True))

    for engine in ("loop", "vmap"):
        for learner in (three, five):
            learner.engine.kind = engine
        expected, found = outer(three, narrow), outer(five, wide)
        assert max(g.abs().max() for g in expected.values() if g.numel()) > 1e-3
        for key, value in found.items():
            if value.shape != expected[key].shape:
                spare = [i for i in range(5) if i not in present]
                unused = outputs(value, torch.tensor(spare))
                assert not (unused if len(value) == 5 else unused[:, -len(spare) :]).any(), key
                value = outputs(value, present)
            torch.testing.assert_close(value, expected[key], rtol=1e-9, atol=1e-10)
        a, b = (x.engine.map(x.evaluate_episode, y) for x, y in ((three, narrow), (five, wide)))
        for key, value in b.items():
            torch.testing.assert_close(value[:, 1:], a[key][:, 1:], rtol=1e-9, atol=1e-10)
    logits = five.predict_episode(task(wide, 0))
    for after in logits[1:]:
        assert after.isfinite().all()
        assert after.softmax(-1)[:, [1, 3]].eq(0).all()


@every_free_learner
def test_learners_that_fit_fewer_ways_train_on_them(name: str) -> None:
    tasks = FewShotImages(numbered(), ways=5, shots=3, queries=2, min_ways=2, min_shots=1, unbalanced=True)
    torch.manual_seed(0)
    net = Conv4(tasks.input_shape, 5, width=4)
    kind, given = LEARNERS[name]
    outputs = None
    if kind is FineTune:
        tasks, outputs = tasks.pooled()
        given = given | {"training_outputs": outputs}
    learner = kind(net, tasks.loss, tasks.metrics, **given)  # type: ignore[arg-type]
    batches = [tasks.draw("train", [episode_rng(0, "train", 4 * t + i) for i in range(4)]) for t in range(3)]
    t = trainer(max_steps=3)
    t.fit(learner, loader(batches))
    t.test(learner, loader([tasks.draw("test", [episode_rng(0, "test", i) for i in range(5)])]), verbose=False)
    values = learner.curve.compute()
    assert len(values) == 5
    assert values.isfinite().all()
    assert all(p.isfinite().all() for p in learner.parameters())


# Configurations.


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Builds a run on the numbered images, in place of those that take their time to be drawn."""

    def load(cache: str | None = None) -> LabelledImages:
        return numbered()

    load.__module__ = "innerloop.datasets.glyphs"

    monkeypatch.setattr("innerloop.datasets.glyphs.load", load)

    def make(*overrides: str) -> Any:
        small = ["data.queries=2", "data.train_queries=2", "data.shots=3", "net.width=4", "trainer.threads=1"]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return build(compose("train", ["data=glyphs", *small, *overrides]))

    return make


ALGOS = sorted(path.stem for path in (ROOT / "conf" / "algo").glob("*.yaml"))
REFUSED = {"anil", "boil", "cavia", "fomaml", "imaml", "maml", "maml_pp", "meta_sgd", "reptile"}


@pytest.mark.parametrize("algo", ALGOS)
def test_a_fixed_head_refuses_varied_ways_before_anything_is_written(algo: str, built: Callable[..., Any]) -> None:
    if algo in REFUSED:
        with pytest.raises(InputError, match=rf"algo={algo} has a fixed head of 5 ways: data.min_ways and"):
            built(f"algo={algo}", "data.min_ways=2")
    else:
        parts = built(f"algo={algo}", "data.min_ways=2")
        assert parts.learner.adaptation.frees_ways
        assert {len(shots_of(parts.data.episode("test", i))) for i in range(20)} == {2, 3, 4, 5}
    parts = built(f"algo={algo}", "data.min_shots=1", "data.unbalanced=true")
    assert isinstance(parts.data.meta_batch("train", range(2)), list)


def test_engine_vmap_refuses_varied_shots_before_anything_is_written(built: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="use engine=auto or engine=loop"):
        built("algo=maml", "data.min_shots=1", "algo.engine=vmap")


def test_a_typo_is_named(built: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"unknown key data\.min_way\. Did you mean data\.min_ways\?"):
        built("+data.min_way=2")
