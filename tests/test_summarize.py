"""scripts/summarize.py: sweeps made here, their tables worked by hand."""

import fcntl
import json
import math
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, run_script
from hydra.core.override_parser.overrides_parser import OverridesParser
from made_sweeps import (
    COMMON,
    Capsys,
    begun,
    figure_of,
    finished,
    refused,
    summarized,
    two_algorithms,
)

import innerloop.sweeps
from innerloop.errors import InputError
from innerloop.sweeps.read import read_sweep
from innerloop.sweeps.rows import STATES


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return two_algorithms(tmp_path)


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


def test_csv_markdown_and_terminal_say_the_same(sweep: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    rows = summarized(sweep)
    terminal = capsys.readouterr().out
    run_script("summarize", sweep, "--markdown")
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


def test_as_data_it_has_the_same_numbers(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = summarized(sweep, "--against", "algo=hypernet")
    monkeypatch.chdir(sweep.parent)
    found = innerloop.sweeps.summary(sweep.name, against="algo=hypernet")
    assert [row["algo"] for row in found] == ["maml", "hypernet"]
    assert found[1]["difference"] is None
    assert found[0]["difference"] == pytest.approx(-5 / 3)
    assert [row["best"] for row in found] == [None, True]
    for row, line in zip(found, written, strict=True):
        assert row.keys() == line.keys()
        numbers = {name: value for name, value in row.items() if isinstance(value, float)}
        assert {"test", "validation", "test_over_seeds_ci95", "test_over_episodes_ci95"} <= numbers.keys()
        assert {name: float(line[name]) for name in numbers} == pytest.approx(numbers, rel=1e-5)
    with pytest.raises(InputError, match="is no directory"):
        innerloop.sweeps.summary(sweep.parent / "nowhere")


def test_a_table_too_wide_goes_on_below(sweep: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = {}
    for width in (100, 60, 45):
        monkeypatch.setenv("COLUMNS", str(width))
        run_script("summarize", sweep)
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
    assert "2_maml-toy_seed1 is left out: another run has seed 1" in out
    assert "3_maml-toy_seed2 is left out: its settings or meta-batches differ from 0_maml-toy_seed0" in out


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
    states = [[row[state] for state in STATES] for row in rows]
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
    run_script("summarize", tmp_path, "--csv", tmp_path / "out.csv")
    out = capsys.readouterr().out
    assert ": 1 run, 1 running" in out
    assert "no run has recorded its overrides yet" in out
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
    assert [job.state for job in read_sweep(sweep).jobs][6:] == ["running", "failed", "failed"]


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
    "~traceback",
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
