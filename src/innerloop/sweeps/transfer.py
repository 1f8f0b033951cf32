"""Runs tested on other data, source -> target, beside the rows that any transfer has to beat.

All rows of a target are tested on the same episodes, so their differences are paired.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import yaml
from matplotlib.figure import Figure

from innerloop.devices.files import user_path
from innerloop.errors import InputError
from innerloop.runs.compare import (
    SEEN_KEYS,
    TITLES,
    TRAINING_KEYS,
    FinishedRun,
    ci95,
    read_run,
    require_same_episodes,
    short,
)
from innerloop.runs.config import CONFIG
from innerloop.runs.report.style import ERRORS, INK, VERMILLION, panels
from innerloop.sweeps.table_runs import run_all
from innerloop.sweeps.tables import CHECKOUT, EVERY_RUN, TableJob, holds
from innerloop.sweeps.text import write_csv

RAW, RANDOM = "raw inputs", "random features"
"""The rows that a transfer must not be worse than."""
NEGATIVE = "▼"
SIZES = ("ways", "test_ways", "shots", "queries", "min_ways", "min_shots", "unbalanced", "sampler", "limits")
"""Keys of data that are no other tasks in kind."""
PICTURES = {
    RAW: "algo=protonet net=linear data.rotations=false trainer.max_steps=0",
    RANDOM: "algo=protonet data.rotations=false trainer.max_steps=0",
    "frozen BACKBONE": "algo=protonet net=linear data.rotations=false data.backbone=BACKBONE data.standardize=true "
    "trainer.max_steps=0",
}
"""Row -> what makes it for pictures: class means of the pixels, of an untrained net and of a pre-trained one."""
VECTORS = {RAW: "algo=r2d2 net=linear trainer.max_steps=0", RANDOM: "algo=r2d2 trainer.max_steps=0"}
"""The same for other tasks: ridge regression."""


@dataclass(frozen=True)
class Target:
    """Data to test on. name: of the file in conf/data. overrides: of its values, `data.root` an absolute path."""

    name: str
    overrides: Sequence[str]

    @classmethod
    def of(cls, text: str) -> "Target":
        """Return the target of "NAME data.KEY=VALUE …". Raises InputError for unknown data and other overrides."""
        name, *overrides = shlex.split(text) or [""]
        known = sorted(path.stem for path in (CHECKOUT / "conf" / "data").glob("*.yaml"))
        if name not in known:
            raise InputError(f"--to {text}: unknown data {name!r}; choose one of {', '.join(known)}")
        for override in overrides:
            if not override.startswith("data.") or "=" not in override:
                raise InputError(f"--to {text}: {override} is no value of the data, data.KEY=VALUE")
        return cls(name, [_absolute(o) for o in overrides])

    @property
    def label(self) -> str:
        """The data and what was chosen of them, apart from paths."""
        chosen = [o.removeprefix("data.") for o in self.overrides if not o.startswith(("data.root=", "data.cache="))]
        return " ".join([self.name, *chosen])

    @property
    def values(self) -> dict[str, Any]:
        """The values of the file in conf/data, with the overrides."""
        values = yaml.safe_load((CHECKOUT / "conf" / "data" / f"{self.name}.yaml").read_text())
        pairs = [o.removeprefix("data.").partition("=") for o in self.overrides]
        return values | {key: yaml.safe_load(value) for key, _, value in pairs}

    def is_trained_on_by(self, data: Mapping[str, Any]) -> bool:
        """Return whether a run with this `data` configuration was trained on the training tasks of this target."""
        values, places = self.values, ("dataset", "root") if "dataset" in self.values else ("_target_",)
        same = data["name"] == values["name"] or all(data.get(key) == values.get(key) for key in places)
        compared = set(values) - {*TRAINING_KEYS, *SEEN_KEYS, *SIZES, "name", "root", "cache", "defaults", "_target_"}
        return same and all(data.get(key, values[key]) == values[key] for key in compared)


def _absolute(override: str) -> str:
    key, _, value = override.partition("=")
    return f"{key}={user_path(value).resolve()}" if key in ("data.root", "data.cache") else override


@dataclass(frozen=True)
class Evaluation(TableJob):
    """An evaluation of a run on a target. It is not resumed but made again."""

    script: str = "evaluate.py"

    def command(self) -> list[str]:
        return [*self.overrides, f"hydra.run.dir={self.directory}"]

    def check(self) -> None:
        """Raise InputError if the evaluation in the directory is one with other overrides."""
        if self.is_finished:
            config = yaml.safe_load((self.directory / CONFIG).read_text())
            missing = [o for o in self.overrides if not o.startswith("data=") and not holds(o, config)]
            if missing:
                raise InputError(f"{self.directory} was made without {' '.join(missing)}: choose another --out")


@dataclass(frozen=True)
class Cell:
    """What one row is on one target. source: the data that it was trained on, "" for a baseline. job: its test.

    is_ceiling: whether it was trained on the target's own training tasks.
    """

    row: str
    source: str
    target: Target
    job: TableJob
    is_ceiling: bool = False


def cells(
    runs: Sequence[Path],
    targets: Sequence[Target],
    out: Path,
    adapt: Sequence[str],
    episodes: int,
    backbone: str,
    settings: Sequence[str] = (),
) -> list[Cell]:
    """Return all cells of a table, target by target.

    runs: the directories of finished runs. out: where tests go. adapt: how runs are adapted, see `evaluate.py`; the
    reported number of steps of "head" and "finetune" is the best on validation tasks. backbone: "none" leaves its row
    out. settings: further overrides of evaluations with gradient steps.
    Raises InputError for a run that is not finished, and if two runs would be one row.
    """
    read = [read_run(path) for path in runs]
    names = [f"{run.results['algo']} from {run.results['data']}" for run in read]
    names = [f"{n}, seed {r.results['seed']}" if names.count(n) > 1 else n for n, r in zip(names, read, strict=True)]
    if len(set(names)) < len(names):
        raise InputError(f"several runs are {max(names, key=names.count)}: give one of each algorithm, data and seed")
    found = []
    for target in targets:
        of_test = [f"data={target.name}", *target.overrides, f"test.episodes={episodes}", "test.seed=0"]
        baselines = PICTURES if "dataset" in target.values else VECTORS
        for row, made in baselines.items():
            if "BACKBONE" in made and backbone == "none":
                continue
            row, made = (text.replace("BACKBONE", backbone) for text in (row, made))
            place = out / _slug(target.label) / _slug(row)
            job = TableJob(f"{row} on {target.label}", place, [*of_test, *made.split(), "seed=0", *EVERY_RUN])
            found.append(Cell(row, "", target, job))
        for name, run in zip(names, read, strict=True):
            for how in adapt:
                steps = ["test.steps=validation", *settings] if how in ("head", "finetune") else []
                own = [f"run={run.path.resolve()}", *of_test, f"adapt={how}", *steps, EVERY_RUN[0]]
                row = name if how == "inner" else f"{name}, {how}"
                place = out / _slug(target.label) / _slug(row)
                job = Evaluation(f"{row} on {target.label}", place, own)
                trained = target.is_trained_on_by(run.config["data"])
                found.append(Cell(row, run.results["data"], target, job, trained))
    return found


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text).strip("_")


def table_rows(table: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return the rows of the CSV file, one for each cell whose test is finished.

    Differences are paired, to raw inputs and to random features. `negative` names those of the two that the row is
    worse than, its 95 % interval included. Raises InputError if tests of a target were on different episodes.
    """
    found = []
    for target in dict.fromkeys(cell.target.label for cell in table):
        done = [c for c in table if c.target.label == target and c.job.is_finished]
        tests: Mapping[str, FinishedRun] = {cell.row: read_run(cell.job.directory) for cell in done}
        require_same_episodes(list(tests.values()))
        found += [_numbers(cell, tests) for cell in done]
    if len({row["metric"] for row in found}) > 1:
        raise InputError("targets of classes and of functions need tables of their own: their metrics differ")
    return found


