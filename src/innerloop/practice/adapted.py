"""The Python door to a person's own pictures: adapt to labelled ones, predict new ones."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from innerloop.datasets.pictures import several_pages
from innerloop.errors import InputError
from innerloop.practice import validation
from innerloop.practice.describe import (
    baselines,
    describe_support,
    describe_validation,
    doubtful,
    never_left_out,
    noun_of,
    warnings_of,
)
from innerloop.practice.embedding import DEFAULT_BACKBONE, Embedding, of_backbone, of_run
from innerloop.practice.finding import find
from innerloop.practice.heads import MEANS, Scores, closed_form, in_their_span
from innerloop.practice.learned import RunMethod
from innerloop.practice.predictions import Predictions, as_classes, joined
from innerloop.practice.reading import Listing, Pictures, read_all, without_twins
from innerloop.practice.table_checks import new_rows
from innerloop.practice.tables import TableForm
from innerloop.practice.twins import SIDE, copies_in, groups_of, near, prints_of, warnings_of_copies
from innerloop.practice.validation import Fit, HeldOut, hold_out
from innerloop.runs.load import Run, load_run

log = logging.getLogger("innerloop")

FALSE_ALARMS = 0.05
"""Share of pictures of known classes that may be called unlike every class, unless another is given."""
RUN_FOLDS = 40
"""Number of parts that are left out in turn with a run, whose adaptation takes longer than a closed form."""
RUN_TASKS = 40
"""Number of a run's validation tasks that stand in where no picture can be left out."""
ONE_PICTURE_TEMPERATURE = 0.15
"""Temperature of class means where each class has one picture and nothing can be left out: what fits best to one
picture of each of 5 (.157), 10 (.144) and 20 (.142) species of leaves, on vectors of efficientnet_lite0."""
BLOCK = 2048
"""Number of new pictures that are in memory at once."""


