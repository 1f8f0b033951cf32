"""scripts/summarize.py: sweeps made here, their tables worked by hand."""

import csv
import fcntl
import json
import math
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from test_compare import make_run

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import summarize  # noqa: E402
import sweep_jobs  # noqa: E402
import sweep_plots  # noqa: E402

COMMON = ("logger=csv", "trainer.max_steps=40")


def finished(
    sweep: Path,
    number: int,
    overrides: Sequence[str],
    values: Sequence[float],
    validation: float,
    metric: str = "mse",
    **changes: Any,
) -> Path:
    """A finished job. values: of its test episodes; changes: of its configuration, see `make_run`."""
    told = dict(o.partition("=")[::2] for o in overrides)
    algo, seed = told.get("algo", "maml"), int(told.get("seed", 0))
    path = make_run(sweep / f"{number}_{algo}-toy_seed{seed}", algo, seed, list(values), **changes)
    results = json.loads((path / "results.json").read_text())
    results["validation"] = {"step": 1, "episodes": 4, metric: {"mean": validation, "ci95": 0.5}}
    results["test"][metric] = results["test"].pop("mse")
    (path / "results.json").write_text(json.dumps(results))
    episodes = path / "test_episodes.csv"
    episodes.write_text(episodes.read_text().replace("mse", metric))
    record(path, overrides)
    return path


def begun(sweep: Path, number: int, overrides: Sequence[str], curve: Sequence[tuple[int, float]] = ()) -> Path:
    """A job that has validated so far: (meta-batches, value)."""
    path = sweep / f"{number}_job"
    path.mkdir()
    (path / "config.yaml").write_text("algo: {name: any}\n")
    record(path, overrides)
    write_curve(path, curve)
    return path


def record(path: Path, overrides: Sequence[str]) -> None:
    """Its own record names the sweep and its launcher, too."""
    (path / "overrides.yaml").write_text(yaml.safe_dump([*overrides, *COMMON, "launcher=joblib", "sweep='/a/sweep'"]))
    (path / "environment.json").write_text("{}")


