"""The report of an adaptation: one HTML file with its pictures inside, for a screen of any width."""

import base64
from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from innerloop.practice import figures
from innerloop.practice.adapted import Adapted
from innerloop.practice.describe import noun_of
from innerloop.practice.page import MEANING, OF_TABLES, STYLE
from innerloop.practice.predictions import Predictions, shown
from innerloop.practice.reading import Preparation, Skipped, read_all
from innerloop.practice.validation import reliability

SHOWN = 12
"""Number of pictures in each gallery."""
CLASSES_SHOWN, PER_CLASS = 60, 6
"""Number of classes, and of pictures of each, among the labelled pictures that are shown."""
SKIPPED_SHOWN = 30
BASELINES = (
    "<p class='note'>A model that does not beat the others is of no use. Class means predict the class whose labelled "
    "{noun}s have the nearest average.</p>"
)
DIAGRAMS = (
    "Each row is a class, and its numbers say what its {noun}s were taken for: right ones are on the diagonal",
    "Each point stands for {noun}s with similar probabilities, and has their number beside it. On the dashed line "
    "the probabilities are right: of {noun}s with 0.8, four in five are",
)
CHOSEN = " The model is the best of {n} on these, which flatters it a little."


def report(adapted: Adapted, predictions: Predictions | None, sources: dict[str, str], workers: int) -> str:
    """Return the report as HTML. sources: what was given, by its name, such as support -> labelled/."""
    about = adapted.about
    counts, noun = about["support"], noun_of(about)
    title = f"{len(adapted.classes)} classes, adapted to {counts['pictures']} labelled {noun}s"
    parts = [f"<h1>{escape(title)}</h1>", _given(about, sources), _notes(about)]
    parts += _quality(adapted, predictions)
    files = "files" if noun == "picture" else "rows"
    if predictions is not None:
        parts += _new_pictures(predictions, workers, noun)
    parts += _labelled(adapted)
    if adapted.support is not None:
        parts += _skipped(f"Labelled {files} that were not used", adapted.support.listing.skipped)
    if predictions is not None:
        parts += _skipped(f"New {files} that were not used", predictions.skipped)
    parts.append(MEANING if noun == "picture" else OF_TABLES)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><main>\n" + "\n".join(filter(None, parts)) + "\n</main></body></html>\n"
    )


def text(value: str) -> str:
    """Return a name as HTML: escaped, and with bytes that are no UTF-8 as escapes."""
    return escape(shown(value))


def _given(about: dict[str, Any], sources: dict[str, str]) -> str:
    how = f"the run {about['run']} ({about['algo']}), {about['method']}" if about["run"] else about["method"]
    rows = [*sources.items(), ("method", f"{how} on {about['features']}")]
    return "<dl>" + "".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in rows) + "</dl>"


def _notes(about: dict[str, Any]) -> str:
    remarks = "".join(f"<li>{text(line[:1].upper() + line[1:])}.</li>" for line in about["remarks"])
    return _beware(about["warnings"]) + (f'<ul class="remarks">{remarks}</ul>' if remarks else "")


def _beware(lines: Sequence[str]) -> str:
    warnings = "".join(f"<li>{text(line)}</li>" for line in lines)
    return f'<div class="warning"><strong>Beware</strong><ul>{warnings}</ul></div>' if warnings else ""


def _quality(adapted: Adapted, predictions: Predictions | None) -> list[str]:
    about = adapted.about
    found = ["<h2>How often is it right?</h2>"]
    validation = about.get("validation")
    if validation is not None:
        found.append(
            f"<p>Each of {validation['pictures']} labelled {noun_of(about)}s was predicted by a model that had not "
            f"seen it (left out {text(validation['left_out'])}). The bars are 95&nbsp;% intervals."
            + (CHOSEN.format(n=len(validation["candidates"])) if len(validation["candidates"]) > 1 else "")
            + "</p>"
        )
        rows = [("this model", validation, "ours"), *((name, b, "") for name, b in about["baselines"].items())]
        found.append("<table class='bars'>" + "".join(_bar(*row) for row in rows) + "</table>")
        found.append(BASELINES.format(noun=noun_of(about)))
        found.append(
            f"<p>Its probabilities are off by {validation['calibration_error']:.3f} on average (expected calibration "
            f"error, on the same {noun_of(about)}s that they were fitted to).</p>"
        )
    evaluation = predictions.evaluation() if predictions is not None else None
    if evaluation is not None:
        found.append(f"<p>{_evaluated(evaluation, noun_of(about))}</p>")
    return found + _diagrams(adapted, predictions)


