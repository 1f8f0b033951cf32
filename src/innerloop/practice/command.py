"""What `adapt.py` does: adapt to labelled pictures or read an adapted model, predict new ones, write a folder."""

import json
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from innerloop.datasets.files import opened, other_format
from innerloop.datasets.tables import TABLES, is_file, is_of_pictures
from innerloop.devices.files import user_path
from innerloop.errors import InputError
from innerloop.practice.adapted import FALSE_ALARMS, Adapted, adapt
from innerloop.practice.describe import noun_of
from innerloop.practice.model_file import MODEL, load, model_bytes
from innerloop.practice.output import check_out, csv_text, write_out
from innerloop.practice.predictions import Predictions, shown
from innerloop.practice.recommend import is_on_ratings, recommend_command
from innerloop.practice.report import report
from innerloop.practice.table_adapt import adapt_table
from innerloop.practice.tables import FITTED_ON, is_table
from innerloop.practice.validation import Share
from innerloop.runs.checks import MOST_THREADS
from innerloop.runs.record import messages


@dataclass(frozen=True)
class Settings:
    """The settings of `adapt.py`: see conf/adapt.yaml."""

    out: str
    support: str | None = None
    query: str | None = None
    run: str | None = None
    model: str | None = None
    backbone: str | None = None
    false_alarms: float | None = None
    look_below: float = 0.8
    overwrite: bool = False
    workers: int = 4
    batch_size: int = 16
    threads: int | None = None
    label: str | None = None
    id: str | None = None
    fit_on: str = "support"
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("support", "query", "out", "run", "model"):
            if getattr(self, name) == "":
                what = {"out": "a new folder", "support": "labelled pictures, or a table of labelled rows"}
                raise InputError(f"{name}= is empty: give {what.get(name, f'a path, or leave {name} out')}")
        for name in ("support", "query"):
            path = user_path(getattr(self, name) or ".")
            if is_file(path):
                with opened(path) as binary:
                    if other := other_format(binary):
                        raise InputError(f"{name}={path} {other}")
        if (self.support is None) == (self.model is None):
            raise InputError("give support=LABELLED, labelled pictures, or model=DIR, what an adaptation left")
        if self.model is not None:
            for name in ("run", "backbone", "false_alarms"):
                if getattr(self, name) is not None:
                    raise InputError(f"{name}={getattr(self, name)}: an adapted model has its own; leave {name} out")
            if self.query is None:
                raise InputError("model=… predicts new pictures: add query=NEW")
        self._check_table()
        if not 0 <= self.look_below <= 1:
            raise InputError(f"look_below must be from 0 to 1, got {self.look_below}")
        for name, most in (("threads", MOST_THREADS), ("workers", MOST_THREADS), ("batch_size", 2**16)):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise InputError(f"{name} must be from 1 to {most:,}, got {value}")

    def _check_table(self) -> None:
        if self.label is None:
            if self.id is not None or self.fit_on != FITTED_ON[0]:
                raise InputError("id and fit_on are for tables: add label=COLUMN, the column of the classes")
            return
        if self._of_pictures:
            if self.id is not None or self.fit_on != FITTED_ON[0]:
                raise InputError("id and fit_on are for tables of numbers: leave them out, support names pictures")
            return
        for name in ("model", "run", "backbone"):
            if getattr(self, name) is not None:
                raise InputError(f"label={self.label} and {name}: an own table has label, support and query alone")
        for name in ("support", "query"):
            path = getattr(self, name)
            if path is not None and not is_table(path):
                raise InputError(f"{name}={path}: with label=COLUMN it is a table, one of {', '.join(TABLES)}")

    @property
    def _of_pictures(self) -> bool:
        """Whether support is labelled pictures, and label the column of a table of them."""
        if self.support is None or self.id is not None:
            return False
        path = user_path(self.support)
        return is_of_pictures(path) if is_table(path) else path.is_dir() or path.suffix.lower() == ".zip"

    def do(self) -> None:
        """Adapt, predict, write the folder `out` and print what matters."""
        if self.backbone is None and is_on_ratings(self.run, self.allow):
            if self.false_alarms is not None:
                raise InputError(f"false_alarms={self.false_alarms}: a run on ratings knows no unknown classes")
            assert self.run is not None
            recommend_command(self.run, self.support, self.query, self.out, self.overwrite, allow=self.allow)
            return
        start = time.perf_counter()
        out = user_path(self.out)
        check_out(out, self.overwrite)
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        adapted = self._adapted()
        predictions = None
        if self.query is not None:
            predictions = adapted.predict(self.query, look_below=self.look_below, workers=self.workers)
        sources = {name: getattr(self, name) for name in ("support", "model", "query")}
        page = report(adapted, predictions, {k: str(v) for k, v in sources.items() if v is not None}, self.workers)
        contents: dict[str, bytes | str] = {
            "summary.json": shown(
                json.dumps(summary(adapted, predictions, sources), indent=1, ensure_ascii=False) + "\n"
            ),
            "skipped.csv": skipped_table(adapted, predictions),
            "report.html": page,
        }
        # Of a model that was read as well, so that the folder is whole, even if it is that model's own.
        contents[MODEL] = model_bytes(adapted)
        if predictions is not None:
            contents["predictions.csv"] = csv_text(predictions.columns(), predictions.rows())
        write_out(out, contents, self.overwrite)
        print(closing(adapted, predictions, out, time.perf_counter() - start), flush=True)

    def _adapted(self) -> Adapted:
        if self.model is not None:
            return load(self.model, batch_size=self.batch_size, allow=self.allow)
        assert self.support is not None
        if self.label is not None and not self._of_pictures:
            return adapt_table(
                self.support,
                self.label,
                id=self.id,
                query=self.query,
                fit_on=self.fit_on,
                false_alarms=FALSE_ALARMS if self.false_alarms is None else self.false_alarms,
            )
        return adapt(
            self.support,
            run=self.run,
            backbone=self.backbone,
            false_alarms=FALSE_ALARMS if self.false_alarms is None else self.false_alarms,
            workers=self.workers,
            batch_size=self.batch_size,
            allow=self.allow,
            label=self.label,
        )


