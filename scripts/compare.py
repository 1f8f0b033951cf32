"""Compares runs on the test episodes that they share: python scripts/compare.py RUN [RUN ...].

Runs of the same configuration but for the seed form one row: mean over seeds and episodes with its 95 % interval, the
median, CPU seconds. The paired difference to the first row, episode by episode, tells what overlapping intervals hide.
Intervals are over test episodes (each episode's value first averaged over the seeds): they tell these trained models
apart. Whether one algorithm trains better ones than another is told by `over seeds`: the t interval of the differences
between runs of the same seed. `seed spread` is that of the seeds' means. Runs that were tested on different episodes
are refused. `--markdown` prints the table for a README.
"""

import argparse
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

# Of a data configuration, what only training episodes and the number of test episodes depend on.
OF_THE_TRAINING = ("meta_batch_size", "num_workers", "rotations", "test_episodes", "train_queries")

# What a metric is called in a table, with its unit.
TITLES = {"accuracy": "accuracy, %", "mse": "MSE", "loss": "loss"}


class ComparisonError(Exception):
    """A directory that is no finished run, or runs that do not pair."""


@dataclass(frozen=True)
class Run:
    """A finished run: its directory, results.json, config.yaml and overrides.yaml."""

    path: Path
    results: dict[str, Any]
    config: dict[str, Any]
    overrides: list[str]

    @property
    def metric(self) -> str:
        return next(name for name in ("accuracy", "mse", "loss") if name in self.results["test"])

    def values(self, step: int | None = None) -> np.ndarray:
        """The metric of each test episode (episodes,) after so many inner steps; None: the reported number."""
        file = self.path / "test_episodes.csv"
        wanted = str(self.results["test"]["step"] if step is None else step)
        return _test_values(file, file.stat().st_mtime_ns, self.metric, wanted)

    def episodes(self) -> dict[str, Any]:
        """What decides the test episodes: key -> value."""
        data = {f"data.{k}": v for k, v in self.config["data"].items() if k not in OF_THE_TRAINING}
        test = {"test.seed": self.config["test"]["seed"], "test.episodes": self.results["test"]["episodes"]}
        return data | test


@cache
def _test_values(path: Path, modified: int, metric: str, step: str) -> np.ndarray:
    with path.open(newline="") as file:
        found = [(int(r["episode"]), float(r[metric])) for r in csv.DictReader(file) if r["step"] == step]
    return np.array([value for _, value in sorted(found)])


def read(path: Path) -> Run:
    """The run of a directory. Raises ComparisonError if it is not finished."""
    if not (path / "results.json").is_file():
        raise ComparisonError(f"{path} is no finished run: it has no results.json")
    results, config = (path / "results.json").read_text(), (path / "config.yaml").read_text()
    return Run(path, json.loads(results), yaml.safe_load(config), recorded_overrides(path))


def recorded_overrides(path: Path) -> list[str]:
    """What a run's command line said; none where a run was stopped before it could record that."""
    record = path / "overrides.yaml"
    return yaml.safe_load(record.read_text()) if record.is_file() else []


def require_same_episodes(runs: Sequence[Run]) -> None:
    """Raises ComparisonError unless all runs were tested on the very same episodes."""
    for run in runs[1:]:
        if differing := differences(runs[0], run):
            raise ComparisonError(
                f"{runs[0].path} and {run.path} were tested on different episodes: {', '.join(differing)}"
            )


def differences(first: Run, second: Run) -> list[str]:
    """What makes the test episodes of two runs different, such as "data.shots 5 and 1"; empty if they pair."""
    a, b = first.episodes(), second.episodes()
    return [f"{k} {a.get(k)} and {b.get(k)}" for k in sorted({*a, *b}) if a.get(k) != b.get(k)]


def grouped(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of one configuration but for the seed and the logger, in the order of their first."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        settings = {k: v for k, v in run.config.items() if k not in ("seed", "logger", "resume", "sweep", "debug")}
        groups[json.dumps([settings, run.results["steps"]], sort_keys=True)].append(run)
    return list(groups.values())


def ci95(values: np.ndarray) -> float:
    """Half-width of the normal 95 % interval of the mean of (n,) values."""
    return float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))


