"""The meta-step of second-order MAML beside learn2learn, higher and torchopt: python scripts/benchmark.py --out DIR.

    pip install -e ".[peers]" && python scripts/benchmark.py --out DIR --whole-run

A meta-step is forward, backward and an outer Adam update. All programs get the same nets (innerloop's; the peers' with
torch's own batch norm), weights and meta-batch, and their meta-gradients must agree in float64 before any timing. For
each workload they take turns in one process, each at every thread setting (innerloop's thread engine: workers), in
rounds whose medians are reported. `ratio`: learn2learn's best wall time over the program's; above 1 is faster. Freed
memory is kept for the next tensor, as in innerloop's runs, which speeds up all programs. `peak MB`: the memory that
three meta-steps at one thread add to a process of their own, compilation included. There, freed memory is returned at
once, so that the number shows the memory in use and not the fragmentation of the heap. The peers are used as their
documentation shows, with one task's graph at a time. learn2learn 0.2.0 no longer installs: `--learn2learn FOLDER` names
its unpacked source distribution, which is downloaded otherwise. DIR gets benchmark.json, benchmark.md, benchmark.png
and workers.png, for which the thread engine is timed again with 1, 2, … workers.
"""

import argparse
import contextlib
import functools
import gc
import importlib.util
import itertools
import json
import math
import os
import runpy
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark_programs import (  # makes src/ importable, too
    MODES,
    PROGRAMS,
    WORKLOADS,
    Disagreement,
    Variants,
    Workload,
    above_zero,
    expose_learn2learn,
    fetched_learn2learn,
    gradient_differences,
    machine,
    measured,
    meta_step,
)

from innerloop.devices.memory import keep_freed, largest_resident_set, return_freed
from innerloop.episodes import InputError
from innerloop.learners import MAML

ROOT = Path(__file__).resolve().parents[1]
BY_STEPS = "omniglot_5w1s_stride_q1"


@dataclass
class Row:
    """An object of benchmark.json. None: not measured or not applicable. detail: numbers that only a few rows have."""

    workload: str
    program: str = "innerloop"
    mode: str = "eager"
    threads: int = 1
    wall_ms: float | None = None
    cpu_ms: float | None = None
    ratio_to_learn2learn: float | None = None
    peak_mb: float | None = None
    gradient_max_diff: float | None = None
    rounds: int | None = None
    compile_s: float | None = None
    detail: dict[str, float] = field(default_factory=dict)

    @property
    def variant(self) -> tuple[str, str, str]:
        return self.workload, self.program, self.mode


def timed(workload: Workload, variants: Variants, threads: Iterable[int], rounds: int, at_least: float) -> list[Row]:
    """Return a row for each variant and thread setting.

    at_least: milliseconds of one measurement. The variants take turns in each round.
    """
    contenders = []
    for (program, mode), n in itertools.product(variants, threads):
        torch.set_num_threads(n)
        step = meta_step(workload, program, MODES[mode])
        (first, _), (again, _) = measured(step, 1), measured(step, 1)
        row = Row(workload.name, program, mode, n, rounds=rounds, compile_s=first / 1e3 if mode == "compiled" else None)
        contenders.append((row, step, max(1, math.ceil(at_least / again)), []))
    for i in range(rounds):
        turn = i % len(contenders)  # another one starts each round
        for row, step, repeats, found in contenders[turn:] + contenders[:turn]:
            torch.set_num_threads(row.threads)
            gc.collect()
            step()  # caches and threads are still those of the last variant
            found.append(measured(step, repeats))
    for row, _, _, found in contenders:
        row.wall_ms, row.cpu_ms = np.median(found, axis=0).tolist()
    return [row for row, *_ in contenders]


def in_own_process(function: Callable[..., Any], *arguments: Any, fresh: bool = True) -> Any:
    """Return what the function returns in a new process.

    fresh: False forks a process that has done the imports, which is fast. Its peak memory then includes pages of the
        libraries that it is the first to touch.
    """
    context = get_context("forkserver" if sys.platform == "linux" and not fresh else "spawn")
    context.set_forkserver_preload(["innerloop.learners"])  # what takes seconds
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def timed_alone(learn2learn: Path | None, workload: Workload, *arguments: Any) -> list[Row]:
    """Return `timed` with malloc set as in a run on such inputs. Call it in a process of its own."""
    keep_freed(math.prod(workload.shape))
    if learn2learn is not None:
        expose_learn2learn(learn2learn)
    return timed(workload, *arguments)


def peak_memory(workload: Workload, program: str, settings: dict[str, Any], learn2learn: Path | None) -> float:
    """Return the megabytes by which three meta-steps at one thread raise the peak of this process, a new one."""
    torch.set_num_threads(1)
    return_freed()
    if learn2learn is not None:
        expose_learn2learn(learn2learn)
    step = meta_step(workload, program, settings)
    before = largest_resident_set()
    for _ in range(3):
        step()
    return largest_resident_set() - before


