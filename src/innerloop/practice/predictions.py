"""Predictions for new pictures, as arrays and as the rows of a table."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from innerloop.datasets.layouts import alike_key
from innerloop.errors import some
from innerloop.practice.reading import Listing, Skipped
from innerloop.practice.validation import Share, area_under_roc, calibration_error, reliability

COLUMNS = ("file", "predicted", "probability", "second", "unknown", "look", "label")
"""Columns of the table that are not classes. A class of such a name has "(class)" after it in the table."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions for new pictures.

    classes: their names. files: (n,) paths. probabilities: (n, classes) float64. unknown: (n,), how unlike every
    class a picture is; above 1 is an alarm if `limited`, and otherwise it is a plain distance. labels: (n,) names,
    None where there is none. in_support, near_support: (n,), whether the same picture, or one that it looks like a
    copy of, is among the labelled ones.
    look_below: probability below which a prediction is flagged. listing: where the files are. noun: what one is
    called, "picture" or "row". warnings: sentences about the new rows of a table.
    """

    classes: list[str]
    files: list[str]
    probabilities: np.ndarray
    unknown: np.ndarray
    labels: list[str | None]
    in_support: np.ndarray
    near_support: np.ndarray
    limited: bool
    look_below: float
    skipped: list[Skipped]
    listing: Listing = field(repr=False)
    noun: str = "picture"
    warnings: Sequence[str] = ()

    @property
    def predicted(self) -> np.ndarray:
        """Number of the most probable class of each picture, (n,)."""
        return self.probabilities.argmax(1)

    @property
    def confidence(self) -> np.ndarray:
        """Probability of the predicted class, (n,)."""
        return self.probabilities.max(1)

    def look(self) -> list[str]:
        """Return why a picture deserves a look, for each; empty where it does not."""
        rows = zip(self.confidence, self.unknown, self.in_support, self.near_support, strict=True)
        return [
            "; ".join(
                reason
                for reason, holds in (
                    ("unlike every class", self.limited and unknown > 1),
                    ("uncertain", confidence < self.look_below),
                    (f"among the labelled {self.noun}s", seen),
                    (f"like a copy of a labelled {self.noun}", near),
                )
                if holds
            )
            for confidence, unknown, seen, near in rows
        ]

    def columns(self) -> list[str]:
        """Return the names of the columns of `rows`."""
        labelled = ["label"] if any(label is not None for label in self.labels) else []
        return [
            "file",
            "predicted",
            "probability",
            "second",
            *columns_of(self.classes),
            "unknown",
            "look",
            *labelled,
        ]

    def rows(self) -> list[dict[str, str]]:
        """Return one row for each picture, sorted by file: column -> text."""
        found = []
        looks, of_class, columns = self.look(), columns_of(self.classes), self.columns()
        for i, file in enumerate(self.files):
            p = self.probabilities[i]
            first, second = np.argsort(-p, kind="stable")[:2]
            row = {"file": shown(file), "predicted": shown(self.classes[first]), "probability": f"{p[first]:.6f}"}
            row |= {"second": shown(self.classes[second])}
            row |= {name: f"{value:.6f}" for name, value in zip(of_class, p, strict=True)}
            row |= {"unknown": f"{self.unknown[i]:.6f}", "look": looks[i], "label": shown(self.labels[i] or "")}
            found.append({name: row[name] for name in columns})
        return found

    def summary(self) -> dict[str, Any]:
        """Return counts for summary.json, and the evaluation if some labels are known."""
        counts = Counter(self.predicted.tolist())
        found: dict[str, Any] = {
            "pictures": len(self.files),
            "skipped": len(self.skipped),
            "predicted": {name: counts.get(c, 0) for c, name in enumerate(self.classes)},
            "unlike_every_class": int((self.unknown > 1).sum()) if self.limited else None,
            "look": sum(map(bool, self.look())),
            "among_the_labelled": int(self.in_support.sum()),
            "copies_of_labelled": int(self.near_support.sum()),
        }
        if self.warnings:
            found["warnings"] = list(self.warnings)
        if evaluation := self.evaluation():
            found["evaluation"] = evaluation
        return found

    def labelled(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of pictures with a known class, and these classes; without those that were adapted to."""
        number, used = {name: c for c, name in enumerate(self.classes)}, self.in_support | self.near_support
        known = [(i, number[label]) for i, label in enumerate(self.labels) if label in number and not used[i]]
        return np.array([i for i, _ in known], int), np.array([c for _, c in known], int)

    def evaluation(self) -> dict[str, Any] | None:
        """Return accuracy, calibration and, for labels that are no class, how well the unknown score finds them.

        None if no picture has the label of a class.
        """
        index, y = self.labelled()
        if not len(index):
            return None
        share = Share(int((self.predicted[index] == y).sum()), len(index))
        found: dict[str, Any] = {
            "pictures": share.total,
            "accuracy": share.value,
            "interval": list(share.interval),
            "calibration_error": calibration_error(reliability(self.probabilities[index], y)),
        }
        others = [i for i, label in enumerate(self.labels) if label is not None and label not in self.classes]
        if others:
            found |= {
                "of_other_classes": len(others),
                "unknown_auroc": area_under_roc(self.unknown[index], self.unknown[others]),
            }
            if self.limited:
                found |= {
                    "other_classes_found": float((self.unknown[others] > 1).mean()),
                    "false_alarms": float((self.unknown[index] > 1).mean()),
                }
        return found


