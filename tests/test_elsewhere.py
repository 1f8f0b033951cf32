"""evaluate.py on other data and with other adaptations: reductions to the bit, other sizes, and what cannot be."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, Here
from pictures import classes, write

from innerloop.episodes import InputError, episode_rng
from innerloop.runs.schemas import ADAPT
from innerloop.tasks import Sinusoid

WAVES = ("data=sinusoid", *TINY, "logger=csv", "algo.inner_lr=0.02", "algo.inner_steps=2", "algo.eval_inner_steps=3")


@pytest.fixture(scope="module", autouse=True)
def no_figures() -> Iterator[None]:
    """Figures are most of the time of runs as small as these."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("train", "evaluate"):
            patch.setattr(f"innerloop.runs.{module}.save_figures", lambda *_: {})
        yield


@pytest.fixture(scope="module")
def runs(no_figures: None, train: Any, glyphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that are hardly trained, on drawn characters and on sine waves."""
    root = tmp_path_factory.mktemp("trained")
    few = ("data=glyphs", f"data.cache={glyphs}", "net.width=4", "data.queries=3", "data.train_queries=2", *TINY)
    for algo in ("protonet", "simple_cnaps", "finetune"):
        train(f"algo={algo}", *few, "logger=csv", f"hydra.run.dir={root / algo}")
    train("algo=cnaps", *few, "algo.freeze=body", "logger=csv", f"hydra.run.dir={root / 'frozen'}")
    for algo in ("maml", "anil"):
        train(f"algo={algo}", *WAVES, f"hydra.run.dir={root / algo}")
    return root


def outcome(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


STEPS = ("adapt_lr=0.02", "adapt_steps=3")


@pytest.mark.parametrize(
    ("run", "settings"),
    [
        ("protonet", ["adapt=inner"]),
        ("maml", ["adapt=inner"]),
        ("protonet", ["adapt=prototype"]),
        ("finetune", ["adapt=finetune"]),
        ("maml", ["adapt=finetune", *STEPS]),
        ("anil", ["adapt=head", *STEPS]),
    ],
    ids=str,
)
def test_what_is_the_run_itself_repeats_it_to_the_bit(
    run: str, settings: list[str], runs: Path, here: Here, tmp_path: Path
) -> None:
    status, said = here("evaluate.py", f"run={runs / run}", *settings, "hydra.run.dir=again")
    assert status == 0, said
    again, first = outcome(tmp_path / "again"), outcome(runs / run)
    assert (again["validation"], again["test"]) == (first["validation"], first["test"])
    assert (tmp_path / "again" / "test_episodes.csv").read_bytes() == (runs / run / "test_episodes.csv").read_bytes()
    assert again.get("adapt", "inner") == settings[0].removeprefix("adapt=")


@pytest.mark.parametrize("run", ["simple_cnaps", pytest.param("frozen", marks=pytest.mark.slow)])
def test_other_adaptations_of_one_run_agree_where_they_must(run: str, runs: Path, here: Here, tmp_path: Path) -> None:
    """No steps are class means or the trained head; a head that classifies by more than class means is another."""
    found: dict[str, Any] = {}
    for adapt in ADAPT:
        lr = ("adapt_lr=0.5", "test.steps=last")
        assert here("evaluate.py", f"run={runs / run}", f"adapt={adapt}", *lr, f"hydra.run.dir={adapt}")[0] == 0
        found[adapt] = outcome(tmp_path / adapt)["test"]
    assert len(found["finetune"]["by_step"]) == 11
    for adapt in ("head", "finetune"):
        assert found[adapt]["by_step"][0]["loss"] == found["prototype"]["loss"]
        assert found[adapt]["loss"] != found["prototype"]["loss"]
    assert found["head"]["loss"] != found["finetune"]["loss"], "a body that was frozen in training is fine-tuned"
    assert found["none"]["loss"] == found["prototype"]["unadapted"]["loss"]
    assert found["inner"]["loss"] != found["prototype"]["loss"]


def test_other_pictures_get_the_size_of_training_and_the_log_says_so(runs: Path, here: Here, tmp_path: Path) -> None:
    pictures = write(tmp_path / "pictures", classes("ABCDEFGHIJKLMNOPQRST", each=4))
    other = [
        "data=folder",
        f"data.root={pictures}",
        "data.queries=2",
        "data.size=40",
        "data.train_queries=2",
    ]
    splits = ["data.train_fraction=0.4", "data.validation_fraction=0.3", "data.split_rule=count", "test.episodes=4"]
    status, said = here("evaluate.py", f"run={runs / 'protonet'}", *other, *splits, "hydra.run.dir=out")
    assert status == 0, said
    assert "folder: pictures of 40x40, colour, are resized to 28x28, grey" in said
    assert outcome(tmp_path / "out")["data"] == "folder"


def test_other_functions(runs: Path, here: Here, tmp_path: Path) -> None:
    """Sine waves of other frequencies are the same tasks apart from the frequency."""
    faster = ["data.frequency=[2,3]", "hydra.run.dir=faster"]
    assert here("evaluate.py", f"run={runs / 'maml'}", *faster)[0] == 0
    assert outcome(tmp_path / "faster")["test"]["mse"] != outcome(runs / "maml")["test"]["mse"]


def test_a_frequency_changes_nothing_else() -> None:
    rngs = [episode_rng(0, "test", i) for i in range(50)]
    (slow, _), (fast, _) = (
        Sinusoid().draw("test", rngs),
        Sinusoid(frequency=[2.0, 3.0]).draw("test", [episode_rng(0, "test", i) for i in range(50)]),
    )
    assert (slow.x == fast.x).all()
    amplitude, phase = np.array([[r.random(), r.random()] for r in (episode_rng(0, "test", i) for i in range(50))]).T
    amplitude, phase = 0.1 + 4.9 * amplitude, np.pi * phase
    x = slow.x[..., 0].double().numpy()
    np.testing.assert_allclose(slow.y[..., 0], amplitude[:, None] * np.sin(x - phase[:, None]), atol=1e-6)
    # The frequency is the last number of an episode's stream.
    w = np.array([r.random(23)[-1] for r in (episode_rng(0, "test", i) for i in range(50))])
    expected = amplitude[:, None] * np.sin((2 + w[:, None]) * x - phase[:, None])
    np.testing.assert_allclose(fast.y[..., 0], expected, atol=1e-6)


@pytest.mark.parametrize("frequency", [[0.0, 1.0], [2.0, 1.0], [1.0], [1.0, float("inf")]])
def test_a_frequency_is_a_range_above_zero(frequency: list[float]) -> None:
    with pytest.raises(InputError, match="frequency must be a range"):
        Sinusoid(frequency=frequency)


@pytest.mark.parametrize(
    ("run", "settings", "message"),
    [
        ("maml", ["adapt=fast"], "adapt=fast: choose one of inner, head, finetune, prototype, none"),
        ("maml", ["adapt=prototype"], "prototypes need class ids"),
        ("maml", ["adapt=head", "adapt_lr=0"], "adapt_lr must be above zero"),
        ("maml", ["adapt=head", "adapt_steps=-1"], "adapt_steps not negative"),
        ("maml", ["data=hyperplane"], "inputs or outputs are of other sizes"),
        ("protonet", ["data=sinusoid"], "needs images"),
        ("protonet", ["data=omniglot", "data.root=nowhere"], "nowhere"),
        ("protonet", ["data=omnigloss"], "omnigloss"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line_before_any_work(
    run: str, settings: list[str], message: str, runs: Path, here: Here, tmp_path: Path
) -> None:
    status, said = here("evaluate.py", f"run={runs / run}", *settings, "hydra.run.dir=out")
    assert status == 1
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
