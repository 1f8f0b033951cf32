"""Check and measure innerloop on a GPU: python scripts/gpu.py --out DIR.

    pip install -e . && python scripts/gpu.py --out DIR

The parts, in this order, the most valuable ones first:

- agreement: whether each engine's meta-gradient on the GPU is that of a loop on the CPU, in float64, to 1e-10.
- learners: short runs of train.py with every learner on the GPU and on the CPU, in float64: their test losses are equal
  to 1e-6, relative.
- speed: milliseconds per meta-step by engine and precision, as medians of rounds in which they take turns, seconds of
  the first steps, the ratio to learn2learn's speed if learn2learn is available, and the peak of the memory that torch
  allocates.
- precision: a whole meta-batch's meta-gradient in float32, TensorFloat-32 and bfloat16: its distance to the one in
  float64, relative to that one's norm, and the cosine between the two.
- memory: whether a meta-batch that exceeds the memory is run in parts, with the same meta-gradient.
- runs: runs of train.py in each precision, and on all GPUs if there are several.

The workloads are those of scripts/benchmark.py and torchbench's `functorch_maml_omniglot`. DIR gets gpu.json and
gpu.md, written after every line. A check that fails is written down, the others continue, and the exit status is 1.
What would begin after `--minutes` is left out, and said so. `--part NAME …` runs some parts and keeps the other lines
of DIR, so a script that was stopped goes on where it was. `--device cpu --tiny` tests the script itself.

On an H100 with 16 slow cores, a workload took 1 to 29 s of agreement (compilation takes most of it, for the two dense
ones) and 20 to 60 s of speed with learn2learn, which is half of it. So the parts up to speed take about eight minutes;
`--part precision memory runs` is a second call, and `--workload` and `--without-learn2learn` make the first one short.
"""

import argparse
import concurrent.futures
import contextlib
import io
import itertools
import json
import multiprocessing
import runpy
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark_programs import (  # makes src/ importable, too
    CALLS,
    ROOT,
    TOLERANCE,
    TORCHBENCH,
    WORKLOADS,
    Workload,
    above_zero,
    expose_learn2learn,
    fetched_learn2learn,
    machine,
    measured,
    meta_gradient,
    meta_step,
    placed,
)

from innerloop.devices.precision import set_tensor_float
from innerloop.episodes import InputError
from innerloop.learners import MAML

ALL = {**WORKLOADS, TORCHBENCH.name: TORCHBENCH}
PRECISIONS = ("32-true", "tf32", "bf16-mixed")
CAPPED = "mini_imagenet"
"""The workload that is run with too little memory."""
ALL_AT_ONCE: dict[str, Any] = {"engine": "vmap"}
LONGEST = 60
"""Seconds after which a meta-step that is being compiled is given up."""
Line = dict[str, Any]


class Late(Exception):
    """What was measured took too long."""