def summary(adapted: Adapted, predictions: Predictions | None, sources: dict[str, str | None]) -> dict[str, Any]:
    """Return the content of summary.json. What counts pictures of pictures counts rows of a table."""
    counted = f"{noun_of(adapted.about)}s"
    found: dict[str, Any] = {f"{name}_path": path and shown(path) for name, path in sources.items()}
    found |= adapted.about
    found |= {f"new_{counted}": predictions.summary()} if predictions is not None else {}
    return _counting(found, counted)


def _counting(part: dict[str, Any], counted: str) -> dict[str, Any]:
    """Return a part of summary.json with another name for its numbers of pictures. Names of classes stay."""
    return {
        counted if name == "pictures" else name: _counting(value, counted)
        if isinstance(value, dict) and name not in ("classes", "predicted")
        else value
        for name, value in part.items()
    }


def skipped_table(adapted: Adapted, predictions: Predictions | None) -> str:
    """Return skipped.csv: each file that was not used, and why."""
    given = {"support": adapted.support.listing.skipped if adapted.support is not None else []}
    given["query"] = predictions.skipped if predictions is not None else []
    rows = [
        {"of": name, "file": shown(file), "reason": shown(reason)}
        for name, skipped in given.items()
        for file, reason in skipped
    ]
    return csv_text(("of", "file", "reason"), rows)


def closing(adapted: Adapted, predictions: Predictions | None, out: Path, seconds: float) -> str:
    """Return what is printed at the end."""
    about = adapted.about
    support, noun = about["support"], noun_of(about)
    lines = [f"{len(adapted.classes)} classes, {support['pictures']} labelled {noun}s, {support['skipped']} set aside"]
    lines.append(f"{about['method']} on {about['features']}")
    if (found := about.get("validation")) is not None:
        share = Share(round(found["accuracy"] * found["pictures"]), found["pictures"])
        lines.append(f"left-out labelled {noun}s: {share} right")
        lines += [f"  {name}: {100 * b['accuracy']:.1f} %" for name, b in about["baselines"].items()]
    if predictions is not None:
        new = predictions.summary()
        lines.append(f"{new['pictures']} new {noun}s, {new['skipped']} set aside, {new['look']} deserve a look")
        if (evaluation := new.get("evaluation")) is not None:
            share = Share(round(evaluation["accuracy"] * evaluation["pictures"]), evaluation["pictures"])
            lines.append(f"labelled new {noun}s: {share} right")
    lines.append(f"{out / 'report.html'} ({seconds:.0f} s)")
    return "\n".join(lines)


def adapt_command(cfg: Mapping[str, Any]) -> None:
    """Do what the configuration of `adapt.py` says."""
    values = {name: value for name, value in cfg.items() if name not in ("traceback", "allow")}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left beside `out`
    with messages():
        Settings(**values, allow=tuple(cfg["allow"])).do()
