"""Finished runs compared on the test episodes that they share: means, intervals, paired differences.

Intervals are 95 %. An interval over test episodes, each episode first averaged over the seeds, compares these trained
models. Student's interval over the seeds' means, or over differences between runs of the same seed, tells whether
another training would give the same.
"""

import csv
import json
import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

from innerloop.errors import InputError
from innerloop.runs.config import CONFIG
from innerloop.runs.record import RESULTS
from innerloop.runs.report.style import METRICS

# Keys of a data configuration that test episodes do not depend on, apart from their number and how a picture is seen.
TRAINING_KEYS = (
    *("augment", "discount", "meta_batch_size", "num_workers", "overlap", "rotations", "test_episodes"),
    *("train_queries", "weights"),
)
SEEN_KEYS = ("backbone", "standardize", "size", "channels")
# Keys that runs may lack because they are older, with the values that those runs had.
NEWER_KEYS: dict[str, Any] = {
    **{"class_level": None, "frequency": [1.0, 1.0], "sampler": "uniform", "split": "classes", "split_rule": "count"},
}
# Keys of a configuration that do not describe what was trained.
RUN_KEYS = ("seed", "logger", "resume", "sweep", "debug", "traceback")

TITLES = {
    **{"accuracy": "accuracy, %", "mse": "MSE", "mae": "MAE", "rmse": "RMSE", "ndcg": "nDCG@10"},
    **{"return": "return", "regret": "regret", "loss": "loss"},
}
"""Metric -> its title in a table, with the unit."""


@dataclass(frozen=True)
class FinishedRun:
    """The record of a finished run: its directory, results.json, config.yaml and overrides.yaml."""

    path: Path
    results: dict[str, Any]
    config: dict[str, Any]
    overrides: list[str]

    @property
    def metric(self) -> str:
        older = (name for name in METRICS if name in self.results["test"])
        return self.results.get("metric") or next(older)

    def values(self, step: int | str | None = None, metric: str | None = None) -> np.ndarray:
        """Return a metric of each test episode (episodes,) after `step` inner steps; None: the reported ones.

        step: "unadapted" for before any adaptation.
        """
        file = self.path / "test_episodes.csv"
        wanted = str(self.results["test"]["step"] if step is None else step)
        return _test_values(file, file.stat().st_mtime_ns, metric or self.metric, wanted)

    def sources(self) -> np.ndarray:
        """Return the source of each test episode (episodes,); empty unless the run's tasks are a mixture."""
        file = self.path / "test_episodes.csv"
        return _test_sources(file, file.stat().st_mtime_ns)

    def episodes(self) -> dict[str, Any]:
        """Return key -> value of everything that decides the test episodes."""
        known = dict(self.config["data"])
        if (folders := known.pop("class_folders", None)) is not None:  # the older name
            known["class_level"] = 1 if folders == "outermost" else None
        if known.get("sampler", "uniform") == "uniform":
            known.pop("limits", None)
        if (ways := known.pop("test_ways", None)) is not None:
            known["ways"] = ways
        known = {k: v for k, v in known.items() if k not in NEWER_KEYS or v != NEWER_KEYS[k]}
        data = {f"data.{k}": v for k, v in known.items() if k not in (*TRAINING_KEYS, *SEEN_KEYS)}
        test = {"test.seed": self.config["test"]["seed"], "test.episodes": self.results["test"]["episodes"]}
        return data | test


@cache
def _test_values(path: Path, modified: int, metric: str, step: str) -> np.ndarray:
    with path.open(newline="") as file:
        found = [(int(r["episode"]), float(r[metric])) for r in csv.DictReader(file) if r["step"] == step]
    return np.array([value for _, value in sorted(found)])


@cache
def _test_sources(path: Path, modified: int) -> np.ndarray:
    with path.open(newline="") as file:
        found = {int(r["episode"]): r["source"] for r in csv.DictReader(file) if r.get("source")}
    return np.array([found[i] for i in sorted(found)])


