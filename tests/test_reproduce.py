"""scripts/reproduce.py: tables worked by hand from run directories made here, and two that it trains itself."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from test_compare import make_run

from innerloop.errors import InputError
from innerloop.runs import schemas
from innerloop.sweeps import table_pages, tables
from innerloop.sweeps.table_runs import run_all

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
PAGES = [path for path in sorted((ROOT / "docs").glob("*.md")) if "<!-- table: " in path.read_text(encoding="utf-8")]

schemas.register()

TABLE = tables.TableSpec(
    "toy",
    "data=sinusoid test.episodes=3",
    {
        "maml": tables.TableRow("algo=maml", (0, 1), ".470"),
        "fomaml": tables.TableRow("algo=fomaml"),
        "anil": tables.TableRow("algo=anil"),
    },
    "maml",
    [0],
)


def test_a_row_begins_with_the_runs_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed by seed, and after them, however many run at once."""
    rows = {
        "late": tables.TableRow("algo=hypernet init_from=row:early algo.freeze=body", (3, 4)),
        "early": tables.TableRow("algo=protonet", (3, 4)),
    }
    table = tables.TableSpec("toy", "data=sinusoid", rows, "early")
    late, early = (tables.jobs_of(table, tmp_path, row) for row in rows)
    for job, first in zip(late, early, strict=True):
        assert f"init_from={first.directory}" in job.overrides
        assert not any("row:" in override for override in job.overrides)
    begun: dict[Path, subprocess.Popen[bytes]] = {}

    def start(job: tables.TableJob) -> Any:
        assert job.after is None or begun[job.after].poll() == 0
        begun[job.directory] = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(.3)"])
        return begun[job.directory], open(os.devnull)

    monkeypatch.setattr("innerloop.sweeps.table_runs._start", start)
    assert not run_all([*late, *early], at_once=3)
    assert len(begun) == 4
    # Half-trained weights would be a wrong number.
    (early[0].directory / "checkpoints").mkdir(parents=True)
    (early[0].directory / "config.yaml").write_text("{}")
    with pytest.raises(InputError, match="early_seed3, which is not finished"):
        late[0].check()
    (early[0].directory / "results.json").write_text("{}")
    late[0].check()


def finished_run(
    runs: Path, row: str, seed: int, values: list[float], extra: tuple[str, ...] = (), **changes: Any
) -> None:
    """A finished run of TABLE; values: of its test episodes. changes: of its configuration, see `make_run`."""
    (runs / "toy").mkdir(exist_ok=True)
    path = make_run(runs / "toy" / f"{row}_seed{seed}", row, seed, values, **changes)
    (job,) = (j for j in tables.jobs_of(TABLE, runs, row, extra) if j.directory == path)
    (path / "overrides.yaml").write_text(yaml.safe_dump(job.overrides))
    results = json.loads((path / "results.json").read_text())
    results |= {"train_seconds": 8.0, "parameters": 1761, "peak_memory_mb": 300.2 + seed}
    results |= {"norm": "batch", "transductive": True, "queries": 15}
    results["test"]["by_step"] = [{"step": 0}, {"step": 1}]
    (path / "results.json").write_text(json.dumps(results))


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A folder in the place of the project: its README.md, its results, its runs."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "other.md").write_text("no table\n")
    (tmp_path / "README.md").write_text("before\n<!-- table: toy -->\nold\n<!-- end -->\nafter\n")
    return tmp_path


def write(house: Path) -> list[str]:
    pages = (house / "README.md", house / "other.md")
    return table_pages.write_tables([TABLE], house / "runs", house / "results", pages, ["toy"])


