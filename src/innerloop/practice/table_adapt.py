"""Adapt to a person's own table: logistic regression or the meta-trained learner, whichever predicts left-out rows."""

import logging
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from innerloop.errors import InputError, some
from innerloop.learners import MetaLearner
from innerloop.practice.adapted import FALSE_ALARMS, Adapted, calibrated, classes_of
from innerloop.practice.describe import accuracy, describe_support, describe_validation, doubtful, warnings_of
from innerloop.practice.heads import MEANS, Identity, Novelty, VectorModel, class_means, nearest_mean
from innerloop.practice.learned import NetModel
from innerloop.practice.prior import shipped
from innerloop.practice.reading import Pictures
from innerloop.practice.table_checks import (
    counters,
    doubts_of_labels,
    groups_of,
    leaks,
    one_spelling,
    quantities,
    set_aside,
    unlabelled_only,
)
from innerloop.practice.tables import FITTED_ON, Rows, Table, TableForm, form_of, read
from innerloop.practice.validation import HeldOut, Share, hold_out

log = logging.getLogger("innerloop")

REGRESSION, LEARNER = "logistic regression", "the meta-trained learner"
MOST_CLASSES, MOST_LABELLED = 50, 20_000
ONE_ROW_TEMPERATURE = 1.0


def adapt_table(
    support: "Path | str",
    label: str,
    *,
    id: str | None = None,
    query: "Path | str | None" = None,
    fit_on: str = "support",
    false_alarms: float = FALSE_ALARMS,
) -> Adapted:
    """Return a classifier adapted to the labelled rows of a table.

        adapted = innerloop.practice.adapt_table("labelled.csv", "diagnosis", id="patient")
        predictions = adapted.predict("new.csv")

    support: a CSV whose first line names its columns. label, id: names of columns; id=None: rows are numbered.
        Rows of one id are left out together, as equal rows are: see `groups_of`.
    fit_on: "support", or "support+query" to fit medians, means and scales on the unlabelled rows of `query` as well.
    false_alarms: share of rows of known classes that may be called unlike every class.
    Raises InputError for what is not possible, such as one class only or a column that is missing.
    """
    if not 0 < false_alarms < 1:
        raise InputError(f"false_alarms must be between 0 and 1, got {false_alarms}")
    if fit_on not in FITTED_ON or (fit_on != FITTED_ON[0] and query is None):
        raise InputError(f"fit_on must be one of {', '.join(FITTED_ON)}, the latter with query, got {fit_on}")
    table = read(Path(support))
    others = read(Path(str(query))) if fit_on != FITTED_ON[0] else None
    form, remarks = form_of(table, label, id, others)
    table.columns[label] = one_spelling(table.columns[label], _by_length(table.columns[label]))
    read_rows = form.read(table, labelled=True)
    rows = read_rows.usable
    classes = classes_of(rows, support)
    doubts = quantities(rows.files, classes, label)
    _check_sizes(label, len(classes), len(rows.files), bool(doubts))
    y = torch.tensor([classes.index(str(name)) for name in rows.labels])
    ids = [None] * table.rows if id is None else table.values(id)
    groups, of_groups, of_twins = groups_of(rows, [ids[i] for i in read_rows.kept], form)
    if groups is not None and int(groups.max()) == 0:
        raise InputError(f"{table.path}: all rows {f'have one {id}, or ' if id else ''}are equal: none can be left out")
    held_out = hold_out(candidates, rows.x, y, len(classes), groups=groups)
    if held_out is None:
        chosen, temperature, threshold = REGRESSION, ONE_ROW_TEMPERATURE, None
    else:
        chosen, (temperature, threshold) = calibrated(held_out, y, false_alarms)
    about = _about(chosen, form.name, temperature, threshold, false_alarms)
    about["support"] = describe_support(rows, classes)
    about["remarks"] = [*form.said_of(table), *remarks, *doubts_of_labels(rows.labels, classes), *of_groups]
    about |= _validated(rows.x, y, len(classes), held_out, chosen, temperature, groups)
    doubts += [*_doubts(table, form, read_rows, classes), *of_twins]
    doubts += unlabelled_only(form, table, others) if others is not None else []
    about["warnings"] = [*doubts, *_of_validation(about, rows, classes, held_out, grouped=groups is not None)]
    for line in (*about["remarks"], *about["warnings"]):
        log.warning("%s", line)
    model = candidates(rows.x, y, len(classes))[chosen]
    net = shipped().net if isinstance(model, NetModel) else None
    seen = frozenset(rows.digests)
    return Adapted(classes, form, model, temperature, threshold, seen, about, net, rows, y, held_out, chosen)


def _check_sizes(label: str, classes: int, rows: int, quantity: bool) -> None:
    """Raise InputError for too many classes or rows. quantity: whether the classes look like numbers to predict."""
    if classes > min(MOST_CLASSES, rows - 1) or rows > MOST_LABELLED:
        raise InputError(
            f"label={label} has {classes} classes in {rows:,} rows: at most {MOST_CLASSES} classes and "
            f"{MOST_LABELLED:,} rows are possible, and a class needs several rows"
            + ("; it looks like a quantity: make a few classes of it, such as low and high" if quantity else "")
        )


