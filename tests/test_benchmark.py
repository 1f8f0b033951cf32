"""scripts/benchmark.py: programs that agree, programs that do not, and what a tiny run writes."""

import hashlib
import importlib.metadata
import importlib.util
import io
import json
import math
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import benchmark  # noqa: E402
import benchmark_programs as programs  # noqa: E402
import benchmark_runs  # noqa: E402
from benchmark import Row  # noqa: E402
from benchmark_programs import LEARN2LEARN, WORKLOADS, Disagreement, Workload  # noqa: E402

from innerloop.episodes import InputError  # noqa: E402

IN_OWN_PROCESS = benchmark.in_own_process
PEERS = [name for name in ("higher", "torchopt") if importlib.util.find_spec(name)]
# Looked for and not imported: where JAX is imported, a fork is a warning, and other tests fork.
HAS_JAX = all(importlib.util.find_spec(name) for name in ("jax", "optax"))
needs_jax = pytest.mark.skipif(not HAS_JAX, reason='needs pip install -e ".[jax]"')

# What the benchmark uses of learn2learn, for where its source is not at hand.
STAND_IN = """
import torch
from learn2learn.utils import call

class MAML(torch.nn.Module):
    def __init__(self, model, lr):
        super().__init__()
        self.module, self.lr, self.fast = model, lr, dict(model.named_parameters())

    def clone(self):
        return MAML(self.module, self.lr)

    def forward(self, x):
        return call(self.module, self.fast, x)

    def adapt(self, loss):
        slopes = torch.autograd.grad(loss, list(self.fast.values()), create_graph=SECOND_ORDER)
        self.fast = {n: w - self.lr * g for (n, w), g in zip(self.fast.items(), slopes, strict=True)}
"""
UTILS = (
    "from torch.func import functional_call\ndef call(net, weights, x):\n    return functional_call(net, weights, x)\n"
)