def as_classes(labels: Sequence[str | None], classes: Sequence[str]) -> tuple[list[str | None], list[str]]:
    """Return labels of new pictures, and what is to be said of them, in sentences.

    One that is no class but differs from a single class in capitals, spaces, underscores or the form of a number alone
    becomes that class.
    """
    keys: dict[str, list[str]] = {}
    for name in classes:
        keys.setdefault(_key(name), []).append(name)
    given = sorted({label for label in labels if label is not None})
    alike = {label: keys[_key(label)] for label in given if label not in classes and _key(label) in keys}
    same = {label: names[0] for label, names in alike.items() if len(names) == 1}
    unclear = [f"{label!r} ({' or '.join(map(repr, names))})" for label, names in alike.items() if len(names) > 1]
    found = []
    if same:
        listed = some(f"{label!r} as {name!r}" for label, name in same.items())
        found.append(f"labels of new pictures that are written like a class are taken for it: {listed}")
    if unclear:
        found.append(f"labels of new pictures that may be one of several classes are taken for none: {some(unclear)}")
    if given and not {*classes, *same}.intersection(given):
        found.append(f"no label of the new pictures is a class, so they are not evaluated: {some(map(repr, given))}")
    return [label if label is None else same.get(label, label) for label in labels], found


def _key(name: str) -> str:
    key = alike_key(name)
    try:
        number = float(key)
    except ValueError:
        return key
    return repr(number) if math.isfinite(number) else key


def columns_of(classes: Sequence[str]) -> list[str]:
    """Return the name of each class's column, each once."""
    found: list[str] = []
    for name in map(shown, classes):
        while name in COLUMNS or name in found:
            name += " (class)"
        found.append(name)
    return found


def shown(name: str) -> str:
    """Return a file's name as text: bytes that are no UTF-8 as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def joined(parts: Sequence[Predictions], skipped: Sequence[Skipped]) -> Predictions:
    """Return the predictions of several parts of the same files as one, with all files that were set aside."""
    return replace(
        parts[0],
        files=[file for part in parts for file in part.files],
        probabilities=np.concatenate([part.probabilities for part in parts]),
        unknown=np.concatenate([part.unknown for part in parts]),
        labels=[label for part in parts for label in part.labels],
        in_support=np.concatenate([part.in_support for part in parts]),
        near_support=np.concatenate([part.near_support for part in parts]),
        skipped=sorted(skipped),
    )
