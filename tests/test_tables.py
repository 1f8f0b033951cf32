"""Tables: the prior, its Bayes prediction, the learner's invariances, and a person's own tables from file to report."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Here
from torch import Tensor

from innerloop import practice
from innerloop.episodes import Episode, InputError, episode_rng, weights_of
from innerloop.nets import Additive, PairEncoder, PairGenerator
from innerloop.practice import ship
from innerloop.practice.command import Settings, summary
from innerloop.practice.prior import shipped
from innerloop.practice.table_adapt import LEARNER, REGRESSION
from innerloop.tasks.table_prior import TablePrior


def drawn(tasks: TablePrior, count: int, first: int = 0) -> Episode:
    return tasks.draw("test", [episode_rng(0, "test", i) for i in range(first, first + count)])


def test_a_table_is_a_pure_function_of_its_stream_and_holds_what_is_said() -> None:
    tasks = TablePrior()
    batch, alone = drawn(tasks, 12), drawn(tasks, 1, 7)
    assert torch.equal(batch.support.x[7], alone.support.x[0])
    assert torch.equal(batch.query.y[7], alone.query.y[0])
    x = torch.cat([batch.support.x, batch.query.x], 1)
    used = (x != 0).any(1)
    assert ((used.sum(1) >= 1) & (used.sum(1) <= 10)).all()
    for i in range(12):
        assert batch.support.y[i].bincount().min() >= 2
        assert batch.query.y[i].max() <= batch.support.y[i].max()
        torch.testing.assert_close(x[i][:, used[i]].mean(0), torch.zeros(int(used[i].sum())), atol=1e-4, rtol=0)
        torch.testing.assert_close(x[i][:, used[i]].std(0, correction=0), torch.ones(int(used[i].sum())))


def test_the_bayes_prediction_is_calibrated_and_better_than_the_labels_noise() -> None:
    tasks = TablePrior(kinds=["linear"], most_features=2, most_ways=2, rows=10, flip=0.1)
    batch = drawn(tasks, 60)
    p = tasks.oracle(batch, block=2**12)
    torch.testing.assert_close(p.sum(-1), torch.ones(60, 30, dtype=torch.float64))
    confidence, right = p.max(-1).values, (p.argmax(-1) == batch.query.y).double()
    error = (right - confidence).mean(1)
    assert abs(error.mean()) < 3 * error.std() / 60**0.5 + 0.005
    assert right.mean() > 0.85


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"kinds": ["forest"]}, "unknown kind 'forest' of tables; choose from linear"),
        ({"kinds": []}, "kinds is empty"),
        ({"least_features": 11}, "least_features must be from 1 to most_features, got 11 and 10"),
        ({"least_ways": 1}, "least_ways must be from 2 to most_ways"),
        ({"rows": 9}, "rows must be at least 15 for 5 ways, got 9"),
        ({"flip": 0.5}, "flip must be at least 0 and below 0.5"),
    ],
)
def test_impossible_priors_are_refused(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line):
        TablePrior(**settings)


def test_the_bayes_prediction_of_other_kinds_is_not_known() -> None:
    tasks = TablePrior()
    with pytest.raises(InputError, match=r"known for data\.kinds=\[linear\] only"):
        tasks.oracle(drawn(tasks, 1))


def logits(x: Tensor, y: Tensor, query: Tensor, classes: int = 3) -> Tensor:
    return shipped().scores(x, y, classes, query).logits.softmax(1)


def test_the_shipped_learner_knows_no_order_of_features_classes_or_rows() -> None:
    x, query = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)), torch.randn(5, 6)
    y = torch.arange(12) % 3
    plain = logits(x, y, query)
    assert plain.std() > 0.01
    features, classes, rows = torch.randperm(6), torch.tensor([2, 0, 1]), torch.randperm(12)
    torch.testing.assert_close(logits(x[:, features], y, query[:, features]), plain, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits(x, classes[y], query)[:, classes], plain, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits(x[rows], y[rows], query), plain, atol=1e-5, rtol=1e-4)
    wide, wide_query = (torch.nn.functional.pad(part, (0, 4)) for part in (x, query))
    torch.testing.assert_close(logits(wide, y, wide_query), plain, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits(x, y, query, classes=5)[:, :3], plain, atol=1e-5, rtol=1e-4)


def test_a_generator_starts_at_a_multiple_of_ridge_regression() -> None:
    net, x, y = Additive(4, 3), torch.randn(9, 4), torch.arange(9) % 3
    f = net.body(x)
    encoder = PairEncoder(4, 3, net.functions, 8)
    written = PairGenerator(net.functions, 8, scale=2.0)(encoder(f, y))
    centred, target = f - f.mean(0), torch.eye(3)[y] - torch.eye(3)[y].mean(0)
    ridge = torch.linalg.solve(centred.T @ centred + encoder.log_ridge.exp() * torch.eye(16), centred.T @ target)
    torch.testing.assert_close(written["head.weight"], 2 * ridge.T, atol=1e-4, rtol=1e-3)
    assert set(written) == {name for name in weights_of(net) if name.startswith("head.")}


def test_the_shipped_file_is_small_data_with_its_command() -> None:
    assert sum(w.numel() for w in shipped().state.values()) * 4 < 2**20
    assert "data=table_prior" in shipped().command


# A person's own tables.


def written(path: Path, rows: list[list[object]], names: str = "patient,age,marker,sex,diagnosis") -> Path:
    path.write_text("\n".join([names, *(",".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
    return path


def patients(count: int, first: int = 0) -> list[list[object]]:
    """Rows whose marker is high for the ill, with some missing values."""
    found: list[list[object]] = []
    for i in range(first, first + count):
        rng, ill = np.random.default_rng(i), i % 2
        age = "" if i % 7 == 3 else int(rng.integers(20, 90))
        found.append([f"p{i}", age, f"{5 + 8 * ill + rng.normal():.3f}", "mf"[rng.integers(2)], ["well", "ill"][ill]])
    return found


def test_from_tables_to_a_report_and_on_with_the_saved_model(tmp_path: Path) -> None:
    support = written(tmp_path / "labelled.csv", patients(16))
    # Other order, an extra column, a text among the numbers, a category that is new, and something unlike all.
    new = [[d, "x", m, a, i, s] for i, a, m, s, d in patients(12, 100)]
    new += [["", "x", "high", 40, "bad", "m"], ["", "x", "500", 40, "far", "m"], ["", "x", "8.1", "", "odd", "diverse"]]
    query = written(tmp_path / "new.csv", new, "diagnosis,note,marker,age,patient,sex")
    common = {"query": str(query), "look_below": 0.6}
    Settings(out=str(tmp_path / "out"), support=str(support), label="diagnosis", id="patient", **common).do()
    table = (tmp_path / "out" / "predictions.csv").read_text(encoding="utf-8").splitlines()
    assert table[0] == "file,predicted,probability,second,ill,well,unknown,look,label"
    rows = {row.split(",")[0]: row.split(",") for row in table[1:]}
    assert set(rows) == {*(f"p{i}" for i in range(100, 112)), "far", "odd"}
    assert sum(rows[f"p{i}"][1] == ["well", "ill"][i % 2] for i in range(100, 112)) >= 10
    assert "unlike every class" in rows["far"][7]
    skipped = (tmp_path / "out" / "skipped.csv").read_text(encoding="utf-8")
    assert "query,bad,\"column marker holds 'high', which is no number\"" in skipped
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "adapted to 16 labelled rows" in page
    text = (tmp_path / "out" / "summary.json").read_text(encoding="utf-8")
    found = json.loads(text)
    assert "picture" not in page + text
    counts = [found["support"], found["validation"], found["new_rows"], found["new_rows"]["evaluation"]]
    assert [part["rows"] for part in counts] == [16, 16, 14, 12]
    Settings(out=str(tmp_path / "again"), model=str(tmp_path / "out"), **common).do()
    assert (tmp_path / "again" / "predictions.csv").read_text(encoding="utf-8").splitlines() == table


@pytest.mark.parametrize("chosen", [REGRESSION, LEARNER])
def test_each_classifier_is_saved_as_data(chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from innerloop.practice import model_file, table_adapt

    monkeypatch.setattr(table_adapt, "calibrated", lambda *_: (chosen, (0.7, 2.0)))
    adapted = practice.adapt_table(written(tmp_path / "a.csv", patients(12)), "diagnosis", id="patient")
    query = written(tmp_path / "b.csv", patients(5, 50))
    (tmp_path / "adapted.pt").write_bytes(model_file.model_bytes(adapted))
    again = practice.load(tmp_path / "adapted.pt")
    assert again.predict(query).rows() == adapted.predict(query).rows()
    assert adapted.about["method"] == chosen
    assert all("among the labelled rows" in look for look in again.predict(tmp_path / "a.csv").look())


def test_a_class_may_be_called_like_a_count(tmp_path: Path) -> None:
    rows = [[*row[:4], "pictures" if row[4] == "ill" else "rows"] for row in patients(12)]
    adapted = practice.adapt_table(written(tmp_path / "a.csv", rows), "diagnosis", id="patient")
    found = summary(adapted, adapted.predict(written(tmp_path / "b.csv", patients(5, 50))), {})
    assert found["support"] == {"rows": 12, "skipped": 0, "classes": {"pictures": 6, "rows": 6}}
    assert sum(found["new_rows"]["predicted"][name] for name in ("pictures", "rows")) == 5


def test_units_do_not_matter_and_the_setting_fit_on_is_said(tmp_path: Path) -> None:
    rows, new = patients(12), written(tmp_path / "new.csv", patients(6, 60))
    other = [[i, a, 1000 * float(str(m)) - 70, s, d] for i, a, m, s, d in rows]
    other_new = [[i, a, 1000 * float(str(m)) - 70, s, d] for i, a, m, s, d in patients(6, 60)]
    plain = practice.adapt_table(written(tmp_path / "a.csv", rows), "diagnosis", id="patient")
    scaled = practice.adapt_table(written(tmp_path / "b.csv", other), "diagnosis", id="patient")
    p = plain.predict(new).probabilities
    np.testing.assert_allclose(scaled.predict(written(tmp_path / "c.csv", other_new)).probabilities, p, atol=1e-3)
    both = practice.adapt_table(tmp_path / "a.csv", "diagnosis", id="patient", query=new, fit_on="support+query")
    assert "standardised by support and query" in both.about["features"]
    assert not np.allclose(both.predict(new).probabilities, p)


def test_a_column_that_says_the_label_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [[*row, {"well": 0, "ill": 1}[str(row[-1])]] for row in patients(12)]
    table = written(tmp_path / "a.csv", rows, "patient,age,marker,sex,diagnosis,code")
    with caplog.at_level(logging.WARNING, "innerloop"):
        adapted = practice.adapt_table(table, "diagnosis", id="patient")
    assert any("column code says the label" in line for line in adapted.about["warnings"])
    assert "column code says the label" in caplog.text


def test_text_in_numbers_sets_a_row_aside_and_idle_columns_are_said(tmp_path: Path) -> None:
    rows = [[*row, "same", ""] for row in patients(12)]
    rows[3][2], rows[4][2], rows[5][2], rows[6][-3] = "high", "inf", "nan", ""
    adapted = practice.adapt_table(
        written(tmp_path / "a.csv", rows, "patient,age,marker,sex,diagnosis,site,empty"), "diagnosis", id="patient"
    )
    assert adapted.support is not None
    reasons = {skipped.file: skipped.reason for skipped in adapted.support.listing.skipped}
    assert reasons == {
        "p3": "column marker holds 'high', which is no number",
        "p4": "column marker holds 'inf', which is no number",
        "p6": "has no label",
    }
    assert adapted.about["remarks"] == [
        "the column site is not used: it is the same in all rows",
        "the column empty is not used: it is empty",
    ]


@pytest.mark.parametrize(
    ("names", "change", "line"),
    [
        ("patient,age,marker,sex,outcome", None, "label=diagnosis: .* has no such column, only patient, age"),
        ("number,age,marker,sex,diagnosis", None, "id=patient: .* has no such column"),
        ("patient,age,age,sex,diagnosis", None, "has two columns age"),
        (None, lambda rows: [[*row[:-1], "ill"] for row in rows], "has one class, ill: there must be two or more"),
        (None, lambda rows: [[*row[:-1], i] for i, row in enumerate(rows)], "has 8 classes in 8 rows"),
        (None, lambda rows: [[row[0], 1, 2, "m", row[-1]] for row in rows], "has no column that says anything"),
        (
            None,
            lambda rows: [["p1", *row[1:]] for row in rows],
            "all rows have one patient, or are equal: none can be left out",
        ),
        (None, lambda rows: [*rows, [1, 2]], "line 10: it has 2 cells, and there are 5 columns"),
        (None, lambda rows: [], "has no rows below the names"),
    ],
)
def test_tables_that_cannot_be_used_end_in_one_line(names: str | None, change: Any, line: str, tmp_path: Path) -> None:
    rows = patients(8) if change is None else change(patients(8))
    path = written(tmp_path / "a.csv", rows, names or "patient,age,marker,sex,diagnosis")
    with pytest.raises(InputError, match=line) as caught:
        practice.adapt_table(path, "diagnosis", id="patient")
    assert "\n" not in str(caught.value)


def test_a_query_without_a_column_ends_in_one_line(tmp_path: Path) -> None:
    adapted = practice.adapt_table(written(tmp_path / "a.csv", patients(8)), "diagnosis", id="patient")
    without = written(tmp_path / "b.csv", [row[:2] for row in patients(3)], "patient,age")
    with pytest.raises(InputError, match="has no column marker, sex, only patient, age"):
        adapted.predict(without)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"id": "patient"}, "id and fit_on are for tables: add label=COLUMN"),
        ({"label": "diagnosis", "backbone": "tiny"}, "an own table has label, support and query alone"),
        ({"label": "diagnosis", "query": "new.zip"}, "query=new.zip: with label=COLUMN it is a table"),
        ({"label": "diagnosis", "fit_on": "all"}, "fit_on must be one of support, support.query"),
    ],
)
def test_settings_that_do_not_fit_end_in_one_line(settings: dict[str, Any], line: str, tmp_path: Path) -> None:
    support = written(tmp_path / "a.csv", patients(8))
    with pytest.raises(InputError, match=line):
        Settings(out=str(tmp_path / "out"), support=str(support), **settings).do()
    assert not (tmp_path / "out").exists()


def test_what_ships_is_written_from_a_run_on_tables_alone(here: Here, tmp_path: Path) -> None:
    assert here("train.py", "algo=maml", *TINY, "logger=csv", "hydra.run.dir=run")[0] == 0
    with pytest.raises(SystemExit, match="was not trained on data=table_prior"):
        ship.main([str(tmp_path / "run")])
    with pytest.raises(SystemExit, match="is no run directory"):
        ship.main([str(tmp_path / "none")])