def _evaluated(found: dict[str, Any], noun: str) -> str:
    low, high = found["interval"]
    sentence = (
        f"Of the new {noun}s, {found['pictures']} have labels: <strong>{100 * found['accuracy']:.1f}&nbsp;%</strong> "
        f"are predicted right ({100 * low:.1f} to {100 * high:.1f}), with a calibration error of "
        f"{found['calibration_error']:.3f}."
    )
    if "unknown_auroc" in found:
        sentence += (
            f" {found['of_other_classes']} more have labels of other classes; the score of being unlike every class "
            "tells them apart"
            f" with an area under the ROC curve of {found['unknown_auroc']:.3f} (1: always, 0.5: by chance)"
        )
        if "false_alarms" in found:
            sentence += (
                f", finds {100 * found['other_classes_found']:.0f}&nbsp;% of them, and gives a false alarm for "
                f"{100 * found['false_alarms']:.1f}&nbsp;% of the others"
            )
        sentence += "."
    return sentence


def _bar(name: str, share: dict[str, Any], kind: str) -> str:
    low, high = (100 * end for end in share["interval"])
    value = 100 * share["accuracy"]
    return (
        f"<tr class='{kind}'><th>{text(name)}</th><td class='number'>{value:.1f}&nbsp;%</td><td><div class='bar' "
        f"role='img' aria-label='{low:.1f} to {high:.1f} percent'><span class='range' style='left:{low:.2f}%;width:"
        f"{high - low:.2f}%'></span><span class='point' style='left:{value:.2f}%'></span></div></td></tr>"
    )


def _diagrams(adapted: Adapted, predictions: Predictions | None) -> list[str]:
    """Return a confusion matrix and a reliability diagram, of labelled new pictures or else of held-out ones."""
    noun = noun_of(adapted.about)
    index, y = predictions.labelled() if predictions is not None else (np.array([], int), np.array([], int))
    if predictions is not None and len(index):
        probabilities, which = predictions.probabilities[index], f"labelled new {noun}s"
    elif adapted.held_out is not None and adapted.y is not None:
        logits = adapted.held_out.scores[adapted.chosen].logits
        probabilities = adapted.probabilities(logits).numpy()
        y, which = adapted.y[adapted.held_out.members].numpy(), f"left-out {noun}s"
    else:
        return []
    counts = np.zeros((len(adapted.classes),) * 2, int)
    np.add.at(counts, (y, probabilities.argmax(1)), 1)
    named = len(adapted.classes) <= figures.NAMED
    names = [shown(name) for name in adapted.classes]
    diagram = _image(figures.reliability_diagram(reliability(probabilities, y)), "reliability diagram")
    matrix = figures.confusion_table(counts, names) if named else _image(figures.confusion(counts), "confusion matrix")
    captions = (f"Confusion matrix of the {which}", f"Reliability diagram of the {which}")
    found = "".join(
        f"<figure>{figure}<figcaption><b>{escape(caption)}.</b> {escape(meaning.format(noun=noun))}.</figcaption>"
        "</figure>"
        for figure, caption, meaning in zip((matrix, diagram), captions, DIAGRAMS, strict=True)
    )
    return [f"<div class='figures'>{found}</div>"]


def _image(figure: Figure, what: str) -> str:
    return f"<img alt='{what}' src='{_inline(figures.png(figure), 'png')}'>"