def t_ci95(values: np.ndarray) -> float:
    """Half-width of Student's 95 % interval of the mean of (n,) values, n at least 2: for few, such as seeds."""
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


def per_episode(group: Sequence[Run], step: int | None = None) -> np.ndarray:
    """The metric of each test episode (episodes,) after so many inner steps, averaged over a group's seeds."""
    return np.mean([run.values(step) for run in group], axis=0)


@np.errstate(invalid="ignore")  # of what diverged, intervals and differences are no numbers
def summary(group: Sequence[Run], reference: Sequence[Run] | None) -> dict[str, Any]:
    """A group in numbers; None where there is nothing to say. reference: what the paired difference is taken to."""
    values = np.array([run.values() for run in group])
    mean = values.mean(0)
    difference = mean - per_episode(reference) if reference else None
    paired = difference is not None and difference.any()
    seeds = [run.results["seed"] for run in group]
    of_reference = {run.results["seed"]: run.values().mean() for run in reference} if reference and paired else {}
    by_seed = [m - of_reference[seed] for seed, m in zip(seeds, values.mean(1), strict=True) if seed in of_reference]
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


def settings_of(overrides: Sequence[str]) -> str:
    """What a command line set besides the algorithm, the data, the seed, and how the run was made."""
    apart = ("algo", "data", "data.root", "seed", "logger", "trainer.threads")
    return " ".join(o for o in overrides if o.partition("=")[0] not in apart)


def typed(overrides: Sequence[str], seeds: Sequence[int], flags: Sequence[str] = ()) -> str:
    """What a person types to get runs with these overrides: a sweep, if there are several seeds."""
    kept = [o for o in overrides if not o.startswith(("seed=", "hydra.run.dir="))]
    flags = [*flags, "-m"] if len(seeds) > 1 else flags
    return shlex.join(["python", "train.py", *flags, *kept, f"seed={','.join(map(str, seeds))}"])


def short(value: float, metric: str, signed: bool = False) -> str:
    """A metric for a table: accuracies in percent, others to three digits; without the zero before the point."""
    number, digits = (100 * value, 2) if metric == "accuracy" else (value, 3)
    return re.sub(r"^([+-]?)0\.", r"\1.", f"{number:{'+' if signed else ''}.{digits}f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="+", type=Path, help="run directories; the first one's configuration is the reference"
    )
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    try:
        runs = [read(path) for path in options.runs]
        require_same_episodes(runs)
    except ComparisonError as error:
        parser.error(str(error))
    metric = runs[0].metric
    head = ["algo", "data", "settings", "steps", "seeds", "test step", metric, "seed spread", "median", "CPU s"]
    head += ["difference to first", "over seeds"]
    groups = grouped(runs)
    rows = []
    for group in groups:
        first, s = group[0], summary(group, groups[0])
        cells = [first.results["algo"], first.results["data"], settings_of(first.overrides), first.results["steps"]]
        cells += [",".join(map(str, s["seeds"])), ",".join(map(str, s["test_step"]))]
        cells += [f"{s['mean']:.4f} ± {s['ci95']:.4f}", "" if s["seed_spread"] is None else f"{s['seed_spread']:.4f}"]
        cells += [f"{s['median']:.4f}", f"{s['cpu_seconds']:.0f}"]
        cells += ["" if s["difference"] is None else f"{s['difference']:+.4f} ± {s['difference_ci95']:.4f}"]
        over_seeds = s["difference_over_seeds_ci95"]
        cells.append("" if over_seeds is None else f"± {over_seeds:.4f}")
        rows.append([str(cell) for cell in cells])
    if options.markdown:
        lines = [head, ["---"] * len(head), *rows]
        print("\n".join("| " + " | ".join(line) + " |" for line in lines))
        return
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
    for line in [head, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
