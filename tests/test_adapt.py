"""Adapting to a person's own pictures: held-out numbers, probabilities, the unknown score, runs, files."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import Patches, classes, small, write
from scipy import stats
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

import innerloop
from innerloop import practice
from innerloop.episodes import InputError, Samples
from innerloop.practice import describe, heads, validation
from innerloop.practice.adapted import Adapted
from innerloop.practice.learned import NetModel
from innerloop.practice.model_file import model_bytes
from innerloop.practice.validation import HeldOut, Share

__all__ = ["small"]


def clouds(n: int = 30, kinds: int = 3, size: int = 7, spread: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Points around a mean of each class: x (n, size) float64, y (n,)."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % kinds
    means = torch.randn(kinds, size, dtype=torch.float64, generator=torch.Generator().manual_seed(99)) * 2
    return means[y] + spread * torch.randn(n, size, dtype=torch.float64, generator=rng), y


def test_held_out_scores_are_those_of_models_fitted_without_the_picture() -> None:
    x, y = clouds(13)
    found = validation.hold_out(heads.closed_form, x, y, 3)
    assert found is not None
    assert found.folds == 13
    assert sorted(found.members.tolist()) == list(range(13))
    for place, i in enumerate(found.members.tolist()):
        kept = torch.arange(13) != i
        for name, model in heads.closed_form(x[kept], y[kept], 3).items():
            scores = model(x[i : i + 1])
            torch.testing.assert_close(found.scores[name].logits[place], scores.logits[0], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(found.scores[name].distance[place], scores.distance[0], rtol=1e-12, atol=1e-12)


def test_vectors_in_their_span_have_the_same_scores() -> None:
    x, y = clouds(11, size=40)
    fit = partial(heads.closed_form, dimensions=40)
    whole, quick = heads.closed_form(x[4:], y[4:], 3), fit(heads.in_their_span(x)[4:], y[4:], 3)
    assert heads.in_their_span(x).shape == (11, 11)
    assert whole.keys() == quick.keys()
    assert len(whole) == 2 + len(heads.RIDGES)
    for name, model in whole.items():
        expected, found = model(x[:4]), quick[name](heads.in_their_span(x)[:4])
        torch.testing.assert_close(found.logits, expected.logits, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.distance, expected.distance, rtol=1e-9, atol=1e-9)
    means = [fitted(x, y, 3)[heads.MEANS](x).logits for fitted in (heads.only_means, heads.closed_form)]
    torch.testing.assert_close(*means)


def test_many_pictures_are_left_out_in_parts_that_hold_no_class_whole() -> None:
    x, y = clouds(400, 3)
    y = torch.where(torch.arange(400) < 4, torch.tensor([3, 3, 4, 4]).repeat(100), y)  # two classes of two, one of one
    y[5] = 5
    fits: list[set[int]] = []

    def fit(x: torch.Tensor, y: torch.Tensor, classes: int) -> dict[str, heads.VectorModel]:
        fits.append(set(y.tolist()))
        return heads.pixel_means(x, y, classes)

    found = validation.hold_out(fit, x, y, 6)
    assert found is not None
    assert found.folds == validation.FOLDS == len(fits)
    assert sorted(found.members.tolist()) == [i for i in range(400) if i != 5]
    assert all(seen == {0, 1, 2, 3, 4, 5} for seen in fits)
    assert validation.hold_out(fit, x[:3], torch.arange(3), 3) is None


def test_class_means_and_ridge_regression_are_what_they_are_called() -> None:
    x, y = clouds(40)
    models, new = heads.closed_form(x, y, 3), clouds(9, seed=1)[0]
    form = models[heads.MEANS].form
    z, z_new = form(x), form(new)
    means = torch.stack([z[y == c].mean(0) for c in range(3)])
    distances = torch.cdist(z_new, means).square()
    expected = (-distances).log_softmax(1)
    torch.testing.assert_close(models[heads.MEANS](new).logits.log_softmax(1), expected, rtol=1e-9, atol=1e-9)
    for penalty in heads.RIDGES:
        for kept in (slice(0, 40), slice(0, 5)):  # more points than dimensions, and fewer
            peer = Ridge(penalty).fit(z[kept].numpy(), torch.nn.functional.one_hot(y[kept], 3).double().numpy())
            weight, bias = heads.ridge(z[kept], y[kept], 3, penalty)
            np.testing.assert_allclose((z_new @ weight.T + bias).numpy(), peer.predict(z_new.numpy()), rtol=1e-8)
    white = models["whitened class means"]
    nearest = torch.cdist(white.form(new), torch.stack([white.form(x)[y == c].mean(0) for c in range(3)])).min(1).values
    for model in models.values():
        torch.testing.assert_close(model(new).distance, nearest, rtol=1e-9, atol=1e-9)


def test_the_temperature_is_that_of_the_labels() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 4)) * 3
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    y = torch.tensor((p.cumsum(1) < rng.random((20_000, 1))).sum(1))
    for scale in (0.01, 1.0, 50.0):
        found, loss = validation.temperature(torch.tensor(logits * scale), y)
        assert found == pytest.approx(scale, rel=0.03)
        assert loss == pytest.approx(float(-np.log(p[np.arange(20_000), y]).mean()), rel=1e-3)


@pytest.mark.parametrize("n", [4, 50])
def test_few_right_answers_make_nobody_sure(n: int) -> None:
    y = torch.arange(n) % 2
    logits = torch.nn.functional.one_hot(y, 2).double() * 5
    found, _ = validation.temperature(logits, y)
    confidence = (logits / found).softmax(1).max(1).values.mean()
    assert float(confidence) == pytest.approx((n + 1) / (n + 2), abs=1e-3)


def test_the_threshold_keeps_its_rate_of_false_alarms() -> None:
    rng = torch.Generator().manual_seed(0)
    rates = []
    for _ in range(400):
        known = torch.randn(39, generator=rng)
        rates.append(float((torch.randn(500, generator=rng) > validation.threshold(known, 0.1)).double().mean()))
    assert np.mean(rates) == pytest.approx(0.1, abs=0.01)
    assert validation.threshold(torch.tensor([3.0, 1.0, 2.0]), 0.05) == 3.0


def test_shares_areas_and_calibration_are_those_of_other_libraries() -> None:
    for right, total in ((0, 5), (5, 5), (48, 50), (1, 3)):
        low, high = stats.binomtest(right, total).proportion_ci(0.95, "wilson")
        assert Share(right, total).interval == pytest.approx((low, high), abs=1e-6)
    rng = np.random.default_rng(0)
    known, unknown = rng.integers(0, 9, 40), rng.integers(3, 12, 30)  # with ties
    truth = np.r_[np.zeros(40), np.ones(30)]
    assert validation.area_under_roc(known, unknown) == pytest.approx(roc_auc_score(truth, np.r_[known, unknown]))
    p = np.array([[0.95, 0.05], [0.92, 0.08], [0.35, 0.65], [1.0, 0.0]])
    bins = validation.reliability(p, np.array([0, 1, 1, 0]))
    assert [(b.size, round(b.confidence, 3), round(b.accuracy, 3)) for b in bins] == [(1, 0.65, 1), (3, 0.957, 0.667)]
    assert validation.calibration_error(bins) == pytest.approx(0.25 * 0.35 + 0.75 * (0.9566667 - 0.6666667), abs=1e-6)


def test_the_best_classifier_is_chosen() -> None:
    y = torch.tensor([0, 1, 0, 1])
    right = torch.nn.functional.one_hot(y, 2).double()
    wrong = right.clone()
    wrong[0] = wrong[0].flip(0)
    unsure = right * torch.tensor([[1.0], [0.1], [1.0], [0.1]])
    distance = torch.zeros(4)

    def held_out(**logits: torch.Tensor) -> HeldOut:
        return HeldOut(torch.arange(4), {k: heads.Scores(v, distance) for k, v in logits.items()}, 4)

    assert validation.choose(held_out(a=wrong, b=unsure), y) == "b"
    assert validation.choose(held_out(a=unsure, b=right), y) == "b"


def adapted_to(tmp_path: Path, **settings: Any) -> Adapted:
    return practice.adapt(write(tmp_path / "own", classes()), **settings)


def test_order_workers_and_batch_size_change_nothing(tmp_path: Path) -> None:
    new = write(tmp_path / "new", classes(each=9, first=10))
    one = adapted_to(tmp_path, workers=1, batch_size=1)
    many = practice.adapt(write(tmp_path / "again", dict(reversed(classes().items()))), workers=7, batch_size=5)
    first, second = one.predict(new, workers=1), many.predict(new, workers=7)
    assert first.files == second.files == sorted(first.files)
    np.testing.assert_allclose(first.probabilities, second.probabilities, rtol=0, atol=1e-5)
    np.testing.assert_allclose(first.unknown, second.unknown, rtol=0, atol=1e-5)
    table = tmp_path / "new" / "table.csv"
    rows = [f"{name},{name[0]}" for name in reversed(first.files)]
    table.write_text("\n".join(["file,label", *rows]))
    third = one.predict(table)
    np.testing.assert_allclose(first.probabilities, third.probabilities, rtol=0, atol=1e-5)
    alone = one.predict(new / first.files[4])
    np.testing.assert_allclose(first.probabilities[4:5], alone.probabilities, rtol=0, atol=1e-5)


def test_a_model_read_back_predicts_the_same(tmp_path: Path) -> None:
    adapted = adapted_to(tmp_path)
    (tmp_path / "adapted.pt").write_bytes(model_bytes(adapted))
    new = write(tmp_path / "new", classes(each=3, first=10) | {"a/old.png": classes()["a/0.png"]})
    before, after = adapted.predict(new), practice.load(tmp_path).predict(new)
    assert before.rows() == after.rows()
    assert before.in_support.tolist() == after.in_support.tolist() == [i == 3 for i in range(10)]


def test_pictures_of_other_classes_are_unlike(tmp_path: Path) -> None:
    support = write(tmp_path / "own", classes(each=8))
    new = write(tmp_path / "new", classes(each=8, first=10) | classes("xyz", each=8))
    found = practice.adapt(support, false_alarms=0.1).predict(new)
    evaluation = found.evaluation()
    assert evaluation is not None
    assert evaluation["pictures"] == 24
    assert evaluation["of_other_classes"] == 24
    assert evaluation["accuracy"] == 1
    truth = [label in "xyz" for label in found.labels if label]
    assert evaluation["unknown_auroc"] == pytest.approx(roc_auc_score(truth, found.unknown))
    assert evaluation["unknown_auroc"] > 0.9
    assert evaluation["other_classes_found"] == np.mean([u > 1 for u, t in zip(found.unknown, truth, strict=True) if t])


def test_columns_of_classes_never_hide_others(tmp_path: Path) -> None:
    files = {name.replace("a/", "label/").replace("b/", "unknown/"): data for name, data in classes(each=3).items()}
    found = practice.adapt(write(tmp_path / "own", files)).predict(write(tmp_path / "new", classes(each=1, first=8)))
    assert found.columns()[4:8] == ["c", "label (class)", "unknown (class)", "unknown"]
    assert [row["predicted"] for row in found.rows()] == ["label", "unknown", "c"]
    assert all(0.99 < sum(float(row[c]) for c in found.columns()[4:7]) < 1.01 for row in found.rows())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, train: Any) -> Path:
    """Runs on pictures of 12 x 12 pixels in 12 classes, hardly trained."""
    root = tmp_path_factory.mktemp("runs")
    pictures = write(root / "pictures", classes("ABCDEFGHIJKL", each=8))
    common = [
        *("data=folder", f"data.root={pictures}", "data.size=16", "data.ways=3", "data.shots=2", "data.queries=2"),
        *("data.train_fraction=0.5", "data.validation_fraction=0.25", "data.split_rule=count", "net.width=8"),
        *("trainer.max_steps=8", "trainer.val_every=8", "trainer.val_episodes=4", "test.episodes=4", "logger=csv"),
        *("trainer=cpu", "trainer.threads=1", "data.meta_batch_size=2"),
    ]
    algos = {
        "protonet": ["algo=protonet"],
        "maml": ["algo=maml", "algo.transductive=false"],
        "boil": ["algo=boil"],
        "meta_sgd": ["algo=meta_sgd"],
        "maml_pp": ["algo=maml_pp"],
        "hypernet": ["algo=hypernet"],
        "cnaps": ["algo=cnaps"],
        "simple_cnaps": ["algo=simple_cnaps"],
        "hypermaml": ["algo=hypermaml"],
        "hybrid": ["algo=hybrid"],
        "finetune": ["algo=finetune"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("innerloop.runs.train.save_figures", lambda *_: {})  # most of the time of such a run
        for name, arguments in algos.items():
            train(*arguments, *common, f"hydra.run.dir={root / name}")
    return root


RUNS = (
    "protonet",
    "maml",
    "boil",
    "meta_sgd",
    "maml_pp",
    "hypernet",
    "cnaps",
    "simple_cnaps",
    "hypermaml",
    "hybrid",
    "finetune",
)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("kinds", ["ab", "abc", "abcde"])
def test_a_run_adapts_to_any_number_of_classes(name: str, kinds: str, runs: Path, tmp_path: Path) -> None:
    """The same classes or others, each picture is predicted alone, and the model is the same when read back."""
    adapted = practice.adapt(write(tmp_path / "own", classes(kinds, each=4)), run=runs / name)
    new = write(tmp_path / "new", classes(kinds, each=3, first=10))
    found = adapted.predict(new)
    assert found.probabilities.shape == (3 * len(kinds), len(kinds))
    np.testing.assert_allclose(found.probabilities.sum(1), 1)
    for i in (0, len(found.files) - 1):
        alone = adapted.predict(new / found.files[i])
        np.testing.assert_allclose(alone.probabilities, found.probabilities[i : i + 1], rtol=0, atol=1e-5)
        np.testing.assert_allclose(alone.unknown, found.unknown[i : i + 1], rtol=0, atol=1e-4)
    (tmp_path / "adapted.pt").write_bytes(model_bytes(adapted))
    again = practice.load(tmp_path).predict(new)
    np.testing.assert_allclose(again.probabilities, found.probabilities, rtol=0, atol=1e-6)
    head = name not in ("protonet", "finetune")
    said = any("starts from prototypes" in line for line in adapted.about["remarks"])
    assert said == (head and (len(kinds) == 5 or (len(kinds) == 2 and name in ("maml", "boil", "meta_sgd", "maml_pp"))))


def test_the_model_of_a_run_is_the_run_itself(runs: Path, tmp_path: Path) -> None:
    """With batch norms that use the support's statistics in training, the outputs are those of `Run.predict`."""
    run = innerloop.load(runs / "maml")
    adapted = practice.adapt(write(tmp_path / "own", classes()), run=run)
    assert adapted.support is not None
    assert adapted.y is not None
    assert isinstance(adapted.model, NetModel)
    x = adapted.support.x / 255
    expected = run.predict(run.adapt(Samples(x, adapted.y)), x)
    torch.testing.assert_close(adapted.model(adapted.support.x).logits, expected.double(), rtol=1e-5, atol=1e-5)
    assert not adapted.about["remarks"]


