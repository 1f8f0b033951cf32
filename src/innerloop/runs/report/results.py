"""The results of a run, as data and as text: results.json, rows for loggers, the closing table, test_episodes.csv."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from innerloop.metrics import summarize

Curve = Mapping[str, Sequence[dict[str, float]]]
"""Metric -> its statistics before adaptation and after 0, 1, …, K inner steps."""


def split_results(curve: Curve, episodes: int, step: int) -> dict[str, Any]:
    """Return the entry of results.json for one split.

    It holds the metrics after `step` inner steps, before any adaptation, and along the curve.
    """
    by_step = [
        {"step": s, **{name: c[s + 1] for name, c in curve.items()}} for s in range(len(next(iter(curve.values()))) - 1)
    ]
    return {
        "episodes": episodes,
        "step": step,
        **{name: column[step + 1] for name, column in curve.items()},
        "unadapted": {name: column[0] for name, column in curve.items()},
        "by_step": by_step,
    }


def source_results(
    names: Sequence[str], values: Tensor, sources: Sequence[str], step: int
) -> dict[str, dict[str, Any]]:
    """Return for each source the number of its episodes and its metrics after `step` inner steps.

    values: (episodes, 1 + K + 1, metrics), the metrics in the order of `names`. sources: of each episode.
    """
    found: dict[str, dict[str, Any]] = {}
    for source in dict.fromkeys(sources):
        own = values[[i for i, name in enumerate(sources) if name == source], step + 1]
        found[source] = {"episodes": len(own), **{name: summarize(own[:, i]) for i, name in enumerate(names)}}
    return found


def flatten(results: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return (name -> number, for a summary; a row of numbers for each inner step of the test)."""
    flat = {k: v for k, v in results.items() if not isinstance(v, Mapping)}
    for split in ("validation", "test"):
        for name, entry in results[split].items():
            if isinstance(entry, Mapping) and "mean" in entry:
                flat[f"{split}/{name}"] = entry["mean"]
                flat[f"{split}/{name}_ci95"] = entry["ci95"]
        flat[f"{split}/step"] = results[split]["step"]
        for source, entry in results[split].get("sources", {}).items():
            flat |= {f"{split}/{source}/{name}": e["mean"] for name, e in entry.items() if isinstance(e, Mapping)}
    rows = []
    for row in results["test"]["by_step"]:
        numbers = {k: v for k, v in row.items() if k != "step"}
        rows.append({"step": row["step"]} | {f"{n}_{s}": v for n, e in numbers.items() for s, v in e.items()})
    return flat, rows


def episode_rows(names: Sequence[str], values: Tensor, step: int) -> list[dict[str, float]]:
    """Return for each test episode its metrics before any adaptation and after `step` inner steps.

    values: (episodes, 1 + K + 1, metrics), the metrics in the order of `names`.
    """
    return [
        {"episode": episode}
        | {f"unadapted/{name}": value for name, value in zip(names, curve[0], strict=True)}
        | dict(zip(names, curve[step + 1], strict=True))
        for episode, curve in enumerate(values.tolist())
    ]


def closing_table(results: Mapping[str, Any], metric: str, run_dir: Path, beside: Sequence[str] = ()) -> str:
    """Return the lines that a run ends with. beside: metrics that no adaptation changes, in lines of their own."""
    test, trained = results["test"], ""
    if results.get("steps") == 0:
        trained = ", not trained"
    elif "steps" in results:
        trained = f", {results['steps']:,} steps in {results['train_seconds']:.0f} s"
        trained += f" ({results['steps_per_second']:.1f} per second)"
    lines = [
        f"{results['algo']} on {results['data']} ({results['net']}, {results['parameters']:,} parameters), "
        f"seed {results['seed']}{trained}",
        f"{_episodes(test['episodes'])}{_conditions(results)}:",
        f"  {'inner steps':<18}{metric:>10}{'± 95 %':>10}{'median':>10}",
    ]
    shown = [("before adaptation", test["unadapted"])]
    # Where nothing writes the weights that the steps start from, step 0 is no adaptation.
    shown += [(str(row["step"]), row) for row in test["by_step"] if row["step"] or row[metric] != shown[0][1][metric]]
    shown += [(name, {metric: test[name]}) for name in beside]
    for label, row in shown:
        entry = row[metric]
        mark = "  <- reported" if row.get("step") == test["step"] else ""
        cells = "".join(f" {_number(entry[name]):>9}" for name in ("mean", "ci95", "median"))
        lines.append(f"  {label:<18}{cells}{mark}")
    if sources := test.get("sources"):
        width = max(18, *map(len, sources))
        lines.append(f"  {'source':<{width}}{metric:>10}{'± 95 %':>10}{'median':>10}{'episodes':>10}")
        for name, entry in sources.items():
            cells = "".join(f" {_number(entry[metric][part]):>9}" for part in ("mean", "ci95", "median"))
            lines.append(f"  {name:<{width}}{cells}{entry['episodes']:>10}")
    return "\n".join(["", *lines, f"run directory: {run_dir}"])


def _episodes(count: int) -> str:
    return f"{count} test episodes" if count != 1 else "1 test episode, and an interval needs two or more test tasks"


def _number(value: float | None) -> str:
    """Return a number with four decimals, a large one with four digits."""
    return "nan" if value is None else f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3g}"


def _conditions(results: Mapping[str, Any]) -> str:
    if results["norm"] is None:
        return ""
    transductive = " (transductive)" if results["transductive"] else ""
    queries = f", {results['queries']} queries per class" if results["queries"] is not None else ""
    return f", norm: {results['norm']}{transductive}{queries}"


def write_episodes(path: Path, names: Sequence[str], values: Tensor, sources: Sequence[str] = ()) -> None:
    """Write a CSV row for each test episode and number of inner steps, so that runs can be compared in pairs.

    values: (episodes, 1 + K + 1, metrics), the metrics in the order of `names`. sources: of each episode, if there are.
    """
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["episode", "step", *names, *(["source"] if sources else [])])
        for episode, curve in enumerate(values.tolist()):
            source = [sources[episode]] if sources else []
            for column, row in enumerate(curve):
                writer.writerow([episode, "unadapted" if column == 0 else column - 1, *row, *source])