def read_run(path: Path) -> FinishedRun:
    """Return the run of a directory. Raises InputError if it is not finished."""
    if not (path / RESULTS).is_file():
        raise InputError(f"{path} is no finished run: it has no {RESULTS}")
    results, config = (path / RESULTS).read_text(), (path / CONFIG).read_text()
    return FinishedRun(path, json.loads(results), yaml.safe_load(config), recorded_overrides(path))


def recorded_overrides(path: Path) -> list[str]:
    """Return the overrides that a run recorded, none if it was stopped before it recorded them."""
    record = path / "overrides.yaml"
    return yaml.safe_load(record.read_text()) if record.is_file() else []


def require_same_episodes(runs: Sequence[FinishedRun]) -> None:
    """Raise InputError unless all runs were tested on the very same episodes."""
    for run in runs[1:]:
        if differing := differences(runs[0], run):
            raise InputError(f"{runs[0].path} and {run.path} were tested on different episodes: {', '.join(differing)}")


def differences(first: FinishedRun, second: FinishedRun) -> list[str]:
    """Return what makes the test episodes of two runs differ, such as "data.shots 5 and 1"; empty if they pair."""
    a, b = first.episodes(), second.episodes()
    return [f"{k} {a.get(k)} and {b.get(k)}" for k in sorted({*a, *b}) if a.get(k) != b.get(k)]


def grouped(runs: Sequence[FinishedRun]) -> list[list[FinishedRun]]:
    """Return the runs in groups of one configuration apart from the seed, in the order of each group's first run."""
    groups: dict[str, list[FinishedRun]] = defaultdict(list)
    for run in runs:
        settings = {k: v for k, v in run.config.items() if k not in RUN_KEYS}
        groups[json.dumps([settings, run.results["steps"]], sort_keys=True)].append(run)
    return list(groups.values())


def ci95(values: np.ndarray) -> float:
    """Return the half-width of the normal 95 % interval of the mean of (n,) values."""
    return float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))


def t_ci95(values: np.ndarray) -> float:
    """Return the half-width of Student's 95 % interval of the mean of (n,) values, n at least 2; for few values."""
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


def per_episode(group: Sequence[FinishedRun], step: int | str | None = None, metric: str | None = None) -> np.ndarray:
    """Return a metric of each test episode (episodes,), averaged over a group's seeds: see `FinishedRun.values`."""
    return np.mean([run.values(step, metric) for run in group], axis=0)


def by_source(group: Sequence[FinishedRun], reference: Sequence[FinishedRun]) -> dict[str, dict[str, float | None]]:
    """Return for each source of a group of runs its mean, interval and paired difference, in the reported metric.

    reference: the group that the difference is taken to; None in place of it if it has no run or is the group itself.
    """
    sources, values = group[0].sources(), per_episode(group)
    difference = values - per_episode(reference) if reference else np.zeros_like(values)
    paired = bool(difference.any())
    found: dict[str, dict[str, float | None]] = {}
    for name in dict.fromkeys(sources.tolist()):
        here = sources == name
        entry: dict[str, float | None] = {"mean": float(values[here].mean()), "ci95": ci95(values[here])}
        entry["difference"] = float(difference[here].mean()) if paired else None
        found[name] = entry | {"difference_ci95": ci95(difference[here]) if paired else None}
    return found