def engines(workload: Workload, device: torch.device) -> dict[str, dict[str, Any]]:
    """Return name -> settings of the learner."""
    quarter = max(workload.tasks // 4, 1)
    found: dict[str, dict[str, Any]] = {"loop": {"engine": "loop"}, "vmap": ALL_AT_ONCE}
    found[f"vmap, chunk {quarter}"] = ALL_AT_ONCE | {"chunk": quarter}
    compiled = {} if workload.form else {"compiled": {"compile": True}}
    if device.type != "cuda":
        return found | {name: ALL_AT_ONCE | settings for name, settings in compiled.items()}
    graphs = {f"{name} graph".strip(): {"engine": "graph"} | s for name, s in ({"": {}} | compiled).items()}
    return found | {name: ALL_AT_ONCE | settings for name, settings in compiled.items()} | graphs


@contextlib.contextmanager
def in_precision(name: str, device: torch.device) -> Iterator[None]:
    """Compute inside as a run with this trainer.precision does."""
    set_tensor_float(name == "tf32")
    try:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=name == "bf16-mixed"):
            yield
    finally:
        set_tensor_float(False)


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise Late inside after this many seconds."""

    def stop(*_: Any) -> None:
        raise Late(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def agreement(workload: Workload, device: torch.device) -> Iterator[Line]:
    few = replace(workload.tiny(), tasks=3)
    expected = meta_gradient(few, "innerloop", {"engine": "loop"})
    for engine, settings in engines(few, device).items():
        difference = (meta_gradient(few, "innerloop", settings, device) - expected).abs().max().item()
        yield {"engine": engine, "largest_difference": difference, "holds": difference <= TOLERANCE}


def precision(workload: Workload, device: torch.device) -> Iterator[Line]:
    exact = meta_gradient(workload, "innerloop", ALL_AT_ONCE, device)
    for name in PRECISIONS:
        with in_precision(name, device):
            found = meta_gradient(workload, "innerloop", ALL_AT_ONCE, device, torch.float32)
        distance, cosine = (found - exact).norm() / exact.norm(), torch.cosine_similarity(found, exact, 0)
        yield {"precision": name, "distance": distance.item(), "cosine": cosine.item()}


def speed(workload: Workload, device: torch.device, rounds: int, at_least: float, peer: bool) -> Iterator[Line]:
    """Yield a line per engine and precision. at_least: milliseconds per measurement. peer: learn2learn takes part."""
    variants: list[tuple[str, str, dict[str, Any], str]] = []
    if peer:
        variants.append(("learn2learn", "learn2learn", {}, "32-true"))
    for (engine, settings), mode in itertools.product(engines(workload, device).items(), PRECISIONS):
        if mode == "32-true" or engine in ("vmap", "graph"):
            variants.append((engine, "innerloop", settings, mode))
    contenders = []
    for name, program, settings, mode in variants:
        line: Line = {"engine": name, "precision": mode}
        try:
            with at_most(LONGEST):
                step = in_mode(meta_step(workload, program, settings, device), mode, device)
                line["first_s"] = float(CALLS * measured(step, CALLS)[0] / 1e3)
        except Late as error:
            yield line | {"error": str(error)}
            continue
        line["peak_mb"] = peak_memory(step, device)
        repeats = max(1, round(at_least / measured(step, 1)[0]))
        contenders.append((line, step, repeats, list[float]()))
    for _ in range(rounds):
        for _, step, repeats, found in contenders:
            found.append(measured(step, repeats)[0])
    for line, _, _, found in contenders:
        line["wall_ms"] = float(np.median(found))
        line["ratio_to_learn2learn"] = contenders[0][0]["wall_ms"] / line["wall_ms"] if peer else None
        yield line


def in_mode(step: Callable[[], None], mode: str, device: torch.device) -> Callable[[], None]:
    """Return the step in this precision. It returns when the GPU has finished it."""

    def whole() -> None:
        with in_precision(mode, device):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return whole


def peak_memory(function: Callable[[], Any], device: torch.device) -> float | None:
    """Return the peak of 10^6 bytes that torch allocates while the function runs, None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    function()
    return torch.cuda.max_memory_allocated(device) / 1e6