@dataclass(frozen=True, eq=False)
class Adapted:
    """A classifier adapted to labelled pictures.

    classes: their names. model: x -> scores. temperature: of the softmax over the logits. threshold: distance above
    which a picture is unlike every class; None if nothing could be left out. seen: digests of the labelled pictures.
    about: what a report says, in plain containers. net: the configuration of the net of a run's model.
    prints: of the labelled pictures, by which copies are found: see `innerloop.practice.twins`.
    support, y, held_out: the labelled pictures, their classes (n,) and held-out scores; None for a model that was read
        from a file. chosen: name of the classifier among those of `held_out`.
    groups: (n,), of the labelled pictures that are left out together: see `hold_out`.
    """

    classes: list[str]
    embedding: Embedding | TableForm
    model: Callable[[Tensor], Scores]
    temperature: float
    threshold: float | None
    seen: frozenset[bytes]
    about: dict[str, Any] = field(default_factory=dict)
    net: dict[str, Any] | None = None
    support: Pictures | None = None
    y: Tensor | None = None
    held_out: HeldOut | None = None
    chosen: str = ""
    groups: Tensor | None = None
    prints: Tensor = field(default_factory=lambda: torch.empty(0, SIDE, SIDE))

    def predict(self, query: "Path | str", *, look_below: float = 0.8, workers: int = 4) -> Predictions:
        """Return the predictions for new pictures: a folder at any depth, a zip file, a table or one picture.

        look_below: probability below which a prediction is flagged for a look. workers: threads that decode.
        Raises InputError if no picture can be read.
        """
        if not 0 <= look_below <= 1:
            raise InputError(f"look_below must be from 0 to 1, got {look_below}")
        if isinstance(self.embedding, TableForm):
            rows, warnings = new_rows(self.embedding, Path(query), self.classes)
            if not rows.files:
                raise InputError(nothing_to_use("query", query, rows.listing.skipped, "row"))
            found = self._predict(rows, rows.listing, look_below)
            return replace(joined([found], rows.listing.skipped), warnings=warnings)
        listing = self._with_classes(find(Path(query), labelled=False, label=self.about.get("label")))
        skipped, parts, several = list(listing.skipped), list[Predictions](), list[str]()
        for start in range(0, len(listing.files), BLOCK):
            block = listing.only(range(start, min(start + BLOCK, len(listing.files))))
            pictures = read_all(block, self.embedding.preparation, self.embedding, workers)
            skipped += pictures.listing.skipped
            several += pictures.several
            if pictures.files:
                parts.append(self._predict(pictures, listing, look_below))
        if several:
            log.warning("%s", several_pages(several))
        if not parts:
            raise InputError(nothing_to_use("query", query, skipped))
        return joined(parts, skipped)

    def _with_classes(self, listing: Listing) -> Listing:
        """Return new pictures with labels that are alike but for capitals and the like in the form of the classes."""
        labels, notes = as_classes(listing.labels, self.classes)
        for line in notes:
            log.warning("%s", line)
        return replace(listing, labels=labels)

    def _predict(self, pictures: Pictures, listing: Listing, look_below: float) -> Predictions:
        scores = self.model(pictures.x)
        unknown = scores.distance.double() / (1 if self.threshold is None else self.threshold)
        seen = torch.tensor([digest in self.seen for digest in pictures.digests])
        copies = torch.zeros(len(seen), dtype=torch.bool)
        copies[[i for i, _ in near(prints_of(pictures.thumbnails), self.prints.float())]] = True
        return Predictions(
            classes=self.classes,
            files=pictures.files,
            probabilities=self.probabilities(scores.logits).numpy(),
            unknown=unknown.numpy(),
            labels=pictures.labels,
            in_support=seen.numpy(),
            near_support=(copies & ~seen).numpy(),
            limited=self.threshold is not None,
            look_below=look_below,
            skipped=[],
            listing=listing,
            noun=noun_of(self.about),
        )

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities of logits, (n, classes), in float64."""
        return (logits.double() / self.temperature).softmax(1)


def adapt(
    support: "Path | str",
    *,
    run: "Run | Path | str | None" = None,
    backbone: str | None = None,
    false_alarms: float = FALSE_ALARMS,
    workers: int = 4,
    batch_size: int = 16,
    allow: Sequence[str] = (),
    label: str | None = None,
) -> Adapted:
    """Return a classifier adapted to labelled pictures.

        adapted = innerloop.practice.adapt("labelled/")
        predictions = adapted.predict("new/")

    support: a folder or zip file with a folder for each class, or a table of files and labels; any number of classes
        and of pictures, of any size and common format.
    run: a run on classes of pictures, or its directory, whose learner is adapted. None: class means or ridge
        regression on the vectors of a backbone, whichever predicts left-out pictures best.
    backbone: see `innerloop.backbones.named`; None: efficientnet_lite0.
    false_alarms: share of pictures of known classes that may be called unlike every class.
    label: the column of labels of a table of pictures, if it has another name than the usual ones, or several of these.
    workers: number of threads that decode pictures. batch_size: pictures that a backbone sees at once. Neither changes
        a probability by more than 1e-5. allow: see `innerloop.load`.

    Raises InputError if there are fewer than two classes with pictures that can be read, or the run does not fit.
    """
    if run is not None and backbone is not None:
        raise InputError("give run or backbone, not both: a run has a backbone of its own, or none")
    check_numbers(false_alarms, workers, batch_size)
    listing = find(Path(support), labelled=True, label=label)
    loaded = run if run is None or isinstance(run, Run) else load_run(Path(run), allow=allow)
    embedding = of_run(loaded, batch_size) if loaded else of_backbone(backbone or DEFAULT_BACKBONE, batch_size, allow)
    pictures = without_twins(read_all(listing, embedding.preparation, embedding, workers))
    classes = classes_of(pictures, support)
    y = torch.tensor([classes.index(str(label)) for label in pictures.labels])
    copies = copies_in(pictures)
    groups = groups_of(copies, pictures.listing.individuals, len(y))
    method = RunMethod(loaded, len(classes)) if loaded else None
    models, held_out = fitted(pictures.x, y, len(classes), method, groups)
    chosen, temperature, threshold = _chosen(models, held_out, y, loaded, false_alarms)
    found = Adapted(
        classes,
        embedding,
        models[chosen],
        temperature,
        threshold,
        frozenset(pictures.digests),
        net=loaded.config["net"] if loaded else None,
        support=pictures,
        y=y,
        held_out=held_out,
        chosen=chosen,
        groups=groups,
        prints=prints_of(pictures.thumbnails).half(),
    )
    doubts = [*doubtful(classes, listing.given), *listing.warnings, *warnings_of_copies(copies, pictures)]
    return replace(found, about=_about(found, loaded, method.remarks if method else [], doubts, false_alarms, workers))


Models = Mapping[str, Callable[[Tensor], Scores]]


def _chosen(
    models: Models, held_out: HeldOut | None, y: Tensor, run: Run | None, false_alarms: float
) -> tuple[str, float, float | None]:
    """Return the best classifier's name, temperature and threshold; of a run's tasks if nothing was held out."""
    if held_out is not None:
        chosen, (temperature, threshold) = calibrated(held_out, y, false_alarms)
        return chosen, temperature, threshold
    if run is not None:
        return next(iter(models)), *from_tasks(run, false_alarms)
    return MEANS, ONE_PICTURE_TEMPERATURE, None


def fitted(
    x: Tensor, y: Tensor, classes: int, method: RunMethod | None, groups: Tensor | None = None
) -> tuple[Models, HeldOut | None]:
    """Return the classifiers by name, and the held-out scores of each: see `hold_out`. method: of a run, or None."""
    if method is not None:
        return method(x, y, classes), hold_out(method, x, y, classes, RUN_FOLDS, groups)
    quick: Fit = partial(closed_form, dimensions=x.shape[1])
    return closed_form(x, y, classes), hold_out(quick, in_their_span(x), y, classes, groups=groups)


def check_numbers(false_alarms: float, workers: int, batch_size: int) -> None:
    """Raise InputError for numbers that are not possible."""
    if not 0 < false_alarms < 1:
        raise InputError(f"false_alarms must be between 0 and 1, got {false_alarms}")
    if min(workers, batch_size) < 1:
        raise InputError(f"workers and batch_size must be above zero, got {workers} and {batch_size}")


def _about(
    found: Adapted, run: Run | None, remarks: list[str], doubts: list[str], false_alarms: float, workers: int
) -> dict[str, Any]:
    """Return what is said of an adapted model, and log its warnings. doubts: warnings about the classes."""
    assert found.support is not None
    assert isinstance(found.embedding, Embedding)
    assert found.y is not None
    about: dict[str, Any] = {
        "method": found.chosen,
        "features": found.embedding.name,
        "run": run and str(run.path),
        "algo": run and run.config["algo"]["name"],
        "support": describe_support(found.support, found.classes),
        "temperature": found.temperature,
        "threshold": found.threshold,
        "allowed_false_alarms": false_alarms,
        "remarks": [several_pages(found.support.several)] * bool(found.support.several) + remarks,
        "label": found.support.listing.label,
    }
    if found.held_out is not None:
        grouped = found.groups is not None
        about["validation"] = describe_validation(found.held_out, found.chosen, found.y, found.temperature, grouped)
        own = run is None or found.embedding.backbone is not None
        about["baselines"] = baselines(
            found.support, found.y, len(found.classes), found.held_out, found.chosen, own, workers, found.groups
        )
        left_out = found.y[found.held_out.members].tolist()
        doubts = [*doubts, *never_left_out(about["support"]["classes"], found.classes, left_out)]
    elif run is not None:
        about["remarks"].append("probabilities and the limit for unlike pictures are from the run's validation tasks")
    else:
        about["remarks"].append("the probabilities are rough, and no picture can be called unlike every class")
    about["warnings"] = [*doubts, *warnings_of(about)]
    for line in (*about["remarks"], *about["warnings"]):
        log.warning("%s", line)
    return about


def classes_of(pictures: Pictures, support: "Path | str") -> list[str]:
    """Return the sorted names of the classes. Raises InputError unless there are two or more with pictures."""
    skipped = pictures.listing.skipped
    if not pictures.files:
        raise InputError(nothing_to_use("support", support, skipped))
    classes = sorted({str(label) for label in pictures.labels})
    if len(classes) < 2:
        aside = f" ({len(skipped)} files were set aside: {skipped[0].file} {skipped[0].reason})" if skipped else ""
        raise InputError(f"support={support} has one class, {classes[0]}: there must be two or more{aside}")
    return classes


def nothing_to_use(what: str, path: "Path | str", skipped: Sequence[tuple[str, str]], noun: str = "picture") -> str:
    """Return the message for a source without any picture that can be used."""
    reasons = "; ".join(f"{file[:100]} {reason[:200]}" for file, reason in skipped[:3]) or "it is empty"
    more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    return f"{what}={path} holds no {noun} that can be used: {reasons}{more}"


def calibrated(held_out: HeldOut, y: Tensor, false_alarms: float) -> tuple[str, tuple[float, float]]:
    """Return the best classifier's name, and its temperature and threshold."""
    chosen = validation.choose(held_out, y)
    logits, distance = held_out.scores[chosen]
    found = validation.temperature(logits, y[held_out.members])[0], validation.threshold(distance, false_alarms)
    return chosen, found


def from_tasks(run: Run, false_alarms: float) -> tuple[float, float]:
    """Return temperature and threshold from the queries of a run's validation tasks."""
    ways = max(run.tasks.output_size, 2)
    method = RunMethod(run, ways)
    logits, labels, distances = [], [], []
    for i in range(RUN_TASKS):
        support, query = run.data.episode("validation", i)
        scores = next(iter(method(support.x, support.y, ways).values()))(query.x)
        logits.append(scores.logits)
        distances.append(scores.distance)
        labels.append(query.y)
    y = torch.cat(labels)
    return validation.temperature(torch.cat(logits), y)[0], validation.threshold(torch.cat(distances), false_alarms)
