"""Where the time of whole runs goes, for scripts/benchmark.py --whole-run: a clock around the parts of train.py.

- `startup_s`: seconds from the process's start to its first training step, but for `compile_s`: seconds in which the
  meta-step is compiled, with empty caches ("cold") and again with those that this left ("warm").
- `fit_ms`: wall milliseconds a step from the first training step to the end of `fit`. Everything but compilation is
  included. It is the sum of the parts; time of a part within another counts for the inner one only.
- The parts: meta_step (`Engine.value_and_grad`), optimizer (`MetaLearner._update`), data (Lightning's fetcher, with the
  loader and the draws), hooks (of Lightning's callbacks and modules), logging_and_checkpoints, validation (without its
  data and hooks) and the rest of `fit`.
- `bare_ms`: milliseconds of a meta-step and the outer optimizer's step on the last meta-batch, repeated after `fit` in
  the same process; the median of seven rounds. `speed_of_bare`: bare_ms / fit_ms, 1 if nothing else costs time.
"""

import contextlib
import functools
import json
import math
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from innerloop.devices.startup import fast_imports  # noqa: E402
from innerloop.errors import InputError  # noqa: E402

PARTS = ("meta_step", "optimizer", "data", "hooks", "logging_and_checkpoints", "validation", "rest")
NUMBERS = ("startup_s", "compile_s", "fit_ms", "bare_ms", "speed_of_bare", *PARTS)


class Clock:
    """Wall seconds in each part from the first training step on, and the arguments of the last meta-step."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.first, self.steps, self.last = math.inf, 0, ()

    def around(self, owner: Any, name: str, part: str) -> None:
        """Count the time in owner.name for the part, without the parts that are called within."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            begun, within = time.time(), sum(self.spent.values())
            if name == "training_step":
                self.first, self.steps = min(self.first, begun), self.steps + 1
            if name == "value_and_grad":
                self.last = args[:4]
            try:
                return function(*args, **kwargs)
            finally:
                if self.steps or part == "compilation":  # which is before the first step
                    inner = sum(self.spent.values()) - within
                    self.spent[part] += time.time() - max(begun, self.first if self.steps else begun) - inner

        setattr(owner, name, wrapper)


def clocked_run(at_least: float, overrides: Sequence[str]) -> dict[str, Any]:
    """Run train.py in this process, a new one, with a clock. at_least: milliseconds of a round of `bare_ms`."""
    with fast_imports():  # as train.py does
        import lightning.pytorch.trainer.call as hooks
        from lightning import Trainer
        from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
        from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher

        from innerloop.adaptation import Engine, records
        from innerloop.learners import MetaLearner
        from innerloop.runs.tracking import MetricsFile

    clock, found, value_and_grad = Clock(), {}, Engine.value_and_grad
    clock.around(Engine, "value_and_grad", "meta_step")
    clock.around(records, "compiled", "compilation")
    clock.around(MetaLearner, "_update", "optimizer")
    clock.around(_PrefetchDataFetcher, "__next__", "data")
    clock.around(hooks, "_call_callback_hooks", "hooks")
    clock.around(hooks, "_call_lightning_module_hook", "hooks")
    clock.around(Trainer, "save_checkpoint", "logging_and_checkpoints")
    clock.around(MetricsFile, "log_metrics", "logging_and_checkpoints")
    clock.around(_EvaluationLoop, "run", "validation")
    clock.around(MetaLearner, "training_step", "rest")
    clock.around(Trainer, "fit", "rest")
    clocked_fit = Trainer.fit

    def fit(trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        clocked_fit(trainer, *args, **kwargs)
        found.update(first=clock.first, steps=clock.steps, compile_s=clock.spent.get("compilation"))
        found.update((part, 1e3 * clock.spent[part] / clock.steps) for part in PARTS)
        found["bare_ms"] = bare(functools.partial(value_and_grad, *clock.last), trainer.optimizers[0], at_least)

    Trainer.fit = fit  # type: ignore[method-assign]
    sys.argv = ["train.py", *overrides]
    with contextlib.redirect_stdout(sys.stderr):
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    return found


def bare(value_and_grad: Any, optimizer: Any, at_least: float) -> float:
    """Return the milliseconds of a meta-step and an outer update without anything around them."""
    from benchmark_programs import measured

    def step() -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for p, g in zip(parameters, value_and_grad()[1], strict=True):
            p.grad = g
        optimizer.step()

    step()
    repeats = max(1, math.ceil(at_least / measured(step, 1)[0]))
    return sorted(measured(step, repeats)[0] for _ in range(7))[3]


def timed_run(data: str, mode: str, tiny: bool, *overrides: str, **environment: str) -> dict[str, Any]:
    """Return the numbers of a run of train.py in a new process. Raises InputError if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        # The test is after what is timed.
        overrides = (
            *overrides,
            f"data={data}",
            "algo=maml",
            "logger=csv",
            "test.episodes=20",
            f"hydra.run.dir={folder}/r",
        )
        command = [sys.executable, str(Path(__file__).resolve()), "10" if tiny else "300", *overrides]
        begun = time.time()
        done = subprocess.run(command, stdout=subprocess.PIPE, env=os.environ | environment)
    if done.returncode:
        raise InputError(f"this has failed: train.py {' '.join(overrides)}")
    found = json.loads(done.stdout)
    fit = sum(found[part] for part in PARTS)
    startup = found.pop("first") - begun - (found["compile_s"] or 0)
    found |= {"startup_s": startup, "fit_ms": fit, "speed_of_bare": found["bare_ms"] / fit}
    return {"run": data, "mode": mode, **found}  # "data" is a part


def timed_runs(tiny: bool, omniglot: Path | None) -> Iterator[dict[str, Any]]:
    """Yield the default run, eager and compiled, and 300 steps of Omniglot."""
    few = ["trainer.max_steps=200"] if tiny else []
    yield timed_run("sinusoid", "eager", tiny, "algo.compile=false", *few)
    with tempfile.TemporaryDirectory() as cache:
        for mode in ("compiled, cold", "compiled, warm"):
            yield timed_run("sinusoid", mode, tiny, "algo.compile=true", *few, TORCHINDUCTOR_CACHE_DIR=cache)
    few = ["trainer.max_steps=4", "trainer.val_episodes=4"] if tiny else ["trainer.max_steps=300"]
    yield timed_run("omniglot", "eager", tiny, *few, *([f"data.root={omniglot.resolve()}"] if omniglot else []))


def markdown(runs: Sequence[dict[str, Any]]) -> str:
    """Return a table with a row for each run."""
    lines = [["run", "mode", *NUMBERS], ["---"] * 2 + ["---:"] * len(NUMBERS)]
    lines += [[run["run"], run["mode"], *(f"{run[name] or 0:.3g}" for name in NUMBERS)] for run in runs]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    print(json.dumps(clocked_run(float(sys.argv[1]), sys.argv[2:])))
