"""The meta-step of second-order MAML beside learn2learn, higher, torchopt, JAX: python scripts/benchmark.py --out DIR.

    pip install -e ".[peers]" && python scripts/benchmark.py --out DIR --whole-run

A meta-step is forward, backward and an outer Adam update. All programs get the same nets (innerloop's; the peers' with
torch's own batch norm), weights and meta-batch, and their meta-gradients must agree in float64 before any timing. For
each workload they take turns, each at every thread setting (innerloop's thread engine: workers), in rounds whose
medians are reported. JAX's jitted meta-step waits for its turns in processes of its own, one for each number of
threads; see benchmark_jax.py. `ratio`: learn2learn's best wall time over the program's; above 1 is faster. `to JAX`:
JAX's best wall time over the program's. Freed memory is kept for the next tensor, as in innerloop's runs, which speeds
up all programs. `peak MB`: the memory that three meta-steps at one thread add to a process of their own, compilation
included. There, freed memory is returned at once, so that the number shows the memory in use and not the fragmentation
of the heap. The peers are used as their documentation shows, with one task's graph at a time. learn2learn 0.2.0 no
longer installs: `--learn2learn FOLDER` names its unpacked source distribution, which is downloaded otherwise. DIR gets
benchmark.json, benchmark.md, benchmark.png and workers.png, for which the thread engine is timed again with 1, 2, …
workers. What `--whole-run` times is written in benchmark_runs.py.
"""

import argparse
import contextlib
import gc
import importlib.metadata
import importlib.util
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
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
from benchmark_runs import markdown as run_table
from benchmark_runs import timed_runs

from innerloop.devices.memory import keep_freed, largest_resident_set, return_freed
from innerloop.episodes import InputError

EVERY_PROGRAM = (*PROGRAMS, "jax")
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
    ratio_to_jax: float | None = None
    peak_mb: float | None = None
    gradient_max_diff: float | None = None
    rounds: int | None = None
    compile_s: float | None = None
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def variant(self) -> tuple[str, str, str]:
        return self.workload, self.program, self.mode


Measure = Callable[[int], np.ndarray]
"""Returns `measured` of this number of a contender's steps. What torch or JAX is set to is the contender's business."""


def of_torch(workload: Workload, program: str, mode: str, threads: int) -> Measure:
    torch.set_num_threads(threads)
    step = meta_step(workload, program, MODES[mode])

    def measure(repeats: int) -> np.ndarray:
        torch.set_num_threads(threads)
        gc.collect()
        return measured(step, repeats)

    return measure


def of_jax(workload: Workload, threads: int, process: ProcessPoolExecutor) -> Measure:
    return lambda repeats: process.submit(in_jax, threads, "measure", workload, repeats).result()


def in_jax(threads: int, function: str, *arguments: Any) -> Any:
    """Return what the function of benchmark_jax.py returns. Call it in a process of its own, which keeps the threads.

    It has none of torch's threads, which would wait for work at JAX's expense.
    """
    torch.set_num_threads(1)
    os.environ |= {"JAX_PLATFORMS": "cpu", "NPROC": str(threads)}  # NPROC: the size of XLA's pool of threads
    if threads == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    if hasattr(os, "sched_setaffinity"):  # there are threads besides the pool: the main one and those that dispatch
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    return getattr(importlib.import_module("benchmark_jax"), function)(*arguments)


def timed(workload: Workload, variants: Variants, threads: Iterable[int], rounds: int, at_least: float) -> list[Row]:
    """Return a row for each variant and thread setting.

    at_least: milliseconds of one measurement. The variants take turns in each round.
    """
    contenders: list[tuple[Row, Measure, int, list[np.ndarray]]] = []
    with contextlib.ExitStack() as stack:
        for (program, mode), n in itertools.product(variants, threads):
            if program == "jax":
                process = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
                measure = of_jax(workload, n, process)
            else:
                measure = of_torch(workload, program, mode, n)
            (first, _), (again, _) = measure(1), measure(1)
            compile_s = None if mode == "eager" else first / 1e3
            row = Row(workload.name, program, mode, n, rounds=rounds, compile_s=compile_s)
            contenders.append((row, measure, max(1, math.ceil(at_least / again)), []))
        for i in range(rounds):
            turn = i % len(contenders)  # another one starts each round
            for _, measure, repeats, found in contenders[turn:] + contenders[:turn]:
                measure(1)  # caches and threads are still those of the last variant
                found.append(measure(repeats))
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
    step = in_jax(1, "meta_step", workload) if program == "jax" else meta_step(workload, program, settings)
    before = largest_resident_set()
    for _ in range(3):
        step()
    return largest_resident_set() - before