def _numbers(cell: Cell, tests: Mapping[str, FinishedRun]) -> dict[str, Any]:
    run = tests[cell.row]
    values = run.values()
    worse = 1 if run.metric in ERRORS else -1
    row: dict[str, Any] = {"target": cell.target.label, "row": cell.row, "source": cell.source}
    row |= {"ceiling": cell.is_ceiling or None, "metric": run.metric, "episodes": len(values)}
    row |= {"mean": float(values.mean()), "ci95": ci95(values), "step": run.results["test"]["step"]}
    negative = []
    for name, key in ((RAW, "to_raw"), (RANDOM, "to_random")):
        difference = values - tests[name].values() if name in tests and cell.row != name else None
        row[key] = None if difference is None else float(difference.mean())
        row[f"{key}_ci95"] = None if difference is None else ci95(difference)
        if difference is not None and worse * difference.mean() > ci95(difference) and cell.row not in (RAW, RANDOM):
            negative.append(name)
    script = "evaluate.py" if cell.source else "train.py"
    public = [re.sub(r"^(run|data\.root|data\.cache)=.*", r"\1=FOLDER", o) for o in cell.job.overrides]
    return row | {"negative": " and ".join(negative), "command": shlex.join(["python", script, *public])}


def in_cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the table as lists of cells, its head first: a row for each row, a column for each target."""
    targets = list(dict.fromkeys(row["target"] for row in rows))
    found = {(row["row"], row["target"]): row for row in rows}
    title = TITLES.get(rows[0]["metric"], rows[0]["metric"])
    lines = [
        [name, *(_shown(found[name, t]) if (name, t) in found else "not run" for t in targets)]
        for name in dict.fromkeys(row["row"] for row in rows)
    ]
    return [[f"test {title}", *targets], *lines]


def _shown(row: Mapping[str, Any]) -> str:
    text = f"{short(row['mean'], row['metric'])} ± {short(row['ci95'], row['metric'])}"
    return text + (" (ceiling)" if row["ceiling"] else "") + (f" {NEGATIVE}" if row["negative"] else "")


def heat_map(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot rows by targets. Colour: the gain over raw inputs. Marked: negative transfer, and ceilings by a frame."""
    lines = in_cells(rows)
    names, targets = [line[0] for line in lines[1:]], lines[0][1:]
    by_place = {(row["row"], row["target"]): row for row in rows}
    metric = rows[0]["metric"]
    sign, scale = -1 if metric in ERRORS else 1, 100 if metric == "accuracy" else 1
    gains = np.full((len(names), len(targets)), np.nan)
    for (name, target), of_place in by_place.items():
        gains[names.index(name), targets.index(target)] = sign * scale * (of_place["to_raw"] or 0.0)
    most = np.nanmax(np.abs(gains)) or 1.0
    width = 3.2 + 0.075 * max(map(len, names)) + 1.5 * len(targets)
    figure, (ax,) = panels(1, 1, width=width, height=1.6 + 0.36 * len(names))
    ax.grid(visible=False)
    # Orange and purple, which differ in lightness and for all kinds of colour vision.
    image = ax.imshow(gains, cmap=matplotlib.colormaps["PuOr"], vmin=-most, vmax=most, aspect="auto")
    for i, line in enumerate(lines[1:]):
        for j, text in enumerate(line[1:]):
            row = by_place.get((names[i], targets[j]))
            shown = text.replace(" (ceiling)", "").partition(" ± ")[0] if row else text
            shown += f" {NEGATIVE}" if row and row["negative"] else ""
            ink = "white" if abs(gains[i, j]) > 0.6 * most else INK
            ax.text(j, i, shown, ha="center", va="center", fontsize=9, color=ink)
            if row and row["ceiling"]:
                ax.add_patch(
                    matplotlib.patches.Rectangle((j - 0.48, i - 0.44), 0.96, 0.88, fill=False, edgecolor=VERMILLION)
                )
    ax.set_xticks(range(len(targets)), targets)
    ax.set_yticks(range(len(names)), names)
    figure.suptitle(f"Test {TITLES.get(metric, metric)}. {NEGATIVE} negative transfer; framed: ceiling", fontsize=11)
    figure.colorbar(image, ax=ax, label=f"gain over {RAW}", pad=0.02)
    return figure