def write_curve(path: Path, curve: Sequence[tuple[int, float]], metric: str = "mse") -> None:
    """metrics.csv as Lightning writes it: steps from 0, training and validation in rows of their own."""
    lines = [f"epoch,step,train/loss,val/{metric}"]
    for step, value in curve:
        lines += [f"0,{step - 1},3.5,", f"0,{step - 1},,{value}"]
    (path / "metrics.csv").write_bytes(("\r\n".join(lines) + "\r\n").encode())


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two algorithms with three seeds each. By validation the second is the better one, by test the first."""
    values = {
        ("maml", 0): ([1.0, 2.0, 3.0], 0.9),
        ("maml", 1): ([3.0, 4.0, 5.0], 1.1),
        ("maml", 2): ([2.0, 6.0, 4.0], 1.0),
        ("hypernet", 0): ([2.0, 3.0, 4.0], 0.5),
        ("hypernet", 1): ([5.0, 5.0, 8.0], 0.3),
        ("hypernet", 2): ([3.0, 7.0, 8.0], 0.4),
    }
    folder = tmp_path / "sweep"
    folder.mkdir()
    for number, ((algo, seed), (test, validation)) in enumerate(values.items()):
        path = finished(folder, number, [f"algo={algo}", f"seed={seed}"], test, validation)
        write_curve(path, [(10, 4.0 + seed), (20, 2.0 + validation)])
    return folder


Capsys = pytest.CaptureFixture[str]


def summarized(folder: Path, *flags: str) -> list[dict[str, str]]:
    """The rows of the CSV file."""
    out = folder.parent / "out.csv"
    summarize.main([str(folder), "--csv", str(out), *flags])
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


def refused(folder: Path, *flags: str) -> str:
    """The one line that the command ends with, at status 1: sys.exit prints a text and ends with it."""
    with pytest.raises(SystemExit) as end:
        summarize.main([str(folder), *flags])
    assert isinstance(end.value.code, str)
    assert "\n" not in end.value.code
    return end.value.code


def figure_of(kind: str, folder: Path) -> Figure:
    """bars, curves or parallel, of a sweep whose rows all have one metric."""
    found = sweep_jobs.read_sweep(folder)
    rows = summarize.report(found, None).rows
    metric = str(rows[0].metric)
    return sweep_plots.parallel(found, rows, metric) if kind == "parallel" else getattr(sweep_plots, kind)(rows, metric)


# Numbers.


def test_means_intervals_and_differences_are_those_worked_by_hand(sweep: Path) -> None:
    maml, hypernet = summarized(sweep)
    # maml: the seeds' means are 2, 4, 4, so mean 10/3, sd 1.154701; t at 97.5 % of 2 degrees of freedom is 4.302653:
    # 4.302653 * 1.154701 / sqrt(3) = 2.868435. Episodes averaged over seeds: 2, 4, 4 again, 1.96 * 1.154701 / sqrt(3).
    expected = {"test": 10 / 3, "test_over_seeds_ci95": 2.868435, "test_over_episodes_ci95": 1.306667}
    # Validation 0.9, 1.1, 1.0: sd 0.1, 4.302653 * 0.1 / sqrt(3) = 0.248414.
    expected |= {"validation": 1.0, "validation_over_seeds_ci95": 0.248414}
    assert {k: float(maml[k]) for k in expected} == pytest.approx(expected, rel=1e-5)
    assert maml["difference"] == maml["to"] == ""
    # hypernet: the seeds' means are 3, 6, 6, sd 1.732051. Episodes 10/3, 5, 20/3, sd 5/3: 1.96 * 1.666667 / 1.732051.
    expected = {"test": 5.0, "test_over_seeds_ci95": 4.302653, "test_over_episodes_ci95": 1.886013}
    # Seed by seed 1, 2, 2: mean 5/3, sd .577350. Episode by episode 4/3, 1, 8/3: sd .881917, 1.96 * .881917 / 1.732051.
    expected |= {"difference": 5 / 3, "difference_over_seeds_ci95": 1.434218}
    expected |= {"difference_over_episodes_ci95": 0.997976, "validation": 0.4}
    assert {k: float(hypernet[k]) for k in expected} == pytest.approx(expected, rel=1e-5)
    assert hypernet["to"] == "algo=maml"
    assert [maml["finished"], maml["running"], maml["seeds"]] == ["3", "", "0 1 2"]


def test_the_best_is_the_best_in_validation_and_not_in_test(sweep: Path, capsys: Capsys) -> None:
    maml, hypernet = summarized(sweep)
    assert float(maml["test"]) < float(hypernet["test"])
    assert (maml["best"], hypernet["best"]) == ("", "*")
    out = capsys.readouterr().out
    assert "best by validation: algo=hypernet (MSE .400 in validation, MSE 5.000 in the test)" in out
    assert "* is the best by the validation value, which alone chose it" in " ".join(out.split())
    assert f"\n  {hypernet['command']}\n" in out
    assert hypernet["command"] == "python train.py -m algo=hypernet logger=csv trainer.max_steps=40 seed=0,1,2"


def test_higher_accuracies_are_better_and_shown_in_percent(tmp_path: Path, capsys: Capsys) -> None:
    finished(tmp_path, 0, ["algo=maml"], [0.5, 0.7], 0.6, "accuracy")
    finished(tmp_path, 1, ["algo=anil"], [0.9, 0.7], 0.8, "accuracy")
    finished(tmp_path, 2, ["algo=boil"], [0.9, 0.9], math.nan, "accuracy")
    rows = summarized(tmp_path)
    assert [row["best"] for row in rows] == ["", "*", ""]
    out = capsys.readouterr().out
    # One seed: an interval over episodes alone, 1.96 * .141421 / sqrt(2) = .196, and no column over seeds.
    assert re.search(r"^anil \* +1 +80\.00 +80\.00 +± 19\.60 +\+20\.00 +± 39\.20$", out, re.M), out
    assert not re.search(r"\bseeds$|\bseeds  ", out.partition("\nalgo")[2].partition("\n")[0])
    assert "accuracy, %" in out
    assert rows[0]["test_over_seeds_ci95"] == ""
    figure = figure_of("bars", tmp_path)
    assert [bar.get_width() for bar in figure.axes[0].patches] == pytest.approx([60, 80, 90])
    assert figure.axes[0].get_xlabel() == "test accuracy, %"


def test_csv_markdown_and_terminal_say_the_same(sweep: Path, capsys: Capsys) -> None:
    rows = summarized(sweep)
    terminal = capsys.readouterr().out
    summarize.main([str(sweep), "--markdown"])
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert lines[0][:4] == ["algo", "done", "validation MSE", "test MSE"]
    assert lines[2:] == [
        ["maml", "3", "1.000", "3.333", "± 2.868", "± 1.307", "", "", ""][: len(lines[2])],
        ["hypernet *", "3", ".400", "5.000", "± 4.303", "± 1.886", "+1.667", "± 1.434", "± .998"],
    ]
    for name, column in (("validation", 2), ("test", 3)):
        assert [f"{float(row[name]):.3f}" for row in rows] == [f"{float(line[column]):.3f}" for line in lines[2:]]
    for line in lines[2:]:
        assert re.search("^" + " +".join(re.escape(cell) for cell in line if cell) + "$", terminal, re.M)


def test_a_table_too_wide_goes_on_below(sweep: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = {}
    for width in (100, 60, 45):
        monkeypatch.setenv("COLUMNS", str(width))
        summarize.main([str(sweep)])
        text = capsys.readouterr().out.partition("algo ")[2].partition("best by")[0]
        lines = [line for line in text.splitlines() if line.startswith(("maml", "hypernet"))]
        assert all(len(line) <= width for line in lines)
        assert len(lines) == 2 * {100: 1, 60: 2, 45: 3}[width], text
        cells[width] = re.findall(r"[±+]? ?[\d.]+", " ".join(lines))
    assert sorted(cells[100]) == sorted(cells[60]) == sorted(cells[45])


# Rows.


def test_a_row_is_named_by_what_was_swept(tmp_path: Path) -> None:
    for number, (rate, steps) in enumerate([("0.01", 1), ("0.012345678", 1), ("0.01", 5)]):
        told = [
            "data=toy",
            f"algo.inner_lr={rate}",
            f"algo.inner_steps={steps}",
            "logger=csv" if steps == 5 else "logger=wandb",
        ]
        finished(tmp_path, number, told, [1.0, 2.0 + number], 1.0)
    rows = summarized(tmp_path)
    names = ["inner_lr=0.01 inner_steps=1", "inner_lr=0.01235 inner_steps=1", "inner_lr=0.01 inner_steps=5"]
    assert [row["row"] for row in rows] == names
    assert [(row["algo.inner_lr"], row["algo.inner_steps"]) for row in rows][1:] == [
        ("0.012345678", "1"),
        ("0.01", "5"),
    ]
    assert "data" not in rows[0]


def test_names_stay_apart_where_rounding_or_the_last_part_would_join_them(tmp_path: Path) -> None:
    for number, told in enumerate(["algo.lr=0.1000001", "algo.lr=0.1000002"]):
        finished(tmp_path, number, [told, f"net.lr={number}"][: 2 - number], [1.0, 2.0 + number], 1.0)
    assert [row["row"] for row in summarized(tmp_path)] == ["algo.lr=0.1 net.lr=0", "algo.lr=0.1"]
    one = tmp_path / "one"
    one.mkdir()
    for number in (1, 2):
        finished(one, number, [f"algo.lr=0.100000{number}"], [1.0, 2.0 + number], 1.0)
    assert [row["row"] for row in summarized(one)] == ["lr=0.1000001", "lr=0.1000002"]


def test_seeds_alone_are_one_row(tmp_path: Path, capsys: Capsys) -> None:
    for seed in (0, 1):
        finished(tmp_path, seed, ["algo=maml", f"seed={seed}"], [1.0 + seed, 2.0], 1.0)
    (row,) = summarized(tmp_path)
    assert (row["row"], row["finished"], row["seeds"]) == ("algo=maml", "2", "0 1")
    assert "algo=maml *" in capsys.readouterr().out


def test_jobs_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number, algo in ((10, "c"), (9, "b"), (1, "a")):
        finished(tmp_path, number, [f"algo={algo}"], [1.0, 2.0], 1.0)
    assert [row["row"] for row in summarized(tmp_path)] == ["algo=a", "algo=b", "algo=c"]


def test_a_seed_counts_once_and_other_settings_not_at_all(tmp_path: Path, capsys: Capsys) -> None:
    finished(tmp_path, 0, ["algo=maml", "seed=0"], [1.0, 2.0], 1.0)
    finished(tmp_path, 1, ["algo=maml", "seed=1"], [3.0, 4.0], 1.0)
    finished(tmp_path, 2, ["algo=maml", "seed=1"], [9.0, 9.0], 1.0)
    finished(tmp_path, 3, ["algo=maml", "seed=2"], [9.0, 9.0], 1.0, trainer__max_steps=80)
    (row,) = summarized(tmp_path)
    assert (row["test"], row["seeds"]) == ("2.5", "0 1")
    out = capsys.readouterr().out
    assert "2_maml-toy_seed1 is left out: seed 1 once more" in out
    assert "3_maml-toy_seed2 is left out: its settings or meta-batches are not those of 0_maml-toy_seed0" in out


# What is compared with what.


def test_against_a_chosen_row(sweep: Path) -> None:
    maml, hypernet = summarized(sweep, "--against", "algo=hypernet")
    assert float(maml["difference"]) == pytest.approx(-5 / 3, rel=1e-5)
    assert (maml["to"], hypernet["difference"]) == ("algo=hypernet", "")


@pytest.mark.parametrize("text", ["hypernet", "algo=hyper", "algo='maml"])
def test_against_no_row(text: str, sweep: Path) -> None:
    assert refused(sweep, "--against", text).endswith("is no row of this sweep; there are: algo=maml; algo=hypernet")


def test_a_row_that_lacks_seeds_is_compared_on_those_that_both_have(sweep: Path) -> None:
    (sweep / "3_hypernet-toy_seed0" / "results.json").unlink()
    _, hypernet = summarized(sweep)
    # Seeds 1 and 2 of both: means 6 and 6 against 4 and 4, and not against 10/3. Over seeds: 2 and 2.
    assert [hypernet["test"], hypernet["difference"], hypernet["difference_over_seeds_ci95"]] == ["6", "2", "0"]
    # Episodes: 4, 6, 8 against 2.5, 5, 4.5, so 1.5, 1, 3.5: sd 1.322876, 1.96 * 1.322876 / 1.732051.
    assert float(hypernet["difference_over_episodes_ci95"]) == pytest.approx(1.496976, rel=1e-5)


def shots_sweep(folder: Path) -> Path:
    """maml and anil with 1 and 5 shots."""
    number = 0
    for shots in (1, 5):
        for algo, value in (("maml", 4.0), ("anil", 3.0)):
            told = [f"algo={algo}", f"data.shots={shots}"]
            finished(folder, number, told, [value / shots, 2.0], value / shots, data__shots=shots)
            number += 1
    return folder


def test_rows_that_do_not_pair_are_not_compared_and_it_says_why(tmp_path: Path, capsys: Capsys) -> None:
    rows = summarized(shots_sweep(tmp_path))
    assert [row["difference"] for row in rows] == ["", "-0.5", "", ""]
    assert [row["best"] for row in rows] == ["", "*", "", "*"], "validation values of other tasks do not compare"
    lines = capsys.readouterr().out.splitlines()
    assert (
        "no difference for algo=maml shots=5 and 1 more: tested on other episodes than algo=maml shots=1 "
        "(data.shots 1 and 5)" in lines
    )
    assert sum(line.startswith("best by validation") for line in lines) == 2


def test_each_kind_of_episodes_has_its_own_reference(tmp_path: Path) -> None:
    rows = summarized(shots_sweep(tmp_path), "--against", "algo=anil")
    assert [row["difference"] for row in rows] == ["0.5", "", "0.1", ""]
    assert [row["to"] for row in rows] == ["algo=anil shots=1", "", "algo=anil shots=5", ""]
    assert "more than one row: algo=maml shots=1; algo=anil shots=1" in refused(tmp_path, "--against", "data.shots=1")


def test_rows_of_two_metrics_each_say_theirs(tmp_path: Path, capsys: Capsys) -> None:
    finished(tmp_path, 0, ["data=sines"], [1.0, 2.0], 1.0)
    finished(tmp_path, 1, ["data=planes"], [0.5, 0.7], 0.6, "accuracy", data__name="planes")
    rows = summarized(tmp_path)
    assert [row["best"] for row in rows] == ["*", "*"]
    out = capsys.readouterr().out
    assert re.search(r"^planes \* +accuracy, % +1 +60\.00 +60\.00 ", out, re.M)
    assert re.search(r"^sines \* +MSE +1 +1\.000 +1\.500 ", out, re.M)
    assert {path.name for path in (tmp_path / "summary").iterdir()} == {"bars_mse.png", "bars_accuracy.png"}


# While it runs.


def test_a_running_sweep(sweep: Path, capsys: Capsys) -> None:
    names = [path.name for path in sorted(sweep.iterdir())] + [f"{n}_job" for n in range(6, 12)]
    pairs = [(algo, seed) for algo in ("maml", "hypernet", "hybrid", "anil") for seed in range(3)]
    jobs = [[f"algo={algo}", f"seed={seed}", *COMMON] for algo, seed in pairs]
    record = {"kind": "grid", "overrides": [], "jobs": jobs, "directories": names}
    (sweep / "sweep.yaml").write_text(yaml.safe_dump(record))
    running = begun(sweep, 6, ["algo=hybrid", "seed=0"], [(10, 2.5), (20, 1.25)])
    # A line that is being written: half of 1.125.
    with (running / "metrics.csv").open("a") as file:
        file.write("0,29,,1")
    failed = begun(sweep, 7, ["algo=hybrid", "seed=1"])
    (failed / "error.json").write_text(json.dumps({"type": "DivergedError", "error": "the loss is nan\nat step 3"}))
    stopped = sweep / "8_job"
    stopped.mkdir()
    (stopped / ".lock").write_text("123")
    held = (running / ".lock").open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    with held:
        rows = summarized(sweep)
    assert [row["row"] for row in rows] == ["algo=maml", "algo=hypernet", "algo=hybrid", "algo=anil"]
    states = [[row[state] for state in sweep_jobs.STATES] for row in rows]
    assert states == [["3", *[""] * 5], ["3", *[""] * 5], ["", "1", "1", "1", "", ""], ["", "", "", "", "", "3"]]
    assert (rows[2]["reached_step"], rows[2]["reached_validation"], rows[2]["test"]) == ("20", "1.25", "")
    out = capsys.readouterr().out
    assert out.startswith(f"{sweep}: 12 runs, 6 finished, 1 running, 1 stopped, 1 failed, 3 waiting\n")
    assert re.search(r"^hybrid +1 +1 +1 +\(1\.250 at 20\)$", out, re.M), out
    assert "failed: 7_job: DivergedError: the loss is nan\n" in out
    assert re.search(r"^running: 6_job after 20 meta-batches, MSE 1\.250, last written \d+ s ago$", out, re.M)
    assert "\nstopped: 8_job\n" in out
    assert rows[3]["command"] == "python train.py -m algo=anil logger=csv trainer.max_steps=40 seed=0,1,2"


def test_nothing_finished_yet(tmp_path: Path, capsys: Capsys) -> None:
    begun(tmp_path, 0, ["algo=maml"])
    begun(tmp_path, 1, ["algo=anil"])
    (tmp_path / "1_job" / "metrics.csv").write_text("")
    rows = summarized(tmp_path)
    assert [(row["running"], row["metric"], row["validation"]) for row in rows] == [("1", "", "")] * 2
    out = capsys.readouterr().out
    assert "2 runs, 2 running" in out
    assert "plots: none yet" in out
    assert "best by" not in out
    assert not (tmp_path / "summary").exists()


def test_before_the_first_record(tmp_path: Path, capsys: Capsys) -> None:
    (tmp_path / "0_job").mkdir()
    summarize.main([str(tmp_path), "--csv", str(tmp_path / "out.csv")])
    out = capsys.readouterr().out
    assert ": 1 run, 1 running" in out
    assert "no run has recorded yet" in out
    assert not (tmp_path / "out.csv").exists()


def test_half_written_records_are_survived(sweep: Path) -> None:
    (sweep / "sweep.yaml").write_text("directories: [6_job]\njobs:\n- [algo=maml, 'seed=")
    # Without environment.json a record may be half written: what is there could read as another configuration.
    half = begun(sweep, 6, ["algo=hybrid", "seed=0"])
    (half / "environment.json").unlink()
    (half / "overrides.yaml").write_text("- algo=hyb")
    broken = begun(sweep, 7, ["algo=maml", "seed=3"])
    (broken / "error.json").write_text('{"type": "Ru')
    (begun(sweep, 8, ["algo=maml", "seed=4"]) / "results.json").write_text("")
    rows = summarized(sweep)
    assert [(row["row"], row["finished"], row["failed"]) for row in rows] == [
        ("algo=maml", "3", "2"),
        ("algo=hypernet", "3", ""),
    ]
    assert [job.state for job in sweep_jobs.read_sweep(sweep).jobs][6:] == ["running", "failed", "failed"]


def test_pruned_runs_are_told_apart(sweep: Path, capsys: Capsys) -> None:
    pruned = begun(sweep, 6, ["algo=hybrid", "seed=0"], [(10, 9.0)])
    (pruned / "pruned.json").write_text(json.dumps({"step": 10, "value": 9.0, "metric": "val/mse"}))
    rows = summarized(sweep)
    assert [row["pruned"] for row in rows] == ["", "", "1"]
    assert re.search(r"^hybrid +1 +\(9\.000 at 10\)$", capsys.readouterr().out, re.M)


# The best again.

NASTY = [
    "net.hidden=[64,64]",
    "+algo.note='a b; c'",
    "logger.wandb.tags=[x,'y z']",
    "data.root='/tmp/it is $HOME'",
    "~debug",
]


def test_the_best_command_is_parsed_to_the_same_overrides(tmp_path: Path) -> None:
    for seed in (0, 3):
        finished(tmp_path, seed, ["algo=maml", f"seed={seed}", *NASTY], [1.0, 2.0], 1.0)
    (row,) = summarized(tmp_path)
    python, script, multirun, *overrides = shlex.split(row["command"])
    assert (python, script, multirun) == ("python", "train.py", "-m")
    parsed = {o.get_key_element(): o for o in OverridesParser.create().parse_overrides(overrides)}
    wanted = OverridesParser.create().parse_overrides(["algo=maml", *NASTY, *COMMON])
    assert {o.get_key_element(): o.value() for o in wanted} == {k: o.value() for k, o in parsed.items() if k != "seed"}
    assert parsed["seed"].sweep_string_iterator is not None
    assert list(parsed["seed"].sweep_string_iterator()) == ["0", "3"]


def test_one_seed_needs_no_multirun(tmp_path: Path) -> None:
    finished(tmp_path, 0, ["algo=maml", "seed=4"], [1.0, 2.0], 1.0)
    finished(tmp_path, 1, ["algo=anil"], [1.0, 2.0], 1.0)
    commands = [row["command"] for row in summarized(tmp_path)]
    assert commands[0] == "python train.py algo=maml logger=csv trainer.max_steps=40 seed=4"
    assert commands[1] == "python train.py algo=anil logger=csv trainer.max_steps=40 seed=0"


def test_a_configuration_that_has_changed_since_is_named(sweep: Path) -> None:
    shutil.copytree(ROOT / "conf", sweep / "conf")
    assert "--config-path" not in summarized(sweep)[0]["command"]
    (sweep / "conf" / "train.yaml").write_text("seed: 1\n")
    words = shlex.split(summarized(sweep)[0]["command"])
    assert words[:5] == ["python", "train.py", "--config-path", str(sweep / "conf"), "-m"]


# Optuna.


def search(folder: Path, finished_trials: int) -> Path:
    """A search over algo.inner_lr, which decides, and algo.inner_steps, which does not; a trial in each other state."""
    optuna = pytest.importorskip("optuna")
    state, create = optuna.trial.TrialState, optuna.trial.create_trial
    space = {
        "algo.inner_lr": optuna.distributions.FloatDistribution(1e-4, 1.0, log=True),
        "algo.inner_steps": optuna.distributions.IntDistribution(1, 5),
    }
    folder.mkdir(exist_ok=True)
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'study.db'}")
    study = optuna.create_study(storage=storage, study_name="study", direction="minimize")
    for n in range(finished_trials + 2):
        params = {
            "algo.inner_lr": float(10 ** -(4 * (n * 7 % finished_trials) / finished_trials)),
            "algo.inner_steps": 1 + n % 5,
        }
        value = abs(math.log10(params["algo.inner_lr"]) + 2) + 0.5
        told = [f"{key}={value}" for key, value in params.items()] + ["data=toy"]
        if n < finished_trials:
            directory = finished(folder, n, told, [value, value + 1], value)
            write_curve(directory, [(10, value + 1), (20, value)])
            end = {"value": value}
        else:
            directory = begun(folder, n, [o if "steps" not in o else "algo.inner_steps=9" for o in told], [(10, 7.0)])
            end = {"state": state.PRUNED if n == finished_trials else state.RUNNING}
            if n == finished_trials:
                (directory / "pruned.json").write_text(json.dumps({"step": 10, "value": 7.0}))
        study.add_trial(create(params=params, distributions=space, user_attrs={"directory": directory.name}, **end))
    study.add_trial(
        create(
            state=state.FAIL,
            params={"algo.inner_lr": 0.77, "algo.inner_steps": 8},
            distributions=space | {"algo.inner_steps": optuna.distributions.IntDistribution(1, 9)},
        )
    )
    study.enqueue_trial({"algo.inner_lr": 0.5})
    storage.remove_session()
    storage.engine.dispose()
    return folder


def test_a_search_is_sorted_by_validation_and_says_what_matters(tmp_path: Path, capsys: Capsys) -> None:
    rows = summarized(search(tmp_path / "s", 20))
    values = [float(row["validation"]) for row in rows if row["validation"]]
    assert values == sorted(values)
    assert len(values) == 20
    assert rows[0]["best"] == "*"
    assert [sum(int(row[s] or 0) for row in rows) for s in sweep_jobs.STATES] == [20, 1, 0, 1, 1, 0]
    assert [row["failed"] for row in rows if row["algo.inner_lr"] == "0.77"] == ["1"]
    out = capsys.readouterr().out
    assert "24 runs, 20 finished, 1 running, 1 failed, 1 pruned, 1 waiting\n" in out
    about, rate, steps = out[out.index("importances") :].splitlines()[:3]
    assert "best 25% of 20 finished trials (PED-ANOVA" in about
    assert rate.split()[1] == "algo.inner_lr"
    assert float(rate.split()[0].strip("%")) + float(steps.split()[0].strip("%")) == pytest.approx(100, abs=0.1)
    assert float(rate.split()[0].strip("%")) > 60
    # The best of the study is the best of the table, and its command has its exact values.
    (command,) = re.findall(r"^  (python train\.py .*)$", out, re.M)
    assert f"algo.inner_lr={rows[0]['algo.inner_lr']} " in command
    assert float(rows[0]["algo.inner_lr"]) == pytest.approx(0.01, rel=1e-9)


def test_few_trials_have_no_importances(tmp_path: Path, capsys: Capsys) -> None:
    summarized(search(tmp_path / "s", 3))
    assert "importances need 5 finished trials, there are 3" in capsys.readouterr().out


@pytest.mark.parametrize("tables", [False, True])
def test_a_search_that_just_began(tables: bool, tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    begun(tmp_path, 0, ["algo.inner_lr=0.1"])
    (tmp_path / "study.db").touch()
    if tables:
        optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'study.db'}").engine.dispose()
    before = (tmp_path / "study.db").read_bytes()
    assert [row["running"] for row in summarized(tmp_path)] == ["1"]
    assert (tmp_path / "study.db").read_bytes() == before, "who reads a search does not write its study"


def test_a_study_without_optuna_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(tmp_path, 0, ["algo.inner_lr=0.1"])
    (tmp_path / "study.db").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert 'pip install -e ".[sweep]"' in refused(tmp_path)


# What is no sweep.


def test_what_is_no_sweep_is_refused_in_one_line(tmp_path: Path, sweep: Path) -> None:
    assert "is no directory" in refused(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "is no sweep" in refused(tmp_path / "empty")
    assert "is no sweep" in refused(sweep / "0_maml-toy_seed0")


# Plots.


def test_bars_are_the_means_and_intervals_of_the_table(sweep: Path) -> None:
    rows = summarized(sweep)
    (ax,) = figure_of("bars", sweep).axes
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([float(row["test"]) for row in rows], rel=1e-5)
    (errors,) = (c for c in ax.containers if hasattr(c, "has_xerr"))
    assert errors.get_label() == "95 % interval over seeds"
    ends = [segment[:, 0] for segment in errors[2][0].get_segments()]
    for row, (low, high) in zip(rows, ends, strict=True):
        mean, half = float(row["test"]), float(row["test_over_seeds_ci95"])
        assert (low, high) == pytest.approx((mean - half, mean + half), rel=1e-4)
    (dots,) = (c for c in ax.collections if isinstance(c, PathCollection))
    assert np.asarray(dots.get_offsets())[:, 0].tolist() == [2, 4, 4, 3, 6, 6]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["algo=maml", "algo=hypernet"]
    assert [text.get_text() for text in ax.texts] == ["3.333 ± 2.868", "5.000 ± 4.303"]
    assert ax.get_xlabel() == "test MSE"
    assert ax.get_xlim()[0] == 0


def test_one_seed_has_bars_over_episodes_and_says_so(tmp_path: Path) -> None:
    finished(tmp_path, 0, ["algo=maml"], [1.0, 3.0], 1.0)
    rows = sweep_jobs.read_sweep(tmp_path).rows
    (ax,) = sweep_plots.bars(rows, "mse").axes
    (errors,) = (c for c in ax.containers if hasattr(c, "has_xerr"))
    assert errors.get_label() == "95 % interval over test episodes"
    assert errors[2][0].get_segments()[0][:, 0] == pytest.approx([2 - 1.96, 2 + 1.96])
    assert not [c for c in ax.collections if isinstance(c, PathCollection)]


def test_only_the_best_of_many_bars_are_drawn(tmp_path: Path) -> None:
    for number in range(sweep_plots.MOST_BARS + 3):
        finished(tmp_path, number, [f"algo.k={number}"], [1.0, 2.0], float((number * 7) % 43))
    rows = sweep_jobs.read_sweep(tmp_path).rows
    (ax,) = sweep_plots.bars(rows, "mse").axes
    worst = {f"k={number}" for number in range(43) if (number * 7) % 43 >= 40}
    assert {label.get_text() for label in ax.get_yticklabels()} == {row.name for row in rows} - worst
    assert "the best 40 of 43 by validation" in ax.get_title()


def test_curves_are_means_with_bands_from_the_lowest_to_the_highest_seed(sweep: Path) -> None:
    with (sweep / "0_maml-toy_seed0" / "metrics.csv").open("a") as file:
        file.write("0,29,,1.5\r\n")
    (ax,) = figure_of("curves", sweep).axes
    # Seeds 0, 1, 2 have 4, 5, 6 and then 2.9, 3.1, 3.0; beyond that the first goes on alone, dashed.
    maml, alone, hypernet = ax.lines
    assert maml.get_label() == "algo=maml (3 seeds)"
    assert maml.get_xydata() == pytest.approx(np.array([[10, 5.0], [20, 3.0]]))
    assert alone.get_xydata() == pytest.approx(np.array([[20, 2.9], [30, 1.5]]))
    assert alone.get_linestyle() == "--"
    assert alone.get_color() == maml.get_color() != hypernet.get_color()
    assert hypernet.get_xydata() == pytest.approx(np.array([[10, 5.0], [20, 2.4]]))
    band, _ = (c for c in ax.collections if isinstance(c, PolyCollection))
    corners = {tuple(point) for point in np.round(band.get_paths()[0].vertices, 9).tolist()}
    assert corners == {(10, 4), (10, 6), (20, 2.9), (20, 3.1)}
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("meta-batches", "validation MSE")


def test_more_curves_than_colours_leave_the_worst_grey(tmp_path: Path) -> None:
    for number in range(9):
        path = finished(tmp_path, number, [f"algo.k={number}"], [1.0, 2.0], float(number))
        write_curve(path, [(10, number + 1.0), (20, float(number + 1))])
    figure = sweep_plots.curves(sweep_jobs.read_sweep(tmp_path).rows, "mse")
    told = {text.get_text() for text in figure.legends[0].get_texts()}
    assert told == {f"k={number}" for number in range(6)} | {"the other 3"}
    assert len({line.get_color() for line in figure.axes[0].lines}) == 7


def test_what_runs_and_leads_is_coloured(tmp_path: Path) -> None:
    for number in range(8):
        write_curve(finished(tmp_path, number, [f"algo.k={number}"], [1.0], float(number + 1)), [(10, number + 1.0)])
    begun(tmp_path, 8, ["algo.k=8"], [(10, 0.5)])
    figure = sweep_plots.curves(sweep_jobs.read_sweep(tmp_path).rows, "mse")
    assert "k=8" in {text.get_text() for text in figure.legends[0].get_texts()}


def test_a_failed_seed_does_not_end_the_curve_of_the_others(sweep: Path) -> None:
    failed = begun(sweep, 6, ["algo=maml", "seed=9"], [(10, 99.0)])
    (failed / "error.json").write_text("{}")
    (ax,) = figure_of("curves", sweep).axes
    assert ax.lines[0].get_xydata() == pytest.approx(np.array([[10, 5.0], [20, 3.0]]))


def test_what_diverged_leaves_the_others_legible(tmp_path: Path) -> None:
    for number, value in enumerate([1.0, 2.0, 3.0, 1e30, math.inf]):
        told = [f"algo.lr={number}", f"net.width={number}"]
        write_curve(
            finished(tmp_path, number, told, [value, value], value), [(10, 4.0), (20, 1e32 if number == 3 else 2.0)]
        )
    figure = figure_of("bars", tmp_path)
    # The lower median of 1, 2, 3, 1e30 is 2: ten times that, and room for intervals.
    assert 20 <= figure.axes[0].get_xlim()[1] <= 50
    assert [bar.get_width() for bar in figure.axes[0].patches][:3] == [1, 2, 3]
    assert "goes on" in {text.get_text() for text in figure.legends[0].get_texts()}
    (ax,) = figure_of("curves", tmp_path).axes
    assert ax.get_ylim()[1] == pytest.approx(40)
    assert [text.get_text() for text in ax.texts] == ["what is above 40 is cut"]
    found = sweep_jobs.read_sweep(tmp_path)
    figure = sweep_plots.parallel(found, found.rows[:4], "mse")
    assert figure.axes[0].get_title().endswith("; 1 above 20 drawn there")
    assert figure.axes[1].get_ylim() == pytest.approx((1, 20))


def test_parallel_coordinates_go_through_the_values(tmp_path: Path) -> None:
    told = [("0.001", "a", 1.0), ("0.1", "b", 3.0), ("0.01", "a", 2.0)]
    for number, (rate, kind, value) in enumerate(told):
        finished(tmp_path, number, [f"algo.inner_lr={rate}", f"algo.kind={kind}"], [value, 2.0], value)
    found = sweep_jobs.read_sweep(tmp_path)
    figure = sweep_plots.parallel(found, found.rows, "mse")
    ax, bar = figure.axes
    lines = [line for line in ax.lines if len(line.get_xdata()) == 3]
    heights = {tuple(np.round(line.get_ydata(), 6).tolist()): line.get_color() for line in lines}
    # Rates on a logarithmic axis, categories at the middles of halves, MSE from 1 to 3. The two that share a category
    # are drawn a little apart there, the better one above.
    assert set(heights) == {(0, 0.256, 0), (1, 0.75, 1), (0.5, 0.244, 0.5)}
    assert len(set(map(tuple, heights.values()))) == 3
    # The last drawn, and so on top, is the best.
    assert lines[-1].get_ydata().tolist() == pytest.approx([0, 0.256, 0])
    names = [label.get_text() for label in ax.get_xticklabels()]
    assert names == ["inner_lr\n(log)", "kind", "validation MSE"]
    ticks = {(round(t.get_position()[0]), round(t.get_position()[1], 6), t.get_text()) for t in ax.texts}
    assert {(0, 0, "0.001"), (0, 0.5, "0.01"), (0, 1, "0.1"), (1, 0.25, "a"), (1, 0.75, "b")} <= ticks
    assert bar.get_ylabel() == "validation MSE"


@pytest.mark.parametrize(("metric", "best"), [("mse", 0.1), ("accuracy", 0.9)])
def test_the_best_line_is_the_darkest(metric: str, best: float, tmp_path: Path) -> None:
    for number, value in enumerate([0.1, 0.5, 0.9]):
        finished(tmp_path, number, [f"algo.lr={number}"], [value, value], value, metric)
    ax = figure_of("parallel", tmp_path).axes[0]
    light = {line.get_xydata()[0, 1]: sum(to_rgb(line.get_color())) for line in ax.lines if line.get_linewidth() == 1.5}
    assert min(light, key=light.__getitem__) == pytest.approx({0.1: 0, 0.9: 1}[best])


def test_axes_are_logarithmic_where_values_span_decades() -> None:
    assert sweep_plots.Coordinate.of(["1", "19"]).logarithmic is False
    assert sweep_plots.Coordinate.of(["0.5", "20"]).logarithmic is True
    assert sweep_plots.Coordinate.of(["0", "100"]).logarithmic is False
    assert sweep_plots.Coordinate.of(["2", "2"]).heights == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("kind", ["bars", "curves", "parallel"])
def test_nothing_is_cut_off(kind: str, tmp_path: Path) -> None:
    """Long names, many rows, wide intervals."""
    for number in range(12):
        told = [f"algo.a_rather_long_name={number}", f"net.hidden=[{64 + number // 2},64,64,64]", f"seed={number % 2}"]
        path = finished(tmp_path, number, told, [1.0, 2.0 + number], 1.0 + number)
        write_curve(path, [(10, number + 1.0), (2000, float(number + 1))])
    figure = figure_of(kind, tmp_path)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box, (width, height) = figure.get_tightbbox(canvas.get_renderer()), figure.get_size_inches()
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= width
    assert box.y1 <= height


def test_plots_go_where_they_are_told(sweep: Path, tmp_path: Path) -> None:
    summarize.main([str(sweep), "--plots", str(tmp_path / "elsewhere")])
    assert {path.name for path in (tmp_path / "elsewhere").iterdir()} == {"bars.png", "curves.png"}
    assert not (sweep / "summary").exists()
    # What an earlier summary left is no run of the sweep.
    summarize.main([str(sweep)])
    assert len(sweep_jobs.read_sweep(sweep).jobs) == 6