def compare(rows: Sequence[Row]) -> None:
    """Set the ratios of one workload's rows to the best rows of learn2learn and JAX."""
    for program in ("learn2learn", "jax"):
        if best := min((row.wall_ms for row in rows if row.program == program), default=None):
            for row in rows:
                setattr(row, f"ratio_to_{program}", best / row.wall_ms)


def fastest(rows: Sequence[Row]) -> list[Row]:
    """Return for each workload, program and mode the row at its best thread setting."""
    by_wall = sorted(rows, key=lambda row: row.wall_ms or math.inf, reverse=True)
    best = {row.variant: row for row in by_wall}
    return [best[variant] for variant in dict.fromkeys(row.variant for row in rows)]


def markdown(rows: Sequence[Row]) -> str:
    """Return a table with a row for each workload, program and mode at its best thread setting."""
    alone = {row.variant: row.cpu_ms for row in rows if row.threads == 1}
    head = ["workload", "program", "mode", "ratio", "to JAX", "wall ms", "threads", "CPU ms", "CPU ms, 1 thread"]
    lines = [[*head, "peak MB", "compile s"], ["---"] * 3 + ["---:"] * 8]
    for row in fastest(rows):
        numbers = [row.ratio_to_learn2learn, row.ratio_to_jax, row.wall_ms, row.threads, row.cpu_ms]
        numbers += [alone.get(row.variant), row.peak_mb, row.compile_s]
        formats = [".2f", ".2f", ".2f", "d", ".2f", ".2f", ".1f", ".1f"]
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
        for i, kind in enumerate(sorted(kinds, key=lambda kind: (EVERY_PROGRAM.index(kind[0]), kind[1]))):
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
    needed = {"higher": ["higher"], "torchopt": ["torchopt"], "jax": ["jax", "optax"]}
    for package in itertools.chain(*(needed.get(program, []) for program in options.program)):
        if importlib.util.find_spec(package) is None:
            raise InputError(f'{package} is not installed: pip install -e ".[peers]"')
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
    modes = options.mode or (["eager", "jit"] if tiny else list(MODES))
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
        variants = [(program, "jit" if program == "jax" else "eager") for program in options.program]
        variants += [("innerloop", "compiled")] if "innerloop" in options.program else []
        variants = [(program, mode) for program, mode in variants if mode in modes]
        if not variants:
            continue
        torch.set_num_threads(max(options.threads))
        differences = gradient_differences(workload, variants, partial(in_own_process, in_jax, 1, "meta_gradient"))
        in_turns = (learn2learn, workload, variants, options.threads, rounds, at_least)
        found = in_own_process(timed_alone, *in_turns, fresh=not tiny)
        for (program, mode), difference in zip(variants, differences, strict=True):
            peak = in_own_process(peak_memory, workload, program, MODES[mode], learn2learn, fresh=not tiny)
            for row in found:
                if (row.program, row.mode) == (program, mode):
                    row.gradient_max_diff, row.peak_mb = difference, peak
        compare(found)
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
    runs: list[dict[str, Any]] = []
    for run in timed_runs(tiny, options.omniglot) if options.whole_run else ():
        runs.append(run)
        others.append(Row("whole_run", mode=run["mode"], wall_ms=run["fit_ms"], detail=run))
        save()
    draw(rows, workers, out)
    tables = [markdown(rows), *([run_table(runs)] if runs else [])]
    last = machine() + (f", jax {importlib.metadata.version('jax')}" if "jax" in options.program else "")
    text = "\n\n".join(["\n".join(f"- {note}" for note in notes), *tables, last])
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
    for name, choices in {"workload": WORKLOADS, "program": EVERY_PROGRAM}.items():
        names = ", ".join(choices)
        parser.add_argument(f"--{name}", nargs="+", default=list(choices), choices=choices, metavar="NAME", help=names)
    parser.add_argument("--mode", nargs="+", choices=MODES, help="default: all; at --tiny without compiled")
    parser.add_argument("--threads", nargs="+", type=above_zero, default=[1, 2], metavar="N")
    parser.add_argument("--max-workers", type=above_zero, default=os.cpu_count(), metavar="N", help="in workers.png")
    parser.add_argument("--rounds", type=above_zero, default=7, metavar="N")
    parser.add_argument("--learn2learn", type=Path, metavar="FOLDER", help="its unpacked source distribution")
    parser.add_argument("--whole-run", action="store_true", help="also time the parts of runs of train.py")
    parser.add_argument("--omniglot", type=Path, metavar="FOLDER", help="data.root of these; downloaded otherwise")
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
