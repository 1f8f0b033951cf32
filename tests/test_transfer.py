"""The table source -> target: its rows and commands, what is marked, and what cannot be."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT, run_script

from innerloop.errors import InputError
from innerloop.sweeps import transfer
from innerloop.sweeps.transfer import RANDOM, RAW, Cell, Target, cells, heat_map, in_cells, remarks, table_rows

NOISE = np.tile(np.linspace(-0.05, 0.05, 4), 10)


def finish(folder: Path, mean: float, algo: str = "protonet", data: str = "leaves", metric: str = "accuracy") -> Path:
    """The record of a finished test whose episodes have the same noise and this mean."""
    folder.mkdir(parents=True)
    results = {"algo": algo, "data": data, "seed": 0, "test": {"episodes": 40, "step": 0, metric: {"mean": mean}}}
    (folder / "results.json").write_text(json.dumps(results))
    dataset = {"dataset": "innerloop.datasets.omniglot.load"} if data == "omniglot" else {}
    config = {"data": {"name": data, "shots": 1} | dataset, "test": {"seed": 0}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rows = [[i, 0, mean + float(noise)] for i, noise in enumerate(NOISE)]
    with (folder / "test_episodes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["episode", "step", metric], *rows])
    return folder


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., list[Cell]]:
    """Returns the cells of two runs on one target whose tests had these means."""

    def made(target: str = "leaves", metric: str = "accuracy", **means: float) -> list[Cell]:
        runs = [finish(tmp_path / "runs" / d, 0.9, data=d, metric=metric) for d in ("omniglot", target)]
        found = cells(runs, [Target.of(target)], tmp_path / "out", ["inner"], 40, "tiny")
        names = {RAW: "raw", RANDOM: "random", "frozen tiny": "frozen", "protonet from omniglot": "omniglot"}
        for cell in found:
            if (name := names.get(cell.row, "own")) in means:
                finish(cell.job.directory, means[name], data=target, metric=metric)
        return found

    return made


def test_negative_transfer_is_marked_against_either_row(table: Callable[..., list[Cell]]) -> None:
    found = table_rows(cells_ := table(raw=0.8, random=0.6, frozen=0.9, omniglot=0.7, own=0.85))
    by_row = {row["row"]: row for row in found}
    assert {name: row["negative"] for name, row in by_row.items()} == {
        RAW: "",
        RANDOM: "",
        "frozen tiny": "",
        "protonet from omniglot": RAW,
        "protonet from leaves": "",
    }
    omniglot = by_row["protonet from omniglot"]
    # The noise is the same, so the paired intervals are zero.
    assert omniglot["to_raw"] == pytest.approx(-0.1)
    assert omniglot["to_raw_ci95"] == pytest.approx(0, abs=1e-12)
    assert (omniglot["to_random"], by_row["protonet from leaves"]["ceiling"]) == (pytest.approx(0.1), True)
    head, *lines = in_cells(found)
    assert head == ["test accuracy, %", "leaves"]
    assert dict(lines)["protonet from omniglot"].endswith("▼")
    assert "(ceiling)" in dict(lines)["protonet from leaves"]
    assert [line for line in remarks(cells_, found) if "▼" in line] == [
        "▼ protonet from omniglot on leaves: -10.00 ± .00 to raw inputs"
    ]


def test_of_errors_the_larger_is_the_worse(table: Callable[..., list[Cell]]) -> None:
    found = table_rows(table("sinusoid", "mse", raw=2.0, random=3.0, omniglot=2.5, own=0.5))
    assert {row["row"]: row["negative"] for row in found} == {
        RAW: "",
        RANDOM: "",
        "protonet from omniglot": RAW,
        "protonet from sinusoid": "",
    }


def test_what_is_not_run_is_said(table: Callable[..., list[Cell]]) -> None:
    found = in_cells(table_rows(table(raw=0.8, omniglot=0.7)))
    assert [line[0] for line in found[1:]] == [RAW, "protonet from omniglot"]


def test_a_difference_within_its_interval_is_no_negative_transfer(table: Callable[..., list[Cell]]) -> None:
    found = table(raw=0.8, omniglot=0.8)
    path = found[-2].job.directory / "test_episodes.csv"
    noisy = [[i, 0, 0.8 + n + d] for i, (n, d) in enumerate(zip(NOISE, np.tile([-0.3, 0.29], 20), strict=True))]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["episode", "step", "accuracy"], *noisy])
    row = table_rows(found)[-1]
    assert row["to_raw"] == pytest.approx(-0.005)
    assert row["negative"] == ""


def test_the_heat_map_has_a_cell_for_each_number(table: Callable[..., list[Cell]]) -> None:
    found = table_rows(table(raw=0.8, random=0.6, frozen=0.9, omniglot=0.7, own=0.85))
    ax = heat_map(found).axes[0]
    texts = [text.get_text() for text in ax.texts]
    assert texts == ["80.00", "60.00", "90.00", "70.00 ▼", "85.00"]
    assert len(ax.patches) == 1
    gains = ax.images[0].get_array()
    np.testing.assert_allclose(gains, [[0], [-20], [10], [-10], [5]], atol=1e-9)


def test_commands_say_everything(tmp_path: Path) -> None:
    run = finish(tmp_path / "run", 0.9, data="omniglot")
    target = Target.of("leaves data.root=leaves.zip data.size=28")
    assert target.label == "leaves size=28"
    found = {
        c.row: c.job for c in cells([run], [target], tmp_path, ["inner", "finetune"], 7, "tiny", ["adapt_steps=3"])
    }
    assert list(found) == [RAW, RANDOM, "frozen tiny", "protonet from omniglot", "protonet from omniglot, finetune"]
    common = ["data=leaves", f"data.root={Path('leaves.zip').resolve()}", "data.size=28", "test.episodes=7"]
    for job in found.values():
        assert set(common) <= set(job.overrides)
    assert found[RAW].script == "train.py"
    tuned = found["protonet from omniglot, finetune"]
    assert tuned.script == "evaluate.py"
    assert {f"run={run}", "adapt=finetune", "test.steps=validation", "adapt_steps=3"} <= set(tuned.overrides)
    assert not any("adapt_steps" in o for o in found["protonet from omniglot"].overrides)


@pytest.mark.parametrize(
    ("target", "data", "expected"),
    [
        ("sinusoid", {"frequency": [1.0, 1.0]}, True),
        ("sinusoid", {}, True),  # an older run
        ("sinusoid data.frequency=[1.5,2.5]", {"frequency": [1.0, 1.0]}, False),
        ("sinusoid data.frequency=[1.5,2.5]", {"name": "fast", "frequency": [1.5, 2.5]}, True),
        ("sinusoid data.shots=5", {"frequency": [1.0, 1.0], "shots": 10}, True),
        ("hyperplane", {"frequency": [1.0, 1.0]}, False),
    ],
)
def test_a_ceiling_is_trained_on_the_same_tasks(target: str, data: dict[str, Any], expected: bool) -> None:
    trained = {"name": "sinusoid", "_target_": "innerloop.tasks.sinusoid.Sinusoid"} | data
    assert Target.of(target).is_trained_on_by(trained) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "--to", "leafs"], "choose one of arrays, "),
        (["RUN", "--to", "leaves size=28"], "size=28 is no value of the data"),
        (["RUN", "RUN", "--to", "leaves"], "several runs are protonet from omniglot, seed 0"),
        (["RUN", "--to", "leaves", "--tables-only"], "there is no finished test in"),
        (["nowhere", "--to", "leaves"], "nowhere is no finished run"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "run_all", lambda *_: pytest.fail("nothing may start"))
    run = finish(tmp_path / "run", 0.9, data="omniglot")
    given = [str(run) if a == "RUN" else a for a in arguments]
    with pytest.raises(SystemExit) as end:
        run_script("transfer", *given, "--out", tmp_path / "out")
    assert message in str(end.value)
    assert not (tmp_path / "out").exists()


def test_other_episodes_and_other_tests_are_refused(table: Callable[..., list[Cell]]) -> None:
    found = table(raw=0.8, omniglot=0.7)
    with pytest.raises(InputError, match=r"was made without .*test.episodes=40"):
        found[-2].job.check()
    config = found[-2].job.directory / "config.yaml"
    config.write_text(config.read_text().replace("shots: 1", "shots: 5"))
    with pytest.raises(InputError, match=r"different episodes: data.shots"):
        table_rows(found)


def test_the_script_prints_and_writes_the_table(
    table: Callable[..., list[Cell]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    table(raw=0.8, random=0.6, frozen=0.9, omniglot=0.7, own=0.85)
    monkeypatch.setattr(transfer.TableJob, "check", lambda self: None)
    monkeypatch.setattr(transfer.Evaluation, "check", lambda self: None)
    runs = [tmp_path / "runs" / d for d in ("omniglot", "leaves")]
    more = ["--backbone", "tiny", "--adapt", "inner", "--out", tmp_path / "out", "--markdown"]
    run_script("transfer", *runs, "--to", "leaves", *more, "--csv", tmp_path / "t.csv", "--figure", tmp_path / "t.png")
    out = capsys.readouterr().out
    assert "| protonet from omniglot | 70.00 ± " in out
    assert "▼ protonet from omniglot on leaves: -10.00" in out
    with (tmp_path / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["negative"] for row in rows] == ["", "", "", RAW, ""]
    assert "run=FOLDER" in rows[3]["command"]
    assert (tmp_path / "t.png").stat().st_size > 5000


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("transfer_*.csv")), ids=lambda path: path.stem)
def test_the_page_has_the_numbers_of_the_files(path: Path) -> None:
    with path.open(newline="") as file:
        rows = [{**row, "mean": float(row["mean"]), "ci95": float(row["ci95"])} for row in csv.DictReader(file)]
    head, *lines = (f"| {' | '.join(cells)} |" for cells in in_cells(rows))
    page = (ROOT / "docs" / "transfer.md").read_text(encoding="utf-8").splitlines()
    start = page.index(head) + 2  # below the rule
    end = next(i for i, line in enumerate(page[start:], start) if not line.startswith("|"))
    assert page[start:end] == lines