def _validated(
    x: Tensor, y: Tensor, classes: int, held_out: HeldOut | None, chosen: str, temperature: float, groups: Tensor | None
) -> dict[str, Any]:
    """Return what left-out rows say of the chosen classifier and of the baselines; nothing if none was left out."""
    if held_out is None:
        return {}
    found = describe_validation(held_out, chosen, y, temperature)
    if groups is not None:
        found["left_out"] = f"in {held_out.folds} parts, the rows of one id and equal rows together"
    return {"validation": found, "baselines": _baselines(x, y, classes, held_out, groups)}


def _by_length(labels: Sequence[str | None]) -> list[str]:
    """Return the different labels, the shortest first: 0 before 0.0."""
    return sorted({name for name in labels if name is not None}, key=lambda name: (len(name), name))


def _doubts(table: Table, form: TableForm, rows: Rows, classes: list[str]) -> list[str]:
    """Return warnings of labels, of columns and of rows that were set aside."""
    return [
        *doubtful(classes, rows.usable.listing.given, noun="row"),
        *leaks(table, form),
        *counters(form, table),
        *set_aside(rows, table.columns[form.label]),
    ]


def _of_validation(
    about: dict[str, Any], rows: Pictures, classes: list[str], held_out: HeldOut | None, grouped: bool
) -> list[str]:
    """Return warnings of what left-out rows say. grouped: whether some rows were left out together."""
    left_out = set() if held_out is None else {rows.labels[i] for i in held_out.members.tolist()}
    alone = [name for name in classes if name not in left_out and about["support"]["classes"][name] > 1]
    if not grouped or not alone:
        return warnings_of(about)
    line = f"All rows of {some(alone)} have one id, share it with such a class, or are equal, so they are not left out"
    if held_out is None:
        return [f"{line}: nobody knows how good these predictions are."]
    return [f"{line}.", *warnings_of(about)]


def candidates(x: Tensor, y: Tensor, classes: int) -> dict[str, Any]:
    """Return the classifiers to choose from, fitted to standardised rows x (n, features)."""
    return {REGRESSION: regression(x, y, classes), LEARNER: _learner(x, y, classes)}


def regression(x: Tensor, y: Tensor, classes: int) -> VectorModel:
    """Return scikit-learn's logistic regression with its default penalty."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise InputError('tables need scikit-learn: pip install "innerloop[tables]"') from error
    x = x.double()
    with warnings.catch_warnings(), _blas().limit(limits=1, user_api="blas"):
        warnings.simplefilter("ignore")  # what is not converged is judged by left-out rows all the same
        found = LogisticRegression(max_iter=1000).fit(x.numpy(), y.numpy())
    weight, bias = torch.from_numpy(found.coef_), torch.from_numpy(found.intercept_)
    if len(weight) == 1:  # one logit for two classes
        weight, bias = (torch.cat([torch.zeros_like(part), part]) for part in (weight, bias))
    form = Identity(torch.zeros(x.shape[1], dtype=x.dtype))
    return VectorModel(form, weight, bias, Novelty(form, class_means(x, y, classes)))


@lru_cache(maxsize=1)
def _blas() -> Any:
    """Return what limits threads of scikit-learn's matrix products: on few rows they wait for each other."""
    from threadpoolctl import ThreadpoolController  # of scikit-learn

    return ThreadpoolController()


def _learner(x: Tensor, y: Tensor, classes: int) -> NetModel:
    return shipped().fitted(_learner_of(x.shape[1], classes), x, y, classes)


@lru_cache(maxsize=1)
def _learner_of(features: int, classes: int) -> MetaLearner:
    """Return the learner of one table's sizes, which is made once for all rows that are left out."""
    return shipped().learner(features, classes)


def _about(
    chosen: str, features: str, temperature: float, threshold: float | None, false_alarms: float
) -> dict[str, Any]:
    return {
        "noun": "row",
        "method": chosen,
        "features": features,
        "run": None,
        "algo": None,
        "temperature": temperature,
        "threshold": threshold,
        "allowed_false_alarms": false_alarms,
    }


def _baselines(
    x: Tensor, y: Tensor, classes: int, held_out: HeldOut, groups: Tensor | None
) -> dict[str, dict[str, Any]]:
    """Return the held-out accuracies of the most frequent class, class means and each candidate."""
    labels = y[held_out.members]

    def means(x: Tensor, y: Tensor, classes: int) -> dict[str, VectorModel]:
        form = Identity(torch.zeros(x.shape[1], dtype=torch.float64))
        centres = class_means(x.double(), y, classes)
        return {MEANS: VectorModel(form, *nearest_mean(x.double(), y, classes), Novelty(form, centres))}

    again = hold_out(means, x, y, classes, groups=groups)
    assert again is not None
    found = {
        "the most frequent class": Share(int(torch.bincount(labels, minlength=classes).max()), len(labels)),
        MEANS: accuracy(again.scores[MEANS], y[again.members]),
        **{name: accuracy(scores, labels) for name, scores in held_out.scores.items()},
    }
    return {name: {"accuracy": s.value, "interval": list(s.interval)} for name, s in found.items()}
