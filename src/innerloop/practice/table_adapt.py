"""Adapt to a person's own table: logistic regression or the meta-trained learner, whichever predicts left-out rows."""

import logging
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from innerloop.errors import InputError
from innerloop.learners import MetaLearner
from innerloop.practice.adapted import FALSE_ALARMS, Adapted, calibrated, classes_of
from innerloop.practice.describe import accuracy, describe_support, describe_validation, warnings_of
from innerloop.practice.heads import MEANS, Identity, Novelty, VectorModel, class_means, nearest_mean
from innerloop.practice.learned import NetModel
from innerloop.practice.prior import shipped
from innerloop.practice.tables import FITTED_ON, form_of, leaks, read
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
    fit_on: "support", or "support+query" to fit medians, means and scales on the unlabelled rows of `query` as well.
    false_alarms: share of rows of known classes that may be called unlike every class.
    Raises InputError for what is not possible, such as one class only or a column that is missing.
    """
    if not 0 < false_alarms < 1:
        raise InputError(f"false_alarms must be between 0 and 1, got {false_alarms}")
    if fit_on not in FITTED_ON or (fit_on != FITTED_ON[0] and query is None):
        raise InputError(f"fit_on must be one of {', '.join(FITTED_ON)}, the latter with query, got {fit_on}")
    table = read(Path(support))
    form, remarks = form_of(table, label, id, read(Path(str(query))) if fit_on != FITTED_ON[0] else None)
    rows = form.read(table, labelled=True)
    classes = classes_of(rows, support)
    if len(classes) > min(MOST_CLASSES, len(rows.files) - 1) or len(rows.files) > MOST_LABELLED:
        raise InputError(
            f"label={label} has {len(classes)} classes in {len(rows.files):,} rows: at most {MOST_CLASSES} classes and "
            f"{MOST_LABELLED:,} rows are possible, and a class needs several rows"
        )
    y = torch.tensor([classes.index(str(name)) for name in rows.labels])
    held_out = hold_out(candidates, rows.x, y, len(classes))
    if held_out is None:
        chosen, temperature, threshold = REGRESSION, ONE_ROW_TEMPERATURE, None
    else:
        chosen, (temperature, threshold) = calibrated(held_out, y, false_alarms)
    model = candidates(rows.x, y, len(classes))[chosen]
    about = _about(chosen, form.name, temperature, threshold, false_alarms)
    about["support"] = describe_support(rows, classes)
    about["remarks"] = remarks
    if held_out is not None:
        about["validation"] = describe_validation(held_out, chosen, y, temperature)
        about["baselines"] = _baselines(rows.x, y, len(classes), held_out)
    about["warnings"] = [
        *(f"The column {name} says the label in other words. Is it known for new rows?" for name in leaks(table, form)),
        *warnings_of(about),
    ]
    for line in (*about["remarks"], *about["warnings"]):
        log.warning("%s", line)
    net = shipped().net if isinstance(model, NetModel) else None
    seen = frozenset(rows.digests)
    return Adapted(classes, form, model, temperature, threshold, seen, about, net, rows, y, held_out, chosen)


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


def _baselines(x: Tensor, y: Tensor, classes: int, held_out: HeldOut) -> dict[str, dict[str, Any]]:
    """Return the held-out accuracies of the most frequent class, class means and each candidate."""
    labels = y[held_out.members]

    def means(x: Tensor, y: Tensor, classes: int) -> dict[str, VectorModel]:
        form = Identity(torch.zeros(x.shape[1], dtype=torch.float64))
        centres = class_means(x.double(), y, classes)
        return {MEANS: VectorModel(form, *nearest_mean(x.double(), y, classes), Novelty(form, centres))}

    again = hold_out(means, x, y, classes)
    assert again is not None
    found = {
        "the most frequent class": Share(int(torch.bincount(labels, minlength=classes).max()), len(labels)),
        MEANS: accuracy(again.scores[MEANS], y[again.members]),
        **{name: accuracy(scores, labels) for name, scores in held_out.scores.items()},
    }
    return {name: {"accuracy": s.value, "interval": list(s.interval)} for name, s in found.items()}
