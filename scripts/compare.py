"""Compares runs on the test episodes that they share: python scripts/compare.py RUN [RUN ...].

Runs of the same configuration but for the seed form one row: mean over seeds and episodes with its 95 % interval, the
median, CPU seconds. The paired difference to the first row, episode by episode, tells what overlapping intervals hide.
Intervals are over test episodes (each episode's value first averaged over the seeds); `seeds` is the spread of the
seeds' means. `--markdown` prints the table for a README.
"""

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np


def ci95(values: np.ndarray) -> float:
    """Half-width of the normal 95 % interval of the mean of (n,) values."""
    return float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))


def episode_values(run: Path, metric: str, step: int) -> np.ndarray:
    """The metric of each test episode after `step` inner steps, in the order of the episodes."""
    with (run / "test_episodes.csv").open(newline="") as file:
        rows = [(int(r["episode"]), float(r[metric])) for r in csv.DictReader(file) if r["step"] == str(step)]
    return np.array([value for _, value in sorted(rows)])


def label(results: dict) -> tuple[str, str, int]:
    return results["algo"], results["data"], results["steps"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="+", type=Path, help="run directories; the first one's configuration is the reference"
    )
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    groups: dict[tuple, list[tuple[dict, np.ndarray]]] = defaultdict(list)
    metric = ""
    for run in options.runs:
        path = run / "results.json"
        if not path.is_file():
            parser.error(f"{run} is no finished run: it has no results.json")
        results = json.loads(path.read_text())
        metric = next(name for name in ("accuracy", "mse", "loss") if name in results["test"])
        groups[label(results)].append((results, episode_values(run, metric, results["test"]["step"])))
    lengths = {len(values) for group in groups.values() for _, values in group}
    if len(lengths) > 1:
        parser.error(f"the runs were tested on different numbers of episodes: {sorted(lengths)}")
    reference = np.mean([values for _, values in next(iter(groups.values()))], axis=0)
    head = [
        "algo",
        "data",
        "steps",
        "seeds",
        "test step",
        metric,
        "seed spread",
        "median",
        "CPU s",
        "difference to first",
    ]
    rows = []
    for (algo, data, steps), group in groups.items():
        values = np.array([v for _, v in group])
        mean = values.mean(0)
        difference = mean - reference
        paired = "" if difference.any() == 0 else f"{difference.mean():+.4f} ± {ci95(difference):.4f}"
        spread = f"{values.mean(1).std(ddof=1):.4f}" if len(group) > 1 else ""
        seeds = ",".join(str(r["seed"]) for r, _ in group)
        chosen = ",".join(str(r["test"]["step"]) for r, _ in group)
        median = np.mean([np.median(v) for v in values])
        cpu = np.mean([r["train_cpu_seconds"] for r, _ in group])
        cells = [algo, data, steps, seeds, chosen, f"{mean.mean():.4f} ± {ci95(mean):.4f}", spread, f"{median:.4f}"]
        rows.append([*map(str, cells), f"{cpu:.0f}", paired])
    if options.markdown:
        lines = [head, ["---"] * len(head), *rows]
        print("\n".join("| " + " | ".join(line) + " |" for line in lines))
        return
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
    for line in [head, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