def timed_run(overrides: Sequence[str]) -> tuple[float, int, dict[str, float]]:
    """Run train.py in this process with a clock around its parts. Call it in a new process.

    Returns the time of the first training step, the number of steps, and the wall seconds of each part from then to the
    end of `fit`. Time of a part within another counts for the inner one only.
    """
    from lightning import Trainer
    from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop

    from innerloop.runs.tracking import MetricsFile
    from innerloop.tasks.sinusoid import Sinusoid

    spent: dict[str, float] = defaultdict(float)
    steps: list[float] = []
    at_end: dict[str, float] = {}

    def clock(owner: type, method: str, part: str) -> None:
        function = getattr(owner, method)

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            begun, within = time.time(), sum(spent.values())
            if part == "meta_step":
                steps.append(begun)
            result = function(*args, **kwargs)
            if steps:
                spent[part] += time.time() - max(begun, steps[0]) - (sum(spent.values()) - within)
            if part == "rest":
                at_end.update(spent)
            return result

        setattr(owner, method, wrapper)

    clock(Trainer, "fit", "rest")
    clock(MAML, "training_step", "meta_step")
    clock(Sinusoid, "draw", "data_loading")
    clock(_EvaluationLoop, "run", "validation")
    clock(Trainer, "save_checkpoint", "logging_and_checkpoints")
    clock(MetricsFile, "log_metrics", "logging_and_checkpoints")
    sys.argv = ["train.py", *overrides]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    return steps[0], len(steps), at_end


def whole_run(tiny: bool) -> Row:
    """Time a default run of train.py: seconds of start-up, and shares of the time from its first step to fit's end."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = ["algo=maml", "logger=csv", f"hydra.run.dir={folder}/run"]
        overrides += ["trainer.max_steps=200", "test.episodes=20"] if tiny else []
        begun = time.time()
        first, steps, spent = in_own_process(timed_run, overrides)
    total = sum(spent.values())
    detail = {"startup_s": first - begun, "seconds": total, "steps": steps}
    detail |= {part: seconds / total for part, seconds in spent.items()}
    return Row("whole_run", wall_ms=1e3 * spent["meta_step"] / steps, detail=detail)


def fastest(rows: Sequence[Row]) -> list[Row]:
    """Return for each workload, program and mode the row at its best thread setting."""
    by_wall = sorted(rows, key=lambda row: row.wall_ms or math.inf, reverse=True)
    best = {row.variant: row for row in by_wall}
    return [best[variant] for variant in dict.fromkeys(row.variant for row in rows)]


def markdown(rows: Sequence[Row]) -> str:
    """Return a table with a row for each workload, program and mode at its best thread setting."""
    alone = {row.variant: row.cpu_ms for row in rows if row.threads == 1}
    head = ["workload", "program", "mode", "ratio", "wall ms", "threads", "CPU ms", "CPU ms, 1 thread", "peak MB"]
    lines = [[*head, "compile s"], ["---"] * 3 + ["---:"] * 7]
    for row in fastest(rows):
        numbers = [row.ratio_to_learn2learn, row.wall_ms, row.threads, row.cpu_ms, alone.get(row.variant)]
        numbers += [row.peak_mb, row.compile_s]
        formats = [".2f", ".2f", "d", ".2f", ".2f", ".1f", ".1f"]
        cells = ["" if n is None else format(n, f) for n, f in zip(numbers, formats, strict=True)]
        lines.append([*row.variant, *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(rows: Sequence[Row], workers: Sequence[Row], out: Path) -> None:
    """Draw benchmark.png, the ratios to learn2learn, and workers.png, meta-steps per second by number of workers."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    shown = [row for row in fastest(rows) if row.program != "learn2learn" and row.ratio_to_learn2learn]
    if shown:
        names, kinds = list(dict.fromkeys(row.workload for row in shown)), {(row.program, row.mode) for row in shown}
        figure = Figure(figsize=(2.2 + 1.5 * len(names), 4.8), layout="constrained")
        axes, width = figure.subplots(), 0.8 / len(kinds)
        for i, kind in enumerate(sorted(kinds, key=lambda kind: (PROGRAMS.index(kind[0]), kind[1]))):
            mine = [row for row in shown if (row.program, row.mode) == kind]
            places = [names.index(row.workload) + (i + 0.5) * width - 0.4 for row in mine]
            ratios = np.array([row.ratio_to_learn2learn for row in mine])
            bars = axes.bar(places, ratios - 1, width, bottom=1, label=", ".join(kind))
            axes.bar_label(bars, [f"{ratio:.3g}" for ratio in ratios], fontsize=7)
        axes.axhline(1, color="black", linewidth=1)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names])
        axes.set(title="Speed of a MAML meta-step, each at its best thread setting", ylabel="times learn2learn's speed")
        axes.legend(frameon=False)
        figure.savefig(out / "benchmark.png", dpi=150)
    if workers:
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        axes = figure.subplots()
        for name in dict.fromkeys(row.workload for row in workers):
            mine = [row for row in workers if row.workload == name]
            speeds = [1e3 / row.wall_ms for row in mine if row.wall_ms]
            axes.plot([row.threads for row in mine], speeds, marker="o", label=name.removeprefix("workers_"))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(title="Tasks in parallel", xlabel="workers (threads)", ylabel="meta-steps per second", ylim=(0, None))
        axes.legend(frameon=False)
        figure.savefig(out / "workers.png", dpi=150)


