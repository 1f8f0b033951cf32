"""The numbers of docs/your-own-tables.md: logistic regression, the shipped learner and what leave-one-out chooses.

    pytest -m slow -s -n 0 tests/test_table_results.py     # prints them; -k prior | linear | iris: a part

prior: 200 test tables of data=table_prior. linear: 60 tables of two classes and 2 or 3 features whose labels are
linear rules, with the Bayes prediction. breast_cancer, iris, wine: of scikit-learn, 5 labelled rows of each class, all
others to predict, 100 draws. Means with 95 % intervals; "over": the paired difference.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from innerloop.episodes import episode_rng
from innerloop.metrics import summarize
from innerloop.practice.table_adapt import LEARNER, REGRESSION, candidates
from innerloop.practice.tables import Table, form_of
from innerloop.practice.validation import choose, hold_out
from innerloop.tasks.table_prior import TablePrior

DRAWS, SHOTS = 100, 5
Rows = dict[str, list[float]]
pytestmark = pytest.mark.slow


def show(title: str, rows: Rows, pairs: list[tuple[str, str]]) -> None:
    """Print each row's mean accuracy, and paired differences, in percent."""
    print(title, flush=True)
    for name, values in rows.items():
        print(f"  {name}: {_interval(values)}")
    for first, second in pairs:
        print(f"  {first} over {second}: {_interval(np.subtract(rows[first], rows[second]).tolist())}", flush=True)


def _interval(values: list[float]) -> str:
    s = summarize(100 * torch.tensor(values, dtype=torch.float64))
    return f"{s['mean']:.2f} ± {s['ci95']:.2f}"


def on_prior(tables: int, bayes: bool, **settings: Any) -> Rows:
    """Print and return the accuracies on test tables of the prior."""
    tasks = TablePrior(**settings)
    rows: Rows = {REGRESSION: [], LEARNER: []} | ({"Bayes": []} if bayes else {})
    for start in range(0, tables, 50):
        batch = tasks.draw("test", [episode_rng(0, "test", i) for i in range(start, start + 50)])
        for i in range(50):
            (x, y), (q, t) = ((part.x[i], part.y[i]) for part in batch)
            used = (x != 0).any(0)
            for name, model in candidates(x[:, used], y, int(y.max()) + 1).items():
                rows[name].append(_accuracy(model(q[:, used]).logits, t))
        if bayes:
            right = tasks.oracle(batch).argmax(-1) == batch.query.y
            rows["Bayes"] += right.double().mean(1).tolist()
    pairs = [(LEARNER, REGRESSION)]
    show(f"{tables} tables of the prior {settings}", rows, pairs + ([(n, "Bayes") for n in rows][:2] if bayes else []))
    return rows


def on_real(name: str) -> Rows:
    """Print and return the accuracies on a data set of scikit-learn."""
    from sklearn import datasets

    data = getattr(datasets, f"load_{name}")()
    rows: Rows = {REGRESSION: [], LEARNER: [], "the choice": []}
    for draw in range(DRAWS):
        order = np.random.default_rng(draw).permutation(len(data.target))
        chosen = np.concatenate([order[data.target[order] == c][:SHOTS] for c in np.unique(data.target)])
        others = np.setdiff1d(order, chosen)
        form, _ = form_of(_table(data, chosen), "class", None)
        x, q = form.read(_table(data, chosen)).x, form.read(_table(data, others)).x
        y, t = torch.from_numpy(data.target[chosen]), torch.from_numpy(data.target[others])
        classes = int(t.max()) + 1
        models, held_out = candidates(x, y, classes), hold_out(candidates, x, y, classes)
        assert held_out is not None
        for kind, model in models.items():
            rows[kind].append(_accuracy(model(q).logits, t))
        rows["the choice"].append(rows[choose(held_out, y)][-1])
    show(f"{name}, {SHOTS} rows of each class, {DRAWS} draws", rows, [(n, REGRESSION) for n in rows][1:])
    return rows


def _table(data: Any, members: np.ndarray) -> Table:
    x, y = data.data[members], data.target[members]
    columns = {f"column {j}": list(map(repr, map(float, x[:, j]))) for j in range(x.shape[1])}
    return Table(Path("table.csv"), {**columns, "class": list(map(str, y))}, len(members))


def _accuracy(logits: Tensor, y: Tensor) -> float:
    return (logits.argmax(1) == y).double().mean().item()


def paired(rows: Rows, first: str, second: str) -> tuple[float, float]:
    s = summarize(torch.tensor(np.subtract(rows[first], rows[second])))
    return s["mean"], s["ci95"]


def test_the_learner_beats_logistic_regression_on_tables_of_the_prior() -> None:
    mean, half = paired(on_prior(200, False), LEARNER, REGRESSION)
    assert mean - half > 0


def test_nobody_beats_the_bayes_prediction_on_linear_tables() -> None:
    rows = on_prior(60, True, kinds=["linear"], most_features=3, most_ways=2)
    for name in (LEARNER, REGRESSION):
        mean, half = paired(rows, name, "Bayes")
        assert mean < half


@pytest.mark.parametrize("name", ["breast_cancer", "iris", "wine"])
def test_the_choice_is_within_a_point_of_logistic_regression(name: str) -> None:
    mean, _ = paired(on_real(name), "the choice", REGRESSION)
    assert mean > -0.01