def _inline(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _new_pictures(predictions: Predictions, workers: int, noun: str) -> list[str]:
    summary = predictions.summary()
    looks = summary["look"]
    found = [
        f"<h2>New {noun}s</h2>",
        _beware(predictions.warnings),
        f"<p>{summary['pictures']} {noun}s were predicted; <strong>{looks}</strong> deserve a look"
        f"{_reasons(predictions)} (column <code>look</code> of predictions.csv).</p>",
        "<table class='counts'><tr><th>class</th><th class='number'>predicted</th></tr>"
        + "".join(
            f"<tr><td>{text(name)}</td><td class='number'>{n}</td></tr>"
            for name, n in sorted(summary["predicted"].items(), key=lambda item: (-item[1], item[0]))[:CLASSES_SHOWN]
        )
        + "</table>",
    ]
    if noun != "picture":
        return found
    index, y = predictions.labelled()
    wrong = index[predictions.predicted[index] != y]
    galleries = (
        ("The least certain", np.argsort(predictions.confidence, kind="stable")[:SHOWN]),
        ("The most unlike every class", np.argsort(-predictions.unknown, kind="stable")[:SHOWN]),
        ("The most confidently wrong", wrong[np.argsort(-predictions.confidence[wrong], kind="stable")][:SHOWN]),
    )
    chosen = sorted({int(i) for _, members in galleries for i in members})
    images = _read_again(predictions, chosen, workers)
    for heading, members in galleries:
        cards = [(images[i], _caption(predictions, i)) for i in members.tolist() if i in images]
        found += _gallery(heading, cards)
    return found


def _reasons(predictions: Predictions) -> str:
    """Return why new pictures deserve a look, and how many do for each reason; empty if none does."""
    counts = Counter(reason for look in predictions.look() for reason in look.split("; ") if reason)
    least = f"the probability is below {100 * predictions.look_below:g}&nbsp;%"
    limit = f"farther from every class than nearly all of the labelled {predictions.noun}s are when left out"
    said = {"uncertain": f"uncertain ({least})", "unlike every class": f"unlike every class ({limit})"}
    listed = [f"{n} {said.get(reason, reason)}" for reason, n in counts.most_common()]
    return f": {', '.join(listed)}" if listed else ""


def _caption(predictions: Predictions, i: int) -> str:
    label = predictions.labels[i]
    first = predictions.classes[predictions.predicted[i]]
    lines = [
        f"<b>{text(first)}</b> {100 * predictions.confidence[i]:.0f}&nbsp;%",
        *([f"labelled {text(label)}"] if label is not None and label != first else []),
        *(["<em>unlike every class</em>"] if predictions.limited and predictions.unknown[i] > 1 else []),
        f"<small>{text(predictions.files[i])}</small>",
    ]
    return "<br>".join(lines)


def _read_again(predictions: Predictions, chosen: Sequence[int], workers: int) -> dict[int, Tensor]:
    """Return number -> thumbnail of some of the new pictures, as far as they can still be read."""
    number = {predictions.files[i]: i for i in chosen}
    listing = predictions.listing
    places = [place for place, file in enumerate(listing.files) if file in number]
    pictures = read_all(listing.only(places), Preparation(192, 3), _nothing, workers)
    return {number[file]: image for file, image in zip(pictures.files, pictures.thumbnails, strict=True)}


def _nothing(images: Iterator[np.ndarray], total: int) -> Tensor:
    return torch.zeros(sum(1 for _ in images), 0)


def _gallery(heading: str, cards: Sequence[tuple[Tensor, str]]) -> list[str]:
    if not cards:
        return []
    items = "".join(
        f"<figure><img loading='lazy' alt='' src='{_inline(figures.jpeg(image), 'jpeg')}'>"
        f"<figcaption>{caption}</figcaption></figure>"
        for image, caption in cards
    )
    return [f"<h3>{escape(heading)}</h3><div class='gallery'>{items}</div>"]


def _labelled(adapted: Adapted) -> list[str]:
    counts = adapted.about["support"]["classes"]
    found = ["<h2>What it was adapted to</h2>"]
    support = adapted.support
    if support is None or noun_of(adapted.about) != "picture":
        listed = ", ".join(f"{text(name)} ({n})" for name, n in counts.items())
        return [*found, f"<p>{listed}</p>"]
    rows = []
    for name in adapted.classes[:CLASSES_SHOWN]:
        members = [i for i, label in enumerate(support.labels) if label == name][:PER_CLASS]
        images = "".join(
            f"<img loading='lazy' alt='{text(support.files[i])}' title='{text(support.files[i])}' "
            f"src='{_inline(figures.jpeg(support.thumbnails[i]), 'jpeg')}'>"
            for i in members
        )
        rows.append(f"<tr><th>{text(name)}<br><small>{counts[name]} pictures</small></th><td>{images}</td></tr>")
    more = len(adapted.classes) - CLASSES_SHOWN
    found.append(f"<table class='support'>{''.join(rows)}</table>")
    if more > 0:
        found.append(f"<p>and {more} more classes</p>")
    return found + _wrong_when_left_out(adapted)


def _wrong_when_left_out(adapted: Adapted) -> list[str]:
    held_out, support, y = adapted.held_out, adapted.support, adapted.y
    if held_out is None or support is None or y is None:
        return []
    probabilities = adapted.probabilities(held_out.scores[adapted.chosen].logits).numpy()
    labels, predicted = y[held_out.members].numpy(), probabilities.argmax(1)
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-probabilities.max(1)[wrong], kind="stable")][:SHOWN]
    cards = []
    for i in wrong.tolist():
        member = int(held_out.members[i])
        caption = (
            f"<b>{text(adapted.classes[predicted[i]])}</b> {100 * probabilities[i].max():.0f}&nbsp;%<br>labelled "
            f"{text(adapted.classes[labels[i]])}<br><small>{text(support.files[member])}</small>"
        )
        cards.append((support.thumbnails[member], caption))
    return _gallery("Labelled pictures that were predicted wrong when left out, the most confident first", cards)


def _skipped(heading: str, skipped: Sequence[Skipped]) -> list[str]:
    if not skipped:
        return []
    rows = "".join(f"<tr><td>{text(s.file)}</td><td>{text(s.reason)}</td></tr>" for s in skipped[:SKIPPED_SHOWN])
    more = f"<p>and {len(skipped) - SKIPPED_SHOWN} more, all in skipped.csv</p>" if len(skipped) > SKIPPED_SHOWN else ""
    return [f"<h2>{escape(heading)}: {len(skipped)}</h2><table class='skipped'>{rows}</table>{more}"]