def remarks(table: Sequence[Cell], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return in sentences what is negative transfer, and which targets have no ceiling."""
    found = []
    for row in rows:
        if row["negative"] and row["source"]:
            differences = [
                f"{short(row[key], row['metric'], signed=True)} ± {short(row[f'{key}_ci95'], row['metric'])} to {name}"
                for name, key in ((RAW, "to_raw"), (RANDOM, "to_random"))
                if name in row["negative"]
            ]
            found.append(f"{NEGATIVE} {row['row']} on {row['target']}: {', '.join(differences)}")
    for target in {cell.target.label: cell.target for cell in table}.values():
        if not any(cell.is_ceiling for cell in table if cell.target.label == target.label):
            found.append(f"no ceiling for {target.label}: give a run that was trained on it, data={target.name}")
    return found


def transfer(
    runs: Sequence[Path],
    to: Sequence[str],
    out: Path,
    *,
    adapt: Sequence[str] = ("inner", "finetune"),
    episodes: int = 600,
    backbone: str = "efficientnet_lite0",
    set: Sequence[str] = (),
    jobs: int = 1,
    tables_only: bool = False,
    csv: Path | None = None,
    figure: Path | None = None,
    **printed: Any,
) -> tuple[list[list[str]], list[str]]:
    """Test what is missing, `jobs` at a time, and return the table as lists of cells, and remarks.

    runs, out, adapt, episodes, backbone: see `cells`. to: see `Target.of`. set: its settings. tables_only: only read
    what is finished. csv, figure: files that are written. Raises InputError for what is not possible, and if a test
    failed or none is finished.
    """
    table = cells(runs, [Target.of(text) for text in to], out, adapt, episodes, backbone, set)
    for cell in table:
        cell.job.check()
    missing = [] if tables_only else [cell.job for cell in table if not cell.job.is_finished]
    if missing and (failed := run_all(missing, jobs)):
        raise InputError("; ".join(failed))
    if not (rows := table_rows(table)):
        raise InputError(f"there is no finished test in {out}")
    if csv:
        write_csv(csv, rows)
    if figure:
        heat_map(rows).savefig(figure, dpi=120)
    return in_cells(rows), remarks(table, rows)