@np.errstate(invalid="ignore")  # intervals and differences of diverged runs are NaN
def summary(group: Sequence[FinishedRun], reference: Sequence[FinishedRun] | None) -> dict[str, Any]:
    """Return the numbers of a group of runs that differ in the seed only; None where a number does not exist.

    reference: the group that the paired difference is taken to.
    """
    values = np.array([run.values() for run in group])
    mean = values.mean(0)
    difference = mean - per_episode(reference) if reference else np.zeros_like(mean)
    paired = bool(difference.any())
    seeds = [run.results["seed"] for run in group]
    reference_means = {r.results["seed"]: r.values().mean() for r in reference} if reference and paired else {}
    by_seed = [m - reference_means[s] for s, m in zip(seeds, values.mean(1), strict=True) if s in reference_means]
    return {
        "mean": float(mean.mean()),
        "ci95": ci95(mean),
        "median": float(np.mean([np.median(v) for v in values])),
        "seeds": seeds,
        "over_seeds_ci95": t_ci95(values.mean(1)) if len(group) > 1 else None,
        "seed_spread": float(values.mean(1).std(ddof=1)) if len(group) > 1 else None,
        "test_step": [run.results["test"]["step"] for run in group],
        "cpu_seconds": float(np.mean([run.results["train_cpu_seconds"] for run in group])),
        "difference": float(difference.mean()) if paired else None,
        "difference_ci95": ci95(difference) if paired else None,
        "difference_over_seeds_ci95": t_ci95(np.array(by_seed)) if len(by_seed) > 1 else None,
    }


def comparison(runs: Sequence[FinishedRun]) -> list[list[str]]:
    """Return a table as lists of cells, its head first: a row for each group of seeds, compared with the first group.

    Raises InputError if the runs were tested on different episodes.
    """
    require_same_episodes(runs)
    head = ["algo", "data", "settings", "steps", "seeds", "test step", runs[0].metric, "seed spread", "median", "CPU s"]
    table = [[*head, "difference to first", "over seeds"]]
    groups = grouped(runs)
    for group in groups:
        first, s = group[0], summary(group, groups[0])
        cells = [first.results["algo"], first.results["data"], settings_of(first.overrides), first.results["steps"]]
        cells += [",".join(map(str, s["seeds"])), ",".join(map(str, s["test_step"]))]
        cells += [f"{s['mean']:.4f} ± {s['ci95']:.4f}", "" if s["seed_spread"] is None else f"{s['seed_spread']:.4f}"]
        cells += [f"{s['median']:.4f}", f"{s['cpu_seconds']:.0f}"]
        cells += ["" if s["difference"] is None else f"{s['difference']:+.4f} ± {s['difference_ci95']:.4f}"]
        over_seeds = s["difference_over_seeds_ci95"]
        cells.append("" if over_seeds is None else f"± {over_seeds:.4f}")
        table.append([str(cell) for cell in cells])
    return table


def in_markdown(table: Sequence[Sequence[str]]) -> str:
    """Return a table of cells, its head first, in Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [table[0], ["---"] * len(table[0]), *table[1:]])


def in_columns(table: Sequence[Sequence[str]]) -> str:
    """Return a table of cells as text in columns."""
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
    return "\n".join(line.rstrip() for line in lines)


def settings_of(overrides: Sequence[str]) -> str:
    """Return the overrides that are settings, without the algorithm, the data, the seed and how the run was made.

    Of the run that training began with, the name of its directory is left.
    """
    apart = ("algo", "data", "data.root", "seed", "logger", "trainer.threads")
    kept = [o for o in overrides if o.partition("=")[0] not in apart and not o.startswith("data.roots.")]
    return " ".join(f"init_from={Path(o).name}" if o.startswith("init_from=") else o for o in kept)


def command_of(overrides: Sequence[str], seeds: Sequence[int], flags: Sequence[str] = ()) -> str:
    """Return the command that makes runs with these overrides: a sweep, if there are several seeds."""
    kept = [o for o in overrides if not o.startswith(("seed=", "hydra.run.dir="))]
    swept = any(re.fullmatch(r"[\w.]+=\w+(,\w+)+", o) for o in kept)
    flags = [*flags, "-m"] if len(seeds) > 1 or swept else flags
    return shlex.join(["python", "train.py", *flags, *kept, f"seed={','.join(map(str, seeds))}"])


def short(value: float, metric: str, signed: bool = False) -> str:
    """Return a metric for a table: accuracies in percent, others to three digits, without a zero before the point."""
    number, digits = (100 * value, 2) if metric == "accuracy" else (value, 3)
    return re.sub(r"^([+-]?)0\.", r"\1.", f"{number:{'+' if signed else ''}.{digits}f}")