def test_without_anything_to_leave_out_a_run_asks_its_validation_tasks(runs: Path, tmp_path: Path) -> None:
    adapted = practice.adapt(write(tmp_path / "own", classes(each=1)), run=runs / "protonet")
    assert adapted.threshold is not None
    assert math.isfinite(adapted.temperature)
    assert any("validation tasks" in line for line in adapted.about["remarks"])


def test_the_class_means_of_the_backbone_are_a_baseline_of_other_models_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = write(tmp_path / "own", classes())
    for name, expected in (("class means", False), ("ridge regression (1)", True)):
        monkeypatch.setattr(validation, "choose", lambda *_, name=name: name)
        adapted = practice.adapt(own)
        assert adapted.chosen == name
        assert (describe.BACKBONE_MEANS in adapted.about["baselines"]) == expected


def test_it_says_if_the_baselines_are_as_good(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Vectors that say nothing: the pixels are better."""
    rng = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Patches, "forward", lambda self, x: torch.tensor(rng.normal(size=(len(x), 5))).float())
        adapted = adapted_to(tmp_path)
    assert adapted.about["baselines"][heads.PIXELS]["accuracy"] == 1
    adapted.about["baselines"][heads.PIXELS]["accuracy"] = 0.99
    (line,) = [w for w in practice.describe.warnings_of(adapted.about) if "raw pixels" in w]
    assert "The adapted model does not beat class means of raw pixels" in line
    assert any("does not beat" in record.getMessage() for record in caplog.records)


def test_the_door_needs_no_import_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "own", classes())
    found = innerloop.practice.adapt(tmp_path / "own").predict(write(tmp_path / "new", classes(each=1, first=9)))
    assert [row["predicted"] for row in found.rows()] == ["a", "b", "c"]


def test_what_is_not_possible_in_python(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="workers and batch_size must be above zero"):
        adapted_to(tmp_path, batch_size=0)
    with pytest.raises(InputError, match="look_below must be from 0 to 1"):
        adapted_to(tmp_path).predict(tmp_path / "own", look_below=-1)
