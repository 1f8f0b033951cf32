"""Recommendations for a new user: a run on ratings is adapted to the user's own few, and predicts all other items."""

import difflib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from innerloop.datasets.columns import TextTable, advice, as_number
from innerloop.devices.files import user_path
from innerloop.episodes import InputError, Samples
from innerloop.errors import some
from innerloop.practice.output import check_out, csv_text, write_out
from innerloop.runs.config import load_config
from innerloop.runs.load import Run, load_run
from innerloop.runs.schemas import task_family
from innerloop.tasks import Ratings

log = logging.getLogger("innerloop")

SHOWN = 10
"""Number of recommended items that are printed; predictions.csv has all of them."""
CLOSEST = 3
"""Number of names that are not known for which a message has the closest known ones."""
COLUMNS = ("item", "predicted", "training_ratings")


@dataclass(frozen=True)
class Recommendations:
    """Items that the user has not rated, the best first.

    items: their names. predicted: ratings, (n,). known: number of ratings by training users of each, (n,); an item
    without any is predicted from the mean and the user's bias alone.
    rated: number of the user's ratings that were adapted to. unknown: items of the user that the run does not know.
    """

    items: Sequence[str]
    predicted: np.ndarray
    known: np.ndarray
    rated: int
    unknown: Sequence[str]

    def rows(self) -> list[dict[str, str]]:
        """Return the rows of predictions.csv."""
        cells = zip(self.items, self.predicted, self.known, strict=True)
        return [dict(zip(COLUMNS, (i, f"{p:.4f}", str(n)), strict=True)) for i, p, n in cells]


def is_on_ratings(run: str | None, allow: Sequence[str] = ()) -> bool:
    """Return True if a run directory is one of a run on ratings. Raises InputError if it is none."""
    if run is None:
        return False
    cfg = load_config(user_path(run))
    cfg.allow = list(allow)
    return issubclass(task_family(cfg), Ratings)


def recommend_command(run: str, support: str | None, query: str | None, out: str, overwrite: bool, allow: Any) -> None:
    """Adapt a run to the ratings of a new user, write predictions.csv and summary.json to `out`, and print the best.

    Raises InputError: see `recommend`.
    """
    if support is None:
        raise InputError("give support=FILE.csv, some ratings of the new user, of columns item and rating")
    if query is not None:
        raise InputError(
            f"query={query}: a run on ratings predicts all items that support does not rate; leave query out"
        )
    folder = user_path(out)
    check_out(folder, overwrite)
    found = recommend(load_run(user_path(run), allow=allow), user_path(support))
    summary = {"run": run, "support": support, "rated": found.rated, "unknown_items": list(found.unknown)}
    contents = {
        "predictions.csv": csv_text(COLUMNS, found.rows()),
        "summary.json": json.dumps(summary, indent=1) + "\n",
    }
    write_out(folder, contents, overwrite)
    print(closing(found, folder), flush=True)


def recommend(run: Run, support: Path) -> Recommendations:
    """Return what a run on ratings recommends to the user who gave the ratings in a file.

    support: a text table of columns item and rating, which may have the names of the run's own data, too.
    Raises InputError for what is no rating, an item that is rated twice, and ratings of unknown items only.
    """
    tasks = run.tasks
    assert isinstance(tasks, Ratings)
    rated, unknown = own_ratings(support, run.config["data"], tasks)
    places = torch.tensor(list(rated), dtype=torch.int64)
    y = torch.tensor(list(rated.values()), dtype=torch.float32)[:, None]
    every = torch.arange(len(tasks.dataset.items))
    predicted = run.predict(run.adapt(Samples(places, y)), every).clamp(*tasks.dataset.scale)[:, 0].double().numpy()
    _, item, _ = tasks.training_ratings()
    known = np.bincount(item, minlength=len(every))
    order = np.argsort(-predicted, kind="stable")
    order = order[~np.isin(order, places.numpy())]
    names = [tasks.dataset.items[i] for i in order]
    return Recommendations(names, predicted[order], known[order], len(rated), unknown)


def own_ratings(path: Path, data: dict[str, Any], tasks: Ratings) -> tuple[dict[int, float], list[str]]:
    """Return item's number -> rating of a user's file, and the names of the items that are not known."""
    table = TextTable(path)
    item, rating = (
        next((name for name in (data.get(kind), *others) if name in table.names), kind)
        for kind, others in (("item", ("item", "movieId", "item_id")), ("rating", ("rating",)))
    )
    numbers = {name: i for i, name in enumerate(tasks.dataset.items)}
    (low, high), found, unknown = tasks.dataset.scale, dict[int, float](), list[str]()
    for block in table.blocks([item, rating]):
        for i, (written, cell) in enumerate(zip(*block.columns, strict=True)):
            name, value = written.strip(), as_number(cell)
            if value is None or not low <= value <= high:
                scale = f"it must be from {low:g} to {high:g}{advice(cell)}"
                raise InputError(f"{path}, line {block.lines[i]}: {rating} is {cell!r}; {scale}")
            if name not in numbers:
                unknown.append(name)
            elif numbers[name] in found:
                raise InputError(f"{path}, line {block.lines[i]}: {item} {name} is rated twice")
            else:
                found[numbers[name]] = value
    if not found:
        raise InputError(
            f"{path} rates no item that the run knows"
            + (f", but {some(unknown)}" * bool(unknown))
            + closest(unknown, numbers)
        )
    if unknown:
        log.warning("%d items of %s are not known to the run and left out: %s", len(unknown), path, some(unknown))
    return found, unknown


def closest(unknown: Sequence[str], known: Iterable[str]) -> str:
    """Return the end of a message about names that are not known: what is close to the first of them, or ""."""
    folded = {name.casefold(): name for name in known}
    found = [
        f"{name} is {folded[near[0]]}"
        for name in unknown[:CLOSEST]
        if (near := difflib.get_close_matches(name.casefold(), folded, 1))
    ]
    return f"; perhaps {', '.join(found)}" if found else ""


def closing(found: Recommendations, out: Path) -> str:
    """Return what is printed at the end."""
    lines = [f"adapted to {found.rated} ratings; {len(found.items):,} items that are not among them, the best first:"]
    width = max((len(name) for name in found.items[:SHOWN]), default=0)
    cells = zip(found.items[:SHOWN], found.predicted, found.known, strict=False)
    lines += [f"  {name:<{width}}  {p:.2f}  ({n:,} training ratings)" for name, p, n in cells]
    return "\n".join([*lines, str(out / "predictions.csv")])