@pytest.fixture(autouse=True)
def house(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test has a learn2learn of its own, and no processes but JAX's, which would take seconds to start."""

    def in_own_process(function: Any, *arguments: Any, fresh: bool = True) -> Any:
        if function is benchmark.in_jax or "jax" in arguments:
            return IN_OWN_PROCESS(function, *arguments, fresh=False)
        return function(*arguments)

    threads = torch.get_num_threads()
    for name in ("learn2learn", *(f"learn2learn.{n}" for n in ("utils", "algorithms", "algorithms.maml"))):
        monkeypatch.setitem(sys.modules, name, sys)
        monkeypatch.delitem(sys.modules, name)  # gone now, and again at the end
    monkeypatch.setattr(benchmark, "in_own_process", in_own_process)
    monkeypatch.setattr(benchmark.gc, "collect", lambda: 0)  # half a second each, among all that pytest has loaded
    yield
    torch.set_num_threads(threads)


def stand_in(folder: Path, second_order: bool = True) -> Path:
    """A source distribution of the shape of learn2learn's, whose packages cannot be imported as they are."""
    algorithms = folder / "learn2learn" / "algorithms"
    algorithms.mkdir(parents=True)
    for package in (algorithms, algorithms.parent):
        (package / "__init__.py").write_text("import what_no_longer_installs\n")
    (algorithms.parent / "utils.py").write_text(UTILS)
    (algorithms / "maml.py").write_text(STAND_IN.replace("SECOND_ORDER", str(second_order)))
    return folder


def run(out: Path, *options: str) -> int:
    return benchmark.main(["--out", str(out), "--tiny", "--workload", "sinusoid_k1", "--threads", "1", *options])


# The programs compute the same.


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("peer", programs.PEERS)
def test_peers_have_the_same_meta_gradient(peer: str, workload: str) -> None:
    if peer != "learn2learn":
        pytest.importorskip(peer)
    elif "INNERLOOP_LEARN2LEARN" in os.environ:
        programs.expose_learn2learn(Path(os.environ["INNERLOOP_LEARN2LEARN"]))
    else:
        pytest.skip("INNERLOOP_LEARN2LEARN names no unpacked source distribution")
    differences = programs.gradient_differences(WORKLOADS[workload].tiny(), [("innerloop", "eager"), (peer, "eager")])
    assert sorted(differences)[0] == 0  # the reference
    assert sorted(differences)[1] <= 1e-12


@pytest.fixture(scope="module")
def jax_process() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        yield process


@needs_jax
@pytest.mark.parametrize("workload", [*WORKLOADS.values(), programs.TORCHBENCH], ids=lambda workload: workload.name)
def test_jax_has_the_same_meta_gradient(workload: Workload, jax_process: ProcessPoolExecutor) -> None:
    differences = programs.gradient_differences(
        # XLA lost gradients of max-pools of 32 channels, and of none of four.
        replace(workload.tiny(), width=32 if workload.name == "omniglot_5w1s_pool_q1" else 4),
        [("innerloop", "eager"), ("jax", "jit")],
        lambda some: jax_process.submit(benchmark.in_jax, 1, "meta_gradient", some).result(),
    )
    assert differences[0] == 0
    assert 0 < differences[1] <= 1e-12


def test_a_wrong_meta_gradient_of_jax_is_caught() -> None:
    def wrong(workload: Workload) -> torch.Tensor:
        return programs.meta_gradient(workload, "innerloop", {}) + 1e-9

    with pytest.raises(Disagreement, match=r"sinusoid_k1: the meta-gradient of jax \(jit\) is off by 1\.0e-09"):
        programs.gradient_differences(WORKLOADS["sinusoid_k1"], [("innerloop", "eager"), ("jax", "jit")], wrong)


@pytest.mark.parametrize("wrong", ["nothing", "first_order", "inner_lr", "steps", "not a number"])
def test_a_program_that_computes_something_else_is_caught(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Changed(programs.MAML):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            name = "inner_lr" if wrong == "not a number" else wrong
            values = {"first_order": True, "inner_lr": 0.0100001, "steps": 4, "not a number": math.nan}
            setattr(self.adaptation, name, values.get(wrong))

    programs.expose_learn2learn(stand_in(tmp_path))
    monkeypatch.setattr(programs, "MAML", Changed)
    variants = [("innerloop", "eager"), ("learn2learn", "eager")]
    if wrong == "nothing":
        difference, reference = programs.gradient_differences(WORKLOADS["sinusoid_k5"], variants)
        assert reference == 0
        assert difference <= 1e-12
        return
    with pytest.raises(Disagreement, match=r"sinusoid_k5: the meta-gradient of innerloop \(eager\) is off by"):
        programs.gradient_differences(WORKLOADS["sinusoid_k5"], variants)


def test_a_run_stops_before_it_times_a_wrong_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "timed", lambda *_: pytest.fail("was timed"))
    wrong = stand_in(tmp_path / "source", second_order=False)
    assert run(tmp_path, "--program", "innerloop", "learn2learn", "--learn2learn", str(wrong)) == 1
    # learn2learn is what the others are held to, whoever of them is wrong.
    assert "benchmark.py: sinusoid_k1: the meta-gradient of innerloop (eager) is off by" in capsys.readouterr().err
    assert not (tmp_path / "benchmark.json").exists()


@pytest.mark.parametrize("program", programs.PROGRAMS)
def test_a_meta_step_is_a_step_of_adam_on_the_initial_weights(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if program in ("higher", "torchopt"):
        pytest.importorskip(program)
    programs.expose_learn2learn(stand_in(tmp_path))
    workload = WORKLOADS["sinusoid_k1"].tiny()
    net = workload.net()
    monkeypatch.setattr(Workload, "net", lambda self: net)
    before = torch.cat([p.detach().flatten() for p in net.parameters()])
    step = programs.meta_step(workload, program, {})
    step()
    moved = (torch.cat([p.detach().flatten() for p in net.parameters()]) - before).abs()
    assert 0 < moved.max() < 2e-7  # Adam's first step is its rate; that of these 1e-7
    gradient = torch.cat([p.grad.flatten() for p in net.parameters()])  # type: ignore[union-attr]
    step()  # a second one has nothing left of the first
    torch.testing.assert_close(
        torch.cat([p.grad.flatten() for p in net.parameters()]),  # type: ignore[union-attr]
        gradient,
        rtol=1e-3,
        atol=1e-5,
    )


# How it measures.


@pytest.mark.alone
def test_time_is_told_from_cpu_time_and_turns_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def meta_step(workload: Workload, program: str, settings: dict[str, Any]) -> Any:
        def step() -> None:
            calls.append(f"{program}{torch.get_num_threads()}")
            time.sleep(0.002)

        return step

    monkeypatch.setattr(benchmark, "meta_step", meta_step)
    workload = WORKLOADS["sinusoid_k1"]
    rows = benchmark.timed(workload, [("a", "eager"), ("b", "compiled")], [1, 2], rounds=2, at_least=6)
    assert [(row.program, row.mode, row.threads, row.rounds) for row in rows] == [
        ("a", "eager", 1, 2),
        ("a", "eager", 2, 2),
        ("b", "compiled", 1, 2),
        ("b", "compiled", 2, 2),
    ]
    for row in rows:
        assert row.wall_ms is not None
        assert row.cpu_ms is not None
        assert row.wall_ms >= 2
        assert row.cpu_ms < 0.5 * row.wall_ms
        assert (row.compile_s or 0) >= (0.002 if row.mode == "compiled" else 0)
        assert (row.compile_s is None) == (row.mode == "eager")
    # Two steps of each; then the rounds, of which the second begins with another.
    turns = [name for i, name in enumerate(calls) if i == 0 or name != calls[i - 1]]
    assert turns == ["a1", "a2", "b1", "b2", "a1", "a2", "b1", "b2", "a2", "b1", "b2", "a1"]


@pytest.mark.slow
@pytest.mark.alone
def test_peak_memory_is_the_meta_steps_own() -> None:
    ballast = torch.ones(100_000_000)  # 400 MB, of which a process that is started now must know nothing
    workload = WORKLOADS["sinusoid_k1"].tiny()
    peak = IN_OWN_PROCESS(benchmark.peak_memory, workload, "innerloop", {}, None)
    assert ballast.sum() == len(ballast)
    assert 0 < peak < 100


def test_fastest_setting_and_table_of_hand_made_rows() -> None:
    rows = [
        Row("w", "learn2learn", threads=1, wall_ms=12.0, cpu_ms=11.0, ratio_to_learn2learn=1.0, peak_mb=20.0),
        Row("w", "innerloop", threads=1, wall_ms=10.0, cpu_ms=9.0, ratio_to_learn2learn=1.2, peak_mb=30.0),
        Row("w", "innerloop", threads=2, wall_ms=6.0, cpu_ms=10.0, ratio_to_learn2learn=2.0, peak_mb=30.0),
        Row("v", "innerloop", "compiled", threads=2, wall_ms=5.0, cpu_ms=8.0, ratio_to_jax=0.47, compile_s=7.11),
        Row("v", "jax", "jit", threads=1, wall_ms=2.35, cpu_ms=2.3, ratio_to_jax=1.0, compile_s=1.0),
    ]
    assert benchmark.fastest(rows) == [rows[0], *rows[2:]]
    lines = benchmark.markdown(rows).splitlines()
    assert lines[2:] == [
        "| w | learn2learn | eager | 1.00 |  | 12.00 | 1 | 11.00 | 11.00 | 20.0 |  |",
        "| w | innerloop | eager | 2.00 |  | 6.00 | 2 | 10.00 | 9.00 | 30.0 |  |",
        "| v | innerloop | compiled |  | 0.47 | 5.00 | 2 | 8.00 |  |  | 7.1 |",
        "| v | jax | jit |  | 1.00 | 2.35 | 1 | 2.30 | 2.30 |  | 1.0 |",
    ]


# What the command says and writes.


def test_tiny_run_writes_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = stand_in(tmp_path / "source")
    options = ["--workload", "sinusoid_k1", "omniglot_5w1s_pool_q1", "--program", "innerloop", "learn2learn", *PEERS]
    options += ["--max-workers", "1", "--learn2learn", str(source)]
    assert run(tmp_path, *options) == 0
    found = json.loads((tmp_path / "benchmark.json").read_text())
    (parallel,) = (r for r in found if r["workload"] == "workers_omniglot_5w1s_pool_q1")
    assert parallel["wall_ms"] > 0
    rows = [r for r in found if not r["workload"].startswith("workers_")]
    assert [(r["workload"], r["program"], r["mode"], r["threads"]) for r in rows] == [
        (workload, program, "eager", 1)
        for workload in ("sinusoid_k1", "omniglot_5w1s_pool_q1")
        for program in ("innerloop", "learn2learn", *PEERS)
    ]
    for row in rows:
        assert min(row["wall_ms"], row["cpu_ms"]) > 0
        assert row["peak_mb"] >= 0
        assert row["gradient_max_diff"] <= 1e-10
        assert row["rounds"] == 2
        peers = [r for r in rows if r["workload"] == row["workload"] and r["program"] == "learn2learn"]
        best = min(r["wall_ms"] for r in peers)
        assert row["ratio_to_learn2learn"] == pytest.approx(best / row["wall_ms"])
    lines = capsys.readouterr().out.splitlines()
    assert f"torch {torch.__version__}" in lines[-1]
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 2 * (2 + len(PEERS))
    assert lines[-2 - len(table) : -2] == table
    assert (tmp_path / "benchmark.md").read_text().splitlines() == lines
    for plot in ("benchmark.png", "workers.png"):
        assert (tmp_path / plot).read_bytes().startswith(b"\x89PNG")


@needs_jax
def test_jax_takes_its_turns_in_a_process_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--program", "innerloop", "jax") == 0
    rows = json.loads((tmp_path / "benchmark.json").read_text())
    assert [(row["program"], row["mode"], row["threads"]) for row in rows] == [
        ("innerloop", "eager", 1),
        ("jax", "jit", 1),
    ]
    ours, jax = rows
    assert min(jax["wall_ms"], jax["cpu_ms"], jax["compile_s"], jax["peak_mb"]) > 0
    assert jax["compile_s"] > 10 * jax["wall_ms"] / 1e3
    assert 0 < jax["gradient_max_diff"] <= 1e-10
    assert ours["ratio_to_jax"] == pytest.approx(jax["wall_ms"] / ours["wall_ms"])
    assert (jax["ratio_to_jax"], jax["ratio_to_learn2learn"]) == (1, None)
    assert f"jax {importlib.metadata.version('jax')}" in capsys.readouterr().out.splitlines()[-1]
    assert "jax" not in sys.modules


@needs_jax
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="nothing to see it by")
def test_a_process_of_jax_has_the_threads_that_it_was_told(jax_process: ProcessPoolExecutor) -> None:
    jax_process.submit(benchmark.in_jax, 1, "meta_gradient", WORKLOADS["sinusoid_k1"].tiny()).result()
    assert len(jax_process.submit(os.sched_getaffinity, 0).result()) == 1
    assert jax_process.submit(os.getenv, "NPROC").result() == "1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workload", "cartpole"], "argument --workload: invalid choice: 'cartpole' (choose from "),
        (["--program", "tensorflow"], "argument --program: invalid choice: 'tensorflow' (choose from "),
        (["--threads", "0"], "argument --threads: 0 is not above zero"),
    ],
)
def test_what_is_unknown_is_told_in_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(tmp_path / "out", *options)
    assert exit_.value.code == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: ")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*options: str) -> str:
        assert run(tmp_path / "out", *options) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert f"{tmp_path} is no source distribution of learn2learn" in said(
        "--program", "learn2learn", "--learn2learn", str(tmp_path)
    )
    # Nothing to be downloaded from.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setattr(programs, "cache_folder", lambda name: tmp_path / "cache")
    assert "learn2learn could not be downloaded (" in said("--program", "learn2learn")
    assert not list((tmp_path / "cache").iterdir())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for program in ("higher", "jax"):
        assert said("--program", program) == f'benchmark.py: {program} is not installed: pip install -e ".[peers]"'
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "optax" else "found")
    assert said("--program", "jax") == 'benchmark.py: optax is not installed: pip install -e ".[peers]"'
    assert not (tmp_path / "out").exists()