def prepared(options: argparse.Namespace) -> Path | None:
    """Return learn2learn's folder, None if it does not take part. Raises InputError if a peer is missing."""
    for program in set(options.program) & {"higher", "torchopt"}:
        if importlib.util.find_spec(program) is None:
            raise InputError(f'{program} is not installed: pip install -e ".[peers]"')
    if "learn2learn" not in options.program:
        return None
    folder = options.learn2learn or fetched_learn2learn()
    expose_learn2learn(folder)
    return folder


def benchmark(options: argparse.Namespace) -> None:
    """Measure and write what the command line names. Raises InputError and Disagreement."""
    learn2learn, out, tiny = prepared(options), options.out, options.tiny
    out.mkdir(parents=True, exist_ok=True)
    rounds, at_least = (min(options.rounds, 2), 10) if tiny else (options.rounds, 300)
    modes = options.mode or (["eager"] if tiny else list(MODES))
    notes: list[str] = []
    rows: list[Row] = []
    workers: list[Row] = []
    others: list[Row] = []

    def save() -> None:
        objects = [asdict(row) for row in rows + workers + others]
        (out / "benchmark.json").write_text(json.dumps(objects, indent=1) + "\n")

    for name in options.workload:
        workload = WORKLOADS[name].tiny() if tiny else WORKLOADS[name]
        notes.append(f"{name}: {workload}")
        print(notes[-1], file=sys.stderr)
        variants = [(program, "eager") for program in options.program if "eager" in modes]
        # Compilation is for dense nets: it has nothing better than the convolutions that eager mode calls.
        if "innerloop" in options.program and "compiled" in modes and not workload.form:
            variants.append(("innerloop", "compiled"))
        if not variants:
            continue
        torch.set_num_threads(max(options.threads))
        differences = gradient_differences(workload, variants)
        in_turns = (learn2learn, workload, variants, options.threads, rounds, at_least)
        found = in_own_process(timed_alone, *in_turns, fresh=not tiny)
        best = min((row.wall_ms for row in found if row.program == "learn2learn"), default=None)
        for (program, mode), difference in zip(variants, differences, strict=True):
            peak = in_own_process(peak_memory, workload, program, MODES[mode], learn2learn, fresh=not tiny)
            for row in found:
                if (row.program, row.mode) == (program, mode):
                    row.gradient_max_diff, row.peak_mb = difference, peak
                    row.ratio_to_learn2learn = best / row.wall_ms if best else None
        rows += found
        if workload.form and "innerloop" in options.program:
            in_parallel = replace(workload, name=f"workers_{name}")
            counts = range(1, min(options.max_workers, workload.tasks) + 1)
            alone = (None, in_parallel, [("innerloop", "eager")], counts, rounds, at_least)
            workers += in_own_process(timed_alone, *alone, fresh=not tiny)
        if name == BY_STEPS and "innerloop" in options.program:
            for steps, checkpointed in ((1, True), (10, True), (10, False)):
                settings = {"inner_steps": steps, "checkpoint_inner_steps": checkpointed}
                peak = in_own_process(peak_memory, workload, "innerloop", settings, None, fresh=not tiny)
                others.append(Row("memory_by_inner_steps", peak_mb=peak, detail=settings))
                notes.append(f"memory_by_inner_steps: {peak:.1f} MB with {settings}")
        save()
    if options.whole_run:
        others.append(whole_run(tiny))
        notes.append("whole_run: " + ", ".join(f"{key} {value:.3g}" for key, value in others[-1].detail.items()))
        save()
    draw(rows, workers, out)
    text = "\n".join([*(f"- {note}" for note in notes), "", markdown(rows), "", machine()])
    (out / "benchmark.md").write_text(text + "\n")
    print(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 1 if a program disagrees with the others, 2 if something is missing or unknown."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s --out DIR [option ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    for name, choices in {"workload": WORKLOADS, "program": PROGRAMS}.items():
        names = ", ".join(choices)
        parser.add_argument(f"--{name}", nargs="+", default=list(choices), choices=choices, metavar="NAME", help=names)
    parser.add_argument("--mode", nargs="+", choices=MODES, help="default: both; at --tiny eager")
    parser.add_argument("--threads", nargs="+", type=above_zero, default=[1, 2], metavar="N")
    parser.add_argument("--max-workers", type=above_zero, default=os.cpu_count(), metavar="N", help="in workers.png")
    parser.add_argument("--rounds", type=above_zero, default=7, metavar="N")
    parser.add_argument("--learn2learn", type=Path, metavar="FOLDER", help="its unpacked source distribution")
    parser.add_argument("--whole-run", action="store_true", help="also time the parts of a run of train.py")
    parser.add_argument("--tiny", action="store_true", help="2 tasks, 8 channels, 2 rounds: a test that it works")
    options, threads = parser.parse_args(argv), torch.get_num_threads()
    try:
        benchmark(options)
    except (InputError, Disagreement) as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        return 1 if isinstance(error, Disagreement) else 2
    finally:
        torch.set_num_threads(threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