def table_of(house: Path) -> list[dict[str, str]]:
    with (house / "results" / "toy.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_hand_worked_csv_and_readme(house: Path) -> None:
    for seed, values in enumerate(([1.0, 2.0, 3.0], [3.0, 4.0, 5.0])):
        finished_run(house / "runs", "maml", seed, values)
    finished_run(house / "runs", "fomaml", 0, [3.0, 4.0, 7.0], extra=("data.root=/home/me",), data__root="/home/me")
    with pytest.raises(InputError, match=r"data\.root None and /home/me"):
        table_pages.csv_rows(TABLE, house / "runs")
    path = house / "runs" / "toy" / "fomaml_seed0"
    (path / "config.yaml").write_text((path.parent / "maml_seed0" / "config.yaml").read_text())
    (path / "overrides.yaml").write_text(
        yaml.safe_dump([*yaml.safe_load((path / "overrides.yaml").read_text()), "data.root=/home/me"])
    )
    assert write(house) == []
    maml, fomaml, anil = table_of(house)
    # The episodes' means over the seeds are 2, 3, 4; the seeds' are 2 and 4; 4 and 5 CPU seconds for 10 steps.
    expected = {"mean": "3", "ci95": "1.13161", "median": "3", "seed_spread": "1.41421", "seeds": "0 1"}
    expected |= {"test_step": "1", "steps": "10", "parameters": "1761", "cpu_seconds_per_1000": "450"}
    expected |= {"wall_seconds_per_1000": "800", "peak_memory_mb": "301.2", "norm": "batch (transductive)"}
    expected |= {"queries": "15", "test_episodes": "3", "published": ".470", "difference": "", "after_0": "50"}
    expected |= {
        "command": "python train.py -m data=sinusoid test.episodes=3 algo=maml trainer.threads=1 logger=csv seed=0,1"
    }
    assert {name: maml[name] for name in expected} == expected
    assert (fomaml["difference"], fomaml["difference_ci95"]) == ("1.66667", "1.30667")  # of 1, 1, 3
    assert fomaml["command"].endswith("algo=fomaml trainer.threads=1 logger=csv data.root=FOLDER seed=0")
    assert (anil["mean"], anil["seeds"], anil["test_step"]) == ("not run", "", "")
    readme = (house / "README.md").read_text().splitlines()
    assert (readme[0], readme[-1]) == ("before", "after")
    assert "meta-batches 10; test steps 1; test episodes 3; norm batch (transductive); queries 15" in "".join(readme)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in readme if line.startswith("|")]
    assert lines[0][:6] == ["", "MSE", "median", "paired difference", "seeds", "seed spread"]
    assert lines[2][:6] == ["`algo=maml`", "3.000 ± 1.132", "3.000", "", "0, 1", "1.414"]
    assert lines[3][:6] == ["`algo=fomaml`", "4.667 ± 2.356", "4.000", "+1.667 ± 1.307", "0", ""]
    assert lines[4] == ["`algo=anil`", "not run", *[""] * (len(lines[0]) - 2)]


def test_accuracies_are_percentages() -> None:
    row = {"mean": "0.97071", "ci95": "0.0029", "difference": "-0.0046", "difference_ci95": "0.0102"}
    row |= {"difference_over_seeds_ci95": "0.00716"}
    assert table_pages.page_cell(row, "mean", "accuracy") == "97.07 ± .29"
    assert table_pages.page_cell(row, "difference", "accuracy") == "-.46 ± 1.02"
    assert table_pages.page_cell(row, "difference_over_seeds_ci95", "accuracy") == "± .72"


FOLDED = tables.TableSpec(
    "toy",
    "data=sinusoid test.episodes=3",
    {"maml": tables.TableRow("algo=maml"), "anil": tables.TableRow("algo=anil")},
    "maml",
    also=["unadapted", "rmse"],
    folds=["data.fold=0", "data.fold=1"],
)


def folded_run(runs: Path, row: str, fold: int, values: list[float]) -> None:
    """A finished run of FOLDED on one of its test sets, whose RMSE is twice its MAE."""
    (runs / "toy").mkdir(exist_ok=True)
    (job,) = (j for j in tables.jobs_of(FOLDED, runs, row) if f"data.fold={fold}" in j.overrides)
    path = make_run(job.directory, row, 0, values, data__fold=fold)
    (path / "overrides.yaml").write_text(yaml.safe_dump(list(job.overrides)))
    results = json.loads((path / "results.json").read_text())
    results |= {"train_seconds": 8.0, "parameters": 7, "peak_memory_mb": 300.0 + fold, "metric": "mae"}
    results["test"] |= {"mae": {}, "by_step": [{"step": 0}, {"step": 1}]}
    (path / "results.json").write_text(json.dumps(results))
    lines = [f"{i},{step},{v},{2 * v}" for i, v in enumerate(values) for step, v in (("unadapted", v + 1), (1, v))]
    (path / "test_episodes.csv").write_text("\n".join(["episode,step,mae,rmse", *lines]) + "\n")


def test_a_table_over_several_test_sets_and_with_further_metrics(house: Path) -> None:
    runs = house / "runs"
    for row, values in (("maml", ([1.0, 2.0], [6.0])), ("anil", ([2.0, 4.0], [6.0]))):
        for fold, part in enumerate(values):
            folded_run(runs, row, fold, part)
    maml, anil = table_pages.csv_rows(FOLDED, runs)
    # Over the episodes of both: 1, 2, 6 and 2, 4, 6, whose differences are 1, 2, 0.
    assert (maml["mean"], maml["also_unadapted"], maml["also_rmse"], maml["by_fold"]) == (3, 4, 6, "1.500 / 6.000")
    assert maml["ci95"] == pytest.approx(1.96 * 7**0.5 / 3**0.5)
    assert (anil["mean"], anil["difference"], anil["also_rmse"], anil["by_fold"]) == (4, 1, 8, "3.000 / 6.000")
    assert anil["difference_ci95"] == pytest.approx(1.96 / 3**0.5)
    assert (anil["test_episodes"], anil["peak_memory_mb"], anil["cpu_seconds_per_1000"]) == (3, 301, 400)
    assert anil["command"] == (
        "python train.py -m data=sinusoid test.episodes=3 algo=anil trainer.threads=1 logger=csv data.fold=0,1 seed=0"
    )
    table_pages.write_csv(house / "toy.csv", [maml, anil])
    page = table_pages.markdown(FOLDED, house / "toy.csv")
    assert "`python train.py -m data=sinusoid test.episodes=3 trainer.threads=1 logger=csv data.fold=0,1`" in page
    assert "| `algo=anil` | 4.000 ± 2.263 | 3.000 / 6.000 | +1.000 ± 1.132 |" in page
    assert "before adaptation | RMSE" in page
    # Without the other test set a row is not finished.
    (runs / "toy" / "anil_fold1_seed0" / "results.json").unlink()
    assert table_pages.csv_rows(FOLDED, runs)[1]["mean"] == "not run"