def packed(names: list[str]) -> bytes:
    """An archive like the published one, with these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(f"{LEARN2LEARN}/{name}")
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    return buffer.getvalue()


@pytest.mark.parametrize("case", ["whole", "another", "outside"])
def test_download_is_verified_and_unpacked_within_its_folder(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = packed(
        ["learn2learn/algorithms/maml.py", "setup.py", *(["learn2learn/../../../evil"] if case == "outside" else [])]
    )

    def download(command: list[str], **_: Any) -> subprocess.CompletedProcess:
        Path(command[-1], f"{LEARN2LEARN}.tar.gz").write_bytes(content)
        return subprocess.CompletedProcess(command, 0)

    cache = tmp_path / "cache"
    monkeypatch.setattr(programs.subprocess, "run", download)
    monkeypatch.setattr(programs, "cache_folder", lambda name: cache)
    if case != "another":
        monkeypatch.setattr(programs, "LEARN2LEARN_SHA256", hashlib.sha256(content).hexdigest())
    if case == "whole":
        folder = programs.fetched_learn2learn()
        assert [str(p.relative_to(cache)) for p in cache.rglob("*.py")] == [
            f"{LEARN2LEARN}/learn2learn/algorithms/maml.py"
        ]
        content = b""
        assert programs.fetched_learn2learn() == folder  # and is not fetched twice
        return
    with pytest.raises(InputError, match="not learn2learn's published source" if case == "another" else "outside"):
        programs.fetched_learn2learn()
    assert not list(cache.iterdir())
    assert not list(tmp_path.rglob("evil"))


def test_time_of_a_part_within_another_counts_for_the_inner_one_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    class Learner:
        def fit(self) -> None:
            self.draw()  # before the first step: start-up
            for _ in range(2):
                wait(1)
                self.training_step()
            with pytest.raises(StopIteration):
                self.draw(end=True)

        def training_step(self) -> None:
            wait(10)
            self.draw()

        def draw(self, end: bool = False) -> None:
            wait(100)
            if end:
                raise StopIteration

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(benchmark_runs.time, "time", lambda: now)
    clock = benchmark_runs.Clock()
    for name, part in {"fit": "rest", "training_step": "meta_step", "draw": "data"}.items():
        clock.around(Learner, name, part)
    Learner().fit()
    assert (clock.first, clock.steps) == (101, 2)
    assert clock.spent == {"rest": 1, "meta_step": 20, "data": 300}


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("mode", ["false", "true"])
def test_whole_run_accounts_for_all_of_its_time(mode: str) -> None:
    run = benchmark_runs.timed_run("sinusoid", mode, True, "trainer.max_steps=200", f"algo.compile={mode}")
    assert (run["run"], run["mode"], run["steps"]) == ("sinusoid", mode, 200)
    assert run["startup_s"] > 1
    assert all(run[part] > 0 for part in benchmark_runs.PARTS)
    assert run["fit_ms"] == pytest.approx(sum(run[part] for part in benchmark_runs.PARTS))
    assert (run["compile_s"] or 0) > (0.5 if mode == "true" else -1)
    assert (run["compile_s"] is None) == (mode == "false")
    assert run["speed_of_bare"] == pytest.approx(run["bare_ms"] / run["fit_ms"])
    assert 0 < run["speed_of_bare"] < 1


def test_whole_runs_are_a_table_and_a_run_that_fails_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = {"first": time.time() + 5, "steps": 4, "compile_s": None, "bare_ms": 7.0}
    printed |= dict.fromkeys(benchmark_runs.PARTS, 2.0)
    calls: list[tuple[list[str], dict[str, str]]] = []

    def started(command: list[str], stdout: int, env: dict[str, str]) -> subprocess.CompletedProcess:
        calls.append((command, env))
        return subprocess.CompletedProcess(command, "data.root=/nowhere" in command, json.dumps(printed))

    monkeypatch.setattr(benchmark_runs.subprocess, "run", started)
    assert run(tmp_path, "--program", "innerloop", "--whole-run", "--omniglot", str(tmp_path)) == 0
    overrides = [set(command[3:]) for command, _ in calls]
    assert ["algo.compile=true" in each for each in overrides] == [False, True, True, False]
    assert f"data.root={tmp_path.resolve()}" in overrides[3]
    caches = [env.get("TORCHINDUCTOR_CACHE_DIR") for _, env in calls]
    assert caches[1] == caches[2] != caches[0]
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| sinusoid | compiled, warm ")]
    assert table[0].endswith(" | 0 | 14 | 7 | 0.5 | 2 | 2 | 2 | 2 | 2 | 2 | 2 |")
    rows = [row for row in json.loads((tmp_path / "benchmark.json").read_text()) if row["workload"] == "whole_run"]
    assert [(row["mode"], row["wall_ms"], row["detail"]["run"]) for row in rows] == [
        ("eager", 14, "sinusoid"),
        ("compiled, cold", 14, "sinusoid"),
        ("compiled, warm", 14, "sinusoid"),
        ("eager", 14, "omniglot"),
    ]
    assert run(tmp_path, "--program", "innerloop", "--whole-run", "--omniglot", "/nowhere") == 2
    assert "benchmark.py: this has failed: train.py " in capsys.readouterr().err


@pytest.mark.parametrize("program", programs.PROGRAMS)
def test_peers_have_torchs_batch_norm_and_innerloop_its_own(program: str, tmp_path: Path) -> None:
    if program in ("higher", "torchopt"):
        pytest.importorskip(program)
    programs.expose_learn2learn(stand_in(tmp_path))
    workload = WORKLOADS["omniglot_5w1s_stride_q1"].tiny()
    net = workload.net()
    parameters = list(net.parameters())
    programs.of(program, workload, net, {})
    norms = [m for m in net.modules() if isinstance(m, programs.BatchNorm | torch.nn.BatchNorm2d)]
    assert {type(m) for m in norms} == {programs.BatchNorm if program == "innerloop" else torch.nn.BatchNorm2d}
    assert len(norms) == 4
    assert all(p is q for p, q in zip(net.parameters(), parameters, strict=True))