def memory(workload: Workload, device: torch.device) -> Iterator[Line]:
    """Run a meta-batch with a memory limit between the peaks of half its tasks and of all of them at once."""
    if workload.name != CAPPED or device.type != "cuda":
        return
    half, all_ = (
        peak_memory(meta_step(replace(workload, tasks=tasks), "innerloop", ALL_AT_ONCE, device), device) or 0
        for tasks in (workload.tasks // 2, workload.tasks)
    )
    expected = meta_gradient(workload, "innerloop", ALL_AT_ONCE, device, torch.float32)
    net, batch = placed(workload, device, torch.float32)
    learner = MAML(net, workload.loss, inner_lr=workload.inner_lr, inner_steps=workload.inner_steps, engine="vmap")
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(1e6 * (half + all_) / 2 / whole, device)
    try:
        parameters = list(learner.parameters())
        _, gradient, _ = learner.engine.value_and_grad(learner.query_objective, parameters, batch)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    found = torch.cat([g.flatten() for g in gradient]).double().cpu()
    distance = ((found - expected).norm() / expected.norm()).item()
    at_once = min(learner.engine.fitted.values(), default=workload.tasks)
    sizes = {"half_mb": half, "all_mb": all_, "at_once": at_once, "distance": distance}
    yield sizes | {"holds": at_once < workload.tasks and distance < 1e-3}


def trained(folder: Path, *overrides: str) -> Line:
    """Run train.py in this process. Return its results.json, or {"holds": False} with the error."""
    shutil.rmtree(folder, ignore_errors=True)
    said, argv = io.StringIO(), sys.argv
    sys.argv = ["train.py", "logger=csv", f"hydra.run.dir={folder}", *overrides]
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    except SystemExit as end:
        if end.code:
            return {"holds": False, "error": " | ".join(said.getvalue().strip().splitlines()[-3:])}
    except Exception as error:  # of any type, see `everything`
        return {"holds": False, "error": f"{type(error).__name__}: {error}".splitlines()[0]}
    finally:
        sys.argv = argv
    return json.loads((folder / "results.json").read_text())


def learners(device: torch.device, out: Path, tiny: bool) -> Iterator[Line]:
    """Train every learner for a few steps here and on the CPU, in processes that take one run after the other."""
    there = "gpu" if device.type == "cuda" else "cpu"
    few = [
        "trainer.precision=64-true",
        "trainer.max_steps=6",
        "trainer.log_every=5",
        "trainer.val_episodes=4",
        "test.episodes=8",
    ]
    algos = ["maml"] if tiny else sorted(path.stem for path in (ROOT / "conf" / "algo").glob("*.yaml"))
    jobs = [("glyphs", algo) for algo in algos]
    jobs += [("sinusoid", algo) for algo in ("maml", "hypernet", "hybrid") if algo in algos]
    spawn = multiprocessing.get_context("spawn")  # a forked process could not use the GPU
    with concurrent.futures.ProcessPoolExecutor(1 if tiny else 4, spawn) as pool:

        def start(data: str, algo: str, number: int) -> concurrent.futures.Future[Line]:
            where = [f"algo={algo}", f"data={data}", f"trainer={('cpu', there)[number]}", "trainer.threads=2"]
            return pool.submit(trained, out / "learners" / f"{algo}-{data}-{number}", *where, *few)

        start(*jobs[0], 0).result()  # draws the glyphs, once for all
        pairs = [(start(data, algo, 0), start(data, algo, 1)) for data, algo in jobs]
        for (data, algo), pair in zip(jobs, pairs, strict=True):
            line: Line = {"algo": algo, "data": data}
            found = [future.result() for future in pair]
            if failed := next((result for result in found if "error" in result), None):
                yield line | failed
                continue
            measure = "loss" if "loss" in found[0]["test"] else found[0]["metric"]
            cpu, gpu = (result["test"][measure]["mean"] for result in found)
            yield line | {measure: gpu, "difference": gpu - cpu, "holds": abs(gpu - cpu) <= 1e-6 * abs(cpu)}


def runs(device: torch.device, out: Path, tiny: bool) -> Iterator[Line]:
    """Run train.py, one run after the other. The run directories stay in `out`."""
    there = "gpu" if device.type == "cuda" else "cpu"
    places = {there: list(PRECISIONS) if there == "gpu" else ["32-true", "bf16-mixed"]}
    if there == "gpu" and torch.cuda.device_count() > 1:
        places["ddp"] = ["32-true"]
    steps = {"sinusoid": 5} if tiny else {"glyphs": 300, "sinusoid": 1000}
    for (data, n), algo in itertools.product(steps.items(), ["maml"] if tiny else ["maml", "hypernet", "hybrid"]):
        for trainer, mode in [(trainer, mode) for trainer, modes in places.items() for mode in modes]:
            overrides = [f"algo={algo}", f"data={data}", f"trainer={trainer}", f"trainer.precision={mode}"]
            overrides += [f"trainer.max_steps={n}", f"test.episodes={20 if tiny else 600}"]
            overrides += ["trainer.val_episodes=4"] if tiny else []
            results = trained(out / "runs" / "-".join((algo, data, trainer, mode)), *overrides)
            line: Line = {"algo": algo, "data": data, "trainer": trainer, "precision": mode}
            if "error" in results:
                yield line | results
                continue
            reached = results["test"][results["metric"]]
            yield line | {
                results["metric"]: reached["mean"],
                "ci95": reached["ci95"],
                "steps_per_second": results["steps_per_second"],
                "peak_gpu_mb": results.get("peak_gpu_memory_mb"),
            }


def markdown(found: dict[str, list[Line]]) -> str:
    """Return a table for each check."""
    parts = []
    for check, lines in found.items():
        keys = list(dict.fromkeys(key for line in lines for key in line))
        rows = [keys, ["---"] * len(keys), *([_cell(line.get(key)) for key in keys] for line in lines)]
        parts.append("\n".join([f"## {check}", "", *("| " + " | ".join(row) + " |" for row in rows)]))
    return "\n\n".join(parts) + "\n"


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


PARTS = ("agreement", "learners", "speed", "precision", "memory", "runs")


def everything(options: argparse.Namespace, device: torch.device, peer: bool) -> bool:
    """Run the parts and write their results. Return True if every check passed and nothing was left out."""
    kept = options.out / "gpu.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    found = {"machine": where(device)} | {part: found[part] for part in found if part in set(PARTS) - {*options.part}}
    end = time.monotonic() + 60 * options.minutes

    def add(part: str, line: Line) -> None:
        found.setdefault(part, []).append(line)
        print(part, line, file=sys.stderr)
        kept.write_text(json.dumps(found, indent=1) + "\n")
        tables = {part: found[part] for part in PARTS if part in found}
        (options.out / "gpu.md").write_text(f"{found['machine']}\n\n{markdown(tables)}")

    def run(part: str, lines: Iterator[Line], **head: Any) -> None:
        begin = time.monotonic()
        if begin > end:
            add(part, head | {"holds": False, "error": "left out: no time"})
            return
        try:
            for line in lines:
                add(part, head | line)
                if time.monotonic() > end:
                    raise Late(f"stopped after {options.minutes} minutes")
        except Exception as error:  # of any type, so that the other checks still run on a machine never seen before
            traceback.print_exc()
            add(part, head | {"holds": False, "error": f"{type(error).__name__}: {error}".splitlines()[0]})
        print(f"{part} {head} took {time.monotonic() - begin:.0f} s", file=sys.stderr)

    of_workload: dict[str, Callable[[Workload], Iterator[Line]]] = {
        "agreement": lambda workload: agreement(workload, device),
        "speed": lambda workload: speed(workload, device, options.rounds, 10 if options.tiny else 200, peer),
        "precision": lambda workload: precision(workload, device),
        "memory": lambda workload: memory(workload, device),
    }
    for part in (part for part in PARTS if part in options.part):
        if part in of_workload:
            for name in options.workload:
                run(part, of_workload[part](ALL[name].tiny() if options.tiny else ALL[name]), workload=name)
        else:
            run(part, (learners if part == "learners" else runs)(device, options.out, options.tiny))
    return all(line.get("holds", True) for part in options.part for line in found.get(part, []))


def where(device: torch.device) -> str:
    """Return the machine, with the name of its GPU if that is the device."""
    return machine() + (f"; {torch.cuda.get_device_name(device)}" if device.type == "cuda" else "")


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 1 if a check fails, 2 if something is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--part", nargs="+", default=list(PARTS), choices=PARTS, metavar="NAME", help="default: all")
    parser.add_argument("--workload", nargs="+", default=list(ALL), choices=ALL, metavar="NAME")
    parser.add_argument("--minutes", type=float, default=8, metavar="N", help="what begins later is left out")
    parser.add_argument("--rounds", type=above_zero, default=5, metavar="N")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"), help="default: cuda")
    parser.add_argument("--learn2learn", type=Path, metavar="FOLDER", help="its unpacked source distribution")
    parser.add_argument("--without-learn2learn", action="store_true", help="no ratios, and nothing is downloaded")
    parser.add_argument("--tiny", action="store_true", help="2 tasks, 8 channels, 5 meta-batches: a test that it works")
    options = parser.parse_args(argv)
    try:
        if options.device.type == "cuda" and not torch.cuda.is_available():
            raise InputError("no GPU is visible to torch")
        if options.device.type == "cuda" and options.device.index is None:
            options.device = torch.device("cuda", torch.cuda.current_device())  # torch limits memory by index only
        if not options.without_learn2learn:
            expose_learn2learn(options.learn2learn or fetched_learn2learn())
        options.out.mkdir(parents=True, exist_ok=True)
    except InputError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        return 2
    held = everything(options, options.device, not options.without_learn2learn)
    print((options.out / "gpu.md").read_text())
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