def test_without_runs_nothing_is_invented(house: Path) -> None:
    assert write(house) == []
    assert [row["mean"] for row in table_of(house)] == ["not run"] * 3
    assert not any(re.search(r"\d", row["mean"] + row["ci95"] + row["steps"]) for row in table_of(house))


def test_without_runs_measured_results_are_kept(house: Path) -> None:
    finished_run(house / "runs", "maml", 0, [1.0, 2.0, 3.0])
    assert write(house) == []
    files = [house / "README.md", house / "results" / "toy.csv"]
    before = [path.read_bytes() for path in files]
    (house / "runs").rename(house / "elsewhere")
    (problem,) = write(house)
    assert problem.startswith("toy: there is no finished run in ")
    assert problem.endswith("toy.csv is kept as it is")
    assert [path.read_bytes() for path in files] == before


def test_runs_of_an_older_table_are_no_part_of_it(house: Path) -> None:
    finished_run(house / "runs", "maml", 0, [1.0, 2.0, 3.0])
    path = house / "runs" / "toy" / "maml_seed0"
    older = [o for o in yaml.safe_load((path / "overrides.yaml").read_text()) if o != "test.episodes=3"]
    (path / "overrides.yaml").write_text(yaml.safe_dump(older))
    (problem,) = write(house)
    assert "started without test.episodes=3" in problem
    (path / "results.json").unlink()
    jobs = tables.jobs_of(TABLE, house / "runs", "maml")[:1]
    (failed,) = run_all(jobs, 1)
    assert "started without test.episodes=3" in failed
    assert "old" in (house / "README.md").read_text()


def test_what_a_run_had_without_being_told_counts(house: Path) -> None:
    finished_run(house / "runs", "maml", 0, [1.0, 2.0, 3.0])
    path = house / "runs" / "toy" / "maml_seed0" / "overrides.yaml"
    path.write_text(yaml.safe_dump([o for o in yaml.safe_load(path.read_text()) if o != "seed=0"]))
    assert write(house) == []
    assert not tables.holds("seed=1", {"seed": 0})
    assert not tables.holds("seed.x=0", {"seed": 0})
    assert not tables.holds("algo=maml", {"algo": {"name": "maml"}})


def test_runs_tested_on_other_episodes_are_refused(house: Path) -> None:
    finished_run(house / "runs", "maml", 0, [1.0, 2.0, 3.0])
    finished_run(house / "runs", "fomaml", 0, [1.0, 2.0, 3.0], test__seed=1)
    (problem,) = write(house)
    assert "different episodes: test.seed 0 and 1" in problem
    assert not (house / "results").exists()


@pytest.mark.parametrize("readme", ["<!-- table: other -->\n<!-- end -->", "<!-- table: toy -->\n| 1 |\n"])
def test_markers_that_lead_nowhere_are_errors(readme: str) -> None:
    with pytest.raises(InputError, match="markers"):
        table_pages.rewritten(readme, {"toy": "| 2 |"}, ["toy"])


TABLES = tables.read_tables(ROOT / "scripts" / "tables")


@pytest.mark.parametrize("name", TABLES)
def test_every_row_composes(name: str) -> None:
    table, composed = TABLES[name], []
    plain = {f"algo={path.stem}" for path in (ROOT / "conf" / "algo").glob("*.yaml")}
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for row in table.rows:
            # Of the others, test_configuration.py composes the recipes.
            if row == table.reference or table.rows[row].set not in plain:
                composed.append((row, compose("train", [*table.overrides(row), *tables.EVERY_RUN])))
    # One budget, whatever a recipe says, but for rows that say another themselves, and the same test.
    assert len({(cfg.test.episodes, cfg.test.steps) for _, cfg in composed}) == 1
    own = [row for row in table.rows if {"max_steps", "experiment"} & set(re.findall(r"\w+", table.rows[row].set))]
    assert len({cfg.trainer.max_steps for row, cfg in composed if row not in own}) <= 1


