"""What is said of an adapted model: its pictures, its held-out predictions and those of simple baselines."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from innerloop.datasets.layouts import alike
from innerloop.errors import InputError, some
from innerloop.practice.embedding import DEFAULT_BACKBONE, of_backbone
from innerloop.practice.heads import MEANS, PIXELS, Scores, in_their_span, only_means, pixel_means, raw_pixels
from innerloop.practice.reading import Pictures, read_all
from innerloop.practice.validation import HeldOut, Share, calibration_error, hold_out, reliability

BACKBONE_MEANS = "class means of a backbone"
FEW = 10
"""Number of held-out pictures below which a report warns that its numbers are rough."""


def noun_of(about: dict[str, Any]) -> str:
    """Return what a model was adapted to several of: "picture", or "row" of a table."""
    return str(about.get("noun", "picture"))


def accuracy(scores: Scores, y: Tensor) -> Share:
    """Return the share of right answers of held-out scores. y: (m,)."""
    return Share(int((scores.logits.argmax(1) == y).sum()), len(y))


def describe_support(pictures: Pictures, classes: list[str]) -> dict[str, Any]:
    """Return how many pictures of which class a model was adapted to, and how many were set aside."""
    counts = Counter(pictures.labels)
    return {
        "pictures": len(pictures.files),
        "skipped": len(pictures.listing.skipped),
        "classes": {name: counts[name] for name in classes},
    }


def describe_validation(
    held_out: HeldOut, chosen: str, y: Tensor, temperature: float, grouped: bool = False
) -> dict[str, Any]:
    """Return the held-out accuracy and calibration of the chosen classifier, and the accuracies of the others.

    The calibration error is that of the pictures that the one number, the temperature, was fitted to.
    grouped: whether copies and pictures of one individual were left out together.
    """
    labels, scores = y[held_out.members], held_out.scores[chosen]
    share = accuracy(scores, labels)
    probabilities = (scores.logits.double() / temperature).softmax(1).numpy()
    parts = f"in {held_out.folds} parts" + (", copies and pictures of one individual together" if grouped else "")
    return {
        "left_out": "one by one" if held_out.folds == share.total else parts,
        "pictures": share.total,
        "accuracy": share.value,
        "interval": list(share.interval),
        "calibration_error": calibration_error(reliability(probabilities, labels.numpy())),
        "candidates": {name: accuracy(s, labels).value for name, s in held_out.scores.items()},
    }


def baselines(
    pictures: Pictures,
    y: Tensor,
    classes: int,
    held_out: HeldOut,
    chosen: str,
    own: bool,
    workers: int,
    groups: Tensor | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the held-out accuracies of what a model must beat, on the same pictures.

    These are always answering the most frequent class, class means of raw pixels, and class means of a backbone's
    vectors, unless they were chosen: of the model's own if it has one (`own`), else of efficientnet_lite0 if it is
    installed. groups: see `hold_out`.
    """
    labels = y[held_out.members]
    often = int(torch.bincount(labels, minlength=classes).max())
    found = {"the most frequent class": Share(often, len(labels))}
    raw = hold_out(pixel_means, in_their_span(raw_pixels(pictures.thumbnails)), y, classes, groups=groups)
    assert raw is not None
    found[PIXELS] = accuracy(raw.scores[PIXELS], y[raw.members])
    vectors = pictures.x if own else _vectors(pictures, workers)
    if vectors is not None and chosen != MEANS:
        means = hold_out(only_means, in_their_span(vectors), y, classes, groups=groups)
        assert means is not None
        found[BACKBONE_MEANS] = accuracy(means.scores[MEANS], y[means.members])
    return {name: {"accuracy": s.value, "interval": list(s.interval)} for name, s in found.items()}


def _vectors(pictures: Pictures, workers: int) -> Tensor | None:
    """Return the vectors of the same pictures by the default backbone; None if it is not installed."""
    try:
        embedding = of_backbone(DEFAULT_BACKBONE, 16)
    except InputError:
        return None
    again = read_all(pictures.listing.only(range(len(pictures.files))), embedding.preparation, embedding, workers)
    return again.x if again.files == pictures.files else None


def doubtful(classes: Sequence[str], given: Collection[str], noun: str = "picture") -> list[str]:
    """Return warnings of classes that no picture (or other noun) is left of, and of names that are alike, in sentences.

    given: names of the classes that labelled pictures were given for.
    """
    lost = sorted(set(given) - set(classes))
    listed = some(lost)
    found = [f"No {noun} of {listed} can be used, so the model has no such class: see skipped.csv."] if lost else []
    if names := alike(classes):
        found.append(f"{names[:1].upper()}{names[1:]}: if these are one, give them one name.")
    return found


def never_left_out(counts: Mapping[str, int], classes: Sequence[str], left_out: Sequence[int]) -> list[str]:
    """Return a warning of classes of several pictures of which none was left out. left_out: the others."""
    alone = [name for c, name in enumerate(classes) if counts[name] > 1 and c not in set(left_out)]
    one = "are copies or of one individual, so they cannot be left out"
    return [f"All pictures of {some(alone)} {one}."] if alone else []


def warnings_of(about: dict[str, Any]) -> list[str]:
    """Return what a user must know of these numbers, in sentences."""
    found, noun = [], noun_of(about)
    validation = about.get("validation")
    several = any(n > 1 for n in about["support"]["classes"].values())
    if validation is None and several:
        alone = f"All {noun}s of each class are copies or of one individual"
        return [f"{alone}, so nobody knows how good these predictions are."]
    if validation is None:
        return [
            f"Every class has one {noun}, so nobody knows how good these predictions are. Two or more {noun}s of each "
            "class would tell."
        ]
    for name, baseline in about["baselines"].items():
        ours, theirs = validation["accuracy"], baseline["accuracy"]
        # What was among the classifiers to choose from is no other model; so are a backbone's own class means.
        own = MEANS if name == BACKBONE_MEANS else name
        if own not in validation["candidates"] and ours <= theirs and theirs < 1:
            found.append(
                f"The adapted model does not beat {name}: {100 * ours:.1f} % against {100 * theirs:.1f} % of the "
                f"left-out {noun}s."
            )
    if validation["pictures"] < FEW:
        found.append(f"Only {validation['pictures']} {noun}s could be left out, so the accuracy is a rough one.")
    single = [name for name, n in about["support"]["classes"].items() if n == 1]
    if single:
        count = "One class has" if len(single) == 1 else f"{len(single)} classes have"
        found.append(f"{count} one {noun}, which cannot be left out: {some(single)}.")
    return found