def test_pages_say_what_the_csv_files_say() -> None:
    # Those of scripts/transfer.py are of runs that the page's own commands train.
    files = [path for path in RESULTS.glob("*.csv") if not path.stem.startswith("transfer_")]
    written = {path.stem: table_pages.markdown(TABLES[path.stem], path) for path in files}
    pages = [page.read_text() for page in PAGES]
    assert [table_pages.rewritten(page, written, list(TABLES)) for page in pages] == pages
    assert sorted(re.findall(r"<!-- table: (\S+) -->", "".join(pages))) == sorted(TABLES)


def test_sources_have_columns_of_their_own(house: Path) -> None:
    """Two sources in turns: a at episodes 0 and 2, b at 1 and 3."""
    for row, values in (("maml", [1.0, 5.0, 3.0, 5.0]), ("fomaml", [2.0, 4.0, 6.0, 5.0])):
        finished_run(house / "runs", row, 0, values)
        path = house / "runs" / "toy" / f"{row}_seed0" / "test_episodes.csv"
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0], "source"])
            writer.writeheader()
            writer.writerows(r | {"source": "ab"[int(r["episode"]) % 2]} for r in rows)
    assert write(house) == []
    first, second, _ = table_of(house)
    assert (float(first["on_a"]), first["on_a_difference"]) == (2.0, "")
    assert (float(second["on_a"]), float(second["on_a_difference"])) == (4.0, 2.0)
    # Values 2 and 6, differences 1 and 3.
    assert float(second["on_a_ci95"]) == pytest.approx(1.96 * 2, rel=1e-5)
    assert float(second["on_a_difference_ci95"]) == pytest.approx(1.96, rel=1e-5)
    page = (house / "README.md").read_text()
    assert "| on a | on b |" in page
    assert "4.000 ± 3.920 (+2.000 ± 1.960)" in page


def test_folders_go_to_data_that_have_them(tmp_path: Path) -> None:
    (job,) = tables.jobs_of(TABLE, tmp_path, "anil", ["data.root=x", "trainer.accelerator=cpu"])
    assert job.overrides[-1] == "trainer.accelerator=cpu"
    assert "data.root=x" not in job.overrides
    assert "data.roots.a=x" not in tables.jobs_of(TABLE, tmp_path, "anil", ["data.roots.a=x"])[0].overrides
    assert "data.roots.a=x" in tables.jobs_of(TABLES["mixture"], tmp_path, "protonet", ["data.roots.a=x"])[0].overrides
    assert "data.root=x" in tables.jobs_of(TABLES["omniglot_20w1s"], tmp_path, "maml", ["data.root=x"])[0].overrides


@pytest.mark.slow
def test_stopped_by_ctrl_c_it_goes_on_and_a_row_that_fails_stops_no_other(house: Path) -> None:
    folder = house / "tables"
    folder.mkdir()
    every = "data=sinusoid trainer.val_every=25 trainer.val_episodes=4 test.episodes=4"
    rows = {"maml": {"set": "algo=maml trainer.max_steps=150"}, "wrong": {"set": "algo=maml algo.nonsense=1"}}
    rows |= {"hypernet": {"set": "algo=hypernet trainer.max_steps=2"}}
    (folder / "toy.yaml").write_text(
        yaml.safe_dump({"every": every, "reference": "maml", "rows": rows}, sort_keys=False)
    )
    command = [sys.executable, str(ROOT / "scripts" / "reproduce.py"), "--runs", str(house / "runs")]
    command += ["--tables", str(folder), "--results", str(house / "results"), "--pages", str(house / "README.md")]
    run_dir = house / "runs" / "toy" / "maml_seed0"

    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not (run_dir / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130, out
    assert "Traceback" not in out
    assert "stopped after step" in Path(f"{run_dir}.log").read_text()
    assert not (run_dir / "results.json").exists()

    dry = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert dry[0] == f"python train.py resume={run_dir}"
    assert dry[2].startswith(f"python train.py {every} algo=hypernet trainer.max_steps=2 seed=0 ")

    done = subprocess.run([*command, "--jobs", "2"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "toy/maml seed 0: resumed" in done.stdout
    assert done.stderr.splitlines() == [f"reproduce.py: toy/wrong seed 0 failed, see {run_dir.parent}/wrong_seed0.log"]
    maml, wrong, hypernet = table_of(house)
    assert (maml["steps"], wrong["mean"], hypernet["steps"]) == ("150", "not run", "2")
    assert float(maml["peak_memory_mb"]) > 50
    assert "| `algo=hypernet trainer.max_steps=2` |" in (house / "README.md").read_text()
    again = subprocess.run([*command, "--only", "toy/maml", "toy/hypernet"], capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (0, "")
